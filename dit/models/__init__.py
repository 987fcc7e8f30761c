"""Models as pure functions of (parameters, arrays).

``config.resolve("models", "dit", **kwargs)`` gives a description (hashable, no arrays), which is a
``Network``; the functions here make its parameters, and the function that runs it.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from dit import rng
from dit.models.attention import forward_mode_message, platform
from dit.models.cache import Cache
from dit.models.embeddings import check_labels
from dit.models.network import Network
from dit.types import ApplyFn, Cond, Key, Params, Times, Tokens, Video

__all__ = [
    "Network",
    "abstract",
    "apply_fn",
    "check_labels",
    "conditions",
    "continued",
    "count_params",
    "init",
    "logical_axes",
    "told",
    "unstack",
]


@partial(jax.jit, static_argnums=(0, 1))  # traced once, though its shapes are asked for many times
def _boxed(model: Network, shape: tuple[int, ...], key: Key) -> Params:
    return model.plain().init(key, *model.example(shape))["params"]


def init(model: Network, key: Key, shape: tuple[int, ...]) -> Params:
    """Float32 parameters for data of ``shape = (f, h, w, c)``. Works under ``jax.eval_shape``."""
    return nn.unbox(_boxed(model, tuple(shape), key))


def abstract(model: Network, shape: tuple[int, ...]) -> Params:
    """The shapes and types of the parameters."""
    return jax.eval_shape(lambda key: init(model, key, shape), rng.root(0))


def conditions(model: Network, shape: tuple[int, ...]) -> list[str]:
    """What the model must be given: names of ``Cond``'s fields, for data of ``(f, h, w, c)``."""
    given = jax.eval_shape(lambda: vars(model.example(shape)[2]))
    return [f.name for f in dataclasses.fields(Cond) if given[f.name] is not None]


def apply_fn(model: Network) -> ApplyFn:
    """``(params, x, t, cond) -> out``; of ``Tokens`` in place of x, what ``transform`` gives.

    Raises UserError for inputs that do not fit the model, and for forward-mode differentiation
    through a fused attention kernel.
    """

    def apply(params, x, t, cond=None):
        with forward_mode_message():
            method = "transform" if isinstance(x, Tokens) else None
            cond = Cond() if cond is None else cond
            return model.apply({"params": params}, x, t, cond, method=method)

    return apply


def continued(
    model: Network, params: Params, x: Video, t: Times, cond: Cond, cache: Cache
) -> tuple[Video, Cache]:
    """The output for the frames after those in ``cache``, and the cache with these; see ``Network``."""
    return model.apply({"params": params}, x, t, cond, cache, method="continued")


def told(model: Network, params: Params, cond: Cond) -> Cond:
    """``cond`` as a loop that runs ``model`` many times should give it; see ``Network``."""
    return model.apply({"params": params}, cond, method="told")


def logical_axes(model: Network, shape: tuple[int, ...]) -> Any:
    """For each parameter, in a tree like theirs, a tuple of the names of its axes (or None)."""
    boxed = jax.eval_shape(partial(_boxed, model, tuple(shape)), rng.root(0))
    return jax.tree.map(
        lambda box: box.names, boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned)
    )


def unstack(model: Network, params: Params) -> Params:
    """The parameters as a loop that runs ``model`` many times should hold them: on a CPU by layer.

    Call it under the same ``jit`` as the loop and outside the loop; on other platforms it does nothing.
    Such a tree is for ``apply_fn`` only: no checkpoint, optimizer or mesh knows it.
    """
    return model.unstack(params) if platform() == "cpu" else params


def count_params(params: Params) -> int:
    """The number of parameters in a tree of arrays or of their shapes."""
    return sum(p.size for p in jax.tree.leaves(params))
