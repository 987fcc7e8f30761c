"""Video tasks: which tokens of a sample are given as they are, with t = 0, and which are to be drawn.

One model does them all: text to video is the task of which nothing is given, image to video that of the
first frame. One task a file, ``build(**kwargs) -> Task``; training, sampling and evaluation all take
their masks from here. Masks are over tokens, ``(frames, rows, columns)`` of the network's patches: with
patches of two frames, the first frame of tokens is the first two of the data.

A mix is a list of specs, ``name:key=value,...``, each with a ``weight`` beside its own keywords (1 by
default). Every example draws its task by its own key, among those that fit its shape, in proportion to
their weights: an image in a run of images and clips, which has one frame, is never asked to go on from
its first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from dit import rng
from dit.config import call, parse_spec, resolve
from dit.types import Ids, Key, Positive, UserError, repeat_patches

Grid = tuple[int, int, int]  # frames, rows and columns of tokens
Known = Callable[[Key, Grid], Bool[Array, "b F H W"]]
Patch = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Task:
    """``known(keys, grid)``: true for the tokens that are given, from ``(b,)`` keys.

    None where the data say it themselves, in a key ``known`` of the batch. ``least``: of how many frames
    of tokens a sample must be, and ``tokens``: of how many tokens. ``whole``: whether frames are given
    as a whole or not at all.
    """

    known: Known | None
    least: int = 1
    tokens: int = 1
    whole: bool = False

    def fits(self, grid: Grid) -> bool:
        """Whether samples of so many tokens leave something to be given, and something to draw."""
        return grid[0] >= self.least and int(np.prod(grid)) >= self.tokens


@dataclasses.dataclass(frozen=True)
class Mix:
    """Tasks with their weights; ``specs`` are their names, for messages."""

    specs: tuple[str, ...]
    tasks: tuple[Task, ...]
    weights: tuple[float, ...]

    @property
    def of_data(self) -> bool:
        """Whether some examples are to say themselves what is known."""
        return any(task.known is None for task in self.tasks)

    @property
    def whole(self) -> bool:
        """Whether frames are given as a whole or not at all, so that a time a frame says it all."""
        return all(task.whole for task in self.tasks)

    def fitting(self, grid: Grid) -> dict[int, float]:
        """How likely each task is for samples of so many tokens: those that fit, by their place.

        Raises UserError where none does.
        """
        fits = {i: self.weights[i] for i, task in enumerate(self.tasks) if task.fits(grid)}
        if not fits:
            raise UserError(
                f"none of the tasks {', '.join(self.specs)} is possible for samples of {grid[0]} x "
                f"{grid[1]} x {grid[2]} tokens (frames, height, width): take longer clips, smaller "
                "patches, or a task that gives less, such as 'text_to_video'"
            )
        return {i: weight / sum(fits.values()) for i, weight in fits.items()}

    def known(
        self,
        key: Key,
        ids: Ids,
        shape: Sequence[int],
        patch: Patch,
        given: Bool[Array, "b f h w"] | None = None,
    ) -> Bool[Array, "b f h w"]:
        """What is known of each example of ``shape`` (f, h, w, ...), constant within a patch.

        ``given``: what the data say. An example's task and its mask depend on ``key`` and its id alone.
        """
        grid = grid_of(shape, patch)
        fits = self.fitting(grid)
        keys = rng.per_sample(rng.stream(key, "known"), ids)
        chosen = _choice(keys, list(fits.values()))
        masks = jnp.zeros((len(keys), *shape[:3]), bool)
        for i, place in enumerate(fits):
            known = self.tasks[place].known
            here = given if known is None else repeat_patches(known(keys, grid), patch)
            masks |= (chosen == i)[:, None, None, None] & here
        return masks


def _choice(keys: Key, shares: Sequence[float]) -> Int[Array, " b"]:
    """One of the numbers from 0 for each key, with these probabilities."""
    if len(shares) == 1:
        return jnp.zeros(len(keys), int)
    u = rng.uniform(jax.vmap(lambda k: rng.stream(k, "task"))(keys))
    return jnp.searchsorted(jnp.asarray(np.cumsum(shares[:-1]), u.dtype), u, side="right")


def grid_of(shape: Sequence[int], patch: Patch) -> Grid:
    """How many tokens a sample of ``shape`` (f, h, w, ...) has along each axis."""
    return tuple(side // size for side, size in zip(shape[:3], patch, strict=True))


def of_latents(
    known: Bool[Array, "b f h w"], shape: Sequence[int], frames: Sequence[int], masks: int = 1
) -> Bool[Array, "b f2 h2 w2 masks"]:
    """Of latents of ``shape``: true where all of the data that a place stands for are known.

    ``frames``: how many frames of the data each frame of latents stands for (``Codec.frames_of``).
    ``masks``: 1, or the most of these, for one mask a frame; that of a latent with fewer frames begins
    with its first frame as often as they are fewer.
    """
    sides = [
        n
        for few, many in zip(shape[1:3], known.shape[2:4], strict=True)
        for n in (few, many // few)
    ]
    whole = known.reshape(*known.shape[:2], *sides).all((3, 5))
    ends, most = np.cumsum(frames), max(frames)
    which = np.maximum((ends - frames)[:, None], ends[:, None] - most + np.arange(most))
    each = whole[:, which]  # b f2 most h2 w2
    return jnp.moveaxis(each.all(2, keepdims=True) if masks == 1 else each, 2, -1)


def weighted(*, weight: Positive = 1.0) -> float:
    """What every spec in a mix takes beside its task's keywords."""
    return weight


