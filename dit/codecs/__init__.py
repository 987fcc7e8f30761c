"""Codecs turn data into what the model sees, and back.

Each owns its scale and shift. ``encode`` and ``decode`` are JAX functions that run inside the jitted
step, so a batch travels to the device in the source's own type (uint8 for pixels). A codec may have
parameters, an autoencoder's: nothing trains them, and they are arguments of every function.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

from dit.types import Params, Video, Weights

Shape = tuple[int, ...]  # (f, h, w, c)
Encode = Callable[..., Video]
Decode = Callable[[Params, Video], Video]
Moments = Callable[[Params, Video], tuple[Video, Video]]
Reshape = Callable[[Shape], Shape]


def same(shape: Shape) -> Shape:
    """The shape as it is."""
    return tuple(shape)


@dataclasses.dataclass(frozen=True)
class Codec:
    """``encode(params, x, key, ids)``, float ``b f h w c``; ``decode(params, latents)`` back.

    ``key``, ``ids``: what the noise of a codec that adds some depends on, for each example; without
    a key it adds none. ``encoded_shape``, ``decoded_shape``: the shape of an example after the one, from
    that of the data, and after the other, from that of its latents. ``pixels``: ``decode`` gives colours
    in [-1, 1] that can be drawn. False where the data are themselves latents, which only the autoencoder
    that made them can decode. ``weights``: the parameters; None: there are none, and ``params`` is {}.
    ``moments(params, pixels)``: mean and standard deviation of latents before they are scaled, which
    ``encode`` takes in place of pixels; None: a codec without. ``elementwise``: ``encode`` maps every
    number by itself, whatever the shape around it, and so examples that are packed too.
    """

    encode: Encode
    decode: Decode
    encoded_shape: Reshape = same
    decoded_shape: Reshape = same
    pixels: bool = True
    weights: Weights | None = None
    moments: Moments | None = None
    elementwise: bool = False

    @property
    def frozen(self) -> dict[str, Weights]:
        """The parameters as an argument of programs that use the codec: none where it has none."""
        return {} if self.weights is None else {"codec": self.weights}

    def frames_of(self, shape: Shape) -> tuple[int, ...]:
        """Of latents of ``shape``: how many frames of the data each frame stands for, in their order.

        Those of a causal codec are one frame, and then as many each as it has strides.
        """
        ends = [0, *(self.decoded_shape((n, *shape[1:]))[0] for n in range(1, shape[0] + 1))]
        return tuple(end - start for start, end in itertools.pairwise(ends))
