"""Feature networks, one a file: pictures to vectors in which likeness can be measured.

``config.resolve("evaluation.features", NAME)`` gives a ``Features``; ``networks`` gives several, as on a
command line. The weights come from files that are at hand and are never fetched. The name of the network
belongs to every figure: distances in the features of two networks, or of two ports of one, cannot be
compared.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, UInt8

from dit.config import parse_spec, resolve
from dit.evaluation.features.resize import Rule, scaled
from dit.types import Params, UserError

BATCH = 64  # pictures at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """``apply(params, x)``, for pictures ``x`` of ``side`` pixels, RGB in [0, 255]: ``(n, size)``.

    Or a dict of it as ``features`` and of ``others``, such as a map or logits. ``origin`` names the
    weights, ``resize`` the rule by which pictures are scaled and ``port`` whose code is followed, as a
    protocol does. ``pictures(x)`` takes uint8 of any size.
    """

    name: str
    params: Params
    apply: Callable[[Params, Float[Array, "n s s 3"]], Float[Array, "n d"] | dict[str, Array]]
    side: int
    origin: str
    resize: Rule = "cubic"
    port: str = ""
    others: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "_jitted", jax.jit(self.outputs))

    def outputs(self, params: Params, x: UInt8[Array, "n h w 3"]) -> dict[str, Float[Array, "n _"]]:
        """``features`` and the ``others`` of RGB pictures, scaled; to be jitted."""
        with jax.default_matmul_precision(
            "highest"
        ):  # else a GPU's and a TPU's products are rounded
            found = self.apply(params, scaled(x.astype(jnp.float32), self.side, self.resize))
        return found if isinstance(found, dict) else {"features": found}

    def check(self, channels: int) -> None:
        """UserError for pictures of other than one or three channels."""
        if channels not in (1, 3):
            raise UserError(f"got pictures of {channels} channels; {self.name} sees 1 or 3")

    def pictures(self, x: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n d"]:
        """The features of pictures, grey or RGB, ``BATCH`` at a time. UserError for other channels."""
        self.check(x.shape[-1])
        found, size = [], min(BATCH, len(x))
        for start in range(0, len(x), size):
            part = x[start : start + size]
            rows = np.minimum(np.arange(size), len(part) - 1)  # the last one fills the batch
            rgb = np.broadcast_to(part[rows], (size, *part.shape[1:3], 3))
            outputs = self._jitted(self.params, rgb)
            found.append(np.asarray(outputs["features"])[: len(part)])
        return np.concatenate(found)

    @functools.cached_property
    def protocol(self) -> dict[str, Any]:
        """What must be equal for two scores to be compared: network, weights, port and scaling."""
        digest = hashlib.sha256()
        for name, leaf in sorted(flatten_dict(self.params, sep="/").items()):
            digest.update(name.encode() + np.asarray(leaf).tobytes())
        about = {"network": self.name, "origin": self.origin, "weights": digest.hexdigest()[:16]}
        return about | {"port": self.port, "resize": self.resize, "side": self.side}


def specs(texts: Sequence[str]) -> list[str]:
    """``["a:k=1,l=2,b", "c"]`` as ``["a:k=1,l=2", "b", "c"]``; UserError for an option of nothing."""
    found: list[str] = []
    for item in (item for text in texts for item in text.split(",") if item):
        if "=" not in item or ":" in item:
            found.append(item)
        elif found and ":" in found[-1]:
            found[-1] += f",{item}"
        else:
            raise UserError(f"got {item!r}; expected the name of a network before its options")
    return found


def networks(texts: Sequence[str]) -> tuple[Features, ...]:
    """The networks that ``specs`` names, such as ``dinov2:size=b,port=timm``; UserError for others."""
    return tuple(resolve("evaluation.features", **parse_spec(text)) for text in specs(texts))
