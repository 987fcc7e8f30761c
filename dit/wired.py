"""What the section of a config is told of other sections, in the keywords of its ``build``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from dit.concat import Concat
from dit.config import builder, keywords, open_ended
from dit.data import packing, pipeline
from dit.data.pipeline import Batches
from dit.data.source import Source
from dit.sections import HOW, ROOMS, diffuses, precision
from dit.text import FrozenText, TextEncoder
from dit.types import UserError


def wired_to_codec(config: ConfigDict) -> dict[str, Any]:
    """The type of a codec's products, where its section leaves it open."""
    takes = "dtype" in keywords(builder(ROOMS["codec"], config.codec.name))
    open_to = takes and config.codec.get("dtype") is None
    return {"dtype": precision(**config.precision)} if open_to else {}


def wired_to_text(config: ConfigDict) -> dict[str, Any]:
    """What a text encoder is told of the precision, and of how the network is run."""
    how = {k: config.model[k] for k in HOW if k in config.model}
    wired = {"dtype": precision(**config.precision), **how}
    build = builder(ROOMS["text"], config.text.name)
    return {k: v for k, v in wired.items() if k in keywords(build)}


def wired_to_model(
    config: ConfigDict,
    channels: int,
    classes: int | None,
    text: TextEncoder | FrozenText | None = None,
    concat: Concat | None = None,
) -> dict[str, Any]:
    """What a network is told of the data, the text and the precision, in the keywords of its ``build``.

    And of the known channels that a section makes of the data.

    Raises UserError where it has none for what it would have to be told.
    """
    name, dtype = config.model.name, precision(**config.precision)
    wired = {"in_channels": channels, "num_classes": classes, "dtype": dtype}
    for key in () if text is None else ("context_dim", "pooled_dim"):
        if config.model.get(key) is not None:
            raise UserError(
                f"got config.model.{key}={config.model[key]}; it follows from the section text: leave "
                "one of them out"
            )
        if getattr(text, key) is not None:
            wired[key] = getattr(text, key)
    if concat is not None:
        wired["concat_channels"] = concat.more + channels
    build = builder(ROOMS["model"], name)
    if not open_ended(build):
        wired = {k: v for k, v in wired.items() if k in keywords(build)}
    for key in ("context_dim", "pooled_dim"):
        if text is not None and getattr(text, key) is not None and key not in wired:
            raise UserError(
                f"network {name!r} takes no {key}, by which it would be told what a text says; take "
                "another, or --config.text.name=none"
            )
    if classes is not None and "num_classes" not in wired and diffuses(config.objective.name):
        raise UserError(
            f"the data have {classes} classes, and network {name!r} takes no num_classes; give its "
            "build that keyword, or data without labels"
        )
    if config.precision.compute == "bfloat16" and "dtype" not in wired:
        raise UserError(
            f"got precision.compute='bfloat16', and network {name!r} takes no dtype; expected 'auto'"
        )
    return wired


def check_concat(
    config: ConfigDict, concat: Concat | None, codec: Any, model: Any, shapes: Sequence[Any]
) -> None:
    """Raise UserError where a network cannot be given what the section concat makes of the data.

    ``shapes``: of the latents of examples.
    """
    if concat is None:
        return
    said = config.model.get("concat_channels")
    taken = getattr(getattr(model, "model", model), "concat_channels", None)
    made = concat.more + shapes[0][-1]
    if taken != made or said not in (None, made):
        raise UserError(
            f"the section concat makes {made} channels, and network {config.model.name!r} takes "
            f"{said or taken or 'none'} (concat_channels): leave that out, or take another network, or "
            "--config.concat.name=none"
        )
    if config.packing.tokens is not None or config.objective.get("tasks"):
        other = "objective.tasks" if config.packing.tokens is None else "packing.tokens"
        raise UserError(f"got {other} and a section concat, which do not go together: give one")
    for shape in shapes:
        concat.fits(codec, shape, model.cell())


def check_packing(config: ConfigDict, codec: Any, model: Any) -> None:
    """Raise UserError where a config packs examples and something in it cannot take them packed."""
    if config.packing.tokens is None:
        if config.packing.examples is not None:
            raise UserError("got packing.examples without packing.tokens; give both, or neither")
        return
    if not diffuses(config.objective.name):
        raise UserError(
            f"objective {config.objective.name!r} takes no packed examples: leave out packing.tokens"
        )
    if not codec.elementwise:
        raise UserError(
            f"codec {config.codec.name!r} cannot encode packed examples: take 'pixel', or latents that "
            "are stored, with codec 'latent'; or leave out packing.tokens"
        )
    model.check_packed()


def batches_of(config: ConfigDict, source: Source, patch: tuple[int, int, int]) -> Batches:
    """The stream of training data, from its first batch: packed, if the config says so."""
    common = {"seed": config.seed, **config.loader}
    if config.packing.tokens is None:
        return pipeline.batches(source.train, batch_size=config.batch_size, **common)
    return packing.packed_batches(
        source.train,
        source.shapes,
        patch=patch,
        tokens=config.packing.tokens,
        most=config.packing.examples,
        rows=config.batch_size,
        **common,
    )
