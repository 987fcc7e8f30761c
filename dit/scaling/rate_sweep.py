"""Does the best learning rate of a narrow model also suit a wide one? ``rate_sweep`` trains both."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dit import models, rng
from dit.diffusion.process import Process
from dit.models import Network
from dit.training import optimizer as optimizers
from dit.training.ema import Ema
from dit.training.state import creator
from dit.training.step import objective, unchanged, unguarded_step
from dit.training.transfer import of_section, scale_init
from dit.types import UserError

Array = np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class RateSweep:
    """The final loss for every width, rate and seed; infinite where training diverged."""

    widths: tuple[int, ...]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    loss: Float[Array, "w r s"]

    def best(self, width: int) -> float:
        """The rate with the lowest mean loss at ``width``."""
        return self.rates[int(self.loss[self.widths.index(width)].mean(-1).argmin())]

    def regret(self, source: int, target: int) -> float:
        """The relative increase in loss at width ``target`` from using the best rate of ``source``.

        Compared with the best of the rates tried at ``target``.
        """
        means = self.loss[self.widths.index(target)].mean(-1)
        return float(means[self.rates.index(self.best(source))] / means.min() - 1)

    def regrets(self, source: int, target: int) -> Float[Array, " s"]:
        """The regret for each seed, between the two rates with the lowest mean losses."""
        return self.at(target, self.best(source)) / self.at(target, self.best(target)) - 1

    def at(self, width: int, rate: float) -> Float[Array, " s"]:
        """The final losses at one width and rate."""
        return self.loss[self.widths.index(width), self.rates.index(rate)]

    def rows(self, **more) -> list[dict[str, Any]]:
        """One row per run, each with the values of ``more``; ``from_rows`` reads them back."""
        places = itertools.product(self.widths, self.rates, self.seeds)
        return [
            {**more, "width": width, "lr": rate, "seed": seed, "loss": float(loss)}
            for (width, rate, seed), loss in zip(places, self.loss.ravel(), strict=True)
        ]


def from_rows(rows: Sequence[Mapping[str, Any]]) -> RateSweep:
    """The sweep from its rows; UserError unless every run occurs exactly once."""
    axes = [sorted({row[name] for row in rows}) for name in ("width", "lr", "seed")]
    found = {(row["width"], row["lr"], row["seed"]): row["loss"] for row in rows}
    places = list(itertools.product(*axes))
    if set(places) != set(found) or len(rows) != len(found):
        raise UserError(
            f"got {len(rows)} runs; expected one for each of {len(axes[0])} widths, {len(axes[1])} "
            f"rates and {len(axes[2])} seeds"
        )
    loss = np.array([found[place] for place in places]).reshape([len(axis) for axis in axes])
    return RateSweep(*map(tuple, axes), loss)


def rate_sweep(
    make_model: Callable[[int], Network],
    *,
    loss: Callable,
    process: Process,
    train: Mapping[str, Any],
    test: Mapping[str, Any],
    optimizer: Mapping[str, Any],
    widths: Sequence[int],
    rates: Sequence[float],
    steps: int = 300,
    batch: int = 32,
    seeds: Sequence[int] = (0,),
) -> RateSweep:
    """Train and evaluate ``make_model(width)`` at every rate, all on the same batches and noise.

    ``train``, ``test``: columns ``x`` and ``label`` of examples. ``optimizer``: a config section without
    ``lr``. The rate is constant, and one compiled program per width serves all rates.
    """
    train, test = ({k: jnp.asarray(v) for k, v in part.items()} for part in (train, test))
    shape, count = tuple(train["x"].shape[1:]), len(train["x"])
    held = {**test, "id": jnp.arange(len(test["x"]))}
    table = []
    for width in widths:
        model = make_model(width)
        axes, apply = models.logical_axes(model, shape), models.apply_fn(model)
        unit = optimizers.build(
            {**optimizer, "lr": 1.0}, {"name": "constant"}, steps=steps, axes=axes
        )

        @jax.jit
        def final(key, rate, model=model, axes=axes, apply=apply, unit=unit):
            built, ema = optimizers.at_rate(unit, rate), Ema(half_lives=())
            loss_fn = objective(loss, apply, process, unchanged)

            def init(key):
                params = models.init(model, key, shape)
                return scale_init(of_section(optimizer), axes, params)

            create = creator(init, built, ema, metrics=())

            def step(state, i):
                rows = jax.random.randint(rng.stream(key, "batch", i), (batch,), 0, count)
                picked = {k: v[rows] for k, v in train.items()} | {"id": jnp.arange(batch)}
                return unguarded_step(loss_fn, built, ema, state, picked, key)

            state, _ = jax.lax.scan(step, create(rng.stream(key, "init")), jnp.arange(steps))
            return loss(rng.root(0), state.params, apply, process, held)[0]

        found = [
            [float(final(rng.root(seed), jnp.float32(rate))) for seed in seeds] for rate in rates
        ]
        table.append(found)
    values = np.array(table)
    values = np.where(np.isfinite(values), values, np.inf)
    return RateSweep(tuple(widths), tuple(rates), tuple(seeds), values)
