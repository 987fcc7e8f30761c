"""Emoji from their names at 64x64, in the latents of the autoencoder of ``emoji_autoencoder.py``.

Latent diffusion whole, at the smallest scale: the autoencoder makes 16x16x3 of 64x64x3, and the model
has as many tokens as that of ``emoji_text.py`` has for pictures of a quarter of the size.

Command:   python -m dit.train --config=configs/emoji_autoencoder.py --workdir=runs/emoji_autoencoder
           python -m dit.train --config=configs/emoji_latent.py --workdir=runs/emoji_latent
           python -m dit.sample --workdir=runs/emoji_latent --guidance=2 --prompt="butterfly"
           python -m dit.evaluate --workdir=runs/emoji_latent --num=200 --split=train \\
               --features=efficientnet_lite0
Data:      as for emoji_text.py.
Expected:  not yet run.
"""

from emoji_text import get_config as emoji_text
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = emoji_text()
    config.data.size = 64
    config.codec = ConfigDict({"name": "autoencoder_kl", "path": "runs/emoji_autoencoder"})
    config.model.patch = 2
    return config
