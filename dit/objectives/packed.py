"""The denoising loss of examples that are packed into rows of tokens.

A packed batch has ``b`` rows of ``n`` tokens, each with up to ``s`` examples, its *segments*, one after
the other and then padding (``data.packing``). ``grid``, ``b s 3``, says how many patches a segment has
along time, y and x, all zero where a row has no further example; all else follows from it. ``x`` is
``b n p``, patches; ``id``, the conditions and ``weight`` begin with ``b s``.

Every example has the noise, the time, the dropped condition and the loss that it has in a plain batch:
the mean of its squared errors over its own pixels. The loss of a batch is the mean of its *examples'*
losses, not of its tokens', as that of a plain batch is: ``mean(weight loss)`` over all segments, with
``weight`` zero where there is no example and one number elsewhere, such that its mean is 1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from dit import rng
from dit.diffusion.process import Process, corrupt, network_input
from dit.diffusion.times import Quantile, draw
from dit.diffusion.weights import Weight
from dit.objectives.errors import errors
from dit.types import ApplyFn, Cond, Key, Params, Tokens

Patch = tuple[int, int, int]


@struct.dataclass
class Layout:
    """What the tokens of packed rows are.

    ``segment``: which of the ``s`` examples of its row a token belongs to, ``s`` for padding;
    ``row``: the same, below ``s`` for padding too; ``position``: the patch's time, y and x within its
    example; ``whole``: how many patches along each its example has.
    """

    segment: Int[Array, "b n"]
    row: Int[Array, "b n"]
    position: Int[Array, "b n 3"]
    whole: Int[Array, "b n 3"]


def layout(grid: Int[Array, "b s 3"], n: int) -> Layout:
    """The tokens of rows of length ``n`` whose segments have ``grid`` patches, time-major."""
    counts = grid.prod(-1)
    ends = jnp.cumsum(counts, axis=1)
    place = jnp.arange(n)[None]
    segment = (place[..., None] >= ends[:, None]).sum(-1)
    row = jnp.minimum(segment, grid.shape[1] - 1)
    within = place - jnp.take_along_axis(ends - counts, row, axis=1)
    whole = jnp.maximum(jnp.take_along_axis(grid, row[..., None], axis=1), 1)
    _, h, w = (whole[..., i] for i in range(3))
    position = jnp.stack([within // (h * w), within // w % h, within % w], axis=-1)
    return Layout(segment, row, position, whole)


def pixels(tokens: Layout, patch: Patch, channels: int) -> Int[Array, "b n p"]:
    """Where each number of a patch lies in its example, flattened as ``f h w c``."""
    inside = np.stack(np.meshgrid(*map(np.arange, patch), indexing="ij"), -1).reshape(1, 1, -1, 3)
    at = tokens.position[:, :, None] * np.array(patch)[None, None, None] + inside  # b n q 3
    h, w = (tokens.whole[:, :, None, i] * patch[i] for i in (1, 2))
    first = (at[..., 0] * h + at[..., 1]) * w + at[..., 2]
    each = first[..., None] * channels + np.arange(channels)[None, None, None]
    return each.reshape(*each.shape[:2], -1)


def loss(
    key: Key,
    params: Params,
    apply_fn: ApplyFn,
    process: Process,
    batch: dict[str, Array],
    times: Quantile,
    weight: Weight,
    condition_dropout: float,
    patch: Patch,
    strata: int | None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, "b s"]]]:
    """The loss and the metrics of ``denoise.build``, of every segment, zero where it is empty.

    With ``weight``, by which the mean over segments becomes one over examples, and ``padding``, the
    fraction of the tokens that are none.
    """
    grid = batch["grid"]
    (b, s), n = grid.shape[:2], batch["x"].shape[1]
    tokens = layout(grid, n)
    each = {k: v.reshape(b * s, *v.shape[2:]) for k, v in batch.items() if k != "x"}
    streams = {name: rng.stream(key, name) for name in ("noise", "time", "dropout")}
    keys = {name: rng.per_sample(stream, each["id"]) for name, stream in streams.items()}
    t, density = draw(streams["time"], each["id"], process.path, times, strata=strata)
    t, density = t.reshape(b, s), density.reshape(b, s)
    cond = Cond.of(each, rng.uniform(keys["dropout"]) < condition_dropout)

    # To a process a row is a clip of n frames, each of them one patch with a time of its own.
    numbers = batch["x"].shape[2]
    channels = numbers // int(np.prod(patch))
    x_0 = batch["x"].reshape(b, n, 1, -1, channels)
    noise = jnp.take_along_axis(keys["noise"].reshape(b, s), tokens.row, axis=1)
    eps = rng.normal_at(noise, pixels(tokens, patch, channels)).reshape(x_0.shape)
    at = jnp.take_along_axis(t, tokens.row, axis=1)  # b n
    x_t = corrupt(process, x_0, eps, at)
    seen = Tokens(
        x=network_input(process, x_t, at)[0].reshape(b, n, numbers),
        position=tokens.position.astype(jnp.float32),
        segment=tokens.segment,
        frame=tokens.position[..., 0],
        row=tokens.row,
    )
    out = apply_fn(params, seen, process.path.c_noise(t), cond).astype(x_0.dtype)
    out = out.reshape(*x_0.shape[:-1], -1)
    density = jnp.take_along_axis(density, tokens.row, axis=1)
    found = errors(process, weight, x_0, eps, x_t, at, density, out)
    member = jax.nn.one_hot(tokens.segment, s, dtype=x_0.dtype)  # zero for padding
    size = jnp.maximum(grid.prod(-1), 1)
    metrics = {
        name: jnp.einsum("bn,bns->bs", error.mean((2, 3, 4)), member, precision="highest") / size
        for name, error in found.items()
    }
    if "vb" in metrics:
        metrics["loss"] += metrics["vb"]
    padding = 1 - grid.prod(-1).sum() / (b * n)
    metrics |= {"t": t, "weight": batch["weight"], "padding": jnp.full((b, s), padding)}
    return (metrics["loss"] * metrics["weight"]).mean(), metrics
