"""The cost of one sample and the size of the model: the numbers that scaling laws relate.

In a DiT, total parameters, parameters that act on every token, and exact FLOPs are three different
counts: a third of an adaLN block's parameters act once a sample, so ``6 N D`` with total N and tokens D
counts them once for every token.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from dit import models, rng
from dit.models import Network
from dit.scaling.flops import forward_parts
from dit.types import UserError


@dataclasses.dataclass(frozen=True)
class Costs:
    """``parameters``: all of them. ``per_token``: those that act on every token of the data.

    ``tokens``: of one sample. ``forward``, ``training``: exact FLOPs of a sample, matrix products only.
    """

    parameters: int
    per_token: int
    tokens: int
    forward: int
    training: int


def one_shape(experiment: Any) -> tuple[int, ...]:
    """The shape of the examples of an experiment; UserError where they have several, or are packed."""
    if experiment.packed:
        raise UserError(
            "got packing.tokens; expected batches of images, which budgets count: leave it out"
        )
    if len(experiment.shapes) > 1:
        raise UserError(
            f"got examples of {len(experiment.shapes)} shapes; expected one, since budgets count what "
            "an example costs: take a single source"
        )
    return experiment.shape


def costs(
    model: Network,
    shape: tuple[int, ...],
    context_len: int = 0,
    level: str = "sample",
    beside: int = 0,
) -> Costs:
    """The costs of ``model`` on data of ``shape = (f, h, w, c)``; arguments as of ``forward_parts``.

    Training is three forward passes less the gradients that nothing needs: with respect to the data
    and to the sinusoids of time. Recomputation by remat is not in it. ``beside``: FLOPs of a frozen text
    encoder, of which nothing goes backward.
    """
    shapes = jax.eval_shape(lambda key: models.init(model, key, shape), rng.root(0))
    total = per_token = 0
    for path, p in jax.tree_util.tree_leaves_with_path(shapes):
        total += p.size
        per_token += 0 if any(part.key in model.once for part in path) else p.size
    parts = forward_parts(model, shape, context_len, level)
    forward = sum(parts.values())
    unneeded = sum(parts.get(part, 0) for part in model.no_input_gradient)
    training = 3 * forward - unneeded + beside
    return Costs(total, per_token, model.tokens(shape), forward + beside, training)
