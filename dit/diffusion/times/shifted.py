"""Resolution-shifted times: ``t -> s t / (1 + (s - 1) t)`` (Esser et al. 2024, eq. 23).

More tokens average more noise away, so larger images need noisier times. With ``tokens`` the shift is
``sqrt(tokens / base_tokens)``.
"""

from __future__ import annotations

import math

from dit.config import resolve
from dit.diffusion.times import Quantile
from dit.types import Count, Positive, UserError


def build(
    *,
    shift: Positive | None = None,
    tokens: Count | None = None,
    base_tokens: Count = 256,
    base: str = "uniform",
    **base_kwargs,
) -> Quantile:
    """Shift another distribution, ``base``; give either ``shift`` or ``tokens``.

    Raises UserError unless exactly one of them is given and all numbers are positive.
    """
    if (shift is None) == (tokens is None):
        raise UserError(f"got shift={shift} and tokens={tokens}; expected exactly one of them")
    if base_tokens < 1 or (tokens is not None and tokens < 1):
        raise UserError(f"got tokens={tokens} and base_tokens={base_tokens}; expected 1 or more")
    factor = math.sqrt(tokens / base_tokens) if shift is None else shift
    if not factor > 0:
        raise UserError(f"got a time shift of {factor}; expected a positive number")
    inner = resolve("diffusion.times", base, **base_kwargs)

    def quantile(path, u):
        span = path.t_max - path.t_min
        unit = (inner(path, u) - path.t_min) / span
        return path.t_min + span * factor * unit / (1 + (factor - 1) * unit)

    return quantile
