"""One update: gradient, clipping, optimizer, averages and metrics, as one jitted function.

A loss or gradient that is not finite is detected *before* the update. Up to ``optimizer.skip`` such
batches are skipped in a run, and counted. The next one sets the meter's ``bad`` flag, and from then on
the state is returned unchanged. The host sees the flag at its next log step, and still has the last good
state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float
from optax.microbatching import AccumulationType as Accumulate

from dit import rng
from dit.objectives import LossFn
from dit.parallel import compiler
from dit.parallel.mesh import batch_sharding, replicated
from dit.parallel.rules import in_force
from dit.training import ema as averages
from dit.training import meter as meters
from dit.training.ema import Ema
from dit.training.optimizer import Optimizer
from dit.training.state import TrainState
from dit.types import ApplyFn, Key, Params

Batch = dict[str, Any]  # arrays on the host or the device, or their shapes
Objective = Callable[[Params, Batch, Key], tuple[Float[Array, ""], dict[str, Float[Array, " b"]]]]


def objective(
    loss: LossFn, apply_fn: ApplyFn, process: Any, encode: Callable[[Array], Array]
) -> Objective:
    """The loss as a function of ``(params, batch, key)``; ``encode`` turns data into latents."""

    def loss_fn(params: Params, batch: Batch, key: Key):
        return loss(key, params, apply_fn, process, {**batch, "x": encode(batch["x"])})

    return loss_fn


def gradients(
    loss_fn: Objective, params: Params, batch: Batch, key: Key, accumulate: int = 1
) -> tuple[Float[Array, ""], Params, dict[str, Float[Array, " b"]]]:
    """The mean loss of a batch, its gradient, and the per-example metrics.

    With ``accumulate`` = k it is the mean over k micro-batches, one after the other: the same
    gradient in a k-th of the memory. Micro-batch j takes examples j, j + k, j + 2k, ..., so that no
    example changes device.
    """
    micro = batch["x"].shape[0] // accumulate if accumulate > 1 else None  # None: the whole batch
    grad = optax.microbatch(
        jax.value_and_grad(loss_fn, has_aux=True),
        argnums=1,
        microbatch_size=micro,
        accumulator=((Accumulate.MEAN, Accumulate.CONCAT), Accumulate.MEAN),
    )
    (loss, examples), grads = grad(params, batch, key)
    return loss, grads, examples


def metric_names(loss_fn: Objective, params: Params, batch: Batch, key: Key) -> list[str]:
    """The names of what the meter sums: the objective's metrics except ``t``, and ``grad_norm``."""
    _, examples = jax.eval_shape(loss_fn, params, batch, key)
    return [*(name for name in examples if name != "t"), "grad_norm"]


def apply_gradients(
    optimizer: Optimizer, ema: Ema, state: TrainState, grads: Params, norm: Float[Array, ""]
) -> TrainState:
    """The state after one update: clips ``grads``, of global norm ``norm``, applies and averages.

    The meter is unchanged.
    """
    scale = optimizer.clip_scale(norm)
    clipped = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
    updates, opt_state = optimizer.transform.update(clipped, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        ema=averages.update(ema, state.ema, params, state.step),
    )


def unguarded_step(
    loss_fn: Objective, optimizer: Optimizer, ema: Ema, state: TrainState, batch: Batch, key: Key
) -> tuple[TrainState, Float[Array, ""]]:
    """One update and the loss before it, for loops on the device: without metrics, and never skipped.

    ``key``: the run's. The noise is that of ``make_train_step``. A loss that is not finite ruins the
    state, so the caller must check the losses.
    """
    step_key = rng.stream(key, "train", state.step)
    loss, grads, _ = gradients(loss_fn, state.params, batch, step_key, optimizer.accumulate)
    return apply_gradients(optimizer, ema, state, grads, optax.tree.norm(grads)), loss


def make_train_step(
    loss_fn: Objective,
    optimizer: Optimizer,
    ema: Ema,
    *,
    mesh: Mesh,
    shardings: TrainState,
    log_every: int,
    t_range: tuple[float, float],
) -> Callable[[TrainState, Batch, Key], tuple[TrainState, dict[str, Array]]]:
    """``train_step(state, batch, key) -> (state, metrics)``, jitted; it consumes (donates) ``state``.

    ``key``: the run's, the same at every step. The noise is a function of it, of the step and of the
    examples' ids, and so depends neither on the mesh nor on ``accumulate``. ``metrics``: this step's
    loss, gradient norm and ``bad`` flag. ``state.meter`` collects means over ``log_every`` steps, and
    the loss by time in equal parts of ``t_range``.
    """
    t_min, t_max = t_range

    def train_step(state: TrainState, batch: Batch, key: Key):
        with in_force(mesh):
            return guarded_update(state, batch, key)

    def guarded_update(state: TrainState, batch: Batch, key: Key):
        step_key = rng.stream(key, "train", state.step)
        loss, grads, examples = gradients(
            loss_fn, state.params, batch, step_key, optimizer.accumulate
        )
        scalars = {name: m.mean() for name, m in examples.items() if name != "t"}
        scalars["grad_norm"] = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(scalars["grad_norm"])
        good = finite & ~state.meter.bad
        skips = ~finite & ~state.meter.bad & (state.meter.skipped < optimizer.skip)
        fresh = state.step % log_every == 0

        def update(state: TrainState) -> TrainState:
            after = apply_gradients(optimizer, ema, state, grads, scalars["grad_norm"])
            u = (examples["t"] - t_min) / (t_max - t_min)
            meter = meters.add(state.meter, scalars, examples["loss"], u, fresh=fresh)
            return after.replace(meter=meter)

        def withhold(state: TrainState) -> TrainState:
            after = meters.skip(state.meter, fresh)
            meter = jax.tree.map(lambda a, b: jnp.where(skips, a, b), after, state.meter)
            return state.replace(step=state.step + skips, meter=meter)

        # A branch and not a select on every array, so that the update runs in place, in one pass.
        new = jax.lax.cond(good, update, withhold, state)
        bad = ~(good | skips)
        new = new.replace(meter=new.meter.replace(bad=bad))
        return new, {"loss": loss, "grad_norm": scalars["grad_norm"], "bad": bad}

    whole = replicated(mesh)
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding(mesh), whole),
        out_shardings=(shardings, whole),
        compiler_options=compiler.options(mesh.devices.flat[0].platform),
    )


def make_report(
    optimizer: Optimizer, shardings: TrainState, mesh: Mesh
) -> Callable[[TrainState], dict[str, Any]]:
    """``report(state) -> metrics``, jitted: the meter, the parameters' norm and the rate.

    ``lr`` is the rate of the last update; ``step`` as in the state.
    """

    def report(state: TrainState) -> dict[str, Any]:
        return {
            "meter": state.meter,
            "param_norm": optax.tree.norm(state.params),
            "lr": optimizer.schedule(jnp.maximum(state.step - state.meter.skipped - 1, 0)),
            "step": state.step,
        }

    return jax.jit(report, in_shardings=(shardings,), out_shardings=replicated(mesh))
