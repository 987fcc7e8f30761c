"""The latents of the data with all hidden that is to be drawn, after a mask that says where.

What is hidden is grey (0 in [-1, 1]) before it is encoded. One mask a latent and ``marks="unknown"`` is
how Stable Diffusion's inpainting networks are told; a mask for each frame of the data that a latent
stands for, and ``marks="known"``, how Wan's image-to-video networks are (the only frame of a causal
codec's first latent is marked as often as the others).
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool

from dit.codecs import Codec
from dit.concat import GREY, Concat
from dit.diffusion.tasks import mix, of_latents
from dit.types import Count, Params, UserError


def build(
    *,
    tasks: tuple[str, ...] = ("image_to_video",),
    masks: Count = 1,
    marks: Literal["known", "unknown"] = "known",
) -> Concat:
    """``tasks``: what training gives (``objective.tasks`` has the words), counted in frames of the data.

    ``masks``: channels of the mask, 1 or as many as a latent has frames (4 of Wan's autoencoders).
    ``marks``: where the mask is 1.
    """
    found = mix(tasks)
    if found is None or found.of_data:
        raise UserError(
            f"got concat.tasks={tasks}; expected one task or more, and none whose masks are the data's"
        )

    def make(codec: Codec, params: Params, x, known: Bool[Array, "b f h w"]):
        nothing = GREY if x.dtype == jnp.uint8 else 0
        z = codec.encode(params, jnp.where(known[..., None], x, jnp.asarray(nothing, x.dtype)))
        mask = of_latents(known, z.shape[1:], codec.frames_of(z.shape[1:]), masks)
        mask = mask if marks == "known" else ~mask
        return jnp.concatenate([mask.astype(z.dtype), z], axis=-1)

    def check(frames: tuple[int, ...]) -> None:
        if masks not in (1, most := max(frames)):
            raise UserError(
                f"got concat.masks={masks}, and a latent of this codec stands for {most} frames; "
                f"expected {' or '.join(map(str, sorted({1, most})))}"
            )

    return Concat(tasks=found, more=masks, make=make, check=check)
