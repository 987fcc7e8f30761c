"""What a transformer and its blocks are told besides its tokens: from ``Cond`` to ``Condition``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from dit.models.activations import constrain
from dit.models.attention import Visibility
from dit.models.cache import Past
from dit.models.layers import spread, wide
from dit.models.positions import Rotary
from dit.types import Cond, Tokens, UserError, is_prefix

USES = ("vector", "both", "sequence", "prefix")
PACKED = ("vector", "both")  # of these, those that tell the conditions of packed samples apart
OPTIONS = {  # a field of Cond, and the keyword of ``build`` by which a model takes it
    "label": "num_classes",
    "context": "context_dim",
    "image_context": "image_context",
    "pooled": "pooled_dim",
    "r": "second_time",
    "guidance": "guidance_input",
    "concat": "concat_channels",
}


@struct.dataclass
class Condition:
    """The condition in the form the block's attribute ``uses`` asks for.

    ``vector``: times, label and pooled context summed, in ``k`` rows: one, or one for each of ``k``
    equal blocks of tokens, or one a token; ``sequence``: time, label and context as tokens to attend
    to, of which a token sees what is ``readable`` (None: all). ``both``: the context as a sequence, if
    there is one, and all else as a vector. A block that uses a ``prefix`` gets neither: the model puts
    the condition's tokens before the others, and takes them away after the last block.
    ``row``: the row of ``vector`` for every token, where the tokens are not ``k`` equal blocks.
    ``visible``: which tokens a token sees, None for all. ``rotary``: the tokens' angles. ``past``: keys
    and values of earlier tokens.
    """

    vector: Float[Array, "b k d"] | None = None
    sequence: Float[Array, "b m d"] | None = None
    readable: Visibility | None = None
    row: Int[Array, "b n"] | None = None
    visible: Visibility | None = None
    rotary: Rotary | None = None
    past: Past | None = None


def example(model: Any, shape: tuple[int, ...]) -> tuple[Array, Array, Cond]:
    """Zeros for the data and every condition that the model takes; the context has one token."""
    sizes = {
        "context": (1, model.context_dim) if model.context_dim else None,
        "image_context": getattr(model, "image_context", None),
        "pooled": (model.pooled_dim,) if model.pooled_dim else None,
        "r": () if model.second_time else None,
        "guidance": () if model.guidance_input else None,
        "concat": (*shape[:3], model.concat_channels) if model.concat_channels else None,
    }
    given = {name: jnp.zeros((1, *size)) for name, size in sizes.items() if size is not None}
    if model.num_classes is not None:
        given["label"] = jnp.zeros((1,), jnp.int32)
    return jnp.zeros((1, *shape)), jnp.zeros((1,)), Cond(**given)


def check_data(model: Any, x: Array) -> None:
    """Raise UserError unless ``x`` is a batch of clips with the model's channels."""
    if x.ndim != 5 or x.shape[-1] != model.in_channels:
        raise UserError(
            f"got x of shape {x.shape}; expected (batch, frames, height, width, {model.in_channels}): "
            "an image has one frame"
        )


def check_time(t: Array, x: Array) -> None:
    """Raise UserError unless ``t`` has the shape of a prefix of ``x``."""
    if not is_prefix(t, x):
        raise UserError(
            f"got t of shape {t.shape} for x of shape {x.shape}; expected a prefix of it, such as "
            f"({x.shape[0]},) for one noise level a sample or {x.shape[:-1]} for one a token"
        )


