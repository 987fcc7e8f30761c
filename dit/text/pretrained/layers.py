"""What the text encoders are made of: tables, activations, an MLP, and the choice of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

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


def choose(
    states: Sequence[Float[Array, "b n d"]],
    layers: Sequence[int],
    norm: bool | None,
    final: Callable[[Array], Array],
) -> Float[Array, "b n _"]:
    """The states after so many blocks, one after the other along the channels.

    ``states``: the embeddings, then the state after each block. ``layers`` index them, from the end
    where negative. ``norm``: whether the ``final`` norm is applied to each; None: to the last alone.
    """
    last = final(states[-1])  # always, so that its parameters exist
    count = len(states)
    found = []
    for layer in layers:
        at_end = layer % count == count - 1
        if at_end and norm is not False:
            found.append(last)
        else:
            found.append(final(states[layer]) if norm else states[layer])
    return jnp.concatenate(found, axis=-1)
