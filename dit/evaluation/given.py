"""Do clips go on from what they were given: frames of held-out clips, by a task.

    first_frame_psnr  of the first frame against that of the real clip, dB
    given_psnr        of all that was given
    next_psnr         of what is drawn right before or after something given, in the same place
    drawn_psnr        of all that is drawn
    change_ratio      how much drawn frames differ from the ones before them, over the same of the real
                      clips: 0 of a clip that freezes, 1 of one that moves as much as they do

The same ending in ``_control``: of samples with the same prompts that were given the frames of another
clip. A model that does not look at what it is given scores alike, but for what is given itself: that
comes out as it went in (99 dB), and its control says how unlike the frames of other clips are.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8

from dit.evaluation.parts import Figures

MOST = 99.0  # dB, of what is the same bit for bit
PSNRS = ("first_frame_psnr", "given_psnr", "next_psnr", "drawn_psnr")
FIGURES = (*PSNRS, *(f"{name}_control" for name in PSNRS), "change_ratio", "change_ratio_control")
Clips = UInt8[np.ndarray, "n f h w c"]
Mask = Bool[np.ndarray, "n f h w c"]


def score(samples: Clips, control: Clips, real: Clips, kept: Mask) -> Figures:
    """The figures. ``kept``: what each sample was given of its ``real`` clip, ``control`` of another.

    NaN for what there is none of: of one frame, nothing is drawn before or after another.
    """
    first = np.zeros_like(kept)
    first[:, 0] = True
    where = dict(zip(PSNRS, (first, kept, ~kept & beside(kept), ~kept), strict=True))
    found = {}
    for end, clips in (("", samples), ("_control", control)):
        for name, mask in where.items():
            found[f"{name}{end}"] = psnr(clips, real, mask)
        found[f"change_ratio{end}"] = change(clips, kept) / max(change(real, kept), 1e-9)
    return found


def beside(kept: Mask) -> Mask:
    """Right before or after something that is kept, in the same place."""
    found = np.zeros_like(kept)
    found[:, 1:] |= kept[:, :-1]
    found[:, :-1] |= kept[:, 1:]
    return found


def psnr(clips: Clips, real: Clips, where: Mask) -> float:
    """``10 log10(255^2 / MSE)`` over what is in the mask, the mean over the clips that have any."""
    axes = (1, 2, 3, 4)
    numbers = where.sum(axes)
    error = np.where(where, clips.astype(np.float32) - real, 0)
    mean = np.square(error).sum(axes, dtype=np.float64)[numbers > 0] / numbers[numbers > 0]
    worth = 10 * np.log10(255.0**2 / np.maximum(mean, 1e-12))
    return float(np.minimum(worth, MOST).mean()) if len(worth) else float("nan")


def change(clips: Clips, kept: Mask) -> float:
    """How much numbers change from a frame to the next, where one of the two is not given, of 255."""
    free = ~(kept[:, 1:] & kept[:, :-1])
    step: Float[np.ndarray, "n g h w c"] = np.abs(np.diff(clips.astype(np.float32), axis=1))
    return float(step[free].mean()) if free.any() else float("nan")
