"""Do long clips stay as they began: figures of a rollout at multiples of the training window.

A clip is cut into windows of as many frames as the model was trained on, counted from 1.

    present_k       of how many clips each actor is there in window k: its median area is at least half
                    of its size in the first window (of captions of ``scenes.moving`` whose actor drifts
                    or falls: no other stays in sight for ever)
    colour_drift_k  how far the mean colour of window k is from that of the first, in steps of 8 bits
                    (root mean square over the channels)
    change_k        the mean change from frame to frame in window k over that in the first: 0 of a clip
                    that freezes
    block_jump      the change into the first frame of each block that is drawn, over that into the
                    frames beside it: 1 of a clip without seams
    window_jump     the same at multiples of the window

Each is a ratio of sums over clips. ``_low``, ``_high``: its 95% interval, by the percentiles of the
bootstrap over clips (Efron 1979), which has no width where all clips agree, as for a share of 1.
``_real``: of real clips of this length and these captions. A clip that freezes has no drift and no jump:
no figure is to be read alone (``WORLD.md``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from dit.evaluation import Real, Split, world
from dit.evaluation.parts import Figures, Part
from dit.evaluation.tracking import LEAST, areas
from dit.scenes.moving.grammar import Scene, parse
from dit.types import UserError

Clips = UInt8[np.ndarray, "n f h w c"]
Ratio = tuple[float, float, float]  # and the ends of its interval
Terms = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]  # a ratio's, of each clip
REAL = world.REAL
STAYING = ("drift", "fall")  # kinds of scene whose actor never leaves the picture
DRAWS = 2000  # of the bootstrap


def windows(frames: int, window: int) -> list[slice]:
    """Cuts of ``window`` frames; the last may be shorter, but has two or more."""
    cuts = [slice(first, min(first + window, frames)) for first in range(0, frames, window)]
    return [cut for cut in cuts if cut.stop - cut.start > 1]


def terms(
    clips: Clips, window: int, blocks: Sequence[int], scenes: Sequence[Scene | None]
) -> dict[str, Terms]:
    """Of each figure, by its name, what is summed above and below the line.

    ``blocks``: the frames, but for frame 0, at which a block begins. ``scenes``: what the captions ask
    for, None where they are no sentences of ``scenes.moving``.
    """
    found: dict[str, Terms] = {}
    cuts, one = windows(clips.shape[1], window), np.ones(len(clips))
    colour = clips.mean((2, 3), dtype=np.float64)  # n f c
    step = np.stack(
        [np.abs(np.diff(clip.astype(np.float32), axis=0)).mean((1, 2, 3)) for clip in clips]
    )  # n f-1: the change into frame f is in place f - 1
    staying = [i for i, scene in enumerate(scenes) if scene and scene.kind in STAYING]
    if staying and clips.shape[-1] == 3:
        there = np.array([_present(clips[i], scenes[i], cuts) for i in staying], float)
        found |= {f"present_{k + 1}": (there[:, k], one[staying]) for k in range(len(cuts))}
    first, moved = colour[:, cuts[0]].mean(1), step[:, : cuts[0].stop - 1].mean(1)
    for k, cut in enumerate(cuts[1:], 2):
        away = colour[:, cut].mean(1) - first
        found[f"colour_drift_{k}"] = np.sqrt(np.square(away).mean(-1)), one
        found[f"change_{k}"] = step[:, cut.start : cut.stop - 1].mean(1), moved
    seams = {"block_jump": blocks, "window_jump": range(window, clips.shape[1], window)}
    for name, at in seams.items():
        if beside := _beside(at, clips.shape[1]):
            into = [f - 1 for f in at]
            found[name] = step[:, into].mean(1), step[:, [f - 1 for f in beside]].mean(1)
    return found


def _present(clip: UInt8[np.ndarray, "f h w 3"], scene: Scene, cuts: Sequence[slice]) -> list[bool]:
    """Whether all actors are there in every window."""
    tracks = [areas(clip, actor.colour, scene.looks) for actor in scene.actors]
    sizes = [float(np.quantile(area[cuts[0]], 0.75)) for area in tracks]
    return [
        all(
            size >= LEAST and np.median(area[cut]) >= 0.5 * size
            for area, size in zip(tracks, sizes, strict=True)
        )
        for cut in cuts
    ]


def _beside(seams: Sequence[int], frames: int) -> list[int]:
    """The frames right before and after seams that are none; frame 0 has no change into it."""
    near = {f + more for f in seams for more in (-1, 1)} - {*seams}
    return sorted(f for f in near if 0 < f < frames)


def ratio(above: Float[np.ndarray, " n"], below: Float[np.ndarray, " n"]) -> Ratio:
    """``sum(above) / sum(below)`` and the ends of its 95% interval; NaN for a sum of zero below."""
    n = len(above)
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), DRAWS)
    with np.errstate(divide="ignore", invalid="ignore"):
        many = (drawn @ above) / np.where((under := drawn @ below) > 0, under, math.nan)
    if not below.sum() > 0 or np.isnan(many).all():
        return math.nan, math.nan, math.nan
    low, high = np.nanquantile(many, (0.025, 0.975))
    return float(above.sum() / below.sum()), float(low), float(high)


def part(
    source: Real, captions: Sequence[str], asked_of: Split, window: int, blocks: Sequence[int]
) -> Part:
    """The figures of clips that were asked for by the captions of a split's first examples.

    ``source``: data of the clips' length, whose own first clips are measured now. Without captions the
    clips are compared with the same of the split's.
    """
    frames, length = source.shape[0], len(asked_of)
    real = np.stack([asked_of[i % length]["x"] for i in range(min(len(captions) or REAL, REAL))])
    theirs = terms(real, window, blocks, _scenes(captions, len(real)))
    short = f"clips of {frames} frames are no longer than the window of {window}"
    seams = "no block begins beside frames of another: blocks of 1 frame, or all in one"
    nobody = "no caption is of one actor of scenes.moving that drifts or falls"
    why = {"present_1": nobody, "colour_drift_2": short, "change_2": short}
    why |= {"block_jump": seams, "window_jump": short}
    ends = ("", "_low", "_high", "_real")
    lacks = {f"{name}{end}": "" for name in theirs for end in ends}
    lacks |= {name: reason for name, reason in why.items() if name not in theirs}
    known = {f"{name}_real": ratio(*each)[0] for name, each in theirs.items()}

    def measure(samples: Clips, labels: np.ndarray | None) -> Figures:
        found: Figures = dict(known)
        asked = terms(samples, window, blocks, _scenes(captions, len(samples)))
        for name, each in asked.items():
            values = zip(ends, ratio(*each), strict=False)
            found |= {f"{name}{end}": value for end, value in values}
        return found

    return Part(lacks, measure)


def _scenes(captions: Sequence[str], count: int) -> list[Scene | None]:
    """What each of so many clips was asked for; None for all if a caption is no sentence."""
    try:
        found: list[Scene | None] = [parse(caption) for caption in captions[:count]]
    except UserError:
        found = []
    return found or [None] * count
