"""Floating-point operations of a model, from its shapes alone: 2 for each multiply-add.

Matrix products only, which is what papers count (their "Gflops" of DiTs are multiply-adds, half of the
numbers here). Training costs three forward passes: the backward pass makes two products for each.
"""

from __future__ import annotations

import math

from dit.models.dit import DiT, make_block
from dit.models.embeddings import FREQUENCIES
from dit.models.patchify import grid


def forward_parts(
    model: DiT, shape: tuple[int, ...], context_len: int = 0, t_per_frame: bool = False
) -> dict[str, int]:
    """FLOPs of one sample's forward pass by part of the model; the blocks' parts are of all layers.

    ``shape``: ``(f, h, w, c)``; ``context_len``: tokens of context, if the model takes one;
    ``t_per_frame``: time has shape ``(b, f)``.
    """
    d, block = model.width, make_block(model)
    n = math.prod(grid(tuple(shape[:3]), model.patch))
    pixels = math.prod(model.patch)
    times = shape[0] if t_per_frame else 1
    rows = times // model.patch[0] if t_per_frame else 1
    context = context_len if model.context_dim is not None else 0
    m = 1 + (model.num_classes is not None) + context
    macs = {
        "embed": n * pixels * model.in_channels * d,
        "time": times * (FREQUENCIES * d + d * d),
        "final": n * d * pixels * model.out_channels,
    }
    if context:
        macs["context"] = (1 if block.uses == "vector" else context) * model.context_dim * d
    if block.uses == "vector":
        macs["final"] += rows * d * 2 * d
    inside = n + m if block.uses == "prefix" else n
    parts = block.macs(inside, rows, m, d)
    macs |= {f"blocks/{part}": model.depth * count for part, count in parts.items()}
    return {part: 2 * count for part, count in macs.items()}


def forward_flops(
    model: DiT, shape: tuple[int, ...], context_len: int = 0, t_per_frame: bool = False
) -> int:
    """FLOPs of one sample's forward pass; arguments as of ``forward_parts``."""
    return sum(forward_parts(model, shape, context_len, t_per_frame).values())


def training_flops(
    model: DiT, shape: tuple[int, ...], context_len: int = 0, t_per_frame: bool = False
) -> int:
    """FLOPs of training on one sample, as it is customary: three forward passes, no recomputation.

    ``costs`` has the exact count, lower by the gradients that nobody needs.
    """
    return 3 * forward_flops(model, shape, context_len, t_per_frame)
