"""Weights of the original LightningDiT (Yao et al. 2025): SiT's names, clock and sign, other blocks.

As in ``sit_original``, t runs there from noise to data and the velocity points to the data: the first
map on the sinusoids of time and the sign of the last one take that up. Rotary pairs are neighbours
there, in halves of a head for y and x. The tables of positions and of their cosines and sines are part
of the state: they are checked on the way in, and computed on the way out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from dit.interop import dit_original, mapping
from dit.interop.mapping import Entry, Format, State, linear
from dit.interop.sit_original import Clock
from dit.interop.views import View
from dit.models import condition
from dit.models.dit import DiT
from dit.models.patchify import grid
from dit.types import UserError

BLOCK = {  # linear maps
    "modulation/linear": "adaLN_modulation.1",
    "attention/out": "attn.proj",
    "mlp/in": "mlp.w12",
    "mlp/out": "mlp.w3",
}
NORMS = {"norm_attention": "norm1", "norm_mlp": "norm2"}
LAST = "final_layer.linear"
ANGLES = "feat_rope.freqs"
# Of the 800 epochs whose FID is 1.35, by its config: 250 times are 249 steps, a shift of 0.3 is one of
# 1 / 0.3 in the other direction, guidance begins at 0.125, and on the first three channels alone.
SAMPLES = {
    "every": 0,
    "solver": "euler",
    "grid": f"shifted:shift={1 / 0.3:.6f}",
    "steps": 249,
    "guidance": "interval:scale=6.7,low=0.0,high=0.875,unit=time,channels=3",
}


@dataclasses.dataclass(frozen=True)
class Negated(View):
    """All of an array, with the other sign."""

    def read(self, x: np.ndarray) -> np.ndarray:
        """``-x``."""
        return -x

    write = read


def build() -> Format:
    """The format, for square images and models like ``lightning.build``'s."""
    return Format(DiT, entries, fixed=tables, views=views, sections=sections)


def check(model: DiT) -> None:
    """Raise UserError for another structure."""
    side = model.width // model.heads // 2
    wanted = {"block": "modern", "positions": "sincos+rope", "rope_axes": (0, side, side)}
    wanted |= {"rope_theta": 10000.0, "position_scale": (1.0, 1.0, 1.0), "time_scale": 1.0}
    wanted |= {"out_channels": model.in_channels, "patch": (1, *model.patch[1:])}
    wrong = {k: getattr(model, k) for k, v in wanted.items() if getattr(model, k) != v}
    taken = condition.taken(model)
    if wrong or taken != {"label"}:
        told = ", ".join(f"{k}={v!r}" for k, v in wrong.items()) or "the conditions"
        raise UserError(
            "this format holds LightningDiT, as model.name=lightning builds it, with labels as its only "
            f"condition; got a DiT with {told} {sorted(taken) if not wrong else ''}"
        )


def normed(model: DiT) -> bool:
    """Whether there is QK-norm, which is the block's default."""
    return bool(dict(model.block_options).get("qk_norm", True))


def entries(model: DiT, names: Collection[str] = ()) -> list[Entry]:
    """The table of names."""
    check(model)
    found = [
        Entry(("embed", "kernel"), ("x_embedder.proj.weight",), "conv", window=model.patch[1:]),
        Entry(("embed", "bias"), ("x_embedder.proj.bias",)),
        *linear("time/in", "t_embedder.mlp.0"),
        *linear("time/out", "t_embedder.mlp.2"),
        Entry(("label", "table"), ("y_embedder.embedding_table.weight",)),
        *mapping.blocks(model.depth, "blocks", BLOCK),
        *linear("final/modulation/linear", "final_layer.adaLN_modulation.1"),
        Entry(("final", "norm", "scale"), ("final_layer.norm_final.weight",)),
        *linear("final/linear", LAST),
    ]
    for layer in range(model.depth):
        for path, name in NORMS.items():
            full = f"blocks.{layer}.{name}.weight"
            found.append(Entry(("blocks", path, "scale"), (full,), layer=layer))
        for path, part in ((("qkv", "kernel"), "weight"), (("qkv", "bias"), "bias")):
            parts = tuple(name for name, _ in rows(model, layer, part))
            kind = "linear" if part == "weight" else "same"
            found.append(Entry(("blocks", "attention", *path), parts, kind, layer))
        for norm in ("q_norm", "k_norm") if normed(model) else ():
            full = f"blocks.{layer}.attn.{norm}.weight"
            found.append(Entry(("blocks", "attention", norm, "scale"), (full,), layer=layer))
    return found


