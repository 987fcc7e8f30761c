"""What a frame-causal transformer remembers of frames that it has seen: their keys and values.

A ring of ``slots`` frames of tokens: the first ``sinks`` frames of a clip stay for good (attention
sinks, Xiao et al. 2023, StreamingLLM), the others give way, the oldest first. Keys are kept without
their rotation and are turned anew at every use, by their place in the window: sinks first, then the
ring, then the frames that come next. So no angle is ever larger than in training, however long the
clip, and until something has given way all are where they are in the clip.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from dit.models.attention import Visibility
from dit.models.positions import Rotary
from dit.types import UserError

NEVER = 2**30  # the frame of a slot that is empty, later than any query's


@struct.dataclass
class Past:
    """What one layer remembers, and the angles of all keys: those, and the new ones after them."""

    k: Float[Array, "... p h e"]
    v: Float[Array, "... p h e"]
    rotary: Rotary


@struct.dataclass
class Cache:
    """``k`` and ``v`` of all layers, ``seen``: how many frames there were so far.

    ``s`` tokens are one frame. Frame g is in slot g if it is a sink, else in the ring.
    """

    k: Float[Array, "l b slots s h e"]
    v: Float[Array, "l b slots s h e"]
    seen: Int[Array, ""]
    sinks: int = struct.field(pytree_node=False, default=0)

    @property
    def ring(self) -> int:
        """Slots that are used again."""
        return self.k.shape[2] - self.sinks

    def frames(self) -> Int[Array, " slots"]:
        """The frame in every slot; ``NEVER`` where there is none yet."""
        slot = jnp.arange(self.k.shape[2])
        newest = self.seen - 1 - jnp.mod(self.seen - 1 - slot, self.ring)  # of those in this place
        frame = jnp.where(slot < self.sinks, slot, newest)
        there = jnp.where(slot < self.sinks, slot < self.seen, newest >= self.sinks)
        return jnp.where(there, frame, NEVER)

    def places(self, new: int) -> tuple[Int[Array, " slots"], Int[Array, " f"]]:
        """Places in the window, in frames: of what is in the slots, and of ``new`` frames after it."""
        gone = jnp.maximum(self.seen - self.k.shape[2], 0)
        frames = self.frames()
        old = jnp.where(frames < self.sinks, frames, frames - gone)
        return jnp.where(frames == NEVER, 0, old), self.seen - gone + jnp.arange(new)

    def visible(self, new: int) -> Visibility:
        """``new`` frames see all that is there and, of themselves, no later one."""
        size = self.k.shape[3]
        after = jnp.repeat(self.seen + jnp.arange(new), size)
        before = jnp.repeat(self.frames(), size)
        return Visibility(q_frame=after[None], k_frame=jnp.concatenate([before, after])[None])

    def past(self, rotary: Rotary) -> Past:
        """Of all layers, with their slots in one row."""
        rows = (*self.k.shape[:2], -1, *self.k.shape[4:])
        return Past(self.k.reshape(rows), self.v.reshape(rows), rotary)

    def written(self, k: Float[Array, "l b n h e"], v: Float[Array, "l b n h e"]) -> Cache:
        """With the keys and values of the frames that come next."""
        slots, size = self.k.shape[2:4]
        new = k.shape[2] // size
        frame = self.seen + jnp.arange(new)
        slot = self.sinks + jnp.mod(frame - self.sinks, self.ring)
        slot = jnp.where(frame >= self.seen + new - self.ring, slot, slots)  # or gone at once
        slot = jnp.where(frame < self.sinks, frame, slot)
        k, v = (x.reshape(*x.shape[:2], new, size, *x.shape[3:]) for x in (k, v))
        put = {
            name: getattr(self, name).at[:, :, slot].set(x.astype(self.k.dtype), mode="drop")
            for name, x in (("k", k), ("v", v))
        }
        return self.replace(seen=self.seen + new, **put)

    def of(self, batch: int) -> Cache:
        """For so many samples, of a cache that may be for pairs of them: the first of each."""
        every = self.k.shape[1] // batch
        return self if every == 1 else self.replace(k=self.k[:, ::every], v=self.v[:, ::every])


def empty(
    layers: int, batch: int, slots: int, tokens: int, heads: int, width: int, dtype, sinks: int
) -> Cache:
    """A cache that has seen nothing; UserError unless something beside the sinks gives way."""
    if slots <= sinks:
        raise UserError(
            f"a rollout past memory: a cache of {slots} frames, {sinks} of which are sinks, keeps no "
            "recent frame; take a larger window, or fewer sinks"
        )
    zero = jnp.zeros((layers, batch, slots, tokens, heads, width // heads), dtype)
    return Cache(zero, zero, jnp.zeros((), jnp.int32), sinks)
