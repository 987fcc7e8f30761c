"""The second network of a sampling run, of the times below a boundary: its options and its weights.

``--low=WORKDIR --boundary=0.875`` of ``dit.sample`` and ``dit.evaluate``. Weights that came from a
directory with ``transformer`` and ``transformer_2`` (Wan 2.2 A14B) have them in ``experts.json``: the
second is the workdir ``low`` within the first. Each is an ordinary run, and trains by itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax

from dit import cli, models, storage
from dit.config import fingerprint
from dit.experiment import Experiment, build
from dit.recipe import Recipe
from dit.sections import HOW
from dit.training.checkpoint import read_meta, restore_params
from dit.types import Params, Positive, UserError, Weights

FILE, FOLDER = "experts.json", "low"  # in the workdir of the network of high times
OPTIONS = ("low", "boundary", "low_guidance")  # fields of a recipe


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--low``, ``--boundary`` and ``--low-guidance``."""
    add = parser.add_argument
    add(
        "--low",
        metavar="WORKDIR",
        help="another network, its longest average, for times below --boundary",
    )
    add(
        "--boundary",
        type=cli.number(Positive),
        help="where it begins: 0.875 of Wan2.2-T2V-A14B, 0.9 of I2V (default: the weights' own)",
    )
    add("--low-guidance", help="its --guidance (default: the same)")


def chosen(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    """The recipe with what the options say, or else what the workdir has."""
    kept = storage.workdir(args.workdir) / FILE
    told: dict[str, Any] = {}
    if recipe.low is None and kept.is_file():
        boundary = json.loads(kept.read_text())["boundary"]
        told = {"low": str(storage.workdir(args.workdir) / FOLDER), "boundary": boundary}
    told |= {k: getattr(args, k) for k in OPTIONS if getattr(args, k) is not None}
    return dataclasses.replace(recipe, **told)


def keep(workdir: storage.Place, boundary: float) -> None:
    """Write what ``chosen`` reads, beside the weights of the network of high times."""
    storage.write(workdir / FILE, json.dumps({"boundary": boundary}, indent=2) + "\n")


def digests(recipe: Recipe) -> dict[str, str]:
    """What tells the second network from another, for the recipe of a picture; empty without one."""
    if recipe.low is None:
        return {}
    arrays = read_meta(recipe.low)["arrays"]
    return {"low": fingerprint({name: array["bits"] for name, array in arrays.items()})}


def weights(experiment: Experiment, recipe: Recipe) -> dict[str, Weights]:
    """The second network of a recipe, ``low``: of the run's longest average. Empty without one.

    Raises UserError for one that is not the first's like.
    """
    low = recipe.low
    if low is None:
        return {}
    meta = read_meta(low)
    other = build(meta["config"], meta.get("example"), meta.get("frozen"))
    if other.lora is not None:
        raise UserError(
            f"the run in {low} trained a LoRA: merge it (dit convert --merge --workdir={low} "
            "--out=DIR), and give what that makes"
        )
    for section in ("model", "path", "prediction", "codec", "text"):
        ours, theirs = (
            _identity(each.config.get(section), section) for each in (experiment, other)
        )
        odd = sorted(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k))
        if odd:
            raise UserError(
                f"the network in {low} has another {section} than this one, in {odd[0]}: got "
                f"{theirs.get(odd[0])!r}, expected {ours.get(odd[0])!r}; two networks share a sampling "
                "run if they differ in their weights alone"
            )
    model, shape = experiment.model, experiment.shape
    abstract, axes = models.abstract(model, shape), models.logical_axes(model, shape)

    def read(shardings: Any) -> Params:
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
        )
        return restore_params(low, target).params

    return {"low": Weights(abstract, axes, read, f"the weights in {low}")}


def _identity(section: Any, name: str) -> Mapping[str, Any]:
    """A section as a checkpoint keeps it, without what says how a network is run."""
    found = {} if section is None else json.loads(json.dumps(section.to_dict()))
    return {k: v for k, v in found.items() if name != "model" or k not in HOW}
