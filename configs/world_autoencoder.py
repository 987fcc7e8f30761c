"""A causal video autoencoder of moving scenes, 17x32x32x3 to 5x8x8x8: twenty times fewer numbers.

Wan's architecture at the smallest scale: four times fewer frames, of which the first is alone, and four
times fewer pixels a side. Reconstruction and a little KL; neither LPIPS nor a discriminator.

Command:   python -m dit.train --config=configs/world_autoencoder.py --workdir=runs/world_autoencoder
           python -m dit.evaluate --workdir=runs/world_autoencoder
           As a codec: --config.codec.name=wan_vae --config.codec.path=runs/world_autoencoder
Data:      clips of moving shapes, made when needed; nothing to install.
Expected:  not yet run.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "steps": 3000,
            "batch_size": 4,
            "data": {"name": "world", "frames": 17, "size": 32},
            "model": {
                "name": "wan_vae",
                "width": 16,
                "multipliers": (1, 2, 4),
                "temporal": (True, True),
                "depth": 1,
                "latent_channels": 8,
            },
            "objective": {"name": "autoencoder", "lpips": 0.0, "adversarial": 0.0},
            "optimizer": {"name": "adamw", "lr": 1e-3, "betas": (0.9, 0.99), "clip": 1.0},
            "schedule": {"name": "wsd", "warmup": 100, "decay": 0.3},
            "ema": {"half_lives": (200.0,), "rampup": 0.1},
            "checkpoint": {"every": 500, "keep": 3},
            "log": {"every": 50},
            "samples": {"every": 500, "num": 8},
        }
    )
