"""What all text encoders with weights of their own have in common.

``build`` of ``clip.py``, ``t5.py``, ``bert.py`` and ``minilm.py`` opens an ``Encoder``: a network, its
weights on disk and its vocabulary. ``tokens`` runs on the host, ``load`` reads the weights, and
``encode`` is a pure function of parameters and tokens, for use under ``jit``. ``joint`` makes one of
several.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterator, Sequence
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dit import rng
from dit.interop import mapping
from dit.text import Encoded
from dit.text.pretrained.tokenizer import Tokens, Vocabulary
from dit.types import Count, Params, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How an encoder is used.

    ``layers``: after how many blocks the states are taken, counted from the end where negative: -1 is
    the last, -2 the one before it, 0 the embeddings. Several follow each other along the channels.
    ``norm``: whether the network's final norm is applied to them; None: to the last layer alone.
    ``length``: tokens of a text, which is cut or padded to it; by default all positions that the
    network has, or 256 (T5) or 64 (BERT). ``padding``: ``masked``: no token sees it, here or in the
    model that reads the context; ``real``: it counts as text everywhere (Stable Diffusion, Flux);
    ``zeros``: no token sees it here, and its states are zeros that count as text (Wan). ``use``: what
    is given. ``dtype``: of the products, and of the parameters in memory that are large.
    """

    layers: int | tuple[int, ...] = (-1,)
    norm: bool | None = None
    length: Count | None = None
    padding: Literal["masked", "real", "zeros"] = "masked"
    use: Literal["both", "context", "pooled"] = "both"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if isinstance(self.layers, int):
            object.__setattr__(self, "layers", (self.layers,))
        if not self.layers:
            raise UserError(
                "got layers=(); expected one number or more, such as -1: the last layer"
            )


class Pretrained(nn.Module):
    """A network from token numbers and the mask of real ones to a context and a pooled vector.

    ``beside``: whether contexts of such networks are joined along the channels, like those of Stable
    Diffusion 3's two CLIPs; ``usual_length``: tokens of a text where ``Options`` give no number and
    there are as many ``positions``, of which None is any number.
    """

    beside: ClassVar[bool] = False
    usual_length: ClassVar[int]
    positions: int | None
    options: Options
    vocabulary: int
    width: int
    depth: int

    def __init_subclass__(cls, **kwargs):
        for name in {"apart", "check_tokens", "entries", "macs"} & vars(cls).keys():
            nn.nowrap(vars(cls)[name])  # answered from the description alone
        super().__init_subclass__(**kwargs)

    def __call__(
        self, ids: Int[Array, "b n"], mask: Bool[Array, "b n"] | None
    ) -> tuple[Float[Array, "b n e"], Float[Array, "b p"] | None]:
        """``(context, pooled)``; ``mask``: true on real tokens, None where all count."""
        raise NotImplementedError

    def check_tokens(self, ids: Int[np.ndarray, "b n"]) -> None:
        """Raise UserError for texts without a token that the network cannot do without."""

    @nn.nowrap
    def apart(self, params: Params) -> Iterator[Params]:
        """The parameters, those of each layer ``i`` by themselves as ``block_i``.

        Runs and records know an encoder by a fingerprint under these names, older than the stack.
        """
        yield {name: x for name, x in params.items() if name != "blocks"}
        for i in range(self.depth):
            yield {f"block_{i}": jax.tree.map(lambda x, i=i: x[i], params["blocks"])}

    def entries(self, names: Collection[str]) -> Iterator[mapping.Entry]:
        """The table of parameters and of their names among those of a file, ``names``."""
        raise NotImplementedError

    def macs(self, length: int) -> dict[str, int]:
        """Multiply-adds of a text of ``length`` tokens, by part: exact, of products, in all layers."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Words:
    """The tokenizer of an encoder, without its weights: what processes that read data need of it."""

    model: Pretrained
    vocabulary: Vocabulary
    length: int

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Token numbers of texts, ``(len(texts), length)``, and which are real.

        Raises UserError for a text that is not Unicode, and a vocabulary of more tokens than the
        network knows.
        """
        found = self.vocabulary(texts, self.length)
        if found.ids.size and found.ids.max() >= self.model.vocabulary:
            raise UserError(
                f"the vocabulary gives the token {found.ids.max()}; the network knows "
                f"{self.model.vocabulary}: they belong to different models, give tokenizer=DIR"
            )
        self.model.check_tokens(found.ids)
        return found


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A text encoder whose weights, ``state``, are not read yet."""

    model: Pretrained
    vocabulary: Vocabulary
    state: mapping.State
    length: int

    @property
    def words(self) -> Words:
        """Its tokenizer."""
        return Words(self.model, self.vocabulary, self.length)

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """See ``Words``."""
        return self.words(texts)

    @functools.cached_property
    def _boxed(self) -> Params:
        ids = jax.ShapeDtypeStruct((1, self.length), jnp.int32)
        mask = jax.ShapeDtypeStruct((1, self.length), jnp.bool_)
        return jax.eval_shape(self.model.init, rng.root(0), ids, mask)["params"]

    def abstract(self) -> Params:
        """The shapes and types of the parameters."""

        def kept(path, leaf):
            names = [key.key for key in path]
            large = names[-1] == "kernel" or names[0] == "tokens"
            return jax.ShapeDtypeStruct(
                leaf.shape, self.model.options.dtype if large else jnp.float32
            )

        return jax.tree_util.tree_map_with_path(kept, nn.unbox(self._boxed))

    def axes(self) -> Any:
        """For each parameter the names of its axes, as of ``models.logical_axes``."""
        boxes = lambda x: isinstance(x, nn.Partitioned)  # noqa: E731
        return jax.tree.map(lambda box: box.names, self._boxed, is_leaf=boxes)

    def load(self, shardings: Any | None = None) -> Params:
        """The parameters, of which every process reads what its devices hold.

        ``shardings``: a tree like theirs; by default all is on the first device. Raises UserError for
        weights that do not fit the network.
        """
        entries = list(self.model.entries(self.state.keys()))
        mapping.check_names(self.state, entries, "its config.json")
        return mapping.placed(self.state, entries, self.abstract(), shardings)

    def to_state(self, params: Params) -> mapping.State:
        """The parameters under the names of the file that they came from: the inverse of ``load``."""
        return mapping.to_state(params, list(self.model.entries(self.state.keys())))

    def encode(self, params: Params, ids: Int[Array, "b n"], mask: Bool[Array, "b n"]) -> Encoded:
        """The context, its mask and the pooled vector of texts, in float32."""
        options = self.model.options
        inside = None if options.padding == "real" else mask
        context, pooled = self.model.apply({"params": params}, ids, inside)
        context = context.astype(jnp.float32)
        if options.padding == "zeros":
            context = jnp.where(mask[..., None], context, 0)
        if options.padding != "masked":
            mask = jnp.ones_like(mask)
        if options.use == "pooled":
            context = mask = None
        if pooled is not None:
            pooled = None if options.use == "context" else pooled.astype(jnp.float32)
        return Encoded(context, mask, pooled)
