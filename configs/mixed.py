"""Images of three aspect ratios and clips of two lengths, of moving digits, in one run.

Command:   python -m dit.train --config=configs/mixed.py --workdir=runs/mixed
Data:      from a seed; the digits are scikit-learn's, embedded in that package. Each batch is of one of
           five shapes, and each example comes once in an epoch; in ``mixed_packed.py`` of all five.
Expected:  run for 2,000 steps (--config.steps=2000): loss .088; the digits are legible in all five
           shapes, eights blurred. Not yet run to the end.
"""

from ml_collections import ConfigDict
from moving_digits import get_config as moving_digits


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
    config = moving_digits()
    config.steps = 3000
    parts = (
        part(1, 16, 16, 8000),
        part(1, 16, 24, 6000),
        part(1, 24, 16, 6000),
        part(4, 16, 16, 5000),
        part(8, 16, 16, 3000),
    )
    config.data = ConfigDict({"name": "mixture", "parts": parts})
    config.model.update({"depth": 4, "width": 128, "heads": 4, "patch": (1, 4, 4)})
    return config
