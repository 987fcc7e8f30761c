"""What the text encoders are made of: tables, activations, an MLP, chains of blocks, chosen layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dit.config import suggest
from dit.models.layers import Linear, normal
from dit.types import UserError

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {  # by their names in config.json
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_new": nn.gelu,
    "gelu_pytorch_tanh": nn.gelu,
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "relu": nn.relu,
    "silu": nn.silu,
}


class Table(nn.Module):
    """Rows of embeddings, by number. An index past the end is not noticed: check it before."""

    rows: int
    width: int
    axis: str = "embed"

    @nn.compact
    def __call__(self, index: Int[Array, "*s"]) -> Float[Array, "*s d"]:
        boxed = nn.with_logical_partitioning(normal, (None, self.axis))
        return self.param("table", boxed, (self.rows, self.width))[index]


class Mlp(nn.Module):
    """``out(f(in x))``, or ``out(f(in_0 x) * in_1 x)`` where ``gated`` (Shazeer 2020)."""

    hidden: int
    activation: str
    dtype: str
    gated: bool = False
    bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        width, (axes, back) = x.shape[-1], (("embed", "mlp"), ("mlp", "embed"))

        def to_hidden(name):
            return Linear((self.hidden,), axes, self.dtype, bias=self.bias, name=name)(x)

        act = ACTIVATIONS[self.activation]
        h = act(to_hidden("in_0")) * to_hidden("in_1") if self.gated else act(to_hidden("in"))
        return Linear((width,), back, self.dtype, bias=self.bias, name="out")(h)


def check_activation(name: str) -> str:
    """``name``; UserError unless it is one of ``ACTIVATIONS``."""
    if name not in ACTIVATIONS:
        raise UserError(f"no activation {name!r}: {suggest(name, list(ACTIVATIONS))}")
    return name


def chain(
    block: nn.Module, depth: int, x: Float[Array, "b n d"], seen: Any, layers: Collection[int]
) -> dict[int, Float[Array, "b n d"]]:
    """``depth`` blocks in turn, with parameters of their own, as one loop whatever their number.

    ``block(x, *seen)`` is one of them; its parameters are stacked along ``layers``. What is returned are
    the states after so many blocks as ``layers`` say, counted from the end where negative, and after
    ``depth``: no other is kept.
    """
    found = {0: x} if any(layer % (depth + 1) == 0 for layer in layers) else {}
    between = sorted({layer % (depth + 1) for layer in layers} - {0, depth})

    def body(block, carry, i, seen):
        x, kept = carry
        x = block(x, *seen)
        return (x, {n: jnp.where(i == n, x, old) for n, old in kept.items()}), None

    scan = nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        length=depth,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    carry = x, {n: jnp.zeros_like(x) for n in between}
    (x, kept), _ = scan(block, carry, jnp.arange(1, depth + 1), seen)
    return found | kept | {depth: x}


def choose(
    states: Mapping[int, Float[Array, "b n d"]],
    layers: Sequence[int],
    norm: bool | None,
    final: Callable[[Array], Array],
) -> Float[Array, "b n _"]:
    """The states after so many blocks, one after the other along the channels.

    ``states``: those of ``chain``, of which the highest is the last. ``layers`` are counted from the end
    where negative. ``norm``: whether the ``final`` norm is applied to each; None: to the last alone.
    """
    depth = max(states)
    last = final(states[depth])  # always, so that its parameters exist
    found = []
    for layer in layers:
        layer %= depth + 1
        if layer == depth and norm is not False:
            found.append(last)
        else:
            found.append(final(states[layer]) if norm else states[layer])
    return jnp.concatenate(found, axis=-1)
