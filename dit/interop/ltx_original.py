"""Weights of LTX-Video as their authors keep them.

Their files hold the transformer behind ``model.diffusion_model.``, beside an autoencoder: what is not
behind it is left alone. What is written has the names without that.
"""

from __future__ import annotations

from dit.interop import lora
from dit.interop.diffusers_ltx import BLOCK, NAMES, check
from dit.interop.mapping import Format
from dit.interop.sd3_original import transformer
from dit.interop.wan import format_of

OWN = {
    "embed": "patchify_proj",
    "time/in": "adaln_single.emb.timestep_embedder.linear_1",
    "time/out": "adaln_single.emb.timestep_embedder.linear_2",
    "modulation/linear": "adaln_single.linear",
}
NORMS = {
    f"{a}/{n}": f"attn{i}.{n}"
    for i, a in ((1, "attention"), (2, "cross"))
    for n in ("q_norm", "k_norm")
}


def build() -> Format:
    """The format, for a Wan like ``size="LTX-Video-0.9-2B"``, of any size."""
    more = {"only": transformer, "part": lora.ORIGINAL}
    return format_of(NAMES | OWN, BLOCK | NORMS, check, matrices=True, **more)
