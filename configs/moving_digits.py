"""Moving digits: clips of 8 frames, 16x16, of real handwritten digits that drift and bounce.

Command:   python -m dit.train --config=configs/moving_digits.py --workdir=runs/moving_digits
Data:      streamed from a seed; the digits are scikit-learn's, embedded in that package.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "steps": 5000,
            "batch_size": 64,
            "data": {"name": "moving_digits", "frames": 8, "size": 16},
            "codec": {"name": "pixel"},
            "model": {
                "name": "dit",
                "block": "modern",
                "depth": 6,
                "width": 128,
                "heads": 4,
                "patch": (2, 4, 4),
                "positions": "rope",
            },
            "path": {"name": "linear", "time_scale": 1000.0},
            "prediction": {"name": "velocity"},
            "times": {"name": "logit_normal"},
            "objective": {"name": "denoise", "condition_dropout": 0.1},
            "optimizer": {"name": "adamw", "lr": 2e-3, "betas": (0.9, 0.99), "clip": 1.0},
            "schedule": {"name": "warmup_cosine", "warmup": 200},
            "ema": {"half_lives": (200.0,), "rampup": 0.1},
            "checkpoint": {"every": 1000, "keep": 3},
            "log": {"every": 50},
            "samples": {"every": 1000, "num": 10, "solver": "heun", "steps": 25, "guidance": 2.0},
        }
    )
