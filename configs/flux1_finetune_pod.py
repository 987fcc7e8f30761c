"""FLUX.1's network of 11.9 billion parameters, fine-tuned on captioned 1024-pixel pictures.

Latents of 8x and 16 channels, 4,096 tokens; captions are read within the step, 512 tokens by T5 v1.1-XXL
and one vector by CLIP L, and padding counts as text. Flow matching with logit-normal times, shifted as
for sampling at this size. No caption is dropped: FLUX.1's null condition is not known. The network is
schnell's, which is dev's but for the guidance scale that dev takes as an input.

Command:   python launch/tpu_vm.py run --name=flux --zone=us-east5-a --type=v5p-128 --extra=text
           --mount=gs://DATA:/mnt/data -- python -m dit.train --config=configs/flux1_finetune_pod.py
           --workdir=gs://BUCKET/flux
           python -m dit.sample --workdir=gs://BUCKET/flux --mesh=fsdp
           --prompt="a red fox asleep under a birch, in snow" --out=fox.png
           python -m dit.convert --to=diffusers_flux --workdir=gs://BUCKET/flux --out=transformer
LoRA:      --config.lora.rank=16 --config.optimizer.lr=1e-4: maps of low rank beside attention alone.
Data:      in config.data.path records of latents, (128, 128, 16), that dit prepare makes of pictures
           with --codec=autoencoder_kl:path=/mnt/data/flux/vae, and captions; in /mnt/data/flux, a
           FLUX.1-schnell pipeline as diffusers saves it: transformer, vae, text_encoder, text_encoder_2
           and their tokenizers. The authors' file instead: --config.init_from.format=flux_original.
Check:     python -m dit.preflight --config=configs/flux1_finetune_pod.py --topology=v5p:4x4x4 \\
               --encoders=clip-l,t5-xxl
           python -m dit.preflight --config=configs/flux1_finetune_pod.py --topology=v6e:16x16 \\
               --mesh=data=4,fsdp=64 --config.mesh.whole="()" --encoders=clip-l,t5-xxl
           python -m dit.preflight --config=configs/flux1_finetune_pod.py --topology=v5p:4x4x4 \\
               --encoders=clip-l,t5-xxl --config.lora.rank=16
Hardware:  v5p:4x4x4, 90 of 96 GiB a chip as predicted in launch/README.md, of which 9 are text encoders
           that every chip holds whole (--config.mesh.whole="()" splits them). Not yet run.
Expected:  not yet run.
"""

from ml_collections import ConfigDict

FLUX = "/mnt/data/flux"


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "steps": 10_000,
            "batch_size": 256,
            "data": {
                "name": "records",
                "path": "/mnt/data/pictures",
                "shape": (1, 128, 128, 16),
            },
            "loader": {"workers": 8, "prefetch": 4},
            "codec": {"name": "autoencoder_kl", "path": f"{FLUX}/vae", "family": "flux"},
            "text": {
                "name": "pretrained",
                "encoders": (
                    {
                        "name": "clip",
                        "path": f"{FLUX}/text_encoder",
                        "padding": "real",
                        "use": "pooled",
                    },
                    {
                        "name": "t5",
                        "path": f"{FLUX}/text_encoder_2",
                        "length": 512,
                        "padding": "real",
                    },
                ),
            },
            "model": {
                "name": "mmdit",
                "size": "FLUX.1-schnell",
                "rope_axes": (16, 56, 56),
                "remat": "dots_attention",
            },
            "init_from": {"path": f"{FLUX}/transformer", "format": "diffusers_flux"},
            "mesh": {"preset": "hsdp", "whole": ("text",)},
            "path": {"name": "linear", "time_scale": 1000.0},
            "prediction": {"name": "velocity"},
            "times": {"name": "shifted", "shift": 3.158, "base": "logit_normal"},
            "objective": {"name": "denoise", "condition_dropout": 0.0},
            "optimizer": {"name": "adamw", "lr": 1e-5, "betas": (0.9, 0.999), "clip": 1.0},
            "schedule": {"name": "warmup_constant", "warmup": 500},
            "ema": {"half_lives": (693.0,)},
            "checkpoint": {"every": 1000, "keep": 3},
            "log": {"every": 50},
            "samples": {
                "every": 0,
                "num": 4,
                "solver": "euler",
                "grid": "shifted:shift=3.158",
                "steps": 28,
                "prompts": (
                    "a red fox asleep under a birch, in snow",
                    "an oil painting of a harbour at dawn",
                    "a glass of water on a wooden table, photograph",
                    "the word HELLO written in chalk on a blackboard",
                ),
            },
        }
    )
