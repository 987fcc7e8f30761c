"""The encoders of T5 v1.1 (Raffel et al. 2020; Shazeer 2020) and of umT5 (Chung et al. 2023).

Pre-norm with RMSNorm, no biases, no scale in attention, and no positions but a learned bias for each
head and bucket of distances: one table for all layers in T5, one a layer in umT5. There is no pooled
vector.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dit.config import call
from dit.interop.mapping import Entry
from dit.models.activations import WHOLE_HEADS, constrain
from dit.models.kernels.xla import HIDDEN
from dit.models.layers import Linear, Norm
from dit.text.pretrained import weights
from dit.text.pretrained.encoder import Encoder, Options, Pretrained
from dit.text.pretrained.layers import Mlp, Table, chain, check_activation, choose
from dit.types import Count, Params, Range, Tiny, UserError

ELSEWHERE = ("decoder.", "lm_head.")  # of a whole T5
TOKENS = ("shared.weight", "encoder.embed_tokens.weight")  # two names of one table


def build(*, path: str, tokenizer: str | None = None, **options: Any) -> Encoder:
    """The encoder of T5 or umT5 from a directory in the layout of ``transformers``.

    ``tokenizer``: the directory of its vocabulary, if another; ``options``: see ``Options``.
    """
    return weights.open_encoder(
        "t5",
        path,
        tokenizer,
        call(Options, "text 't5'", **options),
        make=make,
        elsewhere=ELSEWHERE,
        pad="<pad>",
    )


def make(settings: Mapping[str, Any], names: Collection[str], options: Options) -> T5:
    """The description of an encoder with these settings, of ``config.json``, and these weights."""
    return T5(
        options=options,
        **weights.fields("t5", settings, sizes),
        positions=None,
        shared=settings.get("model_type") != "umt5",
    )


def sizes(
    *,
    vocab_size: Count,
    d_model: Count,
    d_kv: Count,
    d_ff: Count,
    num_layers: Count,
    num_heads: Count,
    relative_attention_num_buckets: Annotated[int, Range(4, 2**16)] = 32,
    relative_attention_max_distance: Count = 128,
    layer_norm_epsilon: Tiny = 1e-6,
    feed_forward_proj: str = "relu",
) -> dict[str, Any]:
    """The fields of the encoder from those of ``config.json``."""
    if 4 * relative_attention_max_distance <= relative_attention_num_buckets:
        raise UserError(
            f"got relative_attention_max_distance={relative_attention_max_distance} in config.json; "
            f"expected more than {relative_attention_num_buckets // 4}, a quarter of the buckets"
        )
    gated = feed_forward_proj.startswith("gated-")
    activation = feed_forward_proj.removeprefix("gated-")
    return {
        "vocabulary": vocab_size,
        "width": d_model,
        "head_dim": d_kv,
        "hidden": d_ff,
        "depth": num_layers,
        "heads": num_heads,
        "buckets": relative_attention_num_buckets,
        "distance": relative_attention_max_distance,
        "eps": layer_norm_epsilon,
        "gated": gated,
        # "gated-gelu" has always meant the approximation by tanh
        "activation": "gelu_new"
        if feed_forward_proj == "gated-gelu"
        else check_activation(activation),
    }


def bucket(n: int, buckets: int, distance: int) -> Int[np.ndarray, "n n"]:
    """The bucket of every pair (query, key) of ``n`` tokens.

    Half of the buckets are for keys after the query. Of each half the first half are single distances,
    the others grow with the logarithm up to ``distance``, and the last takes all that is farther.
    """
    offset = np.arange(n)[None, :] - np.arange(n)[:, None]
    half = buckets // 2
    exact = half // 2
    far = np.abs(offset)
    # In float32, which decides at the edges of buckets.
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(math.log(distance / exact)) * np.float32(half - exact)
    large = np.minimum(exact + ratio.astype(np.int64), half - 1)
    return half * (offset > 0) + np.where(far < exact, far, large)


class Bias(nn.Module):
    """What is added to the scores of attention: a number for each head and bucket of distances."""

    heads: int
    buckets: int
    distance: int

    @nn.compact
    def __call__(self, n: int) -> Float[Array, "1 h n n"]:
        index = jnp.asarray(bucket(n, self.buckets, self.distance))
        table = Table(self.buckets, self.heads, axis="heads", name="relative")
        bias = jnp.moveaxis(table(index), -1, 0)[None].astype(jnp.float32)
        return constrain(bias, None, "act_heads", None, None)  # made by all: its table is tiny


class Attention(nn.Module):
    """``softmax(q k^T + bias) v``, the softmax in float32."""

    heads: int
    head_dim: int
    dtype: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        bias: Float[Array, "1 h n n"],
        mask: Bool[Array, "b n"] | None,
    ) -> Float[Array, "b n d"]:
        shape, axes = (self.heads, self.head_dim), ("embed", "heads", "head_dim")
        q, k, v = (
            constrain(Linear(shape, axes, self.dtype, bias=False, name=name)(x), *WHOLE_HEADS)
            for name in "qkv"
        )
        score = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) + bias
        if mask is not None:
            score = jnp.where(mask[:, None, None, :], score, HIDDEN)
        weight = jax.nn.softmax(score, axis=-1).astype(v.dtype)
        out = jnp.einsum("bhqk,bkhd->bqhd", weight, v)
        axes = ("heads", "head_dim", "embed")
        return Linear((x.shape[-1],), axes, self.dtype, bias=False, name="out")(out)


class Block(nn.Module):
    """``x + attention(norm x)``, then ``x + mlp(norm x)``, the sums in float32.

    ``distances``: the options of ``Bias``, where the block has a table of its own.
    """

    heads: int
    head_dim: int
    hidden: int
    activation: str
    gated: bool
    eps: float
    dtype: str
    distances: tuple[int, int] | None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        bias: Float[Array, "1 h n n"] | None,
        mask: Bool[Array, "b n"] | None,
    ) -> Float[Array, "b n d"]:
        if self.distances is not None:
            bias = Bias(self.heads, *self.distances, name="bias")(x.shape[1])
        h = Norm("rms", True, self.eps, name="norm_1")(x)
        x = x + Attention(self.heads, self.head_dim, self.dtype, name="attention")(h, bias, mask)
        h = Norm("rms", True, self.eps, name="norm_2")(x)
        mlp = Mlp(self.hidden, self.activation, self.dtype, self.gated, bias=False, name="mlp")
        return x + mlp(h)


class T5(Pretrained):
    """``shared``: one table of biases serves all layers, as in T5; else each has its own, as in umT5."""

    usual_length: ClassVar[int] = 256
    heads: int
    head_dim: int
    hidden: int
    activation: str
    gated: bool
    eps: float
    buckets: int
    distance: int
    shared: bool

    @nn.compact
    def __call__(
        self, ids: Int[Array, "b n"], mask: Bool[Array, "b n"] | None
    ) -> tuple[Float[Array, "b n e"], None]:
        x = Table(self.vocabulary, self.width, name="tokens")(ids)
        x = constrain(x.astype(jnp.float32), "act_batch", None, "act_embed")
        distances = (self.buckets, self.distance)
        bias = Bias(self.heads, *distances, name="bias")(ids.shape[1]) if self.shared else None
        block = Block(
            *(self.heads, self.head_dim, self.hidden, self.activation, self.gated, self.eps),
            self.options.dtype,
            distances=None if self.shared else distances,
            name="blocks",
        )
        states = chain(block, self.depth, x, (bias, mask), self.options.layers)
        final = Norm("rms", True, self.eps, name="norm")
        return choose(states, self.options.layers, self.options.norm, final), None

    def apart(self, params: Params) -> Iterator[Params]:
        """See ``Pretrained``; the tables of biases are ``bias_i``."""
        for tree in super().apart(params):
            for name, x in tree.items():
                layer = name.removeprefix("block_")
                if name == "bias":
                    yield {"bias_0": x}
                elif name != layer and "bias" in x:
                    yield {f"bias_{layer}": x["bias"]}
                    yield {name: {k: v for k, v in x.items() if k != "bias"}}
                else:
                    yield {name: x}

    def macs(self, length: int) -> dict[str, int]:
        """See ``Pretrained``."""
        inner, kernels = self.heads * self.head_dim, 3 if self.gated else 2
        return {
            "attention": self.depth * (4 * self.width + 2 * length) * length * inner,
            "mlp": self.depth * kernels * length * self.width * self.hidden,
        }

    def entries(self, names: Collection[str]) -> Iterator[Entry]:
        """See ``Pretrained``."""
        tied = tuple(name for name in TOKENS if name in names) or TOKENS[:1]
        yield Entry(("tokens", "table"), tied, copies=True)
        for i in range(self.depth):
            attention, mlp = (f"encoder.block.{i}.layer.{k}" for k in (0, 1))
            for ours, part in (("norm_1", attention), ("norm_2", mlp)):
                yield Entry(("blocks", ours, "scale"), (f"{part}.layer_norm.weight",), layer=i)
            inside = f"{attention}.SelfAttention"
            table = (f"{inside}.relative_attention_bias.weight",)
            if not self.shared:
                yield Entry(("blocks", "bias", "relative", "table"), table, layer=i)
            elif i == 0:
                yield Entry(("bias", "relative", "table"), table)
            for ours, theirs, inputs in (
                ("q", "q", 1),
                ("k", "k", 1),
                ("v", "v", 1),
                ("out", "o", 2),
            ):
                path = ("blocks", "attention", ours, "kernel")
                yield Entry(path, (f"{inside}.{theirs}.weight",), "linear", i, inputs=inputs)
            kernels = {"in_0": "wi_0", "in_1": "wi_1"} if self.gated else {"in": "wi"}
            for ours, theirs in (*kernels.items(), ("out", "wo")):
                path = ("blocks", "mlp", ours, "kernel")
                name = f"{mlp}.DenseReluDense.{theirs}.weight"
                yield Entry(path, (name,), "linear", i, inputs=1)
        yield Entry(("norm", "scale"), ("encoder.final_layer_norm.weight",))
