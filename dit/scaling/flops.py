"""Floating-point operations of a network, from its shapes alone: 2 for each multiply-add.

Products and convolutions only, which is what papers count (their "Gflops" of DiTs are multiply-adds,
half of the numbers here). Training costs three forward passes: the backward pass makes two products for
each.
"""

from __future__ import annotations

from dit.models import Network


def forward_parts(
    model: Network, shape: tuple[int, ...], context_len: int = 0, level: str = "sample"
) -> dict[str, int]:
    """FLOPs of one sample's forward pass by part of the network.

    ``shape``: ``(f, h, w, c)``; ``context_len``: tokens of context, if the network takes one;
    ``level``: what has a time of its own: a ``sample``, ``frame`` or ``token``.
    """
    macs = model.macs(shape, context_len, level)
    return {part: 2 * count for part, count in macs.items()}


def forward_flops(
    model: Network, shape: tuple[int, ...], context_len: int = 0, level: str = "sample"
) -> int:
    """FLOPs of one sample's forward pass; arguments as of ``forward_parts``."""
    return sum(forward_parts(model, shape, context_len, level).values())


def training_flops(
    model: Network,
    shape: tuple[int, ...],
    context_len: int = 0,
    level: str = "sample",
    frozen: bool = False,
) -> int:
    """FLOPs of training on one sample, as it is customary: three forward passes, no recomputation.

    ``frozen``: the network's own maps are not trained, but maps of low rank beside them: their gradients
    are not made, and it is two passes. ``costs`` has the exact count, lower by the gradients that nobody
    needs.
    """
    return (2 if frozen else 3) * forward_flops(model, shape, context_len, level)


def sampling_flops(
    model: Network, shape: tuple[int, ...], evaluations: int, context_len: int = 0
) -> int:
    """FLOPs of drawing one sample with so many evaluations of the network.

    A text is encoded once, before the first of them.
    """
    parts = forward_parts(model, shape, context_len)
    text = sum(count for part, count in parts.items() if part.startswith("text/"))
    return text + evaluations * (sum(parts.values()) - text)
