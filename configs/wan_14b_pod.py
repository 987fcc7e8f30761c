"""Wan2.1's text-to-video network of 14 billion parameters on 5 seconds of 720p, fine-tuned on a TPU v5p.

Clips of 81 frames of 1280x720 are 21 latents of 90x160, 75,600 tokens, split over 4 devices: in
attention they are exchanged for heads (all-to-all). The rest is wan_1b_pod's. Wan2.2's two networks of
this size, each for its own times, are the same: --config.model.size=Wan2.2-T2V-A14B.

Command:   python -m dit.train --config=configs/wan_14b_pod.py --workdir=gs://BUCKET/wan14
           --config.mesh.data=-1 --config.mesh.fsdp=8
           python -m dit.sample --workdir=gs://BUCKET/wan14 --mesh=fsdp+context
           --prompt="a red fox runs through snow" --out=fox.mp4
480p:      --config.data.shape="(21,60,104,16)" --config.times.shift=3 --config.batch_size=64:
           32,760 tokens.
LoRA:      --config.lora.rank=32 --config.optimizer.lr=1e-4: maps of low rank beside attention alone.
Ring:      --config.model.attention=ring: keys and values go round the devices instead.
Data:      as for wan_1b_pod, latents of (21, 90, 160, 16); in /mnt/data/wan a Wan2.1-T2V-14B pipeline
           as diffusers saves it: transformer, vae, text_encoder and tokenizer.
Check:     python -m dit.preflight --config=configs/wan_14b_pod.py --topology=v5p:4x4x8 \\
               --mesh=data=4,fsdp=8,context=4 --encoders=umt5-xxl
           python -m dit.preflight --config=configs/wan_14b_pod.py --topology=v6e:16x16 \\
               --mesh=data=2,fsdp=32,context=4 --batch=64 --encoders=umt5-xxl
Hardware:  v5p:4x4x8, 40 of 96 GiB a chip as predicted in launch/README.md: the tokens of a clip are
           split over 4 chips, the state over 32, since over all 128 the compiler sends it twice. Not
           yet run.
Expected:  not yet run.
"""

from ml_collections import ConfigDict
from wan_1b_pod import WAN
from wan_1b_pod import get_config as wan_1b


def get_config() -> ConfigDict:
    config = wan_1b()
    config.steps = 10_000
    config.batch_size = 32
    config.data.shape = (21, 90, 160, 16)
    config.model.size = "Wan2.1-T2V-14B"
    config.model.remat = "attention"  # most of a step: it must not run twice
    config.init_from = ConfigDict({"path": f"{WAN}/transformer", "format": "diffusers_wan"})
    config.times.shift = 5.0
    config.optimizer.lr = 1e-5
    config.samples.grid = "shifted:shift=5"
    return config
