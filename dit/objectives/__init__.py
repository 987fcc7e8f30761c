"""Training objectives, one a file; ``build(**kwargs) -> loss``.

``loss(key, params, apply_fn, process, batch) -> (scalar, metrics)``: ``batch`` is a dict with ``x``
(latents, ``b f h w c``), ``id`` (``b``, the samples' positions in the training stream, which key all
their randomness), and optionally conditions, by the names of ``Cond``'s fields. Every metric is per
example, shape ``(b,)``.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Array, Float

LossFn = Callable[..., tuple[Float[Array, ""], dict[str, Float[Array, "b"]]]]
