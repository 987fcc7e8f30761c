"""Coloured shapes, 8x8, streamed: the base of the scaling law in the README's tables.

Command:   python -m dit.scaling plan --config=configs/shapes.py --dir=DIR --smallest=1e4
           --largest=1.16e5 --sizes=5 --per-budget=4 --head-dim=8 --aspect=24 --slack=1 --least-depth=3
           --ratio=15 --seeds=2 --budgets=5e10,1.25e11,3.1e11 --held-out=3
           --lrs=4e-3,8e-3,1.6e-2,3.2e-2 --flops-per-second=1.2e10 --start-seconds=10
           python -m dit.scaling run --dir=DIR, then report
Expected:  34 runs, 6.3e12 FLOPs, 12 min 22 s on two CPU cores: least losses .338, .297 and .276 at the
           three budgets, and a run at three times the largest predicted to 1%. Rows and report are in
           notebooks/results/06_scaling_laws.
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
