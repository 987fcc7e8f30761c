"""Moving scenes, frame by frame and without end: diffusion forcing of a frame-causal model.

Clips of 9 frames, 24x24, 8 a second, as in ``world.py``; every frame has a noise level of its own
(objective.level), and no token sees a later frame, so that clips of any length are rolled out with a
cache of keys and values, or by any other schedule of noise levels. With
``--config.objective.name=teacher_forcing`` frames are denoised after clean ones instead, at twice the
tokens and for rollouts of one frame after another alone.

Command:   python -m dit.train --config=configs/world_forcing.py --workdir=runs/forcing
           python -m dit.sample --workdir=runs/forcing --prompt="a red circle moves left" --frames=40
             --rollout=autoregressive:cache=true,sinks=1,noise=0.05 --out=long.mp4
           python -m dit.evaluate --workdir=runs/forcing --num=64 --frames=36
             --rollout=autoregressive:cache=true,sinks=1,noise=0.05
Data:      filmed from a seed, without end.
Expected:  not yet run to its end, and nothing is known of how long its rollouts stay as they began.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "steps": 2500,
            "batch_size": 32,
            "data": {
                "name": "world",
                "frames": 9,
                "size": 24,
                "fps": 8.0,
                "kinds": ("drift", "fall"),
                "textures": False,
                "radii": (5.0, 6.5),
            },
            "codec": {"name": "pixel"},
            "text": {
                "name": "bytes",
                "length": 64,
                "width": 64,
                "depth": 2,
                "heads": 2,
                "gives": "both",
            },
            "model": {
                "name": "dit",
                "depth": 6,
                "width": 144,
                "heads": 4,
                "patch": (1, 8, 8),
                "block": "adaln_cross",
                "positions": "rope",  # nothing that is added says where in the clip a frame is
                "frame_causal": True,
                "qk_norm": True,
            },
            "path": {"name": "linear", "time_scale": 1000.0},
            # A token holds 192 numbers: x_0 lies on few of their dimensions, the noise on all of them.
            "prediction": {"name": "x0"},
            "times": {"name": "shifted", "shift": 2.5, "base": "logit_normal"},
            "objective": {"name": "denoise", "condition_dropout": 0.1, "level": "frame"},
            "optimizer": {"name": "muon", "lr": 4e-3, "betas": (0.9, 0.99), "clip": 1.0},
            "schedule": {"name": "wsd", "warmup": 200, "decay": 0.3},
            "ema": {"half_lives": (200.0,), "rampup": 0.1},
            "checkpoint": {"every": 500, "keep": 1},
            "log": {"every": 50},
            "samples": {
                "every": 1000,
                "num": 4,
                "solver": "heun",
                "grid": "shifted:shift=2.5",
                "steps": 10,
                "guidance": 3.0,
                "rollout": "autoregressive:cache=true",
                "frames": 18,
                "prompts": (
                    "a red circle moves left quickly",
                    "a blue square moves right slowly",
                    "a green star falls",
                    "a yellow ring moves up quickly",
                ),
            },
        }
    )
