"""Low-rank adaptation (Hu et al. 2022, "LoRA"): small trained maps beside frozen linear maps.

A kernel ``W`` acts as ``W + (alpha / rank) A B``; A (``lora_a``) is drawn as PEFT draws it, uniform in
``+-1 / sqrt(inputs)``, and B (``lora_b``) is zero, so that a run starts with the frozen network itself.
Every matrix of a stack (of layers; query, key and value in one kernel) has an A and a B of its own. A
convolution has an A with its window and a B of 1x1.

The trained tree holds the pairs alone, under the names of the modules whose kernels they adapt.
``join`` lays them beside those kernels, where ``models.layers.Linear`` and the convolutions of
``models.unet_blocks`` and ``models.wan_vae_blocks`` find them; ``merge`` adds them up.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from dit import rng
from dit.parallel.rules import Axes, is_axes
from dit.training.optimizers import groups, is_matrix
from dit.types import Count, Key, Params, Positive, UserError, Weights

USUAL = (  # in DiT and U-Net, and in the streams of MMDiT
    *("*attention*/kernel", "*/transformer/blocks/cross/*/kernel"),
    *("*/qkv/kernel", "*/image/out/kernel", "*/text/out/kernel", "*/second/out/kernel"),
)
A, B = "lora_a", "lora_b"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The network of ``init_from`` stays as it is, and maps of ``rank`` beside it are trained.

    None: all parameters are trained. ``alpha``: the maps are multiplied by ``alpha / rank``; by default
    by 1. ``targets``: patterns of names of kernels, such as ``blocks/mlp/*``; by default attention's.
    """

    rank: Count | None = None
    alpha: Positive | None = None
    targets: str | tuple[str, ...] = ()

    def __post_init__(self):
        if self.rank is None and (self.alpha is not None or self.targets):
            raise UserError("got lora.alpha or lora.targets and no lora.rank; give both or neither")


@dataclasses.dataclass(frozen=True)
class Pair:
    """The A and B of one kernel of ``shape``: its axes that are stacked, inputs and outputs."""

    shape: tuple[int, ...]
    axes: Axes
    layers: tuple[int, ...]
    inputs: tuple[int, ...]
    stack: tuple[int, ...]
    outputs: tuple[int, ...]

    @classmethod
    def of(cls, shape: tuple[int, ...], axes: Axes) -> Pair:
        """From the names of the axes."""
        inputs, *_, outputs = groups(axes)
        rest = [i for i in range(len(axes)) if i not in (*inputs, *outputs)]
        layers = tuple(i for i in rest if i < inputs[0])
        return cls(shape, axes, layers, inputs, tuple(i for i in rest if i > inputs[0]), outputs)

    def sizes(self, *axes: tuple[int, ...]) -> tuple[int, ...]:
        """The sizes of these axes."""
        return tuple(self.shape[i] for group in axes for i in group)

    def shapes(self, rank: int) -> dict[str, tuple[int, ...]]:
        """The shapes of A and B."""
        return {
            A: (*self.sizes(self.layers, self.inputs, self.stack), rank),
            B: (*self.sizes(self.layers, self.stack), rank, *self.sizes(self.outputs)),
        }

    @property
    def size(self) -> tuple[int, int, int]:
        """Inputs, maps in the stack and outputs, of a layer."""
        inputs, stack, outputs = map(self.sizes, (self.inputs, self.stack, self.outputs))
        return math.prod(inputs), math.prod(stack), math.prod(outputs)

    def names(self) -> dict[str, Axes]:
        """The names of their axes."""
        named = [
            tuple(self.axes[i] for i in group)
            for group in (self.layers, self.inputs, self.stack, self.outputs)
        ]
        layers, inputs, stack, outputs = named
        return {A: (*layers, *inputs, *stack, "rank"), B: (*layers, *stack, "rank", *outputs)}

    def product(self, a: Array, b: Array) -> Array:
        """``A B``, in the shape of the kernel."""
        lead, (ins, stack, outs) = math.prod(self.sizes(self.layers)), self.size
        a, b = a.reshape(lead, ins, stack, -1), b.reshape(lead, stack, -1, outs)
        found = jnp.einsum("lisr,lsro->liso", a, b)
        return found.reshape(self.sizes(self.layers, self.inputs, self.stack, self.outputs))


