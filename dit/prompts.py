"""What a recipe tells a model: its prompts, and where it has none what the data have."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from dit import edits, storage
from dit.experiment import Experiment
from dit.recipe import Recipe
from dit.text import FrozenText, TextEncoder, check_prompt
from dit.types import UserError

TOLD = ("tokens", "tokens_mask")  # what a tokenizer gives, by the names of Cond's fields
NEGATIVE = ("negative_tokens", "negative_tokens_mask")
MADE_BY = "made_by"  # in a file of dit.embed: its encoders, as JSON


def check(experiment: Experiment, recipe: Recipe, guided: bool) -> None:
    """Raise UserError for prompts that the model cannot read, that are missing or have no effect.

    And for an autoencoder, which cannot draw. ``guided``: whether guidance needs the null condition,
    which a negative prompt stands for.
    """
    if experiment.process is None:
        raise UserError(
            "this is an autoencoder, which draws nothing from noise: see what it makes of held-out "
            "pictures with dit.evaluate, or train a model on its latents and sample that"
        )
    text, texts = experiment.text, [*recipe.prompts, *recipe.negative]
    if text is None and texts:
        told = experiment.conditions or (("labels",) if experiment.num_classes else ("nothing",))
        instead = "train a model whose config has a section text"
        if experiment.example.get("text") and experiment.arrays:
            instead = "give what dit.embed makes of it, with the same encoders, by --cond"
        raise UserError(
            f"got the prompt {texts[0]!r} for a model without text, which is told {', '.join(told)}: "
            f"leave --prompt and --negative out, or {instead}"
        )
    if text is None:
        return
    if not recipe.prompts:
        raise UserError(
            "this model draws what a text says: give --prompt='...' (repeatable), --prompts=FILE with "
            "one a line, or samples.prompts in its config"
        )
    for each in dict.fromkeys(texts):
        check_prompt(text.tokenizer(), each)
    if recipe.negative and not guided:
        raise UserError(
            f"got a negative prompt with guidance {recipe.guidance!r}, where it has no effect: give a "
            "scale, such as --guidance=4, or leave --negative out"
        )


def read_prompts(path: str) -> tuple[str, ...]:
    """The lines of a text file (UTF-8) that are not blank; UserError for none, or no such file."""
    place = storage.place(path)
    if not place.is_file():
        raise UserError(f"no file {path!r}; expected one with a prompt a line")
    try:
        lines = place.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path!r} is not text in UTF-8 ({error}); save it as such") from error
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise UserError(f"{path!r} holds no prompts; expected one a line")
    return found


def check_made_by(got: str, expected: Mapping[str, Any] | None, path: str) -> None:
    """Raise UserError for embeddings by other encoders than those of the data that a model learned from.

    ``got``: as ``dit.embed`` writes it to the file ``path``; ``expected``: None where it is not known.
    """
    if expected is not None and json.loads(got) != expected:
        raise UserError(
            f"{path} holds embeddings by {got}; this model was trained on those by "
            f"{json.dumps(expected)}: embed the prompts with the same encoders, used in the same way"
        )


def words(text: TextEncoder | FrozenText | None, recipe: Recipe) -> dict[str, np.ndarray]:
    """The tokens of each sample's prompt, and of its negative one; empty for a recipe without."""
    found: dict[str, np.ndarray] = {}
    negative = recipe.negative * (len(recipe.prompts) if len(recipe.negative) == 1 else 1)
    for names, texts in ((TOLD, recipe.prompts), (NEGATIVE, negative)):
        if texts:
            read = zip(*map(text.tokenizer(), texts), strict=True)
            found |= {name: np.stack(arrays) for name, arrays in zip(names, read, strict=True)}
    return found


def with_conditions(
    experiment: Experiment, recipe: Recipe, split: str = "held_out"
) -> tuple[Recipe, dict[str, np.ndarray]]:
    """What a model that takes more than labels is given: the conditions of a split's first examples.

    The recipe then has their labels, which belong to them, and their captions unless it has prompts;
    for other models it stays as it is. A model that was always given a part of the data is given that of
    the same examples, by the first task of its section concat unless the recipe has one.
    """
    told, given = _with_conditions(experiment, recipe, split)
    concat = experiment.concat
    if concat is None or not concat.always or recipe.task is not None:
        return told, given
    told, start = edits.with_frames(experiment, told, concat.tasks.specs[0], split)
    return told, {**given, "start": start}


def _with_conditions(
    experiment: Experiment, recipe: Recipe, split: str
) -> tuple[Recipe, dict[str, np.ndarray]]:
    if recipe.prompts and not experiment.arrays:
        return recipe, {}
    given = experiment.conditions_of(split, recipe.count)
    label = given.pop("label", None)
    if experiment.text is not None:
        given = {k: v for k, v in given.items() if k not in TOLD}
        captions = recipe.prompts or experiment.captions_of(split, recipe.count)
        recipe = dataclasses.replace(recipe, labels=(), prompts=captions)
    if label is None:
        return recipe, given
    return dataclasses.replace(recipe, labels=tuple(label.tolist())), given
