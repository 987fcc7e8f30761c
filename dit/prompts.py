"""The prompts of a recipe, as a model that reads text takes them."""

from __future__ import annotations

import numpy as np

from dit import storage
from dit.experiment import Experiment
from dit.recipe import Recipe
from dit.text import TextEncoder, check_prompt
from dit.types import UserError

TOLD = ("tokens", "tokens_mask")  # what a tokenizer gives, by the names of Cond's fields
NEGATIVE = ("negative_tokens", "negative_tokens_mask")


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
        raise UserError(
            f"got the prompt {texts[0]!r} for a model without text, which is told {', '.join(told)}: "
            "leave --prompt and --negative out, or train a model whose config has a section text"
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


def words(text: TextEncoder | None, recipe: Recipe) -> dict[str, np.ndarray]:
    """The tokens of each sample's prompt, and of its negative one; empty for a recipe without."""
    found: dict[str, np.ndarray] = {}
    negative = recipe.negative * (len(recipe.prompts) if len(recipe.negative) == 1 else 1)
    for names, texts in ((TOLD, recipe.prompts), (NEGATIVE, negative)):
        if texts:
            read = zip(*map(text.tokenizer(), texts), strict=True)
            found |= {name: np.stack(arrays) for name, arrays in zip(names, read, strict=True)}
    return found
