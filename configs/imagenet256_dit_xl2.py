"""DiT-XL/2 on ImageNet 256x256, in Stable Diffusion's latents: the paper's recipe.

Command:   python -m dit.prepare --source=tfds:imagenet2012,held_out=validation --size=256 --flip
           --codec=autoencoder_kl:path=VAE,family=sd --out=data/imagenet256
           python -m dit.train --config=configs/imagenet256_dit_xl2.py --workdir=DIR
Data:      ImageNet as TFDS prepares it (its archives are downloaded by hand), and VAE, the directory of
           sd-vae-ft-ema. To draw samples: --config.codec.name=autoencoder_kl --config.codec.path=VAE
           (the scale stays), with --config.samples.every=10000.
Hardware:  TPU pod or GPU cluster; not yet run.
Expected:  FID-50K 19.47 after 400K steps without guidance, 9.62 after 7M; 2.27 with guidance 1.5
           (Peebles & Xie 2023, tables 2 and 4). Not yet run here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "steps": 400_000,
            "batch_size": 256,
            "data": {
                "name": "records",
                "path": "data/imagenet256",
                "flip": True,
                "num_classes": 1000,
                "shape": (1, 32, 32, 4),
            },
            "loader": {"workers": 8, "prefetch": 4},
            "codec": {"name": "latent", "scale": 0.18215},
            "model": {"name": "dit", "size": "XL/2", "learn_sigma": True, "remat": "dots"},
            "path": {"name": "ddpm"},
            "prediction": {"name": "eps"},
            "times": {"name": "uniform", "levels": 1000},
            "objective": {"name": "denoise", "condition_dropout": 0.1},
            "optimizer": {"name": "adamw", "lr": 1e-4},
            "schedule": {"name": "constant"},
            "ema": {"half_lives": (6931.0,)},
            "checkpoint": {"every": 5000, "keep": 3},
            "log": {"every": 100},
            "samples": {
                "every": 0,  # latents cannot be drawn without their autoencoder
                "solver": "ddpm:variance=learned",
                "grid": "ddpm",
                "steps": 250,
                "guidance": 1.5,
            },
        }
    )
