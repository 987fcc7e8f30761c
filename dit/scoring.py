"""Scores of a model's samples: planned before anything is drawn, then made while it is drawn.

Samples are never held: each batch goes from the sampler to the feature networks on the devices that
made it (``evaluation.featurise``). What comes of it is written with its protocol, without which a score
is no score: how the samples were drawn and rounded, of which classes and how many; by which network,
weights, port and resizing rule they were seen; and with what they were compared.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from dit import storage
from dit.config import call, parse_spec, resolve
from dit.draw import Sampler
from dit.evaluation import compare, reference
from dit.evaluation.features import Features, networks, specs
from dit.evaluation.featurise import Featurise, Passing
from dit.evaluation.reference import Collected
from dit.evaluation.scores import About, Need, Plan
from dit.evaluation.scores.kd import rows
from dit.experiment import Experiment
from dit.parallel import multihost
from dit.prompts import with_conditions
from dit.recipe import Recipe, recipe_from
from dit.types import Count, Params, UserError

UINT8 = "round(127.5 (x + 1)) of x clipped to [-1, 1]"
SPLITS = ("train", "held_out")


@dataclasses.dataclass(frozen=True)
class Reference:
    """``name``: a split of the data, or a file; ``limit``: pictures of a split, all the same ones."""

    name: str
    limit: int | None = None


def reference_of(text: str) -> Reference:
    """``train``, ``held_out:limit=5000`` or a file ``.npz``; UserError for anything else."""
    if text.endswith(".npz"):
        if not pathlib.Path(text).expanduser().is_file():
            raise UserError(f"got --reference={text!r}; there is no such file")
        return Reference(text)
    spec = parse_spec(text)
    name = spec.pop("name")
    if name not in SPLITS:
        raise UserError(
            f"got --reference={text!r}; expected train, held_out, one of them with :limit=NUMBER, or a "
            "file .npz"
        )

    def build(*, limit: Count | None = None) -> Reference:
        return Reference(name, limit)

    return call(build, f"reference {name!r}", **spec)


@dataclasses.dataclass(frozen=True, eq=False)
class Scoring:
    """Scores of ``about.samples`` samples of an experiment on data of one shape; ``plan`` makes one.

    ``folder``: where references are kept; ``keep``: the file to which the samples' features go, if any.
    """

    experiment: Experiment
    about: About
    plans: Mapping[str, Plan]
    specs: Sequence[str]
    reference: Reference
    folder: storage.Place
    keep: storage.Place | None = None

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of the figures that will be measured."""
        return tuple(k for plan in self.plans.values() for k, why in plan.lacks.items() if not why)

    @property
    def left_out(self) -> dict[str, str]:
        """The figures that cannot be had, each with the reason."""
        return {k: why for plan in self.plans.values() for k, why in plan.lacks.items() if why}

    def needs(self, of: str) -> list[Need]:
        """What is collected of a set of pictures, by the scores that can be had."""
        needs = [need for plan in self._possible.values() for need in plan.needs if of in need.of]
        found = {need.key: need for need in needs}
        if self.keep and of == "samples":
            outputs = [key[:2] for key in found]
            found |= {(*key, "rows"): Need((*key, "rows"), rows, ("samples",)) for key in outputs}
        return list(found.values())

    @functools.cached_property
    def references(self) -> tuple[dict[str, Collected], dict[str, Any]]:
        """What is collected of the reference and of held-out pictures, and its protocol."""
        mesh, sets, told = self.about.mesh, {}, {}
        assert mesh is not None
        wanted = {
            "reference": self.reference,
            "held_out": Reference("held_out", self.reference.limit),
        }
        for of, one in wanted.items():
            if not (needs := self.needs(of)):
                continue
            used = {need.key[0] for need in needs}
            seen = [network for network in self.about.networks if network.name in used]
            if one.name not in SPLITS:
                sets[of], told[of] = reference.of_file(one.name, seen, needs, mesh)
                continue
            split = getattr(self.experiment.source, one.name)
            identity = {"config": self.experiment.config.data.to_dict()}
            identity["shape"] = list(self.experiment.source.shape)
            where = (one.name, one.limit, seen, needs, mesh, identity, self.folder)
            sets[of], told[of] = reference.of_data(split, *where)
        return sets, told

    def prepare(self) -> None:
        """Make the references now, or read those that were kept, and not when samples are drawn."""
        _ = self.references

    @functools.cached_property
    def _featurise(self) -> Featurise:
        """Compiled at the first samples, and kept for the next."""
        assert self.about.mesh is not None
        return Featurise(self.about.networks, self.needs("samples"), self.about.mesh)

    def draw(self, sampler: Sampler, params: Params, **inputs: Any) -> Scored:
        """Draw the samples and score them; every process comes to the same."""
        references, told = self.references
        passing = Passing(self._featurise, self.about.samples)
        nfe, seconds = sampler.draw(params, passing.put, gathered=False, **inputs)
        sets = {**references, "samples": passing.collected}
        values = {k: v for plan in self._possible.values() for k, v in plan.measure(sets).items()}
        samples = {"count": self.about.samples, "hash": passing.digest(), "uint8": UINT8}
        samples |= {"shape": list(sampler.shape)} | balance(sampler.labels)
        protocol = self.protocols(samples, told)
        if self.keep and multihost.is_main():
            compare.save(self.keep, values, protocol, sets, self.specs)
        return Scored(values, protocol, nfe, seconds)

    @property
    def _possible(self) -> dict[str, Plan]:
        return {k: plan for k, plan in self.plans.items() if not all(plan.lacks.values())}

    def protocols(self, samples: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
        """Of each figure: all but how the samples were drawn, which the recipe says."""
        seen = {one.name: one.protocol for one in self.about.networks}
        found = {}
        for name, plan in self._possible.items():
            compared = [of for of in told if any(of in need.of for need in plan.needs)]
            for figure, used in plan.seen_by.items():
                found[figure] = {
                    "score": {"name": name, **plan.protocol},
                    "better": plan.better,
                    "networks": [seen[network] for network in used],
                    "samples": dict(samples),
                    **{of: told[of] for of in compared},
                }
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """``figures`` and the protocol of each; ``nfe`` of each sample."""

    figures: Mapping[str, float]
    protocol: Mapping[str, Any]
    nfe: int
    seconds: float


def balance(labels: Any) -> dict[str, Any]:
    """How many samples there are of a class, at least and at most."""
    if labels is None:
        return {"classes": None}
    counts = collections.Counter(labels.tolist())
    least, most = min(counts.values()), max(counts.values())
    return {"classes": len(counts), "least of a class": least, "most of a class": most}


def recipe_of(
    experiment: Experiment, count: int, split: str = "held_out"
) -> tuple[Recipe, dict[str, np.ndarray]]:
    """How ``count`` samples are drawn to be judged, and what they are told: as the config says.

    A model that takes more than labels is told what the first examples of the ``split`` are.
    """
    settings = {**experiment.config.samples.to_dict(), "num": count, "prompts": ()}
    return with_conditions(experiment, recipe_from(settings, experiment.num_classes), split)


def seen_by(texts: Sequence[str]) -> tuple[Features, ...]:
    """The networks in whose features scores are measured; UserError for none, and for one twice."""
    found: tuple[Features, ...] = networks(texts)
    if not found:
        raise UserError(
            "got no features for the scores; expected a network or more, such as "
            "--features=inception_v3 or --features=efficientnet_lite0, for dit.train as "
            "--config.scores.features=inception_v3"
        )
    names = [network.name for network in found]
    if len(set(names)) < len(names):
        raise UserError(f"got --features={','.join(names)}; expected each network once")
    return found


def plan(
    experiment: Experiment,
    count: int,
    seen: tuple[Features, ...],
    scores: Sequence[str],
    against: str,
    mesh: Mesh,
    folder: storage.Place,
    captions: Sequence[str] = (),
    keep: storage.Place | None = None,
) -> Scoring:
    """The scores of ``count`` samples, before any is drawn; UserError for what does not exist."""
    source, one = experiment.source, reference_of(against)
    shape = experiment.codec.decoded_shape(experiment.shape)
    for network in seen:
        network.check(shape[3])
    if one.name in SPLITS and tuple(shape) != tuple(source.shape):
        raise UserError(
            f"got the reference {against!r} of data that are latents; expected a file of pictures or "
            "moments: --reference=FILE.npz, for dit.train --config.scores.reference=FILE.npz"
        )
    held_out = len(source.held_out) if one.name == "train" else 0
    about = About(seen, count, shape[0], captions, held_out, mesh)
    plans = {}
    for text in specs(scores):
        spec = parse_spec(text)
        plans[spec["name"]] = resolve("evaluation.scores", **spec)(about)
    return Scoring(experiment, about, plans, specs(scores), one, folder, keep)