def rows(model: DiT, layer: int, part: str) -> Iterator[tuple[str, View]]:
    """Queries, keys and values of a layer's array, of which the first two turn."""
    name, d = f"blocks.{layer}.attn.qkv.{part}", model.width
    pairs = {"fold": (model.heads, d // model.heads // 2, 2), "order": (0, 2, 1)}
    for i, what in enumerate("qkv"):
        yield f"{name}[{what}]", View(name, i * d, d, **({} if what == "v" else pairs))


def views(model: DiT) -> Mapping[str, View]:
    """What is turned, and what is in another order."""
    found: dict[str, View] = {f"{LAST}.{x}": Negated(f"{LAST}.{x}") for x in ("weight", "bias")}
    found["t_embedder.mlp.0.weight"] = Clock("t_embedder.mlp.0.weight")
    half = model.width // model.heads // 2
    for layer in range(model.depth):
        found |= {k: v for part in ("weight", "bias") for k, v in rows(model, layer, part)}
        for norm in ("q_norm", "k_norm") if normed(model) else ():
            name = f"blocks.{layer}.attn.{norm}.weight"
            found[name] = View(name, fold=(half, 2), order=(1, 0))
    return found


def tables(model: DiT, shape: tuple[int, ...]) -> State:
    """Positions, as ``dit_original`` has them, and cosines and sines, one row a token."""
    check(model)
    _, height, width = grid(tuple(shape[:3]), model.patch)
    side = model.width // model.heads // 2
    w = 10000.0 ** -(np.arange(0, side, 2) / side)
    places = (p.reshape(-1, 1) for p in np.meshgrid(range(height), range(width), indexing="ij"))
    angles = np.concatenate([np.repeat(p * w, 2, axis=1) for p in places], axis=1)
    found = {"pos_embed": dit_original.sinusoids(model, shape)}
    found |= {f"{ANGLES}_cos": np.cos(angles), f"{ANGLES}_sin": np.sin(angles)}
    return {name: x.astype(np.float32) for name, x in found.items()}


def sections(state: State, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The model by the shapes of its tensors, and the process and sampler that were published."""
    block = [f"blocks.0.{name}" for name in ("norm1.weight", "mlp.w12.weight")]
    names = ("x_embedder.proj.weight", "pos_embed", "y_embedder.embedding_table.weight")
    names = (*names, f"{ANGLES}_cos", "blocks.0.adaLN_modulation.1.bias", f"{LAST}.bias")
    absent = [name for name in (*names, *block) if name not in state]
    if absent:
        raise UserError(
            f"the weights lack {absent[0]!r}: they are not those of a LightningDiT with RMSNorm, SwiGLU "
            "and rotary positions"
        )
    kernel, table, classes, angles, *numbers = (state[name].shape for name in names)
    width, channels, patch, side = *kernel[:3], math.isqrt(table[1])
    found, expected = [n for (n,) in numbers], [6 * width, channels * patch**2]
    if found != expected:
        raise UserError(
            f"the weights have modulations of {found[0]} numbers and {found[1]} outputs; expected "
            f"{expected[0]} and {expected[1]}: a LightningDiT with shifts (not wo_shift) and without "
            "learn_sigma"
        )
    shape = (1, side * patch, side * patch, channels)
    return {
        "model": {
            "name": "lightning",
            "depth": len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
            "width": width,
            "heads": width // angles[1],
            "patch": patch,
            "qk_norm": "blocks.0.attn.q_norm.weight" in state,
        },
        "data": {"name": "noise", "shape": shape, "num_classes": classes[0] - 1},
        "path": {"name": "linear"},
        "prediction": {"name": "velocity"},
        "times": {"name": "logit_normal"},
        "samples": dict(SAMPLES),
    }
