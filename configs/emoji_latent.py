"""Emoji from their names at 64x64, in the latents of the autoencoder of ``emoji_autoencoder.py``.

Latent diffusion whole, at the smallest scale: the autoencoder makes 16x16x3 of 64x64x3, and the model
has as many tokens as that of ``emoji_text.py`` has for pictures of a quarter of the size.

Command:   python -m dit.train --config=configs/emoji_autoencoder.py --workdir=runs/emoji_autoencoder
           python -m dit.train --config=configs/emoji_latent.py --workdir=runs/emoji_latent
           python -m dit.sample --workdir=runs/emoji_latent --guidance=2 --prompt="butterfly"
           python -m dit.evaluate --workdir=runs/emoji_latent --num=200 --split=train \\
               --features=efficientnet_lite0
Data:      as for emoji_text.py.
Expected:  not yet run.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "steps": 3000,
            "batch_size": 64,
            "data": {"name": "emoji", "size": 64, "skin_tones": False},
            "codec": {"name": "autoencoder_kl", "path": "runs/emoji_autoencoder"},
            "text": {
                "name": "bytes",
                "length": 48,
                "width": 64,
                "depth": 2,
                "heads": 2,
                "gives": "both",
            },
            "model": {
                "name": "dit",
                "depth": 6,
                "width": 128,
                "heads": 4,
                "patch": 2,
                "block": "adaln_cross",
                "positions": "sincos+rope",
                "qk_norm": True,
            },
            "path": {"name": "linear", "time_scale": 1000.0},
            "prediction": {"name": "velocity"},
            "times": {"name": "shifted", "shift": 2.0, "base": "logit_normal"},
            "objective": {"name": "denoise", "condition_dropout": 0.1},
            "optimizer": {"name": "muon", "lr": 4e-3, "betas": (0.9, 0.99), "clip": 1.0},
            "schedule": {"name": "wsd", "warmup": 200, "decay": 0.3},
            "ema": {"half_lives": (200.0,), "rampup": 0.1},
            "checkpoint": {"every": 500, "keep": 1},
            "log": {"every": 50},
            "samples": {
                "every": 1000,
                "num": 16,
                "solver": "heun",
                "steps": 20,
                "guidance": 2.0,
                "prompts": (
                    "butterfly",
                    "full moon",
                    "sailboat",
                    "mermaid",
                    "laptop",
                    "dumpling",
                    "bullet train",
                    "nerd face",
                    "woman surfing",
                    "potable water",
                    "ant",
                    "bell",
                    "school",
                    "mirror",
                    "bouquet",
                    "candy",
                ),
            },
        }
    )
