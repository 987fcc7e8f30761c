"""What is kept of data that samples begin with: by a mask, or by the name of a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Shaped

from dit import rng
from dit.concat import GREY
from dit.diffusion import tasks
from dit.experiment import Experiment
from dit.recipe import Recipe
from dit.types import Params, UserError

FRAMED = ("frame", "forced")  # levels of whole frames


def mask_of(experiment: Experiment, recipe: Recipe) -> Bool[np.ndarray, "n f h w c"]:
    """What the recipe's task keeps of each sample's data; UserError where the task does not fit.

    That of sample i depends on the recipe's seed and i.
    """
    keys = rng.per_sample(rng.stream(rng.root(recipe.seed), "task"), jnp.arange(recipe.count))
    codec, latents, cell = experiment.codec, experiment.shape, experiment.model.cell()
    shape, frames = codec.decoded_shape(latents), codec.frames_of(latents)
    if recipe.known == "channels":  # the task counts in frames of the data
        latents, cell, frames = (shape[0], *latents[1:]), (1, *cell[1:]), (1,) * shape[0]
    known = np.asarray(tasks.mask(recipe.task, keys, latents, cell)).repeat(frames, 1)
    for axis, (few, many) in enumerate(zip(latents[1:3], shape[1:3], strict=True), 2):
        known = known.repeat(many // few, axis)
    return np.broadcast_to(known[..., None], (len(known), *shape))


def way(experiment: Experiment) -> str:
    """How a model sees what it is given by a task, as it was trained: a recipe's ``known``."""
    if experiment.concat is not None:
        return "channels"
    return "noised" if experiment.level == "sample" else "clean"


def check_way(experiment: Experiment, recipe: Recipe) -> None:
    """Raise UserError for a model that was not trained to see what is known in the recipe's way."""
    if recipe.known == "clean" and experiment.level == "sample":
        raise UserError(
            "got known='clean' for a model that was never trained with clean tokens or frames "
            "beside noisy ones (objective.level is 'sample' and objective.tasks is empty), so that "
            f"what it makes of them means nothing: give --known={way(experiment)}"
        )
    if recipe.known == "channels" and experiment.concat is None:
        raise UserError(
            "got known='channels' for a model that makes no known channels of the data (it was trained "
            f"without a section concat): give --known={way(experiment)}"
        )


def with_channels(
    experiment: Experiment, recipe: Recipe, params: Params, batch: Mapping[str, Any]
) -> Mapping[str, Any]:
    """A batch with the known channels of each sample, where the model makes them of the data.

    ``params``: the codec's.
    """
    if experiment.concat is None:
        return batch
    about = experiment.codec, params, batch, experiment.shape, recipe.known == "channels"
    return {**batch, **experiment.concat.given(*about)}


def tokens_of(experiment: Experiment, count: int, back: bool) -> int | None:
    """How many frames of tokens the first ``count`` frames of data are, or the last, if ``back``.

    None where a token is only in part in them.
    """
    frames = np.asarray(experiment.codec.frames_of(experiment.shape))
    each = frames.reshape(-1, experiment.model.cell()[0]).sum(1)
    ends = np.cumsum(each[::-1] if back else each)
    return int(np.searchsorted(ends, count)) + 1 if count in ends else None


def with_task(
    given: Mapping[str, np.ndarray], mask: Bool[np.ndarray, "n f h w c"], anew: bool
) -> dict[str, np.ndarray]:
    """What is given to samples, with the ``mask`` of their task; none where it keeps nothing.

    ``anew``: whether what it does not keep is to be drawn without a look at what was there.
    """
    if "mask" in given:
        raise UserError("got a mask and a task, which has a mask of its own; give one of them")
    if not mask.any():
        return dict(given)
    given = {**given, "mask": mask}
    if anew and "start" in given and given["start"].shape == mask.shape:
        given["start"] = hidden(given["start"], mask)
    return given


def hidden(
    start: Shaped[np.ndarray, "n f h w c"], mask: Bool[np.ndarray, "n f h w c"]
) -> Shaped[np.ndarray, "n f h w c"]:
    """``start`` without what is not kept, of which a codec that looks around must see nothing.

    There is the number of the same place in the nearest frame that keeps it, or grey (0 of latents).
    """
    length, nothing = mask.shape[1], GREY if start.dtype == np.uint8 else 0
    found, away = np.full_like(start, nothing), np.full(mask.shape, length)
    for frames in (range(length), range(length)[::-1]):
        seen, since = np.full_like(start[:, 0], nothing), np.full(mask[:, 0].shape, length)
        for k in frames:
            seen = np.where(mask[:, k], start[:, k], seen)
            since = np.where(mask[:, k], 0, since + 1)
            found[:, k] = np.where(since < away[:, k], seen, found[:, k])
            away[:, k] = np.minimum(since, away[:, k])
    return found


def with_frames(
    experiment: Experiment, recipe: Recipe, task: str, split: str
) -> tuple[Recipe, np.ndarray]:
    """The recipe with a task, and the clips of a split's first examples, of which it gives some."""
    source = getattr(experiment.source, split)
    start = np.stack([source[i % len(source)]["x"] for i in range(recipe.count)])
    return dataclasses.replace(recipe, task=task, known=way(experiment)), start


def check(experiment: Experiment, recipe: Recipe, given: Mapping[str, np.ndarray]) -> None:
    """Raise UserError for a ``start`` and a ``mask`` that do not fit together, or with the recipe."""
    if "start" not in given and "mask" in given:
        options = "--init" if recipe.task is None else "--image, --last, --video or --init"
        raise UserError(f"got a mask and nothing to keep under it; give {options} too")
    if "mask" not in given and recipe.known == "clean" and recipe.task is None:
        raise UserError("got known='clean' and no mask that says what; give --mask or --task too")
    always = experiment.concat is not None and experiment.concat.always
    if always and ("mask" not in given or recipe.known != "channels"):
        specs = ", ".join(experiment.concat.tasks.specs)
        raise UserError(
            f"nothing is given to a model that was always given something (concat.tasks: {specs}): give "
            "--image, or --video or --init and a --task or --mask, and leave --known out"
        )
    if "start" not in given and recipe.strength != 1:
        raise UserError(
            f"got strength={recipe.strength} and nothing to start from; give --init or --video too"
        )
    expected = (recipe.count, *experiment.codec.decoded_shape(experiment.shape))
    for name in {"start", "mask"} & given.keys():
        if given[name].shape != expected:
            raise UserError(f"got a {name} of shape {given[name].shape}; expected {expected}")
    if "mask" not in given:
        return
    if given["mask"].dtype != bool:
        raise UserError(f"got a mask of {given['mask'].dtype}; expected truth values (bool)")
    parts = given["mask"].reshape(*expected[:2], -1)
    cut = np.argwhere(parts.any(-1) & ~parts.all(-1))
    if recipe.known == "clean" and experiment.level in FRAMED and len(cut):
        raise UserError(
            f"got a mask that keeps a part of frame {cut[0][1]} of sample {cut[0][0]}, and "
            "known='clean' for a model that was trained with a noise level a frame: keep whole "
            "frames, or give --known=noised"
        )
