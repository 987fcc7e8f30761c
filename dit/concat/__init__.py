"""What a network is given as channels beside x (``Cond.concat``), made of the data themselves.

``config.resolve("concat", NAME, **keywords)`` gives a ``Concat``, as the optional section ``concat`` of
a config asks for one; its channels are then ``model.concat_channels``. Training draws what is given of
each example by a mix of tasks (``diffusion.tasks``), sampling takes it from files. All of x is noisy and
has a loss, what is given too. Without the section, ``concat`` is an array of the data, as other
conditions are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped

from dit.codecs import Codec
from dit.diffusion.tasks import Mix, grid_of
from dit.types import Ids, Key, Params, UserError, Video, repeat_patches

GREY = 128  # of pixels that are hidden, in uint8
NOTHING = "text_to_video"  # the task of which nothing is given


@dataclasses.dataclass(frozen=True)
class Concat:
    """``make(codec, params, x, known)``: the channels, of data ``x`` and where they are ``known``.

    ``params`` are the codec's. ``more``: how many channels there are beside those of latents.
    ``check(frames)``: raises UserError where latents that stand for so many frames each
    (``Codec.frames_of``) cannot be marked. ``tasks``: what training gives; they count in frames of the
    data.
    """

    tasks: Mix
    more: int
    make: Callable[[Codec, Params, Shaped[Array, "b f h w c"], Bool[Array, "b f h w"]], Video]
    check: Callable[[tuple[int, ...]], None]

    @property
    def always(self) -> bool:
        """Whether something is given of every sample."""
        return not any(spec.partition(":")[0] == NOTHING for spec in self.tasks.specs)

    def fits(self, codec: Codec, latents: tuple[int, ...], cell: tuple[int, int, int]) -> None:
        """Raise UserError for a codec whose latents cannot be so marked, and for too few of them.

        ``latents``: the shape of an example's.
        """
        self.check(codec.frames_of(latents))
        frames = codec.decoded_shape(latents)[0]
        self.tasks.fitting(grid_of((frames, *latents[1:3]), (1, *cell[1:])))

    def drawn(
        self,
        codec: Codec,
        cell: tuple[int, int, int],
        params: Params,
        batch: Mapping[str, Any],
        key: Key,
        ids: Ids,
    ) -> dict[str, Video]:
        """``concat`` of a batch of data, by the tasks that ``key`` and the ``ids`` draw.

        ``cell``: frames, rows and columns of latents in a token. Raises UserError for data that are
        latents already, of which none can be hidden before they are encoded.
        """
        x = batch["x"]
        latents = codec.encoded_shape(x.shape[1:])
        if tuple(codec.decoded_shape(latents)) != x.shape[1:]:
            raise UserError(
                f"got data of shape {x.shape[1:]}, latents that were encoded beforehand, and a section "
                "concat, which hides a part of what is encoded: give data that are pixels, or leave the "
                "section out"
            )
        shape = (x.shape[1], *latents[1:3])
        known = self.tasks.known(key, ids, shape, (1, *cell[1:]))
        every = tuple(many // few for many, few in zip(x.shape[2:4], latents[1:3], strict=True))
        return {"concat": self.make(codec, params, x, repeat_patches(known, (1, *every)))}

    def given(
        self,
        codec: Codec,
        params: Params,
        batch: Mapping[str, Any],
        latents: tuple[int, ...],
        known: bool,
    ) -> dict[str, Video]:
        """``concat`` of a batch of samples, of latents of such a shape.

        ``known``: whether what its ``mask`` keeps of its ``start`` is given; else nothing is.
        """
        shape = (len(batch["id"]), *codec.decoded_shape(latents))
        if known and "mask" in batch:
            x, where = batch["start"], batch["mask"].all(-1)
        else:
            x = jnp.zeros(shape, jnp.uint8 if codec.pixels else jnp.float32)
            where = jnp.zeros(shape[:-1], bool)
        return {"concat": self.make(codec, params, x, where)}
