"""How the frames of a clip come to be: one schedule a file, ``build(**kwargs) -> Schedule``.

A schedule is a matrix ``K[row, frame]`` of nodes of the time grid (Diffusion Forcing, Chen et al. 2024,
section 3.3): 0 is noise, ``steps`` is data. In all that are here a frame waits as noise, takes the steps
of the grid one row after another, and stays: so the row at which each frame begins says it all, and
``K[m, f] = clip(m - start[f], 0, steps)``. Frames that are given have begun ``steps`` rows before the
first one.

A clip may be longer than what the network was trained on: it sees ``window`` frames at once. Frames
are those of the network's tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from dit.config import call, parse_spec, resolve
from dit.types import Count, NonNegative, UserError

Starts = Int[np.ndarray, " frames"]


@dataclasses.dataclass(frozen=True)
class Clip:
    """``frames`` to be made, the first ``given`` of which are there; ``window``: seen at once.

    ``apart``: whether frames that still wait as noise may lie beside others that do not, before the
    network's eyes.
    """

    frames: int
    given: int
    window: int
    apart: bool = True


@dataclasses.dataclass(frozen=True)
class Cached:
    """Blocks of so many frames, after what a cache keeps; its first ``sinks`` frames stay for good."""

    block: int
    sinks: int


@dataclasses.dataclass(frozen=True)
class Schedule:
    """``starts(clip, steps)``: the row at which every frame begins.

    ``levels``: whether frames move at several noise levels at once, which a network must be trained for.
    ``cached``: how a cache of keys and values is used, None for none.
    """

    starts: Callable[[Clip, int], Starts]
    levels: bool = False
    cached: Cached | None = None


@dataclasses.dataclass(frozen=True)
class Rollout:
    """A schedule, and what a spec says beside it; see ``common``."""

    spec: str
    schedule: Schedule
    window: int | None
    noise: float


def common(*, window: Count | None = None, noise: NonNegative = 0.0) -> tuple[int | None, float]:
    """What every spec takes beside its schedule's own keywords.

    ``window``: how many frames the network sees at once; None for as many as it was trained on.
    ``noise``: the time t at which it is shown frames that are done, noised so and told so; 0: clean. A
    little hides the errors of earlier frames from later ones, which would otherwise add up.
    """
    return window, noise


def parse(spec: str) -> Rollout:
    """The rollout ``name:key=value,...``; UserError for a schedule or a keyword that is not there."""
    fields = parse_spec(spec)
    own = {name: fields.pop(name) for name in ("window", "noise") if name in fields}
    window, noise = call(common, f"rollout {spec!r}", **own)
    return Rollout(spec, resolve("sampling.rollouts", **fields), window, noise)


def in_blocks(clip: Clip, steps: int, first: int, block: int, lag: int) -> Starts:
    """Starts of blocks, each ``lag`` rows after the one before; the first of ``first`` frames."""
    starts = np.full(clip.frames, -steps)
    at = np.arange(clip.frames - clip.given)
    starts[clip.given :] = lag * np.maximum(0, (at - first) // block + 1)
    return starts


def too_long(clip: Clip, moving: int, what: str) -> UserError:
    """The error of a rollout that needs more frames at once than the window holds."""
    return UserError(
        f"a rollout past memory: {moving} frames of {clip.frames} are to be seen at once, and the "
        f"window holds {clip.window}; {what}"
    )
