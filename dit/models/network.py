"""What every network answers for: all that training, preflight and scaling laws ask of one.

A network is one file of this package with ``build(**keywords) -> Network``. The rest of the project
reads no field of its class: it calls the network, asks the methods below, and looks at the parameters,
whose axes have names. A new network needs ``__call__`` and ``macs``, and overrides the defaults that are
not true of it.

``build`` is given ``in_channels``, ``num_classes`` (None for data without labels) and ``dtype`` where it
has keywords of these names. Other keywords have one meaning in all networks. ``remat`` (a policy of
``models/remat.py``), ``unroll`` and ``attention`` (a kernel of ``models/kernels``) say how a network is
run and never what it computes. ``depth``, ``width`` and ``heads`` are what a scaling ladder varies.

Axes of parameters are named as in ``parallel/rules.py``: ``embed`` and ``mlp`` for channels that grow
with the width, ``patch`` for those of the data, ``spatial`` for the window of a convolution, ``layers``
for a stack of equal layers. For muP (``training/transfer.py``) maps from ``patch`` or ``context`` are
drawn as ``layers.xavier`` does, and those in modules named ``time`` with a spread that does not depend
on the width.
"""

from __future__ import annotations

import math
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dit.models.cache import Cache
from dit.types import Cond, Params, Tokens, UserError

QUESTIONS = {
    *("example", "macs", "times", "cell", "tokens", "attention_macs"),
    *("stream", "plain", "unstack", "check_packed", "check_teacher_forced", "empty_cache"),
}
Shape = tuple[int, ...]  # (f, h, w, c), of one example
Level = str  # sample, frame, token, or forced: a frame, beside clean ones (teacher forcing)


class Network(nn.Module):
    """A description of a network: hashable, without arrays.

    ``no_input_gradient``: parts of ``macs`` that read what has no gradient (data, the sinusoids of
    time), so that the backward pass makes one product for each of theirs and not two. ``once``: names
    of modules that see a sample once and not at every position.
    """

    no_input_gradient: ClassVar[tuple[str, ...]] = (
        *("embed", "concat"),
        *("time/in", "r/in", "guidance/in"),
    )
    once: ClassVar[tuple[str, ...]] = (
        *("time", "r", "guidance", "label", "pooled", "context"),
        *("modulation", "kv"),
    )

    def __init_subclass__(cls, **kwargs):
        for name in QUESTIONS & vars(cls).keys():  # answered from the description alone
            nn.nowrap(vars(cls)[name])
        super().__init_subclass__(**kwargs)

    def __call__(
        self, x: Float[Array, "b f h w c"], t: Float[Array, "..."], cond: Cond
    ) -> Float[Array, "b f h w c_out"]:
        """The output for noisy data ``x`` at time ``t``, whose shape is a prefix of that of ``x``.

        Raises UserError for shapes that do not fit and for conditions missing or not expected.
        """
        raise NotImplementedError

    def told(self, cond: Cond) -> Cond:
        """``cond`` with all that does not depend on ``x`` and ``t`` computed: ``__call__`` takes it too.

        A sampler asks once for what it would compute at every step.
        """
        return cond

    def transform(
        self, tokens: Tokens, t: Float[Array, "b s"], cond: Cond
    ) -> Float[Array, "b n p"]:
        """The output, in patches, for rows of tokens into which several samples are packed.

        ``t`` and ``cond``: of each of ``s`` segments of a row; see ``models/dit.py``. Only a network
        that passes ``check_packed`` has it.
        """
        raise NotImplementedError

    def check_packed(self) -> None:
        """Raise UserError unless ``transform`` tells packed samples apart. By default there is none."""
        raise UserError(
            f"network {type(self).__name__} cannot take packed examples: take 'dit', or leave out "
            "packing.tokens"
        )

    def check_teacher_forced(self) -> None:
        """Raise UserError unless ``transform`` takes clean frames beside noisy ones.

        Each token then sees what it would see in a clip of its own: ``objectives/teacher_forcing.py``.
        """
        raise UserError(
            f"network {type(self).__name__} cannot be trained by teacher_forcing: take 'dit' with "
            "frame_causal=True, or objective.name=denoise with level=frame"
        )

    def empty_cache(self, batch: int, shape: Shape, frames: int, sinks: int) -> Cache:
        """A cache for so many samples of ``shape``, that keeps so many frames of tokens; ``continued``.

        Raises UserError for a network that has none, which this default is for.
        """
        raise UserError(
            "got cache=true for a network without a cache of keys and values: leave it out, or take "
            "model.name=dit with frame_causal=True and positions='rope'"
        )

    def continued(
        self, x: Float[Array, "b f h w c"], t: Float[Array, "..."], cond: Cond, cache: Cache
    ) -> tuple[Float[Array, "b f h w c_out"], Cache]:
        """The output for frames that come after those in the ``cache``, and the cache with them too.

        As if the network had been given all of the clip, of whose earlier frames a window is seen.
        """
        raise NotImplementedError

    def example(self, shape: Shape) -> tuple[Array, Array, Cond]:
        """Inputs ``(x, t, cond)`` for a batch of one, all zero, to initialise parameters with.

        This default is for a network without conditions.
        """
        return jnp.zeros((1, *shape)), jnp.zeros((1,)), Cond()

    def macs(self, shape: Shape, context_len: int = 0, level: Level = "sample") -> dict[str, int]:
        """Multiply-adds of one sample's forward pass, by part: exact, of products and convolutions.

        ``context_len``: tokens of context, for a network that takes one; ``level``: what has a time of
        its own. A convolution counts its padding, as the program does.
        """
        raise NotImplementedError

    def times(self, shape: Shape, level: Level) -> int:
        """How many times one sample has."""
        return {"sample": 1, "frame": shape[0], "token": self.tokens(shape)}[level]

    def cell(self) -> tuple[int, int, int]:
        """The smallest ``(frames, height, width)`` with a noise level of its own: by default a pixel."""
        return (1, 1, 1)

    def tokens(self, shape: Shape) -> int:
        """Positions of a sample at the network's finest resolution: by default its pixels."""
        return math.prod(shape[:3])

    def attention_macs(self, shape: Shape) -> int:
        """Multiply-adds of one of the two products of pairs in one layer's attention, for one sample.

        Where layers differ it is their mean. Counts of a program take it for products inside of kernels,
        which they cannot see.
        """
        return 0

    def stream(self, shape: Shape) -> int:
        """Elements that pass from layer to layer in one sample's forward pass, over all layers.

        Preflight estimates from it what ``tensor`` and ``context`` meshes send; 0 makes them free.
        """
        return 0

    def plain(self, unrolled: bool = False) -> Network:
        """The same network, with the same parameters, in the form that is quickest to trace.

        Without remat or kernels; layers are looped over, or ``unrolled`` so that each can be seen.
        """
        return self

    def unstack(self, params: Params) -> Params:
        """The parameters as a loop that runs the network many times on one CPU should hold them.

        See ``models.unstack``.
        """
        return params
