"""Loss weights, one a file; ``build(**kwargs) -> weight``.

``weight(process, t, density) -> w`` multiplies the squared error of the *network output* at times
``t``, whose density in the training-time distribution is ``density`` (of the shape of ``t``). A weight
that a paper states on the error of ``x_0`` or of ``eps`` is brought there by ``process.determinant``.

Papers mean two things by a weight. ``sigmoid`` is one over log-SNR: divided by the density there, it
weighs each noise level the same on every path, however often times are drawn. The others multiply the
loss at each time drawn, and belong with the times of their papers.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dit.diffusion.process import Process
from dit.types import UserError

Weight = Callable[[Process, Float[Array, "..."], Float[Array, "..."]], Float[Array, "..."]]


def check_finite(weight: Weight, process: Process, name: str) -> None:
    """Raise UserError where a loss weight is not finite in ``[t_min, t_max]``."""
    t = jnp.linspace(process.path.t_min, process.path.t_max, 1001)
    bad = ~np.isfinite(np.asarray(weight(process, t, jnp.ones_like(t))))
    if bad.any():
        raise UserError(
            f"loss weight {name!r} is infinite at t = {float(t[bad.argmax()]):.4g} with prediction "
            f"{process.prediction.name!r}; set path.t_min above 0, or take another weight"
        )
