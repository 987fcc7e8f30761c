"""From the ``optimizer`` and ``schedule`` sections of a config to an Optax transformation.

Every optimizer has ``lr``, ``clip`` (the largest global norm of a gradient), ``accumulate``
(micro-batches an update) and ``skip`` (how many batches of a run may be skipped because their loss or
gradient is not finite). The other keywords belong to the named optimizer.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from dit import config
from dit.types import Count, Positive, UserError, Whole


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """``transform``: Optax's; ``schedule``: update number to rate; ``accumulate``: micro-batches.

    ``clip``: the largest norm of a gradient, or None; ``skip``: how many batches may be skipped. The
    train step does both, as it has the norm and knows whether it is finite.
    """

    transform: optax.GradientTransformation
    schedule: optax.Schedule
    accumulate: int = 1
    clip: float | None = None
    skip: int = 0

    def clip_scale(self, norm: Float[Array, ""]) -> Float[Array, ""]:
        """The factor that clips a gradient of this norm."""
        if self.clip is None:
            return jnp.ones_like(norm)
        return jnp.minimum(1.0, self.clip / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))


def at_rate(unit: Optimizer, rate: Float[Array, ""]) -> Optimizer:
    """An optimizer built for ``lr=1`` at another rate, which may be traced: one program serves all.

    Updates are multiplied by the rate. That is exact, as every update here is proportional to it.
    """

    def update(grads, state, params=None):
        updates, state = unit.transform.update(grads, state, params)
        return jax.tree.map(lambda u: rate.astype(u.dtype) * u, updates), state

    return dataclasses.replace(
        unit,
        transform=optax.GradientTransformation(unit.transform.init, update),
        schedule=lambda step: rate * unit.schedule(step),
    )


def common(
    *, lr: Positive = 1e-4, clip: Positive | None = None, accumulate: Count = 1, skip: Whole = 10
) -> tuple[float, float | None, int, int]:
    """The keywords of every optimizer. ``skip``: how many batches of a run may be skipped."""
    return lr, clip, accumulate, skip


def build(
    optimizer: Mapping[str, Any],
    schedule: Mapping[str, Any],
    *,
    steps: int,
    axes: Any,
    start: int = 0,
) -> Optimizer:
    """The optimizer for parameters with the logical ``axes``, for a run of ``steps`` updates.

    ``optimizer``: ``name``, ``lr``, ``clip`` (None or the largest norm), ``accumulate``, ``skip``, and
    its own keywords. ``schedule``: ``name`` and its own. ``start``: the step of the run that its first
    update belongs to. Raises UserError for anything else.
    """
    kwargs = dict(optimizer)
    name = kwargs.pop("name")
    shared = {"skip": 0} | {k: kwargs.pop(k) for k in config.keywords(common) if k in kwargs}
    shared = config.checked(common, f"optimizer {name!r}", shared, at="optimizer.")
    lr, clip, accumulate, skip = common(**shared)
    rate = whole = build_schedule(schedule, lr=lr, steps=steps)
    if start:

        def rate(update):
            return whole(update + start)

    make = config.resolve("training.optimizers", name, **kwargs)
    return Optimizer(make(rate, axes), rate, accumulate, clip, skip)


def build_schedule(schedule: Mapping[str, Any], *, lr: float, steps: int) -> optax.Schedule:
    """The schedule of a config section; UserError if it sets ``lr`` or ``steps``."""
    kwargs = dict(schedule)
    name = kwargs.pop("name")
    for key, home in (("lr", "optimizer.lr"), ("steps", "steps")):
        if key in kwargs:
            raise UserError(f"got schedule.{key}; set {home} instead")
    if depends_on_steps(name):
        kwargs["steps"] = steps
    return config.resolve("training.schedules", name, lr=lr, **kwargs)


def depends_on_steps(name: str) -> bool:
    """Whether the schedule called ``name`` changes with the length of the run."""
    return "steps" in inspect.signature(config.builder("training.schedules", name)).parameters
