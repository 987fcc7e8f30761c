"""DINOv2 (Oquab et al. 2023): the class token of a ViT/14 that was trained without labels.

``size``: s, b, l or g (384 to 1,536 features), with four ``registers`` or without. The table of
positions is of a grid of 37 x 37; how it is scaled to another is up to the code that is followed, and a
score names it as its ``port``:

    hub           the authors': bicubic with the scale (n + 0.1)/37, not antialiased
    timm          bicubic of exact scale, antialiased
    transformers  bicubic of exact scale, not antialiased

All three take timm's way for weights with registers.
FD-DINOv2 (Stein et al. 2023) is ``hub`` at 224 pixels, scaled by Pillow's bicubic; both are defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dit.evaluation.features import Features, vit, weights
from dit.evaluation.features.resize import cubic
from dit.interop.mapping import Entry
from dit.types import Params, Range, UserError

SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "g": (1536, 40, 24)}
PATCH, TRAINED, EPS = 14, 37, 1e-6
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SOURCE = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vit{0}14/dinov2_vit{0}14{1}_pretrain.pth"
Port = Literal["hub", "timm", "transformers"]


def build(
    *,
    size: Literal["s", "b", "l", "g"] = "l",
    port: Port = "hub",
    side: Annotated[int, Range(14, 4096)] = 224,
    registers: bool = False,
    path: str | None = None,
) -> Features:
    """The network. ``path``: weights as the authors, timm or transformers save them.

    Raises UserError where there are none, or of another size.
    """
    url = SOURCE.format(size, "_reg4" if registers else "")
    state, origin = weights.read("dinov2", path, (url.rpartition("/")[2],), url)
    name = f"dinov2_{size}{'_reg' if registers else ''}_{port}" + (
        "" if side == 224 else f"_{side}"
    )
    model = network(*SIZES[size], grid=side // PATCH, gated=size == "g", registers=registers)
    params = params_of(state, model, port, side)

    def apply(params: Params, x: Float[Array, "n s s 3"]) -> Float[Array, "n d"]:
        mean, std = (jnp.asarray(v).reshape(1, 1, 1, 3) for v in (MEAN, STD))
        return model.apply({"params": params}, (x / 255 - mean) / std)

    return Features(name, params, apply, side=side, origin=origin, resize="pil_bicubic", port=port)


def network(
    width: int, depth: int, heads: int, *, grid: int, gated: bool, registers: bool = False
) -> vit.Vit:
    """The transformer; ``gated`` as of the size g, whose hidden channels are a multiple of 8."""
    hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8 if gated else 4 * width
    activation = "silu" if gated else "gelu"
    how = {"gated": gated, "scaled": True, "registers": 4 if registers else 0}
    return vit.Vit(PATCH, grid, width, depth, heads, hidden, activation, EPS, **how)


def params_of(state: Mapping[str, Any], model: vit.Vit, port: Port, side: int) -> Params:
    """The parameters of a state of any of the three layouts, positions scaled; UserError for others."""
    theirs = any(name.startswith("encoder.layer.") for name in state)
    given = {"positions": "pos_embed", "class": "cls_token", "registers": "register_tokens"}
    if theirs:
        given = {"positions": "position_embeddings", "class": "cls_token"}
        given |= {"registers": "register_tokens"}
        given = {k: f"embeddings.{v}" for k, v in given.items()}
    elif "reg_token" in state:
        given["registers"] = "reg_token"
    mask = "embeddings.mask_token" if theirs else "mask_token"
    state = {k: v for k, v in state.items() if k != mask}
    if not model.registers:
        given.pop("registers")
    if given["positions"] in state:
        state[given["positions"]] = positions(
            np.asarray(state[given["positions"]], np.float32), side, port, bool(model.registers)
        )
    if model.gated:
        _split(state, theirs)
    return vit.read(model, state, list(_entries(state, model, given, theirs)))


def positions(
    table: Float[np.ndarray, "1 m d"], side: int, port: Port, registers: bool
) -> Float[np.ndarray, "1 n d"]:
    """The table for pictures of ``side`` pixels; of timm's with registers it has no class token."""
    whole = TRAINED * TRAINED
    if table.shape[1] not in (whole, whole + 1):
        raise UserError(
            f"got a table of {table.shape[1]} positions for DINOv2; expected {whole + 1}, of a class "
            f"token and {TRAINED} x {TRAINED} patches"
        )
    first, rest = table[:, : table.shape[1] - whole], table[:, table.shape[1] - whole :]
    n = side // PATCH
    if n != TRAINED:
        antialias = port == "timm" or registers
        scale = (n + 0.1) / TRAINED if port == "hub" and not registers else None
        w = cubic(TRAINED, n, antialias=antialias, scale=scale)
        grid = rest.reshape(TRAINED, TRAINED, -1)
        rest = np.einsum("yh,xw,hwd->yxd", w, w, grid, optimize=True).reshape(1, n * n, -1)
    if not first.shape[1]:
        first = np.zeros_like(rest[:, :1])
    return np.concatenate([first, rest], 1).astype(np.float32)


def _split(state: dict[str, Any], theirs: bool) -> None:
    """Halve the packed first layer of SwiGLU: what is activated, then the rest."""
    names = ("weights_in",) if theirs else ("w12", "fc1")
    for name in [k for k in state if k.split(".")[-2:-1] and k.split(".")[-2] in names]:
        path, _, end = name.rpartition(".")
        state[f"{path}_0.{end}"], state[f"{path}_1.{end}"] = np.split(
            np.asarray(state.pop(name)), 2
        )


def _entries(state: Mapping[str, Any], model: vit.Vit, given: Mapping[str, str], theirs: bool):
    for ours, name in given.items():
        yield Entry((ours,), (name,))
    project = "embeddings.patch_embeddings.projection" if theirs else "patch_embed.proj"
    yield Entry(("patches", "kernel"), (f"{project}.weight",), "conv")
    yield Entry(("patches", "bias"), (f"{project}.bias",))
    names = {f"norm_{i}": f"norm{i}" for i in (1, 2)}
    qkv: tuple[str, ...] = ("attn.qkv",)
    if theirs:
        qkv = tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))
        names |= {f"scale_{i}": f"layer_scale{i}.lambda1" for i in (1, 2)}
        names["attention/out"] = "attention.output.dense"
    else:
        names |= {f"scale_{i}": f"ls{i}.gamma" for i in (1, 2)} | {"attention/out": "attn.proj"}
    if model.gated:
        packed = "fc1" if any(".mlp.fc1_0." in name for name in state) else "w12"
        first = "weights_in" if theirs else packed
        last = "weights_out" if theirs else {"w12": "w3", "fc1": "fc2"}[packed]
        names |= {f"mlp/in_{i}": f"mlp.{first}_{i}" for i in (0, 1)} | {"mlp/out": f"mlp.{last}"}
    else:
        names |= {"mlp/in": "mlp.fc1", "mlp/out": "mlp.fc2"}
    for i in range(model.depth):
        yield from vit.block(i, f"encoder.layer.{i}" if theirs else f"blocks.{i}", qkv, names)
    yield from vit.norm("norm", "layernorm" if theirs else "norm")
