"""A network that reads text: an encoder before any network that takes a context or a pooled vector."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from dit.models.cache import Cache
from dit.models.network import Level, Network, Shape
from dit.text import TextEncoder
from dit.types import Cond, Params, Tokens, UserError


class TextConditioned(Network):
    """``model``, told by the encoder ``text`` what ``Cond.tokens`` say.

    Its parameters are those of both, under these two names. A sample without a single real token has
    the null condition, as if it were dropped.
    """

    text: TextEncoder
    model: Network

    @property
    def no_input_gradient(self) -> tuple[str, ...]:
        """Those of the model: an encoder begins with a table, which has a gradient."""
        return self.model.no_input_gradient

    @property
    def once(self) -> tuple[str, ...]:
        """The encoder too sees a sample once."""
        return (*self.model.once, "text")

    def __call__(
        self, x: Float[Array, "b f h w c"], t: Float[Array, "..."], cond: Cond
    ) -> Float[Array, "b f h w c_out"]:
        """See ``Network``."""
        return self.model(x, t, self.told(cond))

    def transform(
        self, tokens: Tokens, t: Float[Array, "b s"], cond: Cond
    ) -> Float[Array, "b n p"]:
        """See ``Network``."""
        return self.model.transform(tokens, t, self.told(cond))

    def check_packed(self) -> None:
        """The model's."""
        self.model.check_packed()

    def check_teacher_forced(self) -> None:
        """The model's."""
        self.model.check_teacher_forced()

    def told(self, cond: Cond) -> Cond:
        """``cond`` with what the encoder gives in place of tokens; one without tokens stays as it is.

        Raises UserError for tokens beside what the encoder makes of them.
        """
        names = {"context": self.text.context_dim, "pooled": self.text.pooled_dim}
        given = [name for name, dim in names.items() if dim and getattr(cond, name) is not None]
        if cond.tokens is None:
            if not given:
                raise UserError("the network reads text: Cond.tokens is missing")
            return cond
        if given:
            raise UserError(f"got Cond.tokens and Cond.{given[0]}, which is made of them; give one")
        drop, real = cond.drop, cond.tokens_mask
        if real is not None:
            empty = ~real.any(1)
            drop = empty if drop is None else drop | empty
        encoded = {k: v for k, v in vars(self.text(cond.tokens, real)).items() if v is not None}
        return cond.replace(tokens=None, tokens_mask=None, drop=drop, **encoded)

    def empty_cache(self, batch: int, shape: Shape, frames: int, sinks: int) -> Cache:
        """The model's."""
        return self.model.empty_cache(batch, shape, frames, sinks)

    def continued(
        self, x: Float[Array, "b f h w c"], t: Float[Array, "..."], cond: Cond, cache: Cache
    ) -> tuple[Float[Array, "b f h w c_out"], Cache]:
        """See ``Network``."""
        return self.model.continued(x, t, self.told(cond), cache)

    def example(self, shape: Shape) -> tuple[Array, Array, Cond]:
        """The model's, with a text in place of what the encoder gives."""
        x, t, cond = self.model.example(shape)
        tokens = jnp.zeros((1, self.text.tokenizer().length), jnp.int32)
        gives = {
            name: None
            for name in ("context", "pooled")
            if getattr(self.text, f"{name}_dim") is not None
        }
        return x, t, cond.replace(tokens=tokens, **gives)

    def macs(self, shape: Shape, context_len: int = 0, level: Level = "sample") -> dict[str, int]:
        """See ``Network``; ``context_len``: tokens of a text, by default as many as are read."""
        length = context_len or self.text.tokenizer().length
        text = {f"text/{part}": count for part, count in self.text.macs(length).items()}
        return self.model.macs(shape, length, level) | text

    def times(self, shape: Shape, level: Level) -> int:
        """The model's."""
        return self.model.times(shape, level)

    def cell(self) -> tuple[int, int, int]:
        """The model's."""
        return self.model.cell()

    def tokens(self, shape: Shape) -> int:
        """The model's: positions of the data."""
        return self.model.tokens(shape)

    def attention_macs(self, shape: Shape) -> int:
        """The model's."""
        return self.model.attention_macs(shape)

    def stream(self, shape: Shape) -> int:
        """Of both."""
        return self.model.stream(shape) + self.text.stream(self.text.tokenizer().length)

    def plain(self, unrolled: bool = False) -> TextConditioned:
        """Both in that form."""
        return self.clone(text=self.text.plain(unrolled), model=self.model.plain(unrolled))

    def unstack(self, params: Params) -> Params:
        """Both taken apart."""
        parts = {"text": self.text, "model": self.model}
        return {name: part.unstack(params[name]) for name, part in parts.items()}
