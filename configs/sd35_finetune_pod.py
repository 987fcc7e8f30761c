"""Stable Diffusion 3.5 large, 8.1 billion parameters, fine-tuned on captioned 1024-pixel pictures.

Latents of 8x and 16 channels, 4,096 tokens; captions are read within the step by CLIP L, CLIP bigG and
T5 v1.1-XXL, 77 and 256 tokens, whose padding counts as text. Flow matching with logit-normal times,
shifted as for sampling. All text is dropped together, in a tenth of the examples, and is zeros then.

Command:   python launch/tpu_vm.py run --name=sd35 --zone=us-east5-a --type=v5p-128 --extra=text
           --mount=gs://DATA:/mnt/data -- python -m dit.train --config=configs/sd35_finetune_pod.py
           --workdir=gs://BUCKET/sd35
           python -m dit.sample --workdir=gs://BUCKET/sd35 --mesh=fsdp
           --guidance=4.5 --prompt="a red fox asleep under a birch, in snow" --out=fox.png
           python -m dit.convert --to=diffusers_sd3 --workdir=gs://BUCKET/sd35 --out=transformer
LoRA:      --config.lora.rank=16 --config.optimizer.lr=1e-4: maps of low rank beside attention alone.
Data:      in config.data.path records of latents, (128, 128, 16), that dit prepare makes of pictures
           with --codec=autoencoder_kl:path=/mnt/data/sd35/vae, and captions; in /mnt/data/sd35, a
           Stable Diffusion 3.5 pipeline as diffusers saves it: transformer, vae, text_encoder,
           text_encoder_2, text_encoder_3 and their tokenizers. The authors' file instead:
           --config.init_from.format=sd3_original.
Check:     python -m dit.preflight --config=configs/sd35_finetune_pod.py --topology=v5p:4x4x4 \\
               --encoders=clip-l,clip-bigg,t5-xxl
           python -m dit.preflight --config=configs/sd35_finetune_pod.py --topology=v6e:16x16 \\
               --mesh=data=4,fsdp=64 --encoders=clip-l,clip-bigg,t5-xxl
           python -m dit.preflight --config=configs/sd35_finetune_pod.py --topology=v5p:4x4x4 \\
               --encoders=clip-l,clip-bigg,t5-xxl --config.lora.rank=16
Hardware:  v5p:4x4x4, 53 of 96 GiB a chip as predicted in launch/README.md. Not yet run.
Expected:  not yet run.
"""

from ml_collections import ConfigDict

SD35 = "/mnt/data/sd35"


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
            "codec": {"name": "autoencoder_kl", "path": f"{SD35}/vae", "family": "sd3"},
            "text": {
                "name": "pretrained",
                "encoders": (
                    {
                        "name": "clip",
                        "path": f"{SD35}/text_encoder",
                        "layers": -2,
                        "padding": "real",
                    },
                    {
                        "name": "clip",
                        "path": f"{SD35}/text_encoder_2",
                        "layers": -2,
                        "padding": "real",
                    },
                    {
                        "name": "t5",
                        "path": f"{SD35}/text_encoder_3",
                        "length": 256,
                        "padding": "real",
                    },
                ),
            },
            "model": {"name": "mmdit", "size": "SD3.5-large", "remat": "dots_attention"},
            "init_from": {"path": f"{SD35}/transformer", "format": "diffusers_sd3"},
            "mesh": {"preset": "hsdp"},
            "path": {"name": "linear", "time_scale": 1000.0},
            "prediction": {"name": "velocity"},
            "times": {"name": "shifted", "shift": 3.0, "base": "logit_normal"},
            "objective": {"name": "denoise", "condition_dropout": 0.1},
            "optimizer": {"name": "adamw", "lr": 1e-5, "betas": (0.9, 0.999), "clip": 1.0},
            "schedule": {"name": "warmup_constant", "warmup": 500},
            "ema": {"half_lives": (693.0,)},
            "checkpoint": {"every": 1000, "keep": 3},
            "log": {"every": 50},
            "samples": {
                "every": 0,
                "num": 4,
                "solver": "euler",
                "grid": "shifted:shift=3.0",
                "steps": 28,
                "guidance": 4.5,
                "prompts": (
                    "a red fox asleep under a birch, in snow",
                    "an oil painting of a harbour at dawn",
                    "a glass of water on a wooden table, photograph",
                    "the word HELLO written in chalk on a blackboard",
                ),
            },
        }
    )
