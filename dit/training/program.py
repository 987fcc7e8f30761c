"""The compiled programs of a run and where their arrays live: all that follows from an experiment.

The training loop, the benchmark and whatever compiles ahead of time use the same ones.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from dit import objectives, rng
from dit.data.pipeline import Batches
from dit.parallel.mesh import batch_sharding, check_batch, make_mesh, replicated
from dit.training import optimizer as optimizers
from dit.training.feed import bucket_shapes
from dit.training.state import Companion, TrainState, creator, state_shardings
from dit.training.step import (
    Step,
    companion_objective,
    make_report,
    make_train_step,
    metric_names,
    objective,
)


@dataclasses.dataclass(frozen=True)
class Program:
    """``create(key, given)``: the first state, to be jitted with ``shardings``; ``abstract``: its
    shapes.

    ``train_step(state, batch, key) -> (state, metrics)`` and ``report(state) -> metrics`` are jitted.
    """

    mesh: Mesh
    create: Callable[..., TrainState]
    abstract: TrainState
    shardings: TrainState
    train_step: Step
    report: Callable[[TrainState], dict[str, Any]]

    @property
    def networks(self) -> dict[str, Any]:
        """The shapes of the parameters of all further networks, trained and frozen."""
        trained = {name: each.params for name, each in self.abstract.networks.items()}
        return {**trained, **self.train_step.frozen}

    @property
    def batch_sharding(self) -> NamedSharding:
        """Of every array of a batch."""
        return batch_sharding(self.mesh)

    @property
    def replicated(self) -> NamedSharding:
        """Of the run's key."""
        return replicated(self.mesh)


def program(
    experiment: Any, batches: Batches, devices: Sequence[jax.Device] | None = None
) -> Program:
    """The program of ``experiment`` on ``batches`` like these, over ``devices`` (all by default).

    Raises UserError for a mesh, batch size or optimizer that does not fit.
    """
    config, process = experiment.config, experiment.process
    mesh = make_mesh(experiment.settings("mesh"), devices)
    axes = experiment.axes
    optimizer = optimizers.build(
        config.optimizer.to_dict(), config.schedule.to_dict(), steps=config.steps, axes=axes
    )
    check_batch(mesh, config.batch_size, optimizer.accumulate)
    ema = experiment.settings("ema")
    key = rng.root(config.seed)
    loss_fn = objective(experiment.loss, *experiment.parts)
    companions = {name: companion(experiment, name) for name in objectives.phases(experiment.loss)}
    frozen = experiment.frozen
    params = jax.eval_shape(experiment.init, key)
    for shapes in bucket_shapes(batches).values():  # each is traced: what does not fit is refused
        names = metric_names(loss_fn, params, shapes, key, companions, frozen)
    create = creator(experiment.init, optimizer, ema, names, companions=companions)
    abstract = jax.eval_shape(create, key)
    shardings = state_shardings(abstract, axes, mesh, companions=companions)
    train_step = make_train_step(
        loss_fn,
        optimizer,
        ema,
        mesh=mesh,
        shardings=shardings,
        log_every=experiment.settings("log").every,
        t_range=None if process is None else (process.path.t_min, process.path.t_max),
        companions=companions,
        frozen=frozen,
    )
    report = make_report(optimizer, shardings, mesh)
    return Program(mesh, create, abstract, shardings, train_step, report)


def companion(experiment: Any, name: str) -> Companion:
    """A network that the objective of ``experiment`` trains beside the model.

    It has an optimizer of its own of the same kind; its rate is that of the model at the same step.
    """
    phase, config = objectives.phases(experiment.loss)[name], experiment.config
    axes = experiment.axes_of(phase.network)
    section = {k: v for k, v in config.optimizer.to_dict().items() if not k.startswith("mup_")}
    loss_fn = objective(phase.loss, *experiment.parts)
    return Companion(
        init=functools.partial(experiment.init_of, phase.network),
        axes=axes,
        optimizer=optimizers.build(
            section, config.schedule.to_dict(), steps=config.steps, axes=axes, start=phase.start
        ),
        loss_fn=companion_objective(loss_fn, name),
        start=phase.start,
    )
