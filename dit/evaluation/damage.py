"""Deliberate damage to clips, and what each measure of ``evaluation.world`` says of it.

    python -m dit.evaluation.damage --num=200
    python -m dit.evaluation.damage --num=200 --actors=digit
    python -m dit.evaluation.damage --num=64 --frames=36

prints a table of ``WORLD.md``: a measure is of use if it falls where it should, and nowhere else. With
``--frames``: of clips so long, after a window of 9, by the measures of ``evaluation.drift``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage

from dit.config import resolve
from dit.evaluation import drift
from dit.evaluation.world import FIGURES, QUESTIONS, score
from dit.scenes.moving.grammar import KINDS, LOOKS, Scene, parse

Clip = UInt8[np.ndarray, "f h w c"]
Clips = list[Clip]
WINDOW, BLOCK = 9, 3  # frames, of rollouts
SPOILT = 0.15  # by how much a share must fall, or a figure be off, for the table to mark it


def noise(clips: Clips, rng: np.random.Generator) -> Clips:
    """Gaussian noise of 20 steps of 8 bits on every pixel."""
    return [_bytes(clip + 20 * rng.standard_normal(clip.shape)) for clip in clips]


def blur(clips: Clips, rng: np.random.Generator) -> Clips:
    """A Gaussian blur of 1.5 pixels."""
    return [_bytes(ndimage.gaussian_filter(clip.astype(float), (0, 1.5, 1.5, 0))) for clip in clips]


def static(clips: Clips, rng: np.random.Generator) -> Clips:
    """The first frame, repeated."""
    return [clip[:1].repeat(len(clip), 0) for clip in clips]


def shuffled(clips: Clips, rng: np.random.Generator) -> Clips:
    """The frames in a random order."""
    return [clip[rng.permutation(len(clip))] for clip in clips]


def reversed_(clips: Clips, rng: np.random.Generator) -> Clips:
    """The frames backwards."""
    return [clip[::-1] for clip in clips]


def swapped(clips: Clips, rng: np.random.Generator) -> Clips:
    """The second half of the clip after it."""
    half = len(clips[0]) // 2
    following = [*clips[1:], clips[0]]
    return [np.concatenate([a[:half], b[half:]]) for a, b in zip(clips, following, strict=True)]


def slow(clips: Clips, rng: np.random.Generator) -> Clips:
    """Half the speed: each frame of the first half twice."""
    return [clip[np.arange(len(clip)) // 2] for clip in clips]


def tinted(clips: Clips, rng: np.random.Generator) -> Clips:
    """Red, green and blue exchanged."""
    return [np.roll(clip, 1, -1) for clip in clips]


def popping(clips: Clips, rng: np.random.Generator) -> Clips:
    """The ground alone in a third of the frames, not the first."""
    spoilt = []
    for clip in clips:
        clip = clip.copy()
        gone = 1 + rng.permutation(len(clip) - 1)[: len(clip) // 3]
        clip[gone] = np.median(clip[gone], (1, 2), keepdims=True)
        spoilt.append(clip)
    return spoilt


def flashing(clips: Clips, rng: np.random.Generator) -> Clips:
    """Every second frame lighter by 12 steps."""
    return [_bytes(clip + 12.0 * (np.arange(len(clip)) % 2)[:, None, None, None]) for clip in clips]


def others(clips: Clips, rng: np.random.Generator) -> Clips:
    """Other clips than were asked for."""
    return [*clips[1:], clips[0]]


DAMAGES: dict[str, Callable[[Clips, np.random.Generator], Clips]] = {
    "noise": noise,
    "blur": blur,
    "static": static,
    "shuffled": shuffled,
    "reversed": reversed_,
    "swapped": swapped,
    "slow": slow,
    "tinted": tinted,
    "popping": popping,
    "flashing": flashing,
    "others": others,
}


def vanishing(clips: Clips, rng: np.random.Generator) -> Clips:
    """The ground alone from the middle of the clip on."""
    spoilt = []
    for clip in clips:
        clip, half = clip.copy(), len(clip) // 2
        clip[half:] = np.median(clip[half:], (1, 2), keepdims=True)
        spoilt.append(clip)
    return spoilt


def tinting(clips: Clips, rng: np.random.Generator) -> Clips:
    """Slowly redder: by 30 steps of 8 bits at the end."""
    red = np.array([30.0, 0, 0])
    return [_bytes(c + red * np.linspace(0, 1, len(c))[:, None, None, None]) for c in clips]


def in_blocks(clips: Clips, rng: np.random.Generator) -> Clips:
    """Every second block of ``BLOCK`` frames lighter by 6 steps."""
    return [_bytes(c + 6.0 * (np.arange(len(c)) // BLOCK % 2)[:, None, None, None]) for c in clips]


def freezing(clips: Clips, rng: np.random.Generator) -> Clips:
    """The frame in the middle from there on."""
    return [clip[np.minimum(np.arange(len(clip)), len(clip) // 2)] for clip in clips]


LASTING: dict[str, Callable[[Clips, np.random.Generator], Clips]] = {
    "vanishing": vanishing,
    "tinting": tinting,
    "in blocks": in_blocks,
    "freezing": freezing,
}


def _bytes(x: np.ndarray) -> Clip:
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def calibration(
    scenes: Sequence[Scene], clips: Sequence[Clip], fps: float = 8.0
) -> dict[str, dict[str, float]]:
    """``{"real": figures, damage: figures, ...}`` of clips and of what the damages make of them."""
    found = {"real": score(scenes, clips, fps)}
    for name, damage in DAMAGES.items():
        spoilt = damage(list(clips), np.random.default_rng(0))
        found[name] = score(scenes, spoilt, fps)
    return found


def spoilt(real: float, found: float | None, share: bool) -> bool:
    """Whether a measure has noticed: fallen by ``SPOILT``, or a figure off by .3 of it, or gone."""
    if found is None:
        return True
    if share:
        return found < real - SPOILT
    return abs(found - real) > max(0.3 * abs(real), 0.2)


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """A Markdown table, a damage a row; what has noticed it is bold."""
    real = found["real"]
    names = [name for name in (*QUESTIONS, *FIGURES) if name in real]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row, figures in found.items():
        cells = []
        for name in names:
            value = figures.get(name)
            text = "none" if value is None else f"{value:.2f}"
            marked = row != "real" and spoilt(real[name], value, name in QUESTIONS)
            cells.append(f"**{text}**" if marked else text)
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def lasting(scenes: Sequence[Scene], clips: Sequence[Clip]) -> dict[str, dict[str, drift.Ratio]]:
    """The same of long clips: of each figure of ``drift`` its value and the ends of its interval."""
    found = {}
    for name, spoil in {"real": lambda clips, rng: clips, **LASTING}.items():
        spoilt = np.stack(spoil(list(clips), np.random.default_rng(0)))
        seams = range(BLOCK, spoilt.shape[1], BLOCK)
        each = drift.terms(spoilt, WINDOW, seams, scenes)
        found[name] = {figure: drift.ratio(*terms) for figure, terms in each.items()}
    return found


def table_of_lasting(found: Mapping[str, Mapping[str, drift.Ratio]]) -> str:
    """A Markdown table, a figure a row; bold: its interval is apart from that of real clips."""
    lines = ["| | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    for figure, (_, least, most) in found["real"].items():
        cells = []
        for column in found.values():
            value, low, high = column[figure]
            mark = "**" if low > most or high < least else ""
            cells.append(f"{mark}{value:.2f}{mark} ({low:.2f} to {high:.2f})")
        lines.append(f"| {figure} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=200, help="clips (default: %(default)s)")
    parser.add_argument(
        "--frames", type=int, help="of long clips, 24x24, without pan, post, texture"
    )
    parser.add_argument(
        "--actors", choices=LOOKS, default="shape", help="what moves (default: %(default)s)"
    )
    args = parser.parse_args()
    options: dict[str, Any] = {"actors": (args.actors,)}
    if args.actors == "emoji":  # which meet nobody
        options["kinds"] = tuple(kind for kind in KINDS if kind != "meet")
    if args.frames is not None:
        options |= {"frames": args.frames, "size": 24, "radii": (5.0, 6.5), "textures": False}
        options["kinds"] = drift.STAYING
        if args.frames <= WINDOW + 1:
            parser.error(f"got --frames={args.frames}; expected more than {WINDOW + 1}")
    split = resolve("data.sources", "world", **options).held_out
    if not 2 <= args.num <= len(split):
        parser.error(f"got --num={args.num}; expected 2 to {len(split)}, one to be another's")
    examples = [split[i] for i in range(args.num)]
    scenes, clips = [parse(x["caption"]) for x in examples], [x["x"] for x in examples]
    long = args.frames is not None
    print(table_of_lasting(lasting(scenes, clips)) if long else table(calibration(scenes, clips)))


if __name__ == "__main__":
    main()
