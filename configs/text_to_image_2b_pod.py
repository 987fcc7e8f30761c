"""Text-to-image of Stable Diffusion 3's size: 2.0 billion parameters, 512 pixels in aspect buckets.

Latents of 8x and 16 channels are made beforehand; captions are read within the step by CLIP L, CLIP bigG
and T5 v1.1-XXL, joined as in Stable Diffusion 3: what they make of a caption would take 2.7 MB, and of a
hundred million captions more room than the pictures. Flow matching with logit-normal times, shifted for
1,024 tokens. The blocks are adaln_cross: the two streams of Stable Diffusion 3 are another network. All
text is dropped together, in a tenth of the examples, and not each encoder's by itself.

Command:   python -m dit.prepare --source='webdataset:crawl/*.tar' --out=/mnt/data/text_to_image --flip
           --size=512x512,448x576,576x448,416x624,624x416,352x704,704x352 --fields=caption
           --codec=autoencoder_kl:path=/mnt/data/sd3/vae --drop-copies --share=0/64   # the first of 64
           python launch/tpu_vm.py run --name=t2i --zone=us-east5-a --type=v5p-256 --extra=text
           --mount=gs://DATA:/mnt/data -- python -m dit.train --config=configs/text_to_image_2b_pod.py
           --workdir=gs://BUCKET/t2i
           python -m dit.sample --workdir=gs://BUCKET/t2i --mesh=fsdp --guidance=5
           --prompt="a red fox asleep under a birch, in snow" --out=fox.png    # --size=56x72: of latents
1024px:    --size=1024x1024,896x1152,... to dit.prepare, and to dit.train --config.data.path=...
           --config.data.shape="(1,128,128,16)" --config.times.shift=3 --config.batch_size=512
           --config.init_from.path=gs://BUCKET/t2i --workdir=gs://BUCKET/t2i_1024
Data:      tars of pictures with captions; in /mnt/data/sd3, a Stable Diffusion 3 pipeline as diffusers
           saves it: vae, text_encoder, text_encoder_2, text_encoder_3 and their tokenizers.
Check:     python -m dit.preflight --config=configs/text_to_image_2b_pod.py --topology=v5p:4x4x8 \\
               --encoders=clip-l,clip-bigg,t5-xxl
Hardware:  v5p:4x4x8, 128 chips. Not yet run; compiled for it, it needs 26 of 96 GiB a chip, at a
           predicted utilisation of .33. The state is split over 16 chips: over all 128 it would be
           gathered by all-reduces (launch/README.md). Training takes 8.9 TFLOP a picture, its caption
           2.5; the encoders' 10.4 GiB, in bfloat16, are split too.
Expected:  not yet run.
"""

from ml_collections import ConfigDict

SD3 = "/mnt/data/sd3"


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "steps": 500_000,
            "batch_size": 2048,
            "data": {
                "name": "records",
                "path": "/mnt/data/text_to_image",
                "flip": True,
                "shape": (1, 64, 64, 16),
            },
            "loader": {"workers": 16, "prefetch": 4},
            "codec": {"name": "autoencoder_kl", "path": f"{SD3}/vae", "family": "sd3"},
            "text": {
                "name": "pretrained",
                "encoders": (
                    {"name": "clip", "path": f"{SD3}/text_encoder", "layers": -2},
                    {"name": "clip", "path": f"{SD3}/text_encoder_2", "layers": -2},
                    {"name": "t5", "path": f"{SD3}/text_encoder_3", "length": 256},
                ),
            },
            "model": {
                "name": "dit",
                "depth": 28,
                "width": 1792,
                "heads": 14,
                "patch": 2,
                "block": "adaln_cross",
                "positions": "rope",
                "qk_norm": True,
                "remat": "dots",
            },
            "mesh": {"preset": "hsdp"},
            "path": {"name": "linear", "time_scale": 1000.0},
            "prediction": {"name": "velocity"},
            "times": {"name": "shifted", "shift": 2.0, "base": "logit_normal"},
            "objective": {"name": "denoise", "condition_dropout": 0.1},
            "optimizer": {"name": "adamw", "lr": 1e-4, "betas": (0.9, 0.95), "clip": 1.0},
            "schedule": {"name": "warmup_constant", "warmup": 2000},
            "ema": {"half_lives": (6931.0,)},
            "checkpoint": {"every": 1000, "keep": 3},
            "log": {"every": 50},
            "samples": {
                "every": 0,  # each of the seven shapes has a sampler, which takes a while to compile
                "num": 4,
                "solver": "heun",
                "grid": "shifted:shift=2",
                "steps": 30,
                "guidance": 5.0,
                "prompts": (
                    "a red fox asleep under a birch, in snow",
                    "an oil painting of a harbour at dawn",
                    "a glass of water on a wooden table, photograph",
                    "the word HELLO written in chalk on a blackboard",
                ),
            },
        }
    )
