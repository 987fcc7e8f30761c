"""One update: gradient, clipping, optimizer, averages and metrics, as one jitted function.

A loss or gradient that is not finite is detected *before* the update. Up to ``optimizer.skip`` such
batches are skipped in a run, and counted. The next one sets the meter's ``bad`` flag, and from then on
the state is returned unchanged. The host sees the flag at its next log step, and still has the last good
state.

An objective may train further networks beside the model (``objectives.Phased``). Their gradients are
taken in the same program and at the same state as the model's, and all updates are made, or withheld,
together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float
from optax.microbatching import AccumulationType as Accumulate

from dit import rng
from dit.objectives import UNSUMMED, LossFn, means
from dit.parallel import compiler
from dit.parallel.frozen import Frozen, place, shapes, where
from dit.parallel.mesh import batch_sharding, replicated
from dit.parallel.rules import in_force
from dit.training import ema as averages
from dit.training import meter as meters
from dit.training.ema import Ema
from dit.training.lora import join
from dit.training.optimizer import Optimizer
from dit.training.state import EMPTY, Companion, Trained, TrainState
from dit.types import ApplyFn, Key, Params

Batch = dict[str, Any]  # arrays on the host or the device, or their shapes
Tell = Callable[[Params, Mapping[str, Any]], Mapping[str, Any]]  # see text.FrozenText.told
Show = Callable[..., Mapping[str, Any]]  # see concat.Concat.drawn
Objective = Callable[
    [Params, Batch, Key], tuple[Float[Array, ""], dict[str, Float[Array, "b ..."]]]
]


def unchanged(params: Params, x: Array, key: Key | None = None, ids: Any = None) -> Array:
    """The codec of data that are latents already."""
    return x


def untold(params: Params, batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """The batch of a model that no frozen text encoder tells anything."""
    return batch


def unshown(params: Params, batch: Mapping[str, Any], *drawn: Any) -> Mapping[str, Any]:
    """What a model without a section concat is given beside the batch: nothing."""
    return {}


def objective(
    loss: LossFn,
    apply_fn: ApplyFn,
    process: Any,
    encode: Callable[..., Array],
    tell: Tell = untold,
    show: Show = unshown,
) -> Objective:
    """The loss as a function of ``(params, batch, key)``.

    ``encode`` turns data into latents, ``tell`` tokens into what a frozen encoder gives, and
    ``show`` makes known channels of the data (``concat.Concat.drawn``). Where these have parameters,
    it takes them too, as ``codec`` and ``text``, and where ``params`` are added to a frozen network
    it takes that, as ``base`` (``training/lora.py``); that of an objective with phases takes
    ``networks`` and ``step``.
    """

    def loss_fn(
        params: Params,
        batch: Batch,
        key: Key,
        codec: Params = EMPTY,
        text: Params = EMPTY,
        base: Params | None = None,
        **beside: Any,
    ):
        params = params if base is None else join(base, params)
        drawn = () if "grid" in batch else (key, batch["id"])  # packed: by codecs that draw nothing
        shown = show(codec, batch, *drawn)
        batch = {**tell(text, batch), **shown, "x": encode(codec, batch["x"], *drawn)}
        return loss(key, params, apply_fn, process, batch, **beside)

    return loss_fn


def companion_objective(loss_fn: Objective, name: str) -> Callable[..., Any]:
    """The loss of a phase (``objective``) as a function of the parameters of the network it trains."""

    def of_own(
        own: Params, batch: Batch, key: Key, *, params: Params, networks: Any, **beside: Any
    ):
        return loss_fn(params, batch, key, networks={**networks, name: own}, **beside)

    return of_own


def gradients(
    loss_fn: Objective, params: Params, batch: Batch, key: Key, accumulate: int = 1
) -> tuple[Float[Array, ""], Params, dict[str, Float[Array, "b ..."]]]:
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


def metric_names(
    loss_fn: Objective,
    params: Params,
    batch: Batch,
    key: Key,
    companions: Mapping[str, Companion] = EMPTY,
    frozen: Frozen = EMPTY,
) -> list[str]:
    """The names of what the meter sums: the objective's metrics except ``t``, and ``grad_norm``.

    With companions also their metrics, and the norm of each one's gradient.
    """
    networks = {name: jax.eval_shape(each.init, key) for name, each in companions.items()}
    beside = told({**networks, **shapes(frozen)}, jax.ShapeDtypeStruct((), jnp.int32))
    _, examples = jax.eval_shape(loss_fn, params, batch, key, **beside)
    names = [*(name for name in examples if name not in UNSUMMED), "grad_norm"]
    for name, each in companions.items():
        own = jax.eval_shape(each.loss_fn, networks[name], batch, key, params=params, **beside)[1]
        names += [*(metric for metric in own if metric not in UNSUMMED), f"{name}_grad_norm"]
    return names


def told(networks: Mapping[str, Params], step: Any) -> dict[str, Any]:
    """What a loss is told beside the batch: further networks, and the weights of frozen ones."""
    own = {name: networks[name] for name in ("codec", "text", "base") if name in networks}
    others = {name: params for name, params in networks.items() if name not in own}
    return own | ({"networks": others, "step": step} if others else {})


def apply_gradients(
    optimizer: Optimizer, ema: Ema, state: TrainState, grads: Params, norm: Float[Array, ""]
) -> TrainState:
    """The state after one update: clips ``grads``, of global norm ``norm``, applies and averages.

    The meter is unchanged.
    """
    params, opt_state = _updated(optimizer, state, grads, norm)
    return state.replace(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        ema=averages.update(ema, state.ema, params, state.step),
    )


def _updated(
    optimizer: Optimizer, own: TrainState | Trained, grads: Params, norm: Float[Array, ""]
) -> tuple[Params, Any]:
    """The parameters and the optimizer's state after one update by the clipped gradient."""
    scale = optimizer.clip_scale(norm)
    clipped = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
    updates, opt_state = optimizer.transform.update(clipped, own.opt_state, own.params)
    return optax.apply_updates(own.params, updates), opt_state


