"""Scores of a model's samples: planned before anything is drawn, then made while it is drawn.

Samples are never held: each batch goes from the sampler to the feature networks on the devices that
made it (``evaluation.featurise``). What comes of it is written with its protocol, without which a score
is no score: how the samples were drawn and rounded, of which classes and how many; by which network,
weights, port and resizing rule they were seen; and with what they were compared.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from dit import storage
from dit.config import call, parse_spec, resolve
from dit.draw import Sampler
from dit.evaluation import reference
from dit.evaluation.features import Features, networks, specs
from dit.evaluation.featurise import Featurise
from dit.evaluation.reference import Collected
from dit.evaluation.scores import About, Need, Plan
from dit.experiment import Experiment
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
    """Scores of ``about.samples`` samples of an experiment on data of one shape; ``plan`` makes one."""

    experiment: Experiment
    about: About
    plans: Mapping[str, Plan]
    reference: Reference
    folder: storage.Place

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
        plans = [plan for plan in self.plans.values() if not all(plan.lacks.values())]
        found = {need.key: need for plan in plans for need in plan.needs if of in need.of}
        return list(found.values())

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
            seen_by = [network for network in self.about.networks if network.name in used]
            if one.name not in SPLITS:
                sets[of], told[of] = reference.of_file(one.name, seen_by, needs, mesh)
                continue
            split = getattr(self.experiment.source, one.name)
            identity = {"config": self.experiment.config.data.to_dict()}
            identity["shape"] = list(self.experiment.source.shape)
            where = (one.name, one.limit, seen_by, needs, mesh, identity, self.folder)
            sets[of], told[of] = reference.of_data(split, *where)
        return sets, told

    def draw(self, sampler: Sampler, params: Params, **inputs: Any) -> Scored:
        """Draw the samples and score them; every process comes to the same."""
        sets, told = self.references()
        assert self.about.mesh is not None
        needs = self.needs("samples")
        featurise = Featurise(self.about.networks, needs, self.about.samples, self.about.mesh)
        nfe, seconds = sampler.draw(params, featurise.put, gathered=False, **inputs)
        sets["samples"] = featurise.collected
        values = {k: v for plan in self._possible.values() for k, v in plan.measure(sets).items()}
        samples = {"count": self.about.samples, "hash": featurise.digest(), "uint8": UINT8}
        samples |= {"shape": list(self.experiment.source.shape)} | balance(sampler.labels)
        return Scored(values, self.protocols(samples, told), sets, nfe, seconds)

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
                    "networks": [seen[network] for network in used],
                    "samples": dict(samples),
                    **{of: told[of] for of in compared},
                }
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """``figures`` and the protocol of each; ``sets``: what was collected; ``nfe`` of each sample."""

    figures: Mapping[str, float]
    protocol: Mapping[str, Any]
    sets: Mapping[str, Collected]
    nfe: int
    seconds: float


def balance(labels: Any) -> dict[str, Any]:
    """How many samples there are of a class, at least and at most."""
    if labels is None:
        return {"classes": None}
    counts = collections.Counter(labels.tolist())
    least, most = min(counts.values()), max(counts.values())
    return {"classes": len(counts), "least of a class": least, "most of a class": most}


def plan(
    experiment: Experiment,
    count: int,
    features: Sequence[str],
    scores: Sequence[str],
    against: str,
    mesh: Mesh,
    folder: storage.Place,
    captions: Sequence[str] = (),
) -> Scoring:
    """The scores of ``count`` samples, before any is drawn; UserError for what does not exist."""
    source, one = experiment.source, reference_of(against)
    seen_by: tuple[Features, ...] = networks(features)
    if not seen_by:
        raise UserError(
            "got --scores without --features; expected a network or more, such as "
            "--features=inception_v3 or --features=efficientnet_lite0"
        )
    names = [network.name for network in seen_by]
    if len(set(names)) < len(names):
        raise UserError(f"got --features={','.join(names)}; expected each network once")
    for network in seen_by:
        network.check(source.shape[3])
    held_out = one.name == "train" and len(source.held_out) > 1
    about = About(seen_by, count, source.shape[0], captions, held_out, mesh)
    plans = {}
    for text in specs(scores):
        spec = parse_spec(text)
        plans[spec["name"]] = resolve("evaluation.scores", **spec)(about)
    return Scoring(experiment, about, plans, one, folder)
