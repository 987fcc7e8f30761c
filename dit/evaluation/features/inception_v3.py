"""InceptionV3 as FID uses it (Szegedy et al. 2016; Heusel et al. 2017): 2,048 features, 1,008 logits.

It is the graph of 2015-12-05, not torchvision's: average pools leave the padding out, the last block has
a max pool in place of one, and batch norms have eps 1e-3 and no scale that was learned. The weights are
those that pytorch-fid converted, under the same names.

Two ports differ before the first layer, and so do their scores. ``tensorflow`` is the graph itself (the
original FID, ADM's evaluator, torch-fidelity): pictures are scaled by ``bilinear_tf1``, and
``(x - 128) / 128``. ``pytorch_fid``: half-pixel ``bilinear``, and ``2 x / 255 - 1``.

Beside ``features``, the mean of the last map: ``spatial``, the first 7 channels of ``mixed_6/conv``
(here ``Mixed_6d.branch1x1``), for sFID (Nash et al. 2021); and ``logits``, without the bias, for the
Inception score.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dit.evaluation.features import Features, weights
from dit.types import Params

FILE = "pt_inception-2015-12-05-6726825d.pth"
FILES = (FILE, "weights-inception-2015-12-05-6726825d.pth")
SOURCE = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SIDE, EPS, SPATIAL, CLASSES = 299, 1e-3, 7, 1008
RESIZE = {"tensorflow": "bilinear_tf1", "pytorch_fid": "bilinear"}

# Of each layer: inputs, outputs and its window, h x w. Strides and padding are in ``outputs``.
STEM = {
    "Conv2d_1a_3x3": (3, 32, 3, 3),
    "Conv2d_2a_3x3": (32, 32, 3, 3),
    "Conv2d_2b_3x3": (32, 64, 3, 3),
    "Conv2d_3b_1x1": (64, 80, 1, 1),
    "Conv2d_4a_3x3": (80, 192, 3, 3),
}
A = {"Mixed_5b": (192, 32), "Mixed_5c": (256, 64), "Mixed_5d": (288, 64)}
C = {"Mixed_6b": 128, "Mixed_6c": 160, "Mixed_6d": 160, "Mixed_6e": 192}
E = {"Mixed_7b": 1280, "Mixed_7c": 2048}


def build(
    *, path: str | None = None, port: Literal["tensorflow", "pytorch_fid"] = "tensorflow"
) -> Features:
    """The network, with weights from ``path`` or a file of the usual name; UserError without."""
    state, origin = weights.read("inception_v3", path, FILES, SOURCE)
    name = "inception_v3" if port == "tensorflow" else f"inception_v3_{port}"
    scale = 128.0 if port == "tensorflow" else 127.5

    def apply(params: Params, x: Float[Array, "n s s 3"]) -> dict[str, Array]:
        return outputs(params, (x - scale) / scale)

    return Features(
        name,
        params_of(state),
        apply,
        side=SIDE,
        origin=origin,
        resize=RESIZE[port],
        port=port,
        others=("spatial", "logits"),
    )


def layers() -> dict[str, tuple[int, int, int, int]]:
    """The convolutions by name."""
    found = dict(STEM)
    for block, (n, pool) in A.items():
        parts = {"branch1x1": (n, 64, 1, 1), "branch_pool": (n, pool, 1, 1)}
        parts |= {"branch5x5_1": (n, 48, 1, 1), "branch5x5_2": (48, 64, 5, 5)}
        parts |= {"branch3x3dbl_1": (n, 64, 1, 1), "branch3x3dbl_2": (64, 96, 3, 3)}
        parts["branch3x3dbl_3"] = (96, 96, 3, 3)
        found |= {f"{block}.{part}": size for part, size in parts.items()}
    found["Mixed_6a.branch3x3"] = (288, 384, 3, 3)
    found |= {"Mixed_6a.branch3x3dbl_1": (288, 64, 1, 1), "Mixed_6a.branch3x3dbl_2": (64, 96, 3, 3)}
    found["Mixed_6a.branch3x3dbl_3"] = (96, 96, 3, 3)
    for block, c in C.items():
        parts = {"branch1x1": (768, 192, 1, 1), "branch_pool": (768, 192, 1, 1)}
        parts |= {"branch7x7_1": (768, c, 1, 1), "branch7x7_2": (c, c, 1, 7)}
        parts |= {"branch7x7_3": (c, 192, 7, 1), "branch7x7dbl_1": (768, c, 1, 1)}
        parts |= {"branch7x7dbl_2": (c, c, 7, 1), "branch7x7dbl_3": (c, c, 1, 7)}
        parts |= {"branch7x7dbl_4": (c, c, 7, 1), "branch7x7dbl_5": (c, 192, 1, 7)}
        found |= {f"{block}.{part}": size for part, size in parts.items()}
    found |= {"Mixed_7a.branch3x3_1": (768, 192, 1, 1), "Mixed_7a.branch3x3_2": (192, 320, 3, 3)}
    found |= {f"Mixed_7a.branch7x7x3_{i}": (768 if i == 1 else 192, 192, *window)
              for i, window in ((1, (1, 1)), (2, (1, 7)), (3, (7, 1)), (4, (3, 3)))}  # fmt: skip
    for block, n in E.items():
        parts = {"branch1x1": (n, 320, 1, 1), "branch_pool": (n, 192, 1, 1)}
        parts |= {"branch3x3_1": (n, 384, 1, 1), "branch3x3dbl_1": (n, 448, 1, 1)}
        parts["branch3x3dbl_2"] = (448, 384, 3, 3)
        for part in ("branch3x3_2", "branch3x3dbl_3"):
            parts |= {f"{part}a": (384, 384, 1, 3), f"{part}b": (384, 384, 3, 1)}
        found |= {f"{block}.{part}": size for part, size in parts.items()}
    return found


def params_of(state: Mapping[str, Any]) -> Params:
    """The parameters by their names in the file, kernels as ``h w in out``; UserError for others.

    Each batch norm is a scale and a shift, worked out in float64.
    """
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    wanted: dict[str, tuple[int, ...]] = {"fc.weight": (CLASSES, 2048), "fc.bias": (CLASSES,)}
    for name, (inputs, out, *window) in layers().items():
        wanted[f"{name}.conv.weight"] = (out, inputs, *window)
        for end in ("weight", "bias", "running_mean", "running_var"):
            wanted[f"{name}.bn.{end}"] = (out,)
    weights.check("InceptionV3 for FID", {k: np.shape(v) for k, v in state.items()}, wanted)
    params = {"fc": np.asarray(state["fc.weight"], np.float32).T}
    for name in layers():
        scale, bias, mean, var = (
            np.asarray(state[f"{name}.bn.{end}"], np.float64)
            for end in ("weight", "bias", "running_mean", "running_var")
        )
        scale = scale / np.sqrt(var + EPS)
        params[f"{name}.kernel"] = np.asarray(state[f"{name}.conv.weight"], np.float32).transpose(
            2, 3, 1, 0
        )
        params[f"{name}.scale"] = scale.astype(np.float32)
        params[f"{name}.shift"] = (bias - mean * scale).astype(np.float32)
    return params


def outputs(params: Params, x: Float[Array, "n s s 3"]) -> dict[str, Array]:
    """``features``, ``spatial`` and ``logits`` of pictures as the port scales them."""

    def conv(name: str, x: Array, stride: int = 1, pad: bool = True) -> Array:
        kernel = params[f"{name}.kernel"]
        padding = [(k // 2, k // 2) if pad else (0, 0) for k in kernel.shape[:2]]
        how = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, **how)
        scale, shift = (params[f"{name}.{end}"][None, None, None] for end in ("scale", "shift"))
        return jax.nn.relu(x * scale + shift)

    def chain(x: Array, *names: str) -> Array:
        for name in names:
            x = conv(name, x)
        return x

    def steps(start: str, count: int) -> list[str]:
        return [f"{start}_{i}" for i in range(1, count + 1)]

    x = conv("Conv2d_1a_3x3", x, stride=2, pad=False)
    x = conv("Conv2d_2b_3x3", conv("Conv2d_2a_3x3", x, pad=False))
    x = conv("Conv2d_3b_1x1", _max(x))
    x = _max(conv("Conv2d_4a_3x3", x, pad=False))
    for b in A:
        mean = conv(f"{b}.branch_pool", _mean(x))
        five = chain(x, *steps(f"{b}.branch5x5", 2))
        x = _join(conv(f"{b}.branch1x1", x), five, chain(x, *steps(f"{b}.branch3x3dbl", 3)), mean)
    down = chain(x, *steps("Mixed_6a.branch3x3dbl", 2))
    down = conv("Mixed_6a.branch3x3dbl_3", down, 2, pad=False)
    x = _join(conv("Mixed_6a.branch3x3", x, 2, pad=False), down, _max(x))
    spatial = None
    for b in C:
        one, mean = conv(f"{b}.branch1x1", x), conv(f"{b}.branch_pool", _mean(x))
        spatial = one[..., :SPATIAL] if b == "Mixed_6d" else spatial
        seven = chain(x, *steps(f"{b}.branch7x7", 3))
        x = _join(one, seven, chain(x, *steps(f"{b}.branch7x7dbl", 5)), mean)
    three = conv("Mixed_7a.branch3x3_2", conv("Mixed_7a.branch3x3_1", x), 2, pad=False)
    seven = chain(x, *steps("Mixed_7a.branch7x7x3", 3))
    x = _join(three, conv("Mixed_7a.branch7x7x3_4", seven, 2, pad=False), _max(x))
    for b in E:
        pool = _max(x, 1, "SAME") if b == "Mixed_7c" else _mean(x)
        three, twice = conv(f"{b}.branch3x3_1", x), chain(x, *steps(f"{b}.branch3x3dbl", 2))
        parts = [conv(f"{b}.branch1x1", x)]
        parts += [conv(f"{b}.branch3x3_2{end}", three) for end in "ab"]
        parts += [conv(f"{b}.branch3x3dbl_3{end}", twice) for end in "ab"]
        x = _join(*parts, conv(f"{b}.branch_pool", pool))
    found = x.mean((1, 2))
    logits = jnp.matmul(found, params["fc"], precision="highest")
    return {"features": found, "spatial": spatial.reshape(len(x), -1), "logits": logits}


def _join(*parts: Float[Array, "n h w _"]) -> Float[Array, "n h w _"]:
    return jnp.concatenate(parts, -1)


def _max(x: Float[Array, "n h w c"], stride: int = 2, padding: str = "VALID") -> Array:
    window = (1, 3, 3, 1), (1, stride, stride, 1), padding
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, *window)


def _mean(x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """The mean of 3 x 3 pixels, of those that there are."""
    window = (1, 3, 3, 1), (1, 1, 1, 1), "SAME"
    there = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    total, count = (jax.lax.reduce_window(v, 0.0, jax.lax.add, *window) for v in (x, there))
    return total / count
