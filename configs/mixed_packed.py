"""The images and clips of ``configs/mixed.py``, packed into rows of 256 tokens: one compiled step.

Command:   python -m dit.train --config=configs/mixed_packed.py --workdir=runs/mixed_packed
Data:      as there. A step sees about 64 examples of all five shapes, in ten rows.
Expected:  not yet run to the end; of the tokens of the first 80 steps 1.1% were padding.
"""

from mixed import get_config as mixed
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = mixed()
    config.batch_size = 10
    config.packing = ConfigDict({"tokens": 256})
    return config
