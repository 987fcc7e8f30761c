"""Times shifted by resolution: ``t -> s t / (1 + (s - 1) t)`` of another grid (Esser et al. 2024,
eq. 23).

More tokens average more noise away, so larger images need more steps at noisier times. With
``tokens`` the shift is ``sqrt(tokens / base_tokens)``. The formula is applied to the share of
``t`` in ``[t_min, t_max]``, so that both ends stay where they are. With ``terminal`` what is left of
the noise is then stretched, ``1 - t -> (1 - t) (1 - terminal) / (1 - t_last)``, so that the last time
before data is ``terminal`` (LTX-Video, Qwen-Image).
"""

from __future__ import annotations

import math

from dit.config import resolve
from dit.sampling.grids import GridFn, closed
from dit.types import Count, Positive, Share, UserError


def build(
    *,
    shift: Positive | None = None,
    tokens: Count | None = None,
    base_tokens: Count = 256,
    terminal: Share | None = None,
    base: str = "uniform",
    **base_kwargs,
) -> GridFn:
    """Shift the grid ``base``; give either ``shift`` (SD3: 3) or ``tokens``.

    Raises UserError unless exactly one of them is given and the shift is positive, and for
    ``base_tokens`` without ``tokens``.
    """
    if (shift is None) == (tokens is None):
        raise UserError(f"got shift={shift} and tokens={tokens}; expected exactly one of them")
    if shift is not None and base_tokens != 256:
        raise UserError(f"got base_tokens={base_tokens} with shift={shift}; give it with tokens")
    s = math.sqrt(tokens / base_tokens) if shift is None else shift
    if not s > 0:
        raise UserError(f"got a time shift of {s}; expected a positive number")
    inner = resolve("sampling.grids", base, **base_kwargs)

    def grid(path, steps):
        span = path.t_max - path.t_min
        share = (inner(path, steps)[:-1] - path.t_min) / span
        share = s * share / (1 + (s - 1) * share)
        if terminal is not None and steps > 1:
            share = 1 - (1 - share) * (1 - terminal) / (1 - share[-1])
        return closed(path, path.t_min + span * share)

    return grid
