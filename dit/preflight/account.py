"""What a train step holds and how long it takes, by formula: before anything is compiled.

Bytes of the state are exact; those of gradients and activations are what a derivative has to keep,
split evenly over the devices that share them. Times are rough, and serve to say which meshes are worth
compiling: a step computes at half the peak, reads and writes the state once, and pays for the bytes that
its mesh sends (one link of one torus axis, as in ``parallel.estimate``).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

from dit import rng
from dit.parallel.frozen import listed
from dit.parallel.topology import Topology
from dit.scaling.flops import training_flops
from dit.training.feed import bucket_shapes
from dit.training.program import Program, program
from dit.training.step import objective, told

# From the policy that keeps most to the one that keeps least, each with its factor on computation.
POLICIES = {
    **{"none": 1.0, "all_dots": 1.05, "dots_attention": 1.05, "dots": 1.1},
    **{"attention": 1.3, "full": 4 / 3},
}
SHARE_OF_PEAK = 0.5
GATHERED = 2  # bytes that are sent for each parameter: bfloat16


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to run a step. ``mesh``: the sizes of its axes."""

    mesh: Mapping[str, int]
    remat: str
    batch: int

    def size(self, *axes: str) -> int:
        """How many devices lie along these axes together."""
        return math.prod(self.mesh.get(axis, 1) for axis in axes)


@dataclasses.dataclass(frozen=True)
class Account:
    """What a whole train step takes, on all devices together.

    ``parameters``, ``state`` (with the optimizer's and the averages) and ``gradients``: bytes.
    ``activations(policy)``: bytes an image. ``flops``: of an image. ``stream``: elements an image that
    pass from layer to layer. Of packed batches a row is an image here. ``policies``: the remat policies
    that the network can take. ``frozen``: bytes of weights that nothing trains; ``held``: of those of
    which each device has all.
    """

    parameters: int
    state: int
    gradients: int
    activations: Callable[[str], float]
    flops: int
    stream: int
    policies: tuple[str, ...]
    accumulate: int
    frozen: int = 0
    held: int = 0

    def parts(self, choice: Choice) -> tuple[float, float, float]:
        """Bytes on one device of the state and frozen weights, the gradients and the activations."""
        shards = choice.size("fsdp", "tensor")
        sharing = choice.size("data", "fsdp", "context", "tensor") * self.accumulate
        kept = self.activations(choice.remat) * choice.batch / sharing
        return (self.state + self.frozen) / shards + self.held, self.gradients / shards, kept

    def seconds(self, choice: Choice, where: Topology) -> float | None:
        """Of a step; None for devices that are in no table."""
        chip = where.chip
        if chip is None or where.peak is None:
            return None
        n, shards = len(where.devices), choice.size("fsdp", "tensor")
        compute = self.flops * choice.batch / n / (where.peak * SHARE_OF_PEAK)
        update = 2 * (self.state + self.gradients) / shards / chip.bandwidth
        weights = self.parameters / 4 * GATHERED / choice.size("tensor")
        away, within = where.slices, choice.size("data") // where.slices
        hidden = 3 * weights * _share(choice.size("fsdp")) / (2 * chip.link)
        hidden += 2 * weights / choice.size("fsdp") * _share(within) / (2 * chip.link)
        hidden += 2 * weights / choice.size("fsdp") / within * _share(away) / chip.dcn
        own = choice.batch * self.stream / choice.size("data", "fsdp", "context")
        stream = own * GATHERED
        shown = 8 * stream * _share(choice.size("tensor")) / (2 * chip.link)
        ways = choice.size("context")
        shown += 12 * stream / choice.size("tensor") * _share(ways) / 4 / (2 * chip.link)
        busy = compute * POLICIES[choice.remat] + update
        return busy + shown + max(0.0, hidden - busy)


def _share(members: int) -> float:
    return (members - 1) / members


def account(experiment_with: Callable[[str], Any], where: Topology) -> Account:
    """The account of an experiment. ``experiment_with(policy)``: the experiment with a remat policy."""
    experiment = experiment_with("none")
    batches = experiment.batches()
    try:
        shapes, examples = bucket_shapes(batches)[0], batches.examples
        run = program(alone(experiment), batches, where.devices[:1])
    finally:
        batches.close()
    images = experiment.config.batch_size

    @functools.cache
    def kept(policy: str) -> float:
        other = experiment_with(policy)
        with jax.default_device(where.devices[0]):  # it decides which attention kernel is taken
            return activations(other, run, shapes) / images

    model, state = experiment.model, run.abstract
    frozen = {name: _bytes(weights.abstract) for name, weights in experiment.frozen.items()}
    held = sum(frozen[name] for name in listed(experiment.config.mesh.whole))
    length = experiment.config.packing.tokens or model.tokens(experiment.shape)
    return Account(
        parameters=_bytes(state.params),
        state=_bytes((state.params, state.opt_state, state.ema, state.networks)),
        gradients=_bytes(state.params),
        activations=kept,
        flops=round(examples / images * step_flops(experiment)),
        stream=model.stream(experiment.shape) * length // model.tokens(experiment.shape),
        policies=tuple(POLICIES) if experiment.remat else ("none",),
        accumulate=experiment.config.optimizer.get("accumulate", 1),
        frozen=sum(frozen.values()) - held,
        held=held,
    )


def step_flops(experiment: Any) -> int | float:
    """FLOPs of training on one example: a mean one, where examples of all shapes are packed."""

    def flops(shape):
        return training_flops(
            experiment.model,
            shape,
            experiment.context_len,
            experiment.level,
            frozen=experiment.lora is not None,
        )

    own = experiment.mean(flops) if experiment.packed else flops(experiment.shape)
    return own + experiment.flops_beside


def alone(experiment: Any) -> Any:
    """The same experiment for one device."""
    config = experiment.config.copy_and_resolve_references()
    config.mesh = {"preset": "dp"}
    return dataclasses.replace(experiment, config=config)


def activations(experiment: Any, run: Program, batch: Any) -> int:
    """Bytes that the forward pass keeps for the backward pass, on all devices together.

    The residuals of the objective's derivative, but for the parameters themselves; the compiler may
    keep fewer, by computing some again.
    """
    loss_fn = objective(experiment.loss, *experiment.parts)
    key = jax.eval_shape(lambda: rng.root(0))
    params, networks = run.abstract.params, run.networks
    own = {(x.shape, x.dtype) for x in jax.tree.leaves((params, networks))}

    def pullback(params, batch, key, beside):
        return jax.vjp(lambda p: loss_fn(p, batch, key, **beside)[0], params)[1]

    beside = told(networks, run.abstract.step)
    kept = jax.tree.leaves(jax.eval_shape(pullback, params, batch, key, beside))
    return sum(x.size * x.dtype.itemsize for x in kept if (x.shape, x.dtype) not in own)


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
