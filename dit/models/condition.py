"""What a block is told besides its tokens."""

from __future__ import annotations

from flax import struct
from jaxtyping import Array, Bool, Float, Int

from dit.models.attention import Visibility
from dit.models.positions import Rotary
from dit.types import Tokens, UserError

USES = ("vector", "sequence", "prefix")


@struct.dataclass
class Condition:
    """The condition in the form the block's class attribute ``uses`` asks for.

    ``vector``: time, label and pooled context summed, one row a frame block (``k``) or a single one;
    ``sequence``: time, label and context as tokens to attend to, with ``mask`` (None: all real).
    A block that uses a ``prefix`` gets neither: the model puts the condition's tokens before the
    others, and takes them away after the last block.
    ``frame``: the row of ``vector`` for every token, where the tokens are not ``k`` equal blocks.
    ``visible``: which tokens a token sees, None for all. ``rotary``: the tokens' angles.
    """

    vector: Float[Array, "b k d"] | None = None
    sequence: Float[Array, "b m d"] | None = None
    mask: Bool[Array, "b m"] | None = None
    frame: Int[Array, "b n"] | None = None
    visible: Visibility | None = None
    rotary: Rotary | None = None


def visibility(tokens: Tokens, frame_causal: bool, frame_size: int | None) -> Visibility | None:
    """Which tokens a token sees: those of its segment and, if ``frame_causal``, of no later frame.

    Frames are the tokens' own where they have them, else blocks of ``frame_size``. Raises UserError
    where a mask by frames is asked for and nothing says what they are.
    """
    visible = Visibility(q_segment=tokens.segment, k_segment=tokens.segment)
    if not frame_causal:
        return None if tokens.segment is None else visible
    if tokens.frame is not None:
        return visible.replace(q_frame=tokens.frame, k_frame=tokens.frame)
    if frame_size is None:
        raise UserError("a frame_causal model needs the frame of every token: give Tokens.frame")
    return visible.replace(frame_size=frame_size)
