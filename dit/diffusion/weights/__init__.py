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

from jaxtyping import Array, Float

from dit.diffusion.process import Process

Weight = Callable[[Process, Float[Array, "..."], Float[Array, "..."]], Float[Array, "..."]]
