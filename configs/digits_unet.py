"""Handwritten digits by a U-Net: ``configs/digits.py`` with the network that transformers replaced.

Command:   python -m dit.train --config=configs/digits_unet.py --workdir=runs/digits_unet
Data:      scikit-learn's 1,797 real digits, embedded in that package; 297 are held out.
Hardware:  two CPU cores.
Expected:  not yet run.
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
                "name": "unet",
                "depth": 1,
                "width": 32,
                "multipliers": (1, 2),
                "attention_levels": (1,),
                "heads": 2,
                "norm_groups": 8,
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
