"""Classifier-free guidance (Ho & Salimans 2022, eq. 6): ``D = D_u + w (D_c - D_u)``.

Scale 1 is no guidance, and then there is no second evaluation; their guidance strength is ``w -
1``.
"""

from __future__ import annotations

from dit.diffusion.process import Denoiser
from dit.sampling.guidance import Guidance, extrapolate, off
from dit.types import Count, Scale


def build(*, scale: Scale, channels: Count | None = None) -> Guidance:
    """``channels``: guide only the first so many and leave the rest conditional. The original DiT
    guided 3 of 4 latent channels: 3 is for compatibility with its samples; the default is all.
    """
    if scale == 1:
        return off()

    def guide(pair, path, grid):
        def full(x, t):
            (x_0, v), (x_0_u, _) = pair.both(x, t)
            return extrapolate(x_0, x_0_u, scale, channels), v

        return Denoiser(full)

    return Guidance(guide)