def check(
    model: Any, t: Array, given: Mapping[str, Array | None], known: tuple[int | None, ...]
) -> None:
    """Raise UserError for conditions that are missing or not expected, or of another shape.

    ``given``: the arrays, by the names of ``Cond``'s fields; ``known``: the shape of ``concat``.
    """
    shapes = {
        "context": (len(t), None, model.context_dim),
        "image_context": (len(t), *(getattr(model, "image_context", None) or ())),
        "pooled": (len(t), model.pooled_dim),
        "r": t.shape,
        "guidance": (len(t),),
        "concat": known,
    }
    if given.get("tokens") is not None:
        raise UserError(
            "got Cond.tokens, but the network has no text encoder: give the config a section text"
        )
    for name, option in OPTIONS.items():
        value, asked = given[name], getattr(model, option, None)
        if asked in (None, False):
            if value is not None:
                able = hasattr(model, option)
                raise UserError(
                    f"got Cond.{name}, but the model was built without {option}: leave it out, or "
                    + (f"build the model with {option}" if able else "take a network that has that")
                )
            continue
        if value is None:
            raise UserError(
                f"the model was built with {option}={asked}: Cond.{name} is missing; give it, or build "
                f"the model without {option}"
            )
        wanted = shapes.get(name)
        if wanted is not None and (
            len(wanted) != value.ndim
            or any(w not in (None, v) for w, v in zip(wanted, value.shape, strict=True))
        ):
            shown = ", ".join("length" if w is None else str(w) for w in wanted)
            raise UserError(f"got a {name} of shape {value.shape}; expected ({shown})")


def taken(model: Any) -> set[str]:
    """The fields of ``Cond`` that a model takes."""
    return {
        name
        for name, option in OPTIONS.items()
        if getattr(model, option, None) not in (None, False)
    }


def embed_time(model: Any, t: Float[Array, "b k"], cond: Cond) -> Float[Array, "b k d"]:
    """All that is one vector a noise level, summed: time, second time, guidance scale, pooled.

    The second time enters as ``t - r`` (MeanFlow, Geng et al. 2025, table 1c), the guidance scale like
    a time (Flux).
    """
    time = model.time(t.astype(wide(model.dtype)))
    if cond.r is not None:
        time = time + model.r((t - cond.r.reshape(t.shape)).astype(wide(model.dtype)))
    if cond.guidance is not None:
        guidance = cond.guidance.reshape(len(t), -1).astype(wide(model.dtype))
        time = time + model.guidance(guidance)
    if cond.pooled is not None:
        time = time + joined(model.pooled(cond.pooled, cond.drop), len(t))
    return time


def joined(each: Float[Array, "s m d"], b: int) -> Float[Array, "b _ d"]:
    """What is told of all segments of ``b`` rows, in one row of vectors each; as it is, of samples."""
    return each.reshape(b, -1, each.shape[-1])


def prepare(
    model: Any,
    x: Float[Array, "b n d"],
    time: Float[Array, "b k d"],
    cond: Cond,
    tokens: Tokens,
    rotary: Rotary | None,
    frame_size: int | None,
) -> tuple[Float[Array, "b _ d"], Condition]:
    """The tokens and the record for the blocks, in the way the blocks want their condition.

    ``cond``: of the rows of ``x``, or of all segments of each (``Transformer.transform``). Raises
    UserError for packed samples where a block cannot tell them apart.
    """
    parts, mask, context = [time], None, None
    if cond.label is not None:
        parts.append(joined(model.label(cond.label.reshape(-1, 1), cond.drop), len(x)))
    if cond.context is not None:
        context, mask = model.context(cond.context, cond.context_mask, cond.drop)
    length = None if context is None else context.shape[1]
    if context is not None:
        context = joined(context, len(x))
        mask = None if mask is None else mask.reshape(len(x), -1)
    if context is not None and model.uses != "both":
        parts.append(context)
    visible = visibility(tokens, model.frame_causal, frame_size)
    if tokens.segment is not None and model.uses not in PACKED:
        raise UserError(packed_only(model.block))
    if model.uses in ("vector", "both"):
        vector = constrain(sum(parts), "act_batch", None, "act_embed")
        said = {}
        if model.uses == "both" and context is not None:
            said = {"sequence": context, "readable": readable(tokens, mask, context, length)}
        return x, Condition(vector=vector, row=tokens.row, visible=visible, rotary=rotary, **said)
    shared = shared_time(time, tokens, model.frame_causal)
    if time.shape[1] > 1:
        x = x + spread(time - shared, x.shape[1], tokens.row)
    sequence = jnp.concatenate([shared, *parts[1:]], axis=1)
    if mask is not None:
        extra = sequence.shape[1] - mask.shape[1]
        mask = jnp.pad(mask, ((0, 0), (extra, 0)), constant_values=True)
    if model.uses == "sequence":
        seen = None if mask is None else Visibility(k_valid=mask)
        return x, Condition(sequence=sequence, readable=seen, visible=visible, rotary=rotary)
    return prefixed(x, sequence, mask, visible, rotary)


