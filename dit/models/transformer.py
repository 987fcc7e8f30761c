"""What a transformer of equal, stacked blocks over patches says of itself: see ``models/network.py``."""

from __future__ import annotations

import math

import flax.linen as nn
from jaxtyping import Array, Float

from dit import config
from dit.models import cache, condition, stack
from dit.models.activations import constrain
from dit.models.cache import Cache
from dit.models.embeddings import FREQUENCIES
from dit.models.network import Level, Network, Shape
from dit.models.patchify import grid
from dit.models.patchify import levels as levels_of
from dit.models.stack import Stage
from dit.types import Cond, Params, UserError


class Transformer(Network):
    """A network of ``depth`` blocks of one ``width``. The fields are those of ``models/dit.py``."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One, over one stream."""
        return (Stage("blocks", self.depth, merge=("image",)),)

    def times_of(self, x: Array, t: Array, cond: Cond) -> Float[Array, "b k d"]:
        """All that is one vector a noise level, summed; averaged over the frames of a patch."""
        r = None if cond.r is None else levels_of(cond.r, x.shape[:4], self.patch)
        times = levels_of(t, x.shape[:4], self.patch)
        time = condition.embed_time(self, times, cond.replace(r=r))
        if t.ndim == 2:
            time = time.reshape(len(t), -1, self.patch[0], self.width).mean(2)
        if cond.label is not None:
            time = time + self.label(cond.label.reshape(len(t), -1), cond.drop)
        return constrain(time, "act_batch", None, "act_embed")

    def example(self, shape: Shape):
        """Zeros for the data and every condition that the model takes; the context has one token."""
        return condition.example(self, shape)

    def empty_cache(self, batch: int, shape: Shape, frames: int, sinks: int) -> Cache:
        """See ``Network``. Raises UserError for a network that cannot go on from a cache."""
        adaptive = make_block(self).uses in ("vector", "both")
        for right, name, expected in (
            (
                self.frame_causal,
                "frame_causal",
                "True: what is kept must not depend on later frames",
            ),
            (self.positions == "rope", "positions", "'rope': what is added to tokens cannot move"),
            (adaptive, "block", "an adaptive one, which is told times as vectors"),
        ):
            if not right:
                got = getattr(self, name)
                raise UserError(
                    f"got cache=true and model.{name}={got!r}; a cache needs {expected}"
                )
        _, height, width = grid(tuple(shape[:3]), self.patch)
        about = (height * width, self.heads, self.width, self.dtype)
        return cache.empty(self.depth, batch, frames, *about, sinks)

    def cell(self) -> tuple[int, int, int]:
        """A patch."""
        return self.patch

    def macs(self, shape: Shape, context_len: int = 0, level: Level = "sample") -> dict[str, int]:
        """See ``Network``; the blocks' parts are of all layers together."""
        d, n, block = self.width, self.tokens(shape), make_block(self)
        n = 2 * n if level == "forced" else n
        pixels = math.prod(self.patch)
        times = self.times(shape, level)
        rows = times // self.patch[0] if level == "frame" else times
        context = context_len if self.context_dim is not None else 0
        adaptive = block.uses in ("vector", "both")
        m = context if adaptive else 1 + (self.num_classes is not None) + context
        macs = {
            "embed": n * pixels * self.in_channels * d,
            "concat": n * pixels * (self.concat_channels or 0) * d,
            "final": n * d * pixels * self.out_channels,
        }
        numbers = {"time": times, "r": times * self.second_time, "guidance": self.guidance_input}
        for name, count in numbers.items():
            macs |= {f"{name}/in": count * FREQUENCIES * d, f"{name}/out": count * d * d}
        if self.pooled_dim is not None:
            macs["pooled"] = self.pooled_dim * d + d * d
        if context:
            macs["context"] = (1 if block.uses == "vector" else context) * self.context_dim * d
        if adaptive:
            macs["final"] += rows * d * 2 * d
        inside = n + m if block.uses == "prefix" else n
        parts = block.macs(inside, rows, m, d)
        return macs | {f"blocks/{part}": self.depth * count for part, count in parts.items()}

    def times(self, shape: Shape, level: Level) -> int:
        """See ``Network``; ``forced``: that of clean frames, and those of frames of tokens."""
        frames = grid(tuple(shape[:3]), self.patch)[0]
        return 1 + frames if level == "forced" else super().times(shape, level)

    def tokens(self, shape: Shape) -> int:
        """The number of patches."""
        return math.prod(grid(tuple(shape[:3]), self.patch))

    def attention_macs(self, shape: Shape) -> int:
        """Every patch with every other, in all heads together."""
        return self.tokens(shape) ** 2 * self.width

    def stream(self, shape: Shape) -> int:
        """What enters each block."""
        return self.tokens(shape) * self.width * self.depth

    def plain(self, unrolled: bool = False) -> Transformer:
        """See ``Network``."""
        return self.clone(unroll=unrolled, remat="none", attention="xla")

    def unstack(self, params: Params) -> Params:
        """Each layer by itself."""
        return stack.unstack(params, self.stages)


def make_block(model: Transformer) -> nn.Module:
    """One of the model's blocks, a description by itself."""
    return config.resolve(
        "models.blocks",
        model.block,
        heads=model.heads,
        dtype=model.dtype,
        attention=model.attention,
        **dict(model.block_options),
    )
