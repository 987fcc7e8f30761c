"""Loss weights, one a file; ``build(**kwargs) -> weight``.

``weight(process, t) -> w`` multiplies the squared error of the *network output*. A weight that a paper
states on the error of ``x_0`` or of ``eps`` is brought there by ``process.determinant``.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Array, Float

from dit.diffusion.process import Process

Weight = Callable[[Process, Float[Array, "..."]], Float[Array, "..."]]
