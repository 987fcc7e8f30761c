"""DiT-L/2 on ImageNet 256x256: the recipe of imagenet256_dit_xl2, smaller.

Command:   python -m dit.prepare, as imagenet256_dit_xl2 says, and then
           python -m dit.train --config=configs/imagenet256_dit_l2.py --workdir=DIR
Expected:  FID-50K 23.33 after 400K steps without guidance (Peebles & Xie 2023, table 4). Not yet run
           here.
"""

from imagenet256_dit_xl2 import get_config as xl2
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = xl2()
    config.model.size = "L/2"
    return config
