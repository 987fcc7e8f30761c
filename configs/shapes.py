"""Coloured shapes, 8x8, streamed: the base of the scaling law in the README's tables.

Command:   python -m dit.scaling plan --config=configs/shapes.py --dir=DIR --smallest=7e3 --largest=2.4e5
           --head-dim=16 --aspect=16 --budgets=3e10,1e11,3e11 ..., then run, then report
Expected:  not yet run.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "steps": 1000,
            "batch_size": 64,
            "data": {"name": "shapes"},
            "codec": {"name": "pixel"},
            "model": {"name": "dit", "depth": 2, "width": 48, "heads": 3, "patch": 2},
            "path": {"name": "linear", "time_scale": 1000.0},
            "prediction": {"name": "velocity"},
            "times": {"name": "uniform"},
            "objective": {"name": "denoise", "condition_dropout": 0.1},
            "optimizer": {"name": "adamw", "lr": 2e-3, "betas": (0.9, 0.99), "clip": 1.0},
            "schedule": {"name": "wsd", "warmup": 20, "decay": 0.3},
            "ema": {"half_lives": (100.0,), "rampup": 0.1},
            "checkpoint": {"every": 500, "keep": 1},
            "log": {"every": 50},
            "samples": {"every": 0, "num": 25, "solver": "heun", "steps": 20, "guidance": 1.0},
        }
    )
