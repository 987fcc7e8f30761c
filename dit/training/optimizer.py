"""From the ``optimizer`` and ``schedule`` sections of a config to an Optax transformation.

``lr``, ``clip`` (the largest global norm of a gradient), ``accumulate`` (micro-batches an update) and
``skip`` (batches of a run that may be passed over, as their loss or gradient is not finite) belong to
every optimizer; the other keywords to the one that is named.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from dit import config
from dit.types import UserError


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """``transform``: Optax's; ``schedule``: update number to rate; ``accumulate``: micro-batches.

    ``clip``: the largest norm of a gradient, or None; ``skip``: how many batches may be passed over.
    The train step sees to both: it has the norm, and knows whether it is finite.
    """

    transform: optax.GradientTransformation
    schedule: optax.Schedule
    accumulate: int = 1
    clip: float | None = None
    skip: int = 0

    def clip_scale(self, norm: Float[Array, ""]) -> Float[Array, ""]:
        """What to multiply a gradient of this norm by."""
        if self.clip is None:
            return jnp.ones_like(norm)
        return jnp.minimum(1.0, self.clip / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))


def build(
    optimizer: Mapping[str, Any], schedule: Mapping[str, Any], *, steps: int, axes: Any
) -> Optimizer:
    """The optimizer for parameters with the logical ``axes``, for a run of ``steps`` updates.

    ``optimizer``: ``name``, ``lr``, ``clip`` (None or the largest norm), ``accumulate``, ``skip``, and
    its own keywords. ``schedule``: ``name`` and its own. Raises UserError for anything else.
    """
    kwargs = dict(optimizer)
    name, lr = kwargs.pop("name"), kwargs.pop("lr")
    clip, accumulate = kwargs.pop("clip", None), kwargs.pop("accumulate", 1)
    for key, value, least in (("lr", lr, 0), ("clip", clip, 0), ("accumulate", accumulate, 1)):
        config.check_finite(value, f"optimizer.{key}")
        if value is not None and not (_is_number(value) and value >= least and value):
            raise UserError(f"got optimizer.{key}={value!r}; expected a positive number")
    skip = kwargs.pop("skip", 0)
    if not isinstance(skip, int) or isinstance(skip, bool) or skip < 0:
        raise UserError(
            f"got optimizer.skip={skip!r}; expected a whole number of batches, 0 for none"
        )
    if not isinstance(accumulate, int):
        raise UserError(f"got optimizer.accumulate={accumulate!r}; expected a whole number")
    rate = build_schedule(schedule, lr=float(lr), steps=steps)
    make = config.resolve("training.optimizers", name, **kwargs)
    return Optimizer(make(rate, axes), rate, accumulate, clip, skip)


def build_schedule(schedule: Mapping[str, Any], *, lr: float, steps: int) -> optax.Schedule:
    """The schedule of a config section; UserError if it sets the rate or the steps a second time."""
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


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)
