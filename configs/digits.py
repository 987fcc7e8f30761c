"""Handwritten digits, 8x8 grey: the job that runs anywhere, in minutes on two CPU cores.

Command:   python -m dit.train --config=configs/digits.py --workdir=runs/digits
Data:      scikit-learn's 1,797 real digits, embedded in that package; 297 are held out.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "steps": 2500,
            "batch_size": 64,
            "data": {"name": "digits"},
            "codec": {"name": "pixel"},
            "model": {
                "name": "dit",
                "block": "modern",
                "depth": 4,
                "width": 96,
                "heads": 3,
                "patch": 2,
                "positions": "rope",
            },
            "path": {"name": "linear", "time_scale": 1000.0},
            "prediction": {"name": "velocity"},
            "times": {"name": "logit_normal"},
            "weight": {"name": "none"},
            "objective": {"name": "denoise", "condition_dropout": 0.1},
            "optimizer": {
                "name": "adamw",
                "lr": 2e-3,
                "betas": (0.9, 0.99),
                "weight_decay": 0.01,
                "clip": 1.0,
            },
            "schedule": {"name": "warmup_cosine", "warmup": 100},
            "ema": {"half_lives": (200.0,), "rampup": 0.1},
            "checkpoint": {"every": 500, "keep": 3},
            "log": {"every": 50},
            "samples": {"every": 500, "num": 100, "solver": "heun", "steps": 20, "guidance": 2.0},
        }
    )
