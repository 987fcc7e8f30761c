"""BERT (Devlin et al. 2019) as an encoder of sentences (Reimers & Gurevych 2019), such as MiniLM.

A post-norm transformer with learned positions, in which every token sees all real ones. The pooled
vector is the mean state of the real tokens or the first token's state, as ``1_Pooling/config.json`` says
where there is one, and of unit length where ``modules.json`` asks for that. BERT's own pooler, a map of
the first state that sentence encoders do not use, is kept where the weights hold it.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dit.config import call
from dit.interop.folder import read_json
from dit.interop.mapping import Entry, linear
from dit.models.activations import constrain
from dit.models.attention import Visibility
from dit.models.layers import Linear, Norm
from dit.models.multihead import SelfAttention, self_macs
from dit.text.pretrained import weights
from dit.text.pretrained.encoder import Encoder, Options, Pretrained
from dit.text.pretrained.layers import Mlp, Table, chain, check_activation, choose
from dit.types import Count, Tiny, UserError

ELSEWHERE = ("cls.",)  # heads of pre-training
POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}


def build(*, path: str, tokenizer: str | None = None, **options: Any) -> Encoder:
    """A BERT from a directory in the layout of ``transformers`` or ``sentence-transformers``.

    ``tokenizer``: the directory of its vocabulary, if another; ``options``: see ``Options``.
    """
    return weights.open_encoder(
        "bert",
        path,
        tokenizer,
        call(Options, "text 'bert'", **options),
        make=functools.partial(make, **pooling(pathlib.Path(path))),
        elsewhere=ELSEWHERE,
        pad="[PAD]",
    )


def pooling(folder: pathlib.Path) -> dict[str, Any]:
    """``pool`` and ``unit`` of ``Bert``, from the files beside its weights; UserError for others."""
    pool, unit = "mean", False
    if (folder / "1_Pooling/config.json").exists():
        modes = read_json(folder / "1_Pooling/config.json")
        asked = [key for key, on in modes.items() if key.startswith("pooling_mode") and on is True]
        if len(asked) != 1 or asked[0] not in POOLINGS:
            raise UserError(
                f"{str(folder)!r} asks for the pooling {asked}; expected one of {', '.join(POOLINGS)}"
            )
        pool = POOLINGS[asked[0]]
    if (folder / "modules.json").exists():
        modules = read_json(folder / "modules.json", list)
        unit = any(str(m.get("type", "")).endswith("Normalize") for m in modules)
    return {"pool": pool, "unit": unit}


def make(
    settings: Mapping[str, Any], names: Collection[str], options: Options, pool: str, unit: bool
) -> Bert:
    """The description of an encoder with these settings, of ``config.json``, and these weights."""
    if options.norm:
        raise UserError(
            "got norm=True: BERT has no final norm, its layers end in one; leave it out"
        )
    kind = settings.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise UserError(f"got positions of type {kind!r} in config.json; expected 'absolute'")
    prefix = "bert." if any(n.startswith("bert.") for n in names) else ""
    return Bert(
        options=options,
        **weights.fields("bert", settings, sizes),
        pool=pool,
        unit=unit,
        pooler=f"{prefix}pooler.dense.weight" in names,
        prefix=prefix,
    )


def sizes(
    *,
    vocab_size: Count,
    max_position_embeddings: Count = 512,
    type_vocab_size: Count = 2,
    hidden_size: Count,
    intermediate_size: Count,
    num_hidden_layers: Count,
    num_attention_heads: Count,
    hidden_act: str = "gelu",
    layer_norm_eps: Tiny = 1e-12,
) -> dict[str, Any]:
    """The fields of the encoder from those of ``config.json``."""
    return {
        "vocabulary": vocab_size,
        "positions": max_position_embeddings,
        "types": type_vocab_size,
        "width": hidden_size,
        "hidden": intermediate_size,
        "depth": num_hidden_layers,
        "heads": num_attention_heads,
        "activation": check_activation(hidden_act),
        "eps": layer_norm_eps,
    }


class Block(nn.Module):
    """``norm(x + attention(x))``, then ``norm(x + mlp(x))``, the sums in float32."""

    heads: int
    hidden: int
    activation: str
    eps: float
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], visible: Visibility | None
    ) -> Float[Array, "b n d"]:
        h = SelfAttention(self.heads, self.dtype, name="attention")(x, visible=visible)
        x = Norm("layer", True, self.eps, name="norm_1")(x + h)
        h = Mlp(self.hidden, self.activation, self.dtype, name="mlp")(x)
        return Norm("layer", True, self.eps, name="norm_2")(x + h)


class Bert(Pretrained):
    """``pool``: ``mean`` or ``first``; ``unit``: whether the pooled vector has length 1."""

    usual_length: ClassVar[int] = 64
    types: int
    heads: int
    hidden: int
    activation: str
    eps: float
    pool: str
    unit: bool
    pooler: bool
    prefix: str

    @nn.compact
    def __call__(
        self, ids: Int[Array, "b n"], mask: Bool[Array, "b n"] | None
    ) -> tuple[Float[Array, "b n e"], Float[Array, "b p"]]:
        n = ids.shape[1]
        x = Table(self.vocabulary, self.width, name="tokens")(ids)
        x = x + Table(self.positions, self.width, name="positions")(jnp.arange(n))[None]
        x = x + Table(self.types, self.width, name="types")(jnp.zeros((1, 1), jnp.int32))
        x = Norm("layer", True, self.eps, name="norm")(constrain(x, "act_batch", None, "act_embed"))
        visible = None if mask is None else Visibility(k_valid=mask)
        block = Block(
            *(self.heads, self.hidden, self.activation, self.eps, self.options.dtype), name="blocks"
        )
        states = chain(block, self.depth, x, (visible,), self.options.layers)
        last = states[self.depth]
        if self.pooler:  # so that its parameters are kept
            Linear((self.width,), ("embed", "embed_out"), name="pooler")(last[:, 0])
        context = choose(states, self.options.layers, None, lambda x: x)
        return context, self.pooled(last, mask)

    @nn.nowrap
    def pooled(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "b n"] | None
    ) -> Float[Array, "b d"]:
        """One vector a text."""
        real = jnp.ones(x.shape[:2]) if mask is None else mask.astype(jnp.float32)
        total = jnp.maximum(real.sum(1, keepdims=True), 1)
        y = (x * real[..., None]).sum(1) / total if self.pool == "mean" else x[:, 0]
        if not self.unit:
            return y
        return y * jax.lax.rsqrt(jnp.maximum(jnp.square(y).sum(-1, keepdims=True), 1e-24))

    def macs(self, length: int) -> dict[str, int]:
        """See ``Pretrained``; BERT's own pooler, whose result nothing uses, is left out."""
        return {
            "attention": self.depth * self_macs(length, self.width),
            "mlp": self.depth * 2 * length * self.width * self.hidden,
        }

    def entries(self, names: Collection[str]) -> Iterator[Entry]:
        """See ``Pretrained``."""
        base = f"{self.prefix}embeddings"
        tables = {"tokens": "word", "positions": "position", "types": "token_type"}
        for ours, theirs in tables.items():
            yield Entry((ours, "table"), (f"{base}.{theirs}_embeddings.weight",))
        yield from weights.norm("norm", f"{base}.LayerNorm")
        for i in range(self.depth):
            theirs = f"{self.prefix}encoder.layer.{i}"
            qkv = [f"{theirs}.attention.self.{part}" for part in ("query", "key", "value")]
            yield from linear("blocks/attention/qkv", *qkv, layer=i)
            yield from linear("blocks/attention/out", f"{theirs}.attention.output.dense", layer=i)
            yield from weights.norm("blocks/norm_1", f"{theirs}.attention.output.LayerNorm", i)
            yield from linear("blocks/mlp/in", f"{theirs}.intermediate.dense", layer=i)
            yield from linear("blocks/mlp/out", f"{theirs}.output.dense", layer=i)
            yield from weights.norm("blocks/norm_2", f"{theirs}.output.LayerNorm", i)
        if self.pooler:
            yield from linear("pooler", f"{self.prefix}pooler.dense")
