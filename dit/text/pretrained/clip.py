"""The text encoder of CLIP (Radford et al. 2021), and of OpenCLIP in the same layout.

A pre-norm transformer with learned positions, in which a token sees none after it. Its activation and
sizes are those of ``config.json``. The pooled vector is the state of the end token after the final norm,
projected if the weights hold a projection.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dit.config import call
from dit.interop.mapping import Entry, linear
from dit.models.activations import constrain
from dit.models.attention import Visibility
from dit.models.layers import Linear, Norm
from dit.models.multihead import SelfAttention, self_macs
from dit.text.pretrained import weights
from dit.text.pretrained.encoder import Encoder, Options, Pretrained
from dit.text.pretrained.layers import Mlp, Table, chain, check_activation, choose
from dit.types import Count, Tiny, UserError, Whole

OLD_END = 2  # what configs of before 2023 say that the end token is: it is the highest there
ELSEWHERE = ("vision_model.", "visual_projection.", "logit_scale")  # of a whole CLIP


def build(*, path: str, tokenizer: str | None = None, **options: Any) -> Encoder:
    """CLIP's text encoder from a directory in the layout of ``transformers``.

    ``tokenizer``: the directory of its vocabulary, if another; ``options``: see ``Options``.
    """
    return weights.open_encoder(
        "clip",
        path,
        tokenizer,
        call(Options, "text 'clip'", **options),
        make=make,
        elsewhere=ELSEWHERE,
        pad="<|endoftext|>",
    )


def make(settings: Mapping[str, Any], names: Collection[str], options: Options) -> ClipText:
    """The description of an encoder with these settings, of ``config.json``, and these weights."""
    settings = settings.get("text_config", settings)  # of a whole CLIP
    projected = "text_projection.weight" in names
    return ClipText(
        options=options,
        **weights.fields("clip", settings, sizes),
        projection=settings.get("projection_dim", settings["hidden_size"]) if projected else None,
        prefix="text_model." if any(n.startswith("text_model.") for n in names) else "",
    )


def sizes(
    *,
    vocab_size: Count = 49408,
    max_position_embeddings: Count = 77,
    hidden_size: Count,
    intermediate_size: Count,
    num_hidden_layers: Count,
    num_attention_heads: Count,
    hidden_act: str = "quick_gelu",
    layer_norm_eps: Tiny = 1e-5,
    eos_token_id: Whole = 49407,
) -> dict[str, Any]:
    """The fields of the encoder from those of ``config.json``."""
    return {
        "vocabulary": vocab_size,
        "positions": max_position_embeddings,
        "width": hidden_size,
        "hidden": intermediate_size,
        "depth": num_hidden_layers,
        "heads": num_attention_heads,
        "activation": check_activation(hidden_act),
        "eps": layer_norm_eps,
        "end": eos_token_id,
    }


class Block(nn.Module):
    """``x + attention(norm x)``, then ``x + mlp(norm x)``, the sums in float32."""

    heads: int
    hidden: int
    activation: str
    eps: float
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], visible: Visibility) -> Float[Array, "b n d"]:
        h = Norm("layer", True, self.eps, name="norm_1")(x)
        x = x + SelfAttention(self.heads, self.dtype, name="attention")(h, visible=visible)
        h = Norm("layer", True, self.eps, name="norm_2")(x)
        return x + Mlp(self.hidden, self.activation, self.dtype, name="mlp")(h)


class ClipText(Pretrained):
    """``end``: number of the end token. ``projection``: channels of the pooled vector, if projected."""

    beside: ClassVar[bool] = True
    usual_length: ClassVar[int] = 77
    heads: int
    hidden: int
    activation: str
    eps: float
    end: int
    projection: int | None
    prefix: str

    @nn.compact
    def __call__(
        self, ids: Int[Array, "b n"], mask: Bool[Array, "b n"] | None
    ) -> tuple[Float[Array, "b n e"], Float[Array, "b p"]]:
        dtype, n = self.options.dtype, ids.shape[1]
        x = Table(self.vocabulary, self.width, name="tokens")(ids)
        x = x + Table(self.positions, self.width, name="positions")(jnp.arange(n))[None]
        x = constrain(x.astype(jnp.float32), "act_batch", None, "act_embed")
        visible = Visibility(
            frame_size=1, k_valid=mask
        )  # each token a frame: none sees a later one
        block = Block(self.heads, self.hidden, self.activation, self.eps, dtype, name="blocks")
        states = chain(block, self.depth, x, (visible,), self.options.layers)
        final = Norm("layer", True, self.eps, name="norm")
        context = choose(states, self.options.layers, self.options.norm, final)
        at = end_of(ids, self.end)
        pooled = final(jnp.take_along_axis(states[self.depth], at[:, None, None], axis=1)[:, 0])
        if self.projection is not None:
            project = Linear((self.projection,), ("embed", None), dtype, bias=False, name="project")
            pooled = project(pooled)
        return context, pooled

    def check_tokens(self, ids: Int[np.ndarray, "b n"]) -> None:
        """UserError for a text without the end token."""
        if self.end != OLD_END and not (ids == self.end).any(axis=1).all():
            raise UserError(
                f"the vocabulary gives texts without the token {self.end}, which ends them for this "
                "CLIP: they belong to different models, give tokenizer=DIR"
            )

    def macs(self, length: int) -> dict[str, int]:
        """See ``Pretrained``."""
        parts = {
            "attention": self.depth * self_macs(length, self.width),
            "mlp": self.depth * 2 * length * self.width * self.hidden,
        }
        return parts | (
            {} if self.projection is None else {"project": self.width * self.projection}
        )

    def entries(self, names: Collection[str]) -> Iterator[Entry]:
        """See ``Pretrained``."""
        base = self.prefix
        for ours, theirs in (("tokens", "token"), ("positions", "position")):
            yield Entry((ours, "table"), (f"{base}embeddings.{theirs}_embedding.weight",))
        for i in range(self.depth):
            theirs = f"{base}encoder.layers.{i}"
            yield from weights.norm("blocks/norm_1", f"{theirs}.layer_norm1", i)
            yield from weights.norm("blocks/norm_2", f"{theirs}.layer_norm2", i)
            qkv = [f"{theirs}.self_attn.{part}_proj" for part in "qkv"]
            yield from linear("blocks/attention/qkv", *qkv, layer=i)
            yield from linear("blocks/attention/out", f"{theirs}.self_attn.out_proj", layer=i)
            yield from linear("blocks/mlp/in", f"{theirs}.mlp.fc1", layer=i)
            yield from linear("blocks/mlp/out", f"{theirs}.mlp.fc2", layer=i)
        yield from weights.norm("norm", f"{base}final_layer_norm")
        if self.projection is not None:
            yield Entry(("project", "kernel"), ("text_projection.weight",), "linear", inputs=1)


def end_of(ids: Int[Array, "b n"], end: int) -> Int[Array, " b"]:
    """Where each text ends: at the first ``end``.

    Old configs name a wrong token; there it is the highest number, which is what the end token has.
    """
    return jnp.argmax(ids if end == OLD_END else ids == end, axis=1)
