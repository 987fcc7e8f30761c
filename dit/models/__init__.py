"""Models as pure functions of (parameters, arrays).

``config.resolve("models", "dit", **kwargs)`` gives a description (hashable, no arrays); the functions
here make its parameters, and the function that runs it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dit import rng
from dit.models.attention import forward_mode_message, platform
from dit.models.embeddings import check_labels
from dit.types import ApplyFn, Cond, Key, Params

__all__ = ["apply_fn", "cell", "check_labels", "count_params", "init", "logical_axes", "unstack"]


def example(model: nn.Module, shape: tuple[int, ...]) -> tuple[Any, Any, Cond]:
    """Inputs ``(x, t, cond)`` of a batch of one for data of ``shape = (f, h, w, c)``."""
    label = None if model.num_classes is None else jnp.zeros((1,), jnp.int32)
    context = None if model.context_dim is None else jnp.zeros((1, 1, model.context_dim))
    cond = Cond(
        label=label,
        context=context,
        pooled=None if model.pooled_dim is None else jnp.zeros((1, model.pooled_dim)),
        r=jnp.zeros((1,)) if model.second_time else None,
        guidance=jnp.zeros((1,)) if model.guidance_input else None,
        concat=None
        if model.concat_channels is None
        else jnp.zeros((1, *shape[:3], model.concat_channels)),
    )
    return jnp.zeros((1, *shape)), jnp.zeros((1,)), cond


@partial(jax.jit, static_argnums=(0, 1))  # traced once, though its shapes are asked for many times
def _boxed(model: nn.Module, shape: tuple[int, ...], key: Key) -> Params:
    looped = model.clone(unroll=1, remat="none", attention="xla")  # the same parameters, quicker
    return looped.init(key, *example(model, shape))["params"]


def init(model: nn.Module, key: Key, shape: tuple[int, ...]) -> Params:
    """Float32 parameters for data of ``shape = (f, h, w, c)``. Works under ``jax.eval_shape``."""
    return nn.unbox(_boxed(model, tuple(shape), key))


def cell(model: nn.Module) -> tuple[int, int, int]:
    """What of the data has one noise level at least: a patch of (frames, height, width), or a number."""
    return getattr(model, "patch", (1, 1, 1))


def apply_fn(model: nn.Module) -> ApplyFn:
    """``(params, x, t, cond) -> out``.

    Raises UserError for inputs that do not fit the model, and for forward-mode differentiation
    through a fused attention kernel.
    """

    def apply(params, x, t, cond=None):
        with forward_mode_message():
            return model.apply({"params": params}, x, t, Cond() if cond is None else cond)

    return apply


def logical_axes(model: nn.Module, shape: tuple[int, ...]) -> Any:
    """For each parameter, in a tree like theirs, a tuple of the names of its axes (or None)."""
    boxed = jax.eval_shape(partial(_boxed, model, tuple(shape)), rng.root(0))
    return jax.tree.map(
        lambda box: box.names, boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned)
    )


def unstack(params: Params) -> Params:
    """The parameters with each layer by itself, for loops that run a model many times on a CPU.

    There, cutting a layer's parameters out of the stack costs a tenth of a forward pass at batch 2,
    every time. Call it under the same ``jit`` as the loop and outside the loop; on other platforms it
    does nothing. Such a tree is for ``apply_fn`` only: no checkpoint, optimizer or mesh knows it.
    """
    if platform() != "cpu" or "blocks" not in params:
        return params
    leaves, tree = jax.tree.flatten(params["blocks"])
    layers = {str(i): tree.unflatten([p[i] for p in leaves]) for i in range(len(leaves[0]))}
    return {**params, "blocks": layers}


def count_params(params: Params) -> int:
    """The number of parameters in a tree of arrays or of their shapes."""
    return sum(p.size for p in jax.tree.leaves(params))
