"""Many short runs of one model: a single compiled program serves every learning rate and seed.

The updates are those of ``training.loop`` (the same initialisation, data, noise, optimizer, schedule and
averages), on one device and without checkpoints or logs. The rate is an argument of the program
(``optimizer.at_rate``). Steps run in chunks inside a loop on the device, so that small models do not
wait for the host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dit import rng
from dit.parallel.frozen import place, shapes
from dit.training import optimizer as optimizers
from dit.training.loop import DivergedError
from dit.training.state import creator
from dit.training.step import objective, unguarded_step
from dit.types import Params

CHUNK = 50  # steps between two looks by the host


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """The result of a run: parameters, their averages, and the training loss of every step."""

    params: Params
    ema: dict[str, Params]
    loss: Float[np.ndarray, " steps"]


class Trainer:
    """``trainer(batches, lr=..., seed=...) -> Trained`` for one model and objective.

    The experiment's ``steps`` are used, its ``seed`` and ``optimizer.lr`` are not. The first call
    compiles.
    """

    def __init__(self, experiment: Any):
        config = experiment.config
        self.steps = config.steps
        unit = optimizers.build(
            {**config.optimizer.to_dict(), "lr": 1.0},
            config.schedule.to_dict(),
            steps=config.steps,
            axes=experiment.axes,
        )
        ema = experiment.settings("ema")
        loss_fn = objective(experiment.loss, *experiment.parts)

        def advance(state, batches, key, lr, count, frozen):
            optimizer = optimizers.at_rate(unit, lr)

            def update(i, carry):
                state, losses = carry
                batch = {name: x[i] for name, x in batches.items()}
                state, loss = unguarded_step(loss_fn, optimizer, ema, state, batch, key, frozen)
                return state, losses.at[i].set(loss)

            return jax.lax.fori_loop(0, count, update, (state, jnp.zeros(CHUNK)))

        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
            jax.eval_shape(experiment.init, rng.root(0)),
        )
        self._frozen = experiment.frozen
        self._given = experiment.initial(target).params
        self._create = jax.jit(creator(experiment.init, unit, ema, metrics=()))
        self._advance = jax.jit(advance, donate_argnums=0)

    def check(self, experiment: Any) -> Trained:
        """The shapes of the result, from one batch; UserError or an error of tracing if it cannot run.

        Nothing is compiled or trained, and the first call will not trace again.
        """
        batches = experiment.batches()
        try:
            batch = next(batches)
        finally:
            batches.close()
        rows = {k: jax.ShapeDtypeStruct((CHUNK, *x.shape), x.dtype) for k, x in batch.items()}
        key = rng.root(0)
        state = jax.eval_shape(self._create, key, self._given)
        told = state, rows, key, jnp.float32(1), 1, shapes(self._frozen)
        state, loss = jax.eval_shape(self._advance, *told)
        return Trained(state.params, state.ema, np.zeros(loss.shape))

    def __call__(
        self, batches: Iterator[Mapping[str, np.ndarray]], *, lr: float, seed: int
    ) -> Trained:
        """Train on the next ``steps`` batches; DivergedError once a loss is not finite."""
        key, frozen = rng.root(seed), place(self._frozen, None)
        state, losses = self._create(key, self._given), []
        for first in range(0, self.steps, CHUNK):
            count = min(CHUNK, self.steps - first)
            rows = [next(batches) for _ in range(count)]
            rows += [rows[-1]] * (
                CHUNK - count
            )  # padding that is not used: all chunks have one shape
            stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
            told = state, stacked, key, jnp.float32(lr), count, frozen
            state, found = self._advance(*told)
            losses.append(np.asarray(found)[:count])
            bad = ~np.isfinite(losses[-1])
            if bad.any():
                raise DivergedError(
                    f"the loss of step {first + int(bad.argmax()) + 1} is not finite"
                )
        return Trained(state.params, state.ema, np.concatenate(losses))