def companion_gradients(
    companions: Mapping[str, Companion],
    state: TrainState,
    batch: Batch,
    key: Key,
    beside: Mapping[str, Any],
) -> tuple[dict[str, Params], dict[str, Float[Array, ""]]]:
    """The gradient of each companion, and the means of their metrics; zeros before they start.

    ``beside``: what is ``told`` of all networks.
    """
    grads, scalars = {}, {}
    for name, each in companions.items():

        def now(name=name, each=each):
            loss_fn = partial(each.loss_fn, params=state.params, **beside)
            params = state.networks[name].params
            found = gradients(loss_fn, params, batch, key, each.optimizer.accumulate)
            own = means(found[2])
            return found[1], {**own, f"{name}_grad_norm": optax.tree.norm(found[1])}

        def not_yet(now=now):
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(now))

        grads[name], own = jax.lax.cond(state.step >= each.start, now, not_yet)
        scalars |= own
    return grads, scalars


def apply_to_companions(
    companions: Mapping[str, Companion],
    state: TrainState,
    grads: Mapping[str, Params],
    scalars: Mapping[str, Float[Array, ""]],
) -> dict[str, Trained]:
    """The companions after one update, by the gradients of ``companion_gradients``."""
    after = {}
    for name, each in companions.items():

        def update(own, name=name, each=each):
            norm = scalars[f"{name}_grad_norm"]
            return Trained(*_updated(each.optimizer, own, grads[name], norm))

        started = state.step >= each.start
        after[name] = jax.lax.cond(started, update, lambda own: own, state.networks[name])
    return after


def unguarded_step(
    loss_fn: Objective,
    optimizer: Optimizer,
    ema: Ema,
    state: TrainState,
    batch: Batch,
    key: Key,
    frozen: Mapping[str, Params] = EMPTY,
) -> tuple[TrainState, Float[Array, ""]]:
    """One update and the loss before it, for loops on the device: without metrics, and never skipped.

    ``key``: the run's. The noise is that of ``make_train_step``. ``frozen``: the weights that nothing
    trains, by name. A loss that is not finite ruins the state, so the caller must check the losses.
    """
    step_key = rng.stream(key, "train", state.step)
    loss_fn = partial(loss_fn, **told(frozen, state.step))
    loss, grads, _ = gradients(loss_fn, state.params, batch, step_key, optimizer.accumulate)
    return apply_gradients(optimizer, ema, state, grads, optax.tree.norm(grads)), loss


