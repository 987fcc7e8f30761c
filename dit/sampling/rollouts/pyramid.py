"""Every frame, or block, begins ``lag`` rows after the one before it: the further, the noisier.

Between full sequence (lag 0) and autoregressive (a lag of all steps). Several noise levels at once are
what diffusion forcing trains for (Chen et al. 2024, figure 3).
"""

from __future__ import annotations

from dit.sampling.rollouts import Clip, Schedule, Starts, in_blocks, too_long
from dit.types import Count


def build(*, block: Count = 1, lag: Count | None = None) -> Schedule:
    """``lag``: None for the least by which no more than half of the window moves at once.

    Raises UserError, of its starts, where more frames move at once than the window holds.
    """

    def starts(clip: Clip, steps: int) -> Starts:
        late = min(steps, lag) if lag else -(-steps // max(1, clip.window // 2 // block))
        moving = min(block * -(-steps // late), clip.frames - clip.given)
        if moving > clip.window:
            fits = max(1, clip.window // block)
            raise too_long(
                clip, moving, f"take lag={-(-steps // fits)} or more, or a smaller block"
            )
        return in_blocks(clip, steps, block, block, late)

    return Schedule(starts, levels=True)
