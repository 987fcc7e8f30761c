"""The shapes and small records that every other module speaks in.

Arrays are ``b f h w c`` (batch, frames, height, width, channels): an image is a video with one
frame. Tokens are ``b n d``. Diffusion time ``t`` has the shape of a prefix of x: ``(b,)`` for one noise
level a sample, ``(b, f)`` a frame, ``(b, f, h, w)`` a token (constant within a patch), or ``(b, n)``
where x is tokens. It grows with noise, and ``t = 0`` is data on every path.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Integer

Key = jax.Array  # a typed PRNG key, or an array of them
Params = Any  # a nested dict of arrays
Ids = Integer[Array, "b"] | Integer[Array, "b 2"]  # of samples: one word each, or rng.words
Times = Float[Array, "b ..."]  # the shape of a prefix of x
Video = Float[Array, "b f h w c"]


class UserError(ValueError):
    """Bad input that a person can mend: says what was got, what was expected and what to do.

    The command line prints it as one message without a traceback, and exits non-zero.
    """


class OutsideError(UserError):
    """What a run is not to blame for: a full disk, a directory that another job holds.

    The same run may well succeed once that is mended; and no other run would fare better now.
    """


def first_line(error: Exception) -> str:
    """The first line of an error, or its type if it says nothing.

    Of a long one, the beginning and the end: between what was tried and why it failed stands a path.
    """
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= 400 else f"{line[:150]} ... {line[-245:]}"


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """Parameters that nothing trains: arguments of the programs that use them, and in no checkpoint.

    ``abstract``: their shapes and types; ``axes``: the names of their axes, in a tree like theirs.
    ``read(shardings)`` reads them, of which every process takes what its devices hold. ``expected``:
    the fingerprint that they must have; ``where``: what a message calls them. ``compared``: the type
    that fractions are rounded to before their fingerprint is taken, for weights that are kept now in
    one, now in another; None: every bit counts. ``apart(params)``: the trees, one after the other, whose
    arrays and names the fingerprint is of; None: the parameters as they are.
    """

    abstract: Params
    axes: Any
    read: Callable[[Any], Params]
    where: str
    expected: str | None = None
    compared: str | None = None
    apart: Callable[[Params], Iterable[Params]] | None = None
    placed: dict[Any, Params] = dataclasses.field(default_factory=dict)  # by mesh, once read

    @classmethod
    def of(cls, params: Params, where: str) -> Weights:
        """Arrays that are in memory already, of which every device is to have all."""
        return cls(
            abstract=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params),
            axes=jax.tree.map(lambda x: (None,) * x.ndim, params),
            read=lambda shardings: jax.tree.map(jax.device_put, params, shardings),
            where=where,
        )


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a keyword takes: from ``low`` to ``high``, without the ends in ``open``.

    ``Annotated[float, Range(0, 1)]`` in the signature of a ``build`` is checked by ``dit.config``.
    """

    low: int | float
    high: int | float
    open: str = ""  # "low", "high", "both"

    def __contains__(self, x: int | float) -> bool:
        above = x > self.low if self.open in ("low", "both") else x >= self.low
        below = x < self.high if self.open in ("high", "both") else x <= self.high
        return above and below

    def __str__(self) -> str:
        left = "(" if self.open in ("low", "both") else "["
        right = ")" if self.open in ("high", "both") else "]"
        low, high = (f"{x:g}" if isinstance(x, float) else str(x) for x in (self.low, self.high))
        return f"in {left}{low}, {high}{right}"


# Wide, but such that float32 holds the number, its square and its inverse.
Number = Annotated[float, Range(-1e12, 1e12)]
Positive = Annotated[float, Range(1e-12, 1e12)]
NonNegative = Annotated[float, Range(0, 1e12)]
Tiny = Annotated[float, Range(1e-30, 1)]  # an epsilon that keeps a division finite
Fraction = Annotated[float, Range(0, 1)]
Share = Annotated[float, Range(0, 1, open="low")]  # of something that must not be empty
Decay = Annotated[float, Range(0, 1, open="high")]  # of a running average: 1 forgets nothing
Power = Annotated[float, Range(1, 10)]  # of a time grid: 1 is even
Scale = Annotated[float, Range(-1000, 1000)]  # of guidance
Count = Annotated[int, Range(1, 2**31 - 1)]
Whole = Annotated[int, Range(0, 2**31 - 1)]
Seed = Annotated[int, Range(0, 2**32 - 1)]


