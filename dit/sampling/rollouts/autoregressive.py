"""One frame, or one block of frames, after another: each sees those before it, which are done.

With a ``cache`` a frame-causal network reads what came before from its own keys and values: every step
costs as much as the block alone. The cache holds the first ``sinks`` frames for good (attention sinks,
Xiao et al. 2023) and the last ones that fit the window beside the block.
"""

from __future__ import annotations

from dit.sampling.rollouts import Cached, Clip, Schedule, Starts, in_blocks, too_long
from dit.types import Count, UserError, Whole


def build(
    *, block: Count = 1, first: Count | None = None, cache: bool = False, sinks: Whole = 0
) -> Schedule:
    """``first``: frames of the first block. By default a block; but a network that must not see waiting
    frames beside others (``Clip.apart``) fills its window at first.

    Raises UserError for sinks without a cache or a first block with one and, of its starts, for blocks
    that leave no room in the window for a frame before them.
    """
    if sinks and not cache:
        raise UserError(f"got sinks={sinks} without cache=true, which keeps them; give both")
    if cache and first is not None:
        raise UserError(f"got first={first} with cache=true, whose blocks are all of one size")

    def starts(clip: Clip, steps: int) -> Starts:
        begin = first or (block if clip.apart else max(block, clip.window - clip.given))
        if begin > clip.window:
            raise too_long(clip, begin, "take a smaller first block")
        more = cache or clip.given + begin < clip.frames
        if more and block + sinks + 1 > clip.window:
            what = f"a block of {block}, {sinks} sinks and the frame before" if sinks else ""
            what = what or f"a block of {block} and the frame before it"
            raise too_long(clip, block + sinks + 1, f"{what} must fit: take a smaller block")
        return in_blocks(clip, steps, begin, block, steps)

    return Schedule(starts, cached=Cached(block, sinks) if cache else None)
