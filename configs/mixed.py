"""Images of three aspect ratios and clips of two lengths, of moving digits, in one run.

Command:   python -m dit.train --config=configs/mixed.py --workdir=runs/mixed
Data:      from a seed; the digits are scikit-learn's, embedded in that package. Each batch is of one of
           five shapes, and each example comes once in an epoch.
Expected:  not yet run.
"""

from ml_collections import ConfigDict


def part(frames: int, height: int, width: int, clips: int) -> dict:
    return {
        "name": "moving_digits",
        "frames": frames,
        "size": (height, width),
        "side": 12,
        "speed": (0.3, 0.9),
        "clips": clips,
        "held_out_clips": 200,
    }


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "steps": 3000,
            "batch_size": 64,
            "data": {
                "name": "mixture",
                "parts": (
                    part(1, 16, 16, 8000),
                    part(1, 16, 24, 6000),
                    part(1, 24, 16, 6000),
                    part(4, 16, 16, 5000),
                    part(8, 16, 16, 3000),
                ),
            },
            "codec": {"name": "pixel"},
            "model": {
                "name": "dit",
                "block": "modern",
                "depth": 4,
                "width": 128,
                "heads": 4,
                "patch": (1, 4, 4),
                "positions": "rope",
            },
            "path": {"name": "linear", "time_scale": 1000.0},
            "prediction": {"name": "x0"},
            "times": {"name": "shifted", "shift": 2.5, "base": "logit_normal"},
            "objective": {"name": "denoise", "condition_dropout": 0.1},
            "optimizer": {"name": "adamw", "lr": 1.5e-3, "betas": (0.9, 0.99), "clip": 1.0},
            "schedule": {"name": "warmup_cosine", "warmup": 100},
            "ema": {"half_lives": (200.0,), "rampup": 0.1},
            "checkpoint": {"every": 1000, "keep": 3},
            "log": {"every": 50},
            "samples": {
                "every": 1000,
                "num": 10,
                "solver": "heun",
                "grid": "shifted:shift=2.5",
                "steps": 20,
                "guidance": 3.0,
            },
        }
    )