@struct.dataclass
class Cond:
    """What a sample is conditioned on. Every field is optional; none at all is unconditional.

    ``label``: class index in ``[0, num_classes)``; ``num_classes`` itself is the null class.
    ``context``: a sequence of embeddings (text, say), with ``context_mask`` true on real tokens.
    ``image_context``: a sequence of embeddings of a reference image (CLIP's, say).
    ``pooled``: one embedding of the whole condition (of a text, say).
    ``tokens``: a text as integers, with ``tokens_mask`` true on those that are not padding: for a
    network with a text encoder (``dit.text``), which makes ``context`` or ``pooled`` of them.
    ``r``: a second time, shaped like the first: where a flow map ends, in the network's units of time.
    ``guidance``: a guidance scale that the network is given as an input.
    ``concat``: known channels beside those of x (a reference frame, a mask).
    ``drop``: true where the condition is replaced by the null one (label row ``num_classes``, the
    learned null context and null pooled embedding): how classifier-free guidance is trained and sampled
    (Ho & Salimans 2022). It leaves ``r``, ``guidance``, ``concat`` and ``image_context`` as they are.
    """

    label: Int[Array, " b"] | None = None
    context: Float[Array, "b m e"] | None = None
    context_mask: Bool[Array, "b m"] | None = None
    image_context: Float[Array, "b i q"] | None = None
    pooled: Float[Array, "b p"] | None = None
    tokens: Int[Array, "b l"] | None = None
    tokens_mask: Bool[Array, "b l"] | None = None
    r: Times | None = None
    guidance: Float[Array, " b"] | None = None
    concat: Float[Array, "b f h w k"] | None = None
    drop: Bool[Array, " b"] | None = None

    @classmethod
    def of(cls, batch: Mapping[str, Array], drop: Bool[Array, " b"] | None = None) -> Cond:
        """The conditions among the arrays of a batch, which bear the names of the fields.

        ``drop`` is where the batch's is true too, if it has one.
        """
        names = (field.name for field in dataclasses.fields(cls))
        found = {n: batch[n] for n in names if n in batch}
        if drop is not None:
            found["drop"] = drop | found["drop"] if "drop" in found else drop
        return cls(**found)

    def null(self, batch: int) -> Cond:
        """The same condition with every sample dropped."""
        return self.replace(drop=jnp.ones((batch,), bool))


MASKS = ("context_mask", "tokens_mask")  # fields that say which parts of another are real


def masks(names: Iterable[str]) -> set[str]:
    """The masks of the fields of these names."""
    return {*MASKS} & {f"{name}_mask" for name in names}


@struct.dataclass
class Tokens:
    """A sequence as the transformer sees it: never pixels.

    ``x``: ``b n d``. ``position``: continuous ``(time, y, x)`` of every token, ``b n 3``, or
    ``1 n 3`` where all samples share it.
    ``segment``: which packed sample a token belongs to, or None (one sample a row, no mask).
    ``frame``: index of the token's frame, of which a frame-causal model sees no later one.
    ``group``: 0 or more of a token that only those of the same group see; below 0, all may.
    ``row``: which of the ``r`` times in a ``t`` of shape ``(b, r)`` a token has, where many tokens share
    few times, as in packed clips. None where t is a prefix of x.
    ``concat``: the known channels of ``Cond.concat``, as tokens.
    """

    x: Float[Array, "b n d"]
    position: Float[Array, "#b n 3"]
    segment: Int[Array, "b n"] | None = None
    frame: Int[Array, "b n"] | None = None
    group: Int[Array, "b n"] | None = None
    row: Int[Array, "b n"] | None = None
    concat: Float[Array, "b n q"] | None = None


ApplyFn = Callable[..., Video]  # apply_fn(params, x, t, cond) -> b f h w c_out
Denoise = Callable[[Video, Times], Video]  # denoise(x_t, t) -> x0_hat


def is_prefix(t: Array, x: Array) -> bool:
    """Whether ``t`` has the shape of a prefix of ``x``, without x's last axis."""
    return 1 <= t.ndim < x.ndim and t.shape == x.shape[: t.ndim]


def match_time(t: Float[Array, "..."], x: Float[Array, "b ..."]) -> Array:
    """Reshape ``t``, a prefix of x, to broadcast against x.

    Raises ValueError for any other shape: time is never silently broadcast.
    """
    if not is_prefix(t, x):
        raise ValueError(
            f"time has shape {t.shape}, expected a prefix of the data's {x.shape}, such as "
            f"({x.shape[0]},) for one noise level a sample or {x.shape[:-1]} for one a token"
        )
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def repeat_patches(a: Array, patch: tuple[int, int, int]) -> Array:
    """``b F H W`` of one value a patch as ``b f h w``, constant within each patch."""
    for axis, size in enumerate(patch, 1):
        a = jnp.repeat(a, size, axis=axis) if size > 1 else a
    return a
