"""Handwritten digits by a U-Net: ``configs/digits.py`` with the network that transformers replaced.

Command:   python -m dit.train --config=configs/digits_unet.py --workdir=runs/digits_unet
Data:      scikit-learn's 1,797 real digits, embedded in that package; 297 are held out.
Hardware:  two CPU cores.
Expected:  not yet run.
"""

from digits import get_config as digits
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = digits()
    config.model = ConfigDict(
        {
            "name": "unet",
            "depth": 1,
            "width": 32,
            "multipliers": (1, 2),
            "attention_levels": (1,),
            "heads": 2,
            "norm_groups": 8,
        }
    )
    return config
