"""The patch discriminator of image translation: a logit for each of many overlapping patches.

A few convolutions (Isola et al. 2017, "pix2pix", section 3.2; as used by Esser et al. 2021 and Rombach
et al. 2022): ``depth`` that halve height and width, then two that do not, all 4x4 with leaky ReLUs
between. With three that halve, each logit sees 70x70 pixels; 34x34 with two, 16x16 with one. Each frame
of a clip is a picture of its own.

Those papers normalise over the batch. Here it is group norm: with statistics of the batch an example's
logit would depend on its neighbours, so that micro-batches, or a batch on fewer devices, would train
another network; real and generated pictures, which come in batches of their own, could be told apart by
their statistics; and running means would be a state besides the parameters.
"""

from __future__ import annotations

import math
from typing import Annotated

import flax.linen as nn
from jax.nn import initializers
from jaxtyping import Array, Float

from dit import config
from dit.models.dit import DTYPES
from dit.models.layers import normal, wide
from dit.models.network import Level, Network, Shape
from dit.models.unet_blocks import GroupNorm
from dit.types import Cond, Count, Range, UserError

SIZE, SLOPE = 4, 0.2  # of the windows, and of leaky ReLUs below zero
WIDEST = 8  # times the width of the first layer
GROUP, EPS = 8, 1e-6  # channels that are normalised together


class PatchDiscriminator(Network):
    """A description of the network (hashable, no arrays). Made and checked by ``build``."""

    width: int
    depth: int
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "b f h w c"], t: Float[Array, "..."], cond: Cond
    ) -> Float[Array, "b f h2 w2 1"]:
        """Logits of pictures in [-1, 1], whatever the time; UserError for frames that are too small."""
        if min(self.sides(x.shape[1:])[-1]) < 1:
            raise UserError(
                f"got frames of {x.shape[2]}x{x.shape[3]} for a discriminator of depth {self.depth}; "
                f"expected sides of {3 * 2**self.depth} pixels or more, or a lower depth"
            )
        h = x.reshape(-1, *x.shape[2:])  # (b f) h w c
        last = len(self.layers()) - 1
        for i, (features, stride) in enumerate(self.layers()):
            name, *axes = (f"conv_{i}", "embed", "embed_out")
            if i in (0, last):
                name, *axes = ("embed", "patch", "embed") if i == 0 else ("final", "embed", "patch")
            kernel = nn.with_logical_partitioning(normal, ("spatial", "spatial", *axes))
            bias = nn.with_logical_partitioning(initializers.zeros, (axes[-1],))
            h = nn.Conv(
                features,
                (SIZE, SIZE),
                (stride, stride),
                padding=((1, 1), (1, 1)),
                use_bias=i in (0, last),
                dtype=self.dtype,
                kernel_init=kernel,
                bias_init=bias,
                name=name,
            )(h)
            if i not in (0, last):
                norm = GroupNorm(features // GROUP, EPS, name=f"norm_{i}")
                h = norm(h[:, None])[:, 0]
            h = h if i == last else nn.leaky_relu(h, SLOPE)
        return h.reshape(*x.shape[:2], *h.shape[1:]).astype(wide(self.dtype))

    @nn.nowrap
    def layers(self) -> list[tuple[int, int]]:
        """Channels and stride of each convolution."""
        widths = [self.width * min(2**i, WIDEST) for i in range(self.depth + 1)]
        return [*((width, 2) for width in widths[:-1]), (widths[-1], 1), (1, 1)]

    @nn.nowrap
    def sides(self, shape: Shape) -> list[tuple[int, int]]:
        """Height and width of what each convolution makes of data of ``shape``."""
        found, side = [], tuple(shape[1:3])
        for _, stride in self.layers():
            side = tuple((n + 2 - SIZE) // stride + 1 for n in side)
            found.append(side)
        return found

    def macs(self, shape: Shape, context_len: int = 0, level: Level = "sample") -> dict[str, int]:
        """See ``Network``."""
        channels, macs = shape[-1], {}
        for i, ((features, _), side) in enumerate(
            zip(self.layers(), self.sides(shape), strict=True)
        ):
            part = "embed" if i == 0 else f"conv_{i}"
            macs[part] = shape[0] * math.prod(side) * SIZE**2 * channels * features
            channels = features
        return macs


def build(
    *, width: Count = 64, depth: Annotated[int, Range(1, 6)] = 3, dtype: str = "float32"
) -> PatchDiscriminator:
    """``width``: channels of the first layer, a multiple of 8; ``depth``: how many halve the picture.

    Raises UserError for another width or dtype.
    """
    if width % GROUP:
        raise UserError(f"got a width of {width}; expected a multiple of {GROUP}")
    if dtype not in DTYPES:
        raise UserError(f"got dtype={dtype!r}: {config.suggest(dtype, list(DTYPES))}")
    return PatchDiscriminator(width, depth, dtype)
