"""Wan2.1's text-to-video network of 1.4 billion parameters on 5 seconds of 480p, for a TPU v5p slice.

Clips of 81 frames of 832x480 are 21 latents of 60x104, 32,760 tokens. Captions are read within the step
by umT5-XXL, whose states past a caption's end are zeros that count as text. Flow matching, its times
shifted as for sampling.

Command:   python -m dit.train --config=configs/wan_1b_pod.py --workdir=gs://BUCKET/wan
           python -m dit.sample --workdir=gs://BUCKET/wan --mesh=fsdp+context
           --prompt="a red fox runs through snow" --out=fox.mp4
Published: --config.init_from.path=/mnt/data/wan/transformer --config.init_from.format=diffusers_wan
weights    --config.optimizer.lr=1e-5; with --config.lora.rank=32 maps of low rank beside them.
Data:      in config.data.path records of latents, (21, 60, 104, 16), that dit prepare makes of videos
           with --codec=wan_vae:path=/mnt/data/wan, and captions; in /mnt/data/wan, the vae, text_encoder
           and tokenizer of a Wan pipeline as diffusers saves it.
Check:     python -m dit.preflight --config=configs/wan_1b_pod.py --topology=v5p:4x4x4 \\
               --encoders=umt5-xxl
Hardware:  v5p:4x4x4, 9 of 96 GiB a chip as predicted in launch/README.md: the state is split over 16
           chips, the tokens of a clip over 4. Not yet run.
Expected:  not yet run.
"""

from ml_collections import ConfigDict

WAN = "/mnt/data/wan"


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "steps": 100_000,
            "batch_size": 64,
            "data": {
                "name": "records",
                "path": "/mnt/data/clips",
                "shape": (21, 60, 104, 16),
            },
            "loader": {"workers": 8, "prefetch": 4},
            "codec": {"name": "wan_vae", "path": f"{WAN}/vae"},
            "text": {
                "name": "pretrained",
                "encoders": (
                    {
                        "name": "t5",
                        "path": f"{WAN}/text_encoder",
                        "length": 512,
                        "padding": "zeros",
                    },
                ),
            },
            "model": {"name": "wan", "size": "Wan2.1-T2V-1.3B", "remat": "full"},
            "mesh": {"preset": "hsdp+context"},
            "path": {"name": "linear", "time_scale": 1000.0},
            "prediction": {"name": "velocity"},
            "times": {"name": "shifted", "shift": 3.0, "base": "logit_normal"},
            "objective": {"name": "denoise", "condition_dropout": 0.1},
            "optimizer": {"name": "adamw", "lr": 1e-4, "betas": (0.9, 0.95), "clip": 1.0},
            "schedule": {"name": "warmup_constant", "warmup": 2000},
            "ema": {"half_lives": (6931.0,)},
            "checkpoint": {"every": 1000, "keep": 3},
            "log": {"every": 50},
            "samples": {
                "every": 0,
                "num": 4,
                "solver": "unipc",
                "grid": "shifted:shift=3",
                "steps": 50,
                "guidance": 5.0,
                "prompts": (
                    "a red fox runs through snow",
                    "waves break on a rocky coast at dusk",
                    "a hand turns the pages of a book",
                    "a paper boat floats down a stream",
                ),
            },
        }
    )
