"""Stable Diffusion 1.5's U-Net of 860 million parameters, fine-tuned on captioned 512-pixel pictures.

Latents of 8x and 4 channels; captions are read within the step by CLIP L, whose 77 tokens all count as
text. The noise, eps and 1000 integer times are those that it was trained with. No caption is dropped
here: what a dropped sample is told is zeros, and what the network takes for no text is the encoding of
an empty one, which ``--negative=" "`` gives in sampling.

Command:   python -m dit.train --config=configs/sd15_finetune_pod.py --workdir=gs://BUCKET/sd15
           python -m dit.sample --workdir=gs://BUCKET/sd15 --mesh=fsdp --negative=" "
           --prompt="a red fox asleep under a birch, in snow" --out=fox.png
           python -m dit.convert --to=diffusers_unet --workdir=gs://BUCKET/sd15 --out=unet
LoRA:      --config.lora.rank=16 --config.optimizer.lr=1e-4: maps of low rank beside attention alone.
Others:    --config.model.size=SD-2.1 --config.prediction.name=v, with its own text encoder and
           autoencoder; --config.model.size=SDXL, with both CLIPs (layers=-2) and family=sdxl.
Data:      in config.data.path records of latents, (64, 64, 4), that dit prepare makes of pictures with
           --codec=autoencoder_kl:path=/mnt/data/sd15/vae, and captions; in /mnt/data/sd15, a Stable
           Diffusion 1.5 pipeline as diffusers saves it: unet, vae, text_encoder and tokenizer. The
           authors' file instead: --config.init_from.format=unet_original.
Check:     python -m dit.preflight --config=configs/sd15_finetune_pod.py --topology=v5e:4x4 \\
               --encoders=clip-l
Hardware:  v5e:4x4. Not yet run, nor compiled for it.
Expected:  not yet run.
"""

from ml_collections import ConfigDict

SD15 = "/mnt/data/sd15"


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "steps": 10_000,
            "batch_size": 256,
            "data": {
                "name": "records",
                "path": "/mnt/data/pictures",
                "shape": (1, 64, 64, 4),
            },
            "loader": {"workers": 8, "prefetch": 4},
            "codec": {"name": "autoencoder_kl", "path": f"{SD15}/vae", "family": "sd"},
            "text": {
                "name": "pretrained",
                "encoders": (
                    {
                        "name": "clip",
                        "path": f"{SD15}/text_encoder",
                        "padding": "real",
                        "use": "context",
                    },
                ),
            },
            "model": {"name": "unet", "size": "SD-1.5", "remat": "dots"},
            "init_from": {"path": f"{SD15}/unet", "format": "diffusers_unet"},
            "mesh": {"preset": "fsdp"},
            "path": {
                "name": "ddpm",
                "betas": "scaled_linear",
                "beta_start": 0.00085,
                "beta_end": 0.012,
            },
            "prediction": {"name": "eps"},
            "times": {"name": "uniform", "levels": 1000},
            "objective": {"name": "denoise", "condition_dropout": 0.0},
            "optimizer": {"name": "adamw", "lr": 1e-5, "betas": (0.9, 0.999), "clip": 1.0},
            "schedule": {"name": "warmup_constant", "warmup": 500},
            "ema": {"half_lives": (693.0,)},
            "checkpoint": {"every": 1000, "keep": 3},
            "log": {"every": 50},
            "samples": {
                "every": 0,
                "num": 4,
                "solver": "ddim",
                "grid": "ddpm:spacing=leading,offset=1",
                "steps": 50,
                "guidance": 7.5,
                "prompts": (
                    "a red fox asleep under a birch, in snow",
                    "an oil painting of a harbour at dawn",
                    "a glass of water on a wooden table, photograph",
                    "a bowl of cherries, studio light",
                ),
            },
        }
    )
