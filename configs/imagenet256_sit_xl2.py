"""SiT-XL/2 on ImageNet 256x256: DiT's recipe with the straight path and the velocity.

Command:   python -m dit.prepare, as imagenet256_dit_xl2 says, and then
           python -m dit.train --config=configs/imagenet256_sit_xl2.py --workdir=DIR
Weights:   the published ones, whose clock and sign are turned, by dit convert --from=sit_original.
Expected:  FID-50K 17.2 after 400K steps without guidance, 8.3 after 7M; 2.06 with guidance 1.5 (Ma et
           al. 2024, tables 1 and 8). Not yet run here.
"""

from imagenet256_dit_xl2 import get_config as dit_xl2
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = dit_xl2()
    config.model.learn_sigma = False  # theirs has the channels and drops them
    config.path = ConfigDict({"name": "linear"})
    config.prediction = ConfigDict({"name": "velocity"})
    config.times = ConfigDict({"name": "uniform"})
    config.samples.update({"solver": "euler_maruyama", "grid": "uniform"})
    return config