def packed_only(block: str) -> str:
    """What is said of a block that would mix the conditions of packed samples."""
    return (
        f"block {block!r} cannot tell packed samples apart: take 'adaln_zero', 'adaln', 'modern' or "
        "'adaln_cross', or batches that are not packed"
    )


def readable(
    tokens: Tokens,
    mask: Bool[Array, "b m"] | None,
    context: Float[Array, "b m d"],
    length: int,
) -> Visibility | None:
    """Which of a context's tokens a token sees: the real ones, and in a packed row of its own segment.

    There a context has ``length`` tokens for each segment, and ``tokens.row`` is the segment. None
    where it sees all.
    """
    if tokens.segment is None:
        return None if mask is None else Visibility(k_valid=mask)
    own = jnp.broadcast_to(jnp.arange(context.shape[1])[None] // length, context.shape[:2])
    return Visibility(q_segment=tokens.row, k_segment=own, k_valid=mask)


def shared_time(
    time: Float[Array, "b k d"], tokens: Tokens, frame_causal: bool
) -> Float[Array, "b 1 d"]:
    """The embedding of the one token that stands for time: the mean over all tokens.

    If no token may see a later frame, it is that of a token in the first frame. Each token's difference
    from it is added to the token: nothing, if all have the same time.
    """
    if not frame_causal:
        each = time if tokens.row is None else spread(time, tokens.row.shape[1], tokens.row)
        return each.mean(1, keepdims=True)
    if tokens.frame is None:
        return time[:, :1]
    first = tokens.frame.argmin(1, keepdims=True)  # b 1
    if tokens.row is not None:
        first = jnp.take_along_axis(tokens.row, first, axis=1)
    return jnp.take_along_axis(time, jnp.minimum(first, time.shape[1] - 1)[..., None], axis=1)


def prefixed(
    x: Float[Array, "b n d"],
    sequence: Float[Array, "b m d"],
    mask: Bool[Array, "b m"] | None,
    visible: Visibility | None,
    rotary: Rotary | None,
) -> tuple[Float[Array, "b _ d"], Condition]:
    """The condition's tokens before the others, at position zero and in a frame before all others."""
    n, extra = x.shape[1], sequence.shape[1]
    x = jnp.concatenate([sequence.astype(x.dtype), x], axis=1)
    if mask is not None:
        mask = jnp.pad(mask, ((0, 0), (0, n)), constant_values=True)
        visible = (visible or Visibility()).replace(k_valid=mask)
    if visible is not None:
        visible = visible.after(extra)
    if rotary is not None:
        pad = ((0, 0), (extra, 0), (0, 0))
        rotary = (jnp.pad(rotary[0], pad, constant_values=1), jnp.pad(rotary[1], pad))
    return x, Condition(visible=visible, rotary=rotary)


def visibility(tokens: Tokens, frame_causal: bool, frame_size: int | None) -> Visibility | None:
    """Which tokens a token sees: those of its segment and, if ``frame_causal``, of no later frame.

    And none of another group, if that is 0 or more. Frames are those of ``tokens.frame`` or else blocks
    of ``frame_size`` tokens. Raises UserError for a frame-causal model with neither.
    """
    own = {"q_group": tokens.group, "k_group": tokens.group}
    visible = Visibility(q_segment=tokens.segment, k_segment=tokens.segment, **own)
    if not frame_causal:
        return None if tokens.segment is None and tokens.group is None else visible
    if tokens.frame is not None:
        return visible.replace(q_frame=tokens.frame, k_frame=tokens.frame)
    if frame_size is None:
        raise UserError("a frame_causal model needs the frame of every token: give Tokens.frame")
    return visible.replace(frame_size=frame_size)
