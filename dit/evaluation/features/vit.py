"""The vision transformer (Dosovitskiy et al. 2021) that DINOv2 and CLIP are instances of.

Patches are projected; a class token stands before them, positions are added to all and registers go in
between. Pre-norm blocks ``x + s_1 attention(norm x)``, ``x + s_2 mlp(norm x)``, the sums in float32; the
result is the class token after the last norm, projected if there is a projection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dit import rng
from dit.interop.mapping import Entry, linear, placed
from dit.models.layers import Linear, Norm, along, normal
from dit.models.multihead import SelfAttention
from dit.text.pretrained.layers import Mlp
from dit.types import Params


class Scale(nn.Module):
    """LayerScale (Touvron et al. 2021): a learned factor a channel."""

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return x * along(self.param("scale", nn.initializers.ones, x.shape[-1:]), x)


class Block(nn.Module):
    """See the module. ``gated``: an MLP of SwiGLU; ``scaled``: each branch has a ``Scale``."""

    heads: int
    hidden: int
    activation: str
    gated: bool
    scaled: bool
    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        mlp = Mlp(self.hidden, self.activation, "float32", self.gated, name="mlp")
        attention = SelfAttention(self.heads, "float32", name="attention")
        for i, branch in enumerate((attention, mlp), 1):
            h = branch(Norm("layer", True, self.eps, name=f"norm_{i}")(x))
            x = x + (Scale(name=f"scale_{i}")(h) if self.scaled else h)
        return x


class Vit(nn.Module):
    """``x``: pictures as the network was trained on them; a rest that fills no patch is left out.

    ``before``: the result is the states of all tokens before so many of the last blocks, without a norm.
    """

    patch: int
    grid: int
    width: int
    depth: int
    heads: int
    hidden: int
    activation: str
    eps: float
    gated: bool = False
    scaled: bool = False
    registers: int = 0
    patch_bias: bool = True
    first_norm: bool = False
    projection: int | None = None
    before: int | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b s s 3"]) -> Float[Array, "b ..."]:
        b, p, g, d = len(x), self.patch, self.grid, self.width
        x = x[:, : g * p, : g * p].reshape(b, g, p, g, p, 3).transpose(0, 1, 3, 2, 4, 5)
        patches = x.reshape(b, g * g, p, p, 3)
        axes = (None, None, None, "embed")
        x = Linear((d,), axes, bias=self.patch_bias, name="patches")(patches)
        first = self.param("class", normal, (1, 1, d))
        x = jnp.concatenate([jnp.broadcast_to(first, (b, 1, d)), x], 1)
        x = x + self.param("positions", normal, (1, 1 + g * g, d))
        if self.registers:
            more = self.param("registers", normal, (1, self.registers, d))
            x = jnp.concatenate(
                [x[:, :1], jnp.broadcast_to(more, (b, *more.shape[1:])), x[:, 1:]], 1
            )
        if self.first_norm:
            x = Norm("layer", True, self.eps, name="first_norm")(x)
        states = x
        for i in range(self.depth):
            states = x if self.before == self.depth - i else states
            x = Block(
                self.heads,
                self.hidden,
                self.activation,
                self.gated,
                self.scaled,
                self.eps,
                name=f"block_{i}",
            )(x)
        x = Norm("layer", True, self.eps, name="norm")(x[:, 0])
        if self.projection:
            project = Linear((self.projection,), ("embed", None), bias=False, name="project")
            x = project(x)
        return x if self.before is None else states


def read(model: Vit, state: Mapping[str, Any], entries: list[Entry]) -> Params:
    """The parameters of a state whose names are those of the table; UserError for others."""
    side = model.patch * model.grid
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    abstract = nn.unbox(jax.eval_shape(model.init, rng.root(0), x))["params"]
    return placed(state, entries, abstract, None)


def norm(path: str, name: str) -> Iterator[Entry]:
    """The entries of a norm with scale and bias."""
    for ours, theirs in (("scale", "weight"), ("bias", "bias")):
        yield Entry((*path.split("/"), ours), (f"{name}.{theirs}",))


def block(i: int, prefix: str, qkv: tuple[str, ...], names: Mapping[str, str]) -> Iterator[Entry]:
    """The entries of a block, from ``names`` of ``norm_1``, ``attention/out``, ``mlp/out`` and so on."""
    yield from linear(f"block_{i}/attention/qkv", *(f"{prefix}.{name}" for name in qkv))
    for ours, theirs in names.items():
        if ours.startswith("norm"):
            yield from norm(f"block_{i}/{ours}", f"{prefix}.{theirs}")
        elif ours.startswith("scale"):
            yield Entry((f"block_{i}", ours, "scale"), (f"{prefix}.{theirs}",))
        else:
            yield from linear(f"block_{i}/{ours}", f"{prefix}.{theirs}")
