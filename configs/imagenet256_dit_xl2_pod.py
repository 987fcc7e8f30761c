"""DiT-XL/2 on ImageNet 256x256 on a TPU pod slice of 64 to 256 chips: eight images or more a chip.

Command:   python -m dit.prepare, as imagenet256_dit_xl2 says, and then
           python -m dit.train --config=configs/imagenet256_dit_xl2_pod.py --workdir=DIR
Check:     python -m dit.preflight --config=configs/imagenet256_dit_xl2_pod.py --topology=v5e:16x16
           python -m dit.preflight --config=configs/imagenet256_dit_xl2_pod.py --topology=v6e:16x16
           python -m dit.preflight --config=configs/imagenet256_dit_xl2_pod.py --topology=v5p:4x4x4 \\
               --config.batch_size=1024
Hardware:  v5e:16x16, v6e:16x16, and v5p:4x4x4 with --config.batch_size=1024: it compiles for all three
           and fits them (launch/README.md). Not yet run.
Expected:  the recipe of imagenet256_dit_xl2 at eight times its batch; the rate grows with the square
           root of that. Not yet run.
"""

from imagenet256_dit_xl2 import get_config as xl2
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = xl2()
    config.batch_size = 2048
    config.steps = 50_000
    config.optimizer.lr = 2.8e-4
    config.schedule = ConfigDict({"name": "warmup_constant", "warmup": 1000})
    config.mesh = ConfigDict({"preset": "hsdp"})
    config.model.unroll = True
    config.model.remat = "none"  # what a layer keeps fits: 8 images a chip
    return config