def mix(specs: Sequence[str]) -> Mix | None:
    """The mix of these specs; None for none. UserError for a task or a keyword that is not there."""
    if not specs:
        return None
    tasks, weights = [], []
    for spec in specs:
        fields = parse_spec(spec)
        own = {"weight": fields.pop("weight")} if "weight" in fields else {}
        weights.append(call(weighted, f"task {spec!r}", **own))
        tasks.append(resolve("diffusion.tasks", **fields))
    return Mix(tuple(specs), tuple(tasks), tuple(weights))


def mask(spec: str, keys: Key, shape: Sequence[int], patch: Patch) -> Bool[Array, "b f h w"]:
    """What the task ``spec`` gives of samples of ``shape`` (f, h, w, ...), from ``(b,)`` keys.

    Raises UserError for a task that does not fit, and for 'data'.
    """
    one, grid = mix((spec,)), grid_of(shape, patch)
    one.fitting(grid)
    known = one.tasks[0].known
    if known is None:
        raise UserError(f"got the task {spec!r}, whose masks are the data's own: give --mask")
    return repeat_patches(known(keys, grid), patch)


def spans(
    first: Int[Array, " b"] | int, end: Int[Array, " b"] | int, length: int, keys: Key
) -> Bool[Array, "b length"]:
    """True from ``first`` up to ``end`` of ``length`` places, for each of the keys' samples."""
    at = jnp.arange(length)[None]
    first, end = (jnp.broadcast_to(jnp.asarray(n), (len(keys),))[:, None] for n in (first, end))
    return (at >= first) & (at < end)


def frames(of: Bool[Array, "b F"], grid: Grid) -> Bool[Array, "b F H W"]:
    """Whole frames of tokens."""
    return jnp.broadcast_to(of[:, :, None, None], (len(of), *grid))


def drawn(keys: Key, name: str, most: int | Int[Array, " b"]) -> Int[Array, " b"]:
    """A whole number from 1 to ``most`` for each key, all equally likely."""
    u = rng.uniform(jax.vmap(lambda k: rng.stream(k, name))(keys))
    return 1 + jnp.minimum((u * most).astype(int), most - 1)
