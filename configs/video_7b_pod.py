"""A 6.8-billion-parameter DiT on clips of 32,768 latent tokens, for a TPU v5p slice of 64 chips.

Command:   python -m dit.train --config=configs/video_7b_pod.py --workdir=DIR
Check:     python -m dit.preflight --config=configs/video_7b_pod.py --topology=v5p:4x4x4
Data:      config.data.path holds latents.npy (n, 32, 64, 64, 16) of unit variance, and labels.npy.
Hardware:  v5p:4x4x4: the state is split over 16 chips, the tokens of a clip over 4. Not yet
           run; compiled for it, it needs 12 GiB a chip.
Expected:  not yet run.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "steps": 200_000,
            "batch_size": 16,
            "data": {
                "name": "latents",
                "path": "data/video",
                "num_classes": 1000,
                "shape": (32, 64, 64, 16),
            },
            "loader": {"workers": 8, "prefetch": 4},
            "codec": {"name": "latent", "scale": 1.0},
            "model": {
                "name": "dit",
                "depth": 40,
                "width": 3072,
                "heads": 24,
                "patch": (1, 2, 2),
                "positions": "rope",
                "qk_norm": True,
                "remat": "full",
            },
            "mesh": {"preset": "hsdp+context"},
            "path": {"name": "linear", "time_scale": 1000.0},
            "prediction": {"name": "velocity"},
            "times": {"name": "shifted", "shift": 5.0, "base": "logit_normal"},
            "objective": {"name": "denoise", "condition_dropout": 0.1},
            "optimizer": {"name": "adamw", "lr": 1e-4, "betas": (0.9, 0.95), "clip": 1.0},
            "schedule": {"name": "warmup_constant", "warmup": 2000},
            "ema": {"half_lives": (6931.0,)},
            "checkpoint": {"every": 1000, "keep": 3},
            "log": {"every": 50},
            "samples": {"every": 0, "solver": "heun", "grid": "shifted:shift=5", "steps": 30},
        }
    )
