"""Rollouts of a model: clips longer than it was trained on, as a recipe's ``rollout`` says."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dit import models
from dit.config import builder, keywords
from dit.diffusion.process import network_input
from dit.experiment import Experiment, source_of
from dit.guided import Guided
from dit.models.cache import Cache
from dit.recipe import Recipe, Rules
from dit.sampling import rollout
from dit.sampling.denoisers import twins
from dit.sampling.rollouts import Clip, Rollout, parse
from dit.sampling.sample import Solution
from dit.sampling.solver import Grid
from dit.sections import ROOMS
from dit.types import Key, Times, UserError, Video

Mask = Bool[np.ndarray, "n f h w c"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A rollout of an experiment's clips: ``clip`` is in frames of tokens, of ``cell`` frames each."""

    experiment: Experiment
    rules: Rules
    rollout: Rollout
    clip: Clip
    rows: rollout.Rows
    grid: Grid
    cell: int

    @property
    def given(self) -> int:
        """Frames that are there from the start."""
        return self.clip.given * self.cell

    @property
    def seams(self) -> tuple[int, list[int]]:
        """In frames of the data: the longest clips trained on, and where blocks begin after frame 0."""
        starts = self.rollout.schedule.starts(self.clip, len(self.grid) - 1)
        codec, (_, *rest) = self.experiment.codec, self.experiment.shape
        before = (self.cell * int(first) for first in 1 + np.flatnonzero(np.diff(starts)))
        longest = max(shape[0] for shape in trained_shapes(self.experiment))
        return max(2, longest), [codec.decoded_shape((f, *rest))[0] for f in before]

    def solve(self, keys: Key, guided: Guided, known: Float[Array, "b f h w c"] | None) -> Solution:
        """Clips, under jit; ``known``: data whose first frames are given, if any are."""
        path, solver = self.experiment.process.path, self.rules.solver
        frames, *shape = self.experiment.shape
        about = {
            "known": known[:, : self.given] if self.given else None,
            "noise": self.rollout.noise,
        }
        cached = self.rollout.schedule.cached
        if cached is None:
            denoise = guided.denoiser(self.grid)
            rows = _in_frames(self.rows, self.cell)
            run = functools.partial(rollout.windowed, keys, denoise, path, solver, self.grid, rows)
            return run(frames, tuple(shape), **about)
        model, pairs = self.experiment.model, self.rules.guided
        cond = twins(guided.cond, guided.negative, len(keys)) if pairs else guided.cond

        def denoise(cache: Cache):
            def apply(params, x, t, cond):
                return models.continued(model, params, x, t, cond, cache.of(len(x)))[0]

            return guided.denoiser(self.grid, apply)

        def write(cache: Cache, x: Video, t: Times) -> Cache:
            if pairs:
                x, t = jnp.repeat(x, 2, axis=0), jnp.repeat(t, 2, axis=0)
            x, t = network_input(self.experiment.process, x, t)
            return models.continued(model, guided.params, x, t, cond, cache)[1]

        slots = self.clip.window - cached.block
        batch = len(keys) * (2 if pairs else 1)
        empty = model.empty_cache(batch, self.experiment.shape, slots, cached.sinks)
        about |= {"block": cached.block * self.cell, "cell": self.cell}
        run = functools.partial(
            rollout.cached, keys, denoise, write, empty, path, solver, self.grid
        )
        return run(frames, tuple(shape), **about)

    def evaluations(self, calls: int) -> int:
        """Network evaluations of a sample, from those of its denoiser (of the cache's among them)."""
        guidance, solver = self.rules.guidance, self.rules.solver
        if isinstance(guidance.evaluations, int):
            return calls * guidance.evaluations
        path, cached = self.experiment.process.path, self.rollout.schedule.cached
        if cached is None:
            return rollout.guided_calls(solver, guidance, path, self.grid, self.rows)
        made = -(-(self.clip.frames - self.clip.given) // cached.block)
        block = solver.times(path, self.grid, 0)
        each = int(np.asarray(guidance.evaluations(path, block)).sum())
        return made * each + 2 * (made + self.clip.given)


def _in_frames(rows: rollout.Rows, cell: int) -> rollout.Rows:
    """Rows of frames of tokens as rows of frames of the data."""
    if cell == 1:
        return rows
    node, after = (each.repeat(cell, 1) for each in (rows.node, rows.after))
    return rollout.Rows(rows.window * cell, rows.first * cell, node, after, rows.lands)


def plan(
    experiment: Experiment, recipe: Recipe, rules: Rules, grid: Grid, kept: Mask | None
) -> Plan:
    """The plan of a recipe's rollout; ``kept``: what its task gives of each sample.

    Raises UserError for a model that was not trained for it, for a task that gives anything but the
    first frames, and for a rollout that does not fit the window.
    """
    asked, path, cell = parse(recipe.rollout), experiment.process.path, experiment.model.cell()[0]
    frames = experiment.shape[0] // cell
    apart = experiment.config.objective.get("level", "sample") != "sample"
    causal = getattr(experiment.config.model, "frame_causal", False)
    if experiment.level == "sample":
        raise UserError(
            "got a rollout of a model that was never trained with clean frames beside noisy ones: train "
            "with objective.level=frame (diffusion forcing), or with tasks such as extend"
        )
    if not apart and (asked.schedule.levels or asked.noise):
        what = "frames at several noise levels" if asked.schedule.levels else "noised context"
        raise UserError(
            f"got the rollout {asked.spec!r} with {what}, and a model whose frames were all of one "
            "level, or clean: train with objective.level=frame, or take autoregressive without noise"
        )
    if asked.noise and not path.t_min <= asked.noise <= path.t_max:
        raise UserError(
            f"got noise={asked.noise} of the rollout; expected 0, or a time from {path.t_min} to "
            f"{path.t_max}"
        )
    if asked.schedule.cached and rules.autoguided:
        raise UserError(
            "got cache=true and autoguidance, whose weaker model would need a cache of its own: leave "
            "cache out, or take another rule of guidance"
        )
    counts = rules.solver.count is not None and not asked.schedule.cached
    if counts and not isinstance(rules.guidance.evaluations, int):
        raise UserError(
            "got a rollout with guidance that is on at some times only, and a solver that calls the "
            "network more often where a frame begins (pndm), and how often then is not known: take "
            "another solver, or guidance cfg"
        )
    window = asked.window or trained_frames(experiment)
    given = 0 if kept is None else leading(kept, experiment) // cell
    clip = Clip(frames, given, min(window, frames), apart or causal)
    if asked.schedule.cached:
        clip = dataclasses.replace(clip, window=window)
        experiment.model.empty_cache(1, experiment.shape, window, asked.schedule.cached.sinks)
    rows = rollout.rows(asked.schedule.starts(clip, recipe.steps), clip, recipe.steps)
    return Plan(experiment, rules, asked, clip, rows, grid, cell)


def check(recipe: Recipe, given: Mapping[str, Any]) -> None:
    """Raise UserError for data that a rollout does not begin with."""
    if recipe.task is None and {"start", "mask"} & given.keys():
        raise UserError(
            "got a rollout and --init or --mask without a task; give the first frames, by --image, or "
            "by --video and --task=extend"
        )
    if recipe.task is not None and recipe.known != "clean":
        raise UserError(
            "got a rollout and known='noised'; what it is given is clean: leave that out"
        )


def check_together(experiment: Experiment, plan: Plan | None) -> None:
    """Raise UserError where more frames are drawn at once than teacher forcing trained a model for.

    ``plan``: None where all are.
    """
    block = experiment.config.objective.get("block")
    together = experiment.shape[0] // experiment.model.cell()[0]
    if plan is not None:
        together = int((plan.rows.node != plan.rows.after).sum(1).max())
    if block is not None and together > block:
        raise UserError(
            f"got {together} frames to be drawn together, and a model that was trained by "
            f"teacher_forcing to draw {block} after clean ones: give --rollout=autoregressive:block="
            f"{block} or, for what training draws, --config.samples.rollout=autoregressive:block={block}"
        )


def trained_frames(experiment: Experiment) -> int:
    """Frames of tokens of the longest clips that the model was trained on."""
    shapes = trained_shapes(experiment)
    longest = max(experiment.codec.encoded_shape(shape)[0] for shape in shapes)
    return longest // experiment.model.cell()[0]


def trained_shapes(experiment: Experiment) -> list[tuple[int, ...]]:
    """Of the data that the model was trained on, before they are encoded."""
    example = experiment.example
    return [tuple(shape) for shape in example.get("shapes", [example["shape"]])]


def lasting(experiment: Experiment, size: tuple[int, int, int]) -> Experiment:
    """The same experiment on the same data, filmed at ``size``: (frames, height, width).

    Raises UserError for data that are not filmed, and so have no clips of another length.
    """
    shapes, data = trained_shapes(experiment), experiment.config.data
    sizes = [shape[:3] for shape in shapes]
    if size in sizes:
        return experiment.bucket(sizes.index(size))
    if "frames" not in keywords(builder(ROOMS["data"], data.name)) or size[1:] != sizes[0][1:]:
        known = ", ".join(f"--size={h}x{w} --frames={f}" for f, h, w in dict.fromkeys(sizes))
        raise UserError(
            f"got a rollout of {size[0]} frames of {size[1]}x{size[2]}, to be compared with data "
            f"{data.name!r}, which are {known}: give one of these; only data that are filmed, as "
            "data.name=world, last as many --frames as one asks for"
        )
    config = experiment.config.copy_and_resolve_references()
    config.data.frames = size[0]
    other = experiment.shaped((*size, shapes[0][3]))
    other.__dict__["source"] = source_of(config, experiment.text)
    return other


def leading(kept: Mask, experiment: Experiment) -> int:
    """How many of the latents' first frames are given; UserError for anything else that is."""
    whole = kept.all((2, 3, 4))
    count = int(whole[0].sum())
    first = np.arange(kept.shape[1]) < count
    if (whole != first).any() or (kept.any((2, 3, 4)) != whole).any():
        raise UserError(
            "got a rollout and a task that gives other than the first frames, as many of each sample; "
            "expected image_to_video, or extend:frames=N"
        )
    return int(
        np.searchsorted(np.cumsum(experiment.codec.frames_of(experiment.shape)), count, "right")
    )
