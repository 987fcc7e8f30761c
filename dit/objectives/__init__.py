"""Training objectives, one a file; ``build(**kwargs) -> loss``.

``loss(key, params, apply_fn, process, batch) -> (scalar, metrics)``. ``batch`` is a dict: ``x`` holds
the latents, ``b f h w c``; ``id`` the samples' positions in the training stream, a word or two each, on
which all their randomness depends; conditions have the names of ``Cond``'s fields. Every metric is per
example, shape ``(b,)``.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Array, Float

LossFn = Callable[..., tuple[Float[Array, ""], dict[str, Float[Array, " b"]]]]
