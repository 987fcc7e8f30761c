"""All frames together, from noise to data: no longer than the window."""

from __future__ import annotations

from dit.sampling.rollouts import Clip, Schedule, Starts, in_blocks, too_long


def build() -> Schedule:
    """Raises UserError, of its starts, for a clip that is longer than the window."""

    def starts(clip: Clip, steps: int) -> Starts:
        if clip.frames > clip.window:
            raise too_long(clip, clip.frames, "take autoregressive or pyramid")
        return in_blocks(clip, steps, clip.frames, clip.frames, steps)

    return Schedule(starts)