@dataclasses.dataclass(frozen=True)
class Lora:
    """What is trained: a pair for each kernel, by the name of its module (``blocks/attention/qkv``)."""

    pairs: Mapping[str, Pair]
    rank: int
    scale: float

    def init(self, key: Key) -> Params:
        """The pairs before the first step; works under ``jax.eval_shape``."""
        found = {}
        for module, pair in self.pairs.items():
            shapes, bound = pair.shapes(self.rank), math.prod(pair.sizes(pair.inputs)) ** -0.5
            own = rng.stream(rng.stream(key, "lora"), module)
            found[f"{module}/{A}"] = jax.random.uniform(own, shapes[A], minval=-bound, maxval=bound)
            found[f"{module}/{B}"] = jnp.zeros(shapes[B])
        return unflatten_dict(found, sep="/")

    @property
    def axes(self) -> Any:
        """The logical axes of the pairs, in a tree like theirs."""
        each = {m: pair.names() for m, pair in self.pairs.items()}
        return unflatten_dict(
            {f"{m}/{name}": axes for m, names in each.items() for name, axes in names.items()},
            sep="/",
        )

    def base(self, weights: Weights) -> Weights:
        """The frozen network as the argument of a program: ``{"network": ..., "scale": ...}``."""

        def read(shardings: Any) -> Params:
            scale = jax.device_put(jnp.float32(self.scale), shardings["scale"])
            return {"network": weights.read(shardings["network"]), "scale": scale}

        return dataclasses.replace(
            weights,
            abstract={
                "network": weights.abstract,
                "scale": jax.ShapeDtypeStruct((), jnp.float32),
            },
            axes={"network": weights.axes, "scale": ()},
            read=read,
            placed={},
        )


def build(settings: LoraSettings, abstract: Params, axes: Any) -> Lora:
    """The pairs of a network with parameters of these shapes and axes.

    Raises UserError for a pattern that is the name of no kernel.
    """
    known = kernels(abstract, axes)
    targets, taken = settings.targets or USUAL, set()
    for pattern in (targets,) if isinstance(targets, str) else targets:
        matched = fnmatch.filter(known, pattern)
        if settings.targets and not matched:
            raise UserError(
                f"got lora.targets={pattern!r}, which is the name of no kernel; expected a pattern of "
                f"{', '.join([*known][:8])}{', ...' if len(known) > 8 else ''}"
            )
        taken |= {*matched}
    if not taken:
        raise UserError(
            "got lora.rank for a network without attention; give lora.targets, patterns of "
            f"{', '.join([*known][:8])}{', ...' if len(known) > 8 else ''}"
        )
    alpha = settings.rank if settings.alpha is None else settings.alpha
    pairs = {name.rpartition("/")[0]: known[name] for name in sorted(taken)}
    return Lora(pairs, settings.rank, alpha / settings.rank)


def kernels(abstract: Params, axes: Any) -> dict[str, Pair]:
    """The kernels of linear maps and convolutions, by name, and what their pairs would be."""
    shapes = flatten_dict(abstract, sep="/")
    named = flatten_dict(axes, sep="/", is_leaf=lambda _, x: is_axes(x))
    found = [n for n in shapes if n.split("/")[-1] == "kernel" and is_matrix(named[n])]
    return {name: Pair.of(shapes[name].shape, named[name]) for name in found}


def join(base: Params, pairs: Params) -> Params:
    """The parameters of the network with the pairs beside its kernels; ``base``: see ``Lora.base``."""
    found = flatten_dict(base["network"], sep="/")
    for name, x in flatten_dict(pairs, sep="/").items():
        found[name] = x * base["scale"] if name.endswith(f"/{B}") else x
    return unflatten_dict(found, sep="/")


def merge(lora: Lora, name: str, kernel: Array, pairs: Params, first: int = 0) -> Array:
    """The parameter ``name`` of the network with its pair added to it, where it has one.

    ``kernel``: all of it or, of one that is stacked, the layers from ``first`` on.
    """
    module, _, last = name.rpartition("/")
    if last != "kernel" or module not in lora.pairs:
        return kernel
    given, pair = flatten_dict(pairs, sep="/"), lora.pairs[module]
    a, b = given[f"{module}/{A}"], given[f"{module}/{B}"]
    if kernel.shape != pair.shape:
        layers = slice(first, first + len(kernel))
        a, b, pair = a[layers], b[layers], dataclasses.replace(pair, shape=kernel.shape)
    delta = pair.product(a, b)
    return kernel + lora.scale * delta.astype(kernel.dtype)
