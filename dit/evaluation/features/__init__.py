"""Feature networks, one a file: pictures to vectors in which likeness can be measured.

``config.resolve("evaluation.features", NAME)`` gives a ``Features``. The weights come from files that
are at hand and are never fetched. The name of the network belongs to every figure: distances in the
features of two networks, or of two ports of one, cannot be compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from dit.types import Params, UserError

BATCH = 64  # pictures at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """``apply(params, x) -> (n, size)``, for pictures ``x`` of ``side`` pixels, RGB in [0, 255].

    ``origin`` names the weights, as a protocol does. ``pictures(x)`` takes uint8 of any size.
    """

    name: str
    params: Params
    apply: Callable[[Params, Float[Array, "n s s 3"]], Float[Array, "n d"]]
    side: int
    origin: str

    def __post_init__(self):
        object.__setattr__(self, "_jitted", jax.jit(self._of_pictures))

    def _of_pictures(self, params: Params, x: UInt8[Array, "n h w 3"]) -> Float[Array, "n d"]:
        shape = (len(x), self.side, self.side, 3)
        x = jax.image.resize(x.astype(jnp.float32), shape, "cubic")
        return self.apply(params, jnp.clip(x, 0, 255))

    def pictures(self, x: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n d"]:
        """The features of pictures, grey or RGB, scaled to ``side`` pixels by an antialiased cubic.

        ``BATCH`` at a time. Raises UserError for other channels.
        """
        if x.shape[-1] not in (1, 3):
            raise UserError(f"got pictures of {x.shape[-1]} channels; {self.name} sees 1 or 3")
        found, size = [], min(BATCH, len(x))
        for start in range(0, len(x), size):
            part = x[start : start + size]
            rows = np.minimum(np.arange(size), len(part) - 1)  # the last one fills the batch
            rgb = np.broadcast_to(part[rows], (size, *part.shape[1:3], 3))
            found.append(np.asarray(self._jitted(self.params, rgb))[: len(part)])
        return np.concatenate(found)