class Step:
    """``step(state, batch, key) -> (state, metrics)``: a jitted step, and the frozen weights it takes.

    They are read when a step is first run; only their shapes are needed to compile.
    """

    def __init__(self, jitted: Any, frozen: Frozen, mesh: Mesh):
        self._jitted, self._frozen, self._mesh = jitted, frozen, mesh

    def __call__(self, state: TrainState, batch: Batch, key: Key) -> tuple[TrainState, Any]:
        return self._jitted(state, batch, key, self._placed)

    def __wrapped__(self, state: TrainState, batch: Batch, key: Key) -> tuple[TrainState, Any]:
        """The function that was jitted, as ``jax.jit`` calls it."""
        return self._jitted.__wrapped__(state, batch, key, self._placed)

    @cached_property
    def _placed(self) -> dict[str, Params]:
        return place(self._frozen, self._mesh)

    @cached_property
    def frozen(self) -> dict[str, Params]:
        """The shapes of the frozen weights, and where they lie."""
        return shapes(self._frozen, self._mesh)

    def lower(self, state: Any, batch: Any, key: Any) -> jax.stages.Lowered:
        """The program for arrays of these shapes."""
        return self._jitted.lower(state, batch, key, self.frozen)

    def trace(self, state: Any, batch: Any, key: Any) -> jax.stages.Traced:
        """The same, before it is lowered."""
        return self._jitted.trace(state, batch, key, self.frozen)


def make_train_step(
    loss_fn: Objective,
    optimizer: Optimizer,
    ema: Ema,
    *,
    mesh: Mesh,
    shardings: TrainState,
    log_every: int,
    t_range: tuple[float, float] | None,
    companions: Mapping[str, Companion] = EMPTY,
    frozen: Frozen = EMPTY,
) -> Step:
    """``train_step(state, batch, key) -> (state, metrics)``, jitted; it consumes (donates) ``state``.

    ``companions``: what is trained beside the model; ``frozen``: the weights of what is not.

    ``key``: the run's, the same at every step. The noise is a function of it, of the step and of the
    examples' ids, and so depends neither on the mesh nor on ``accumulate``. ``metrics``: this step's
    loss, gradient norm and ``bad`` flag. ``state.meter`` collects means over ``log_every`` steps, and
    the loss by time in equal parts of ``t_range``; None for an objective without times.
    """

    def train_step(state: TrainState, batch: Batch, key: Key, frozen: Mapping[str, Params]):
        with in_force(mesh):
            return guarded_update(state, batch, key, frozen)

    def guarded_update(state: TrainState, batch: Batch, key: Key, frozen: Mapping[str, Params]):
        step_key = rng.stream(key, "train", state.step)
        trained = {name: each.params for name, each in state.networks.items()}
        beside = told({**trained, **frozen}, state.step)
        loss, grads, examples = gradients(
            partial(loss_fn, **beside), state.params, batch, step_key, optimizer.accumulate
        )
        scalars = means(examples)
        scalars["grad_norm"] = optax.tree.norm(grads)
        others, more = companion_gradients(companions, state, batch, step_key, beside)
        scalars |= more
        finite = jnp.isfinite(loss) & jnp.isfinite(scalars["grad_norm"])
        for value in more.values():
            finite &= jnp.isfinite(value)
        good = finite & ~state.meter.bad
        skips = ~finite & ~state.meter.bad & (state.meter.skipped < optimizer.skip)
        fresh = state.step % log_every == 0

        def update(state: TrainState) -> TrainState:
            after = apply_gradients(optimizer, ema, state, grads, scalars["grad_norm"])
            u = None
            if t_range is not None:
                u = (examples["t"] - t_range[0]) / (t_range[1] - t_range[0])
            weight = examples.get("weight")
            meter = meters.add(
                state.meter, scalars, examples["loss"], u, fresh=fresh, weight=weight
            )
            networks = apply_to_companions(companions, state, others, scalars)
            return after.replace(meter=meter, networks=networks)

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
    jitted = jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding(mesh), whole, where(frozen, mesh)),
        out_shardings=(shardings, whole),
        compiler_options=compiler.options(mesh.devices.flat[0].platform),
    )
    return Step(jitted, frozen, mesh)


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
