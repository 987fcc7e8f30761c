"""Train a model from a config: ``python -m dit.train --config=configs/digits.py --workdir=DIR``.

``--config.section.field=value`` overrides a field. ``--new-lr`` resumes with another learning rate.
Ctrl-C and SIGTERM save, say so and exit with status 0, or with ``DIT_STOPPED_STATUS`` where a launcher
must tell a stopped run from a finished one; the same command resumes the run. Bad input and a diverged
run exit with 2 and one message. The workdir holds ``config.json``, ``metrics.jsonl``, ``curve.png``,
``checkpoints``, ``samples`` and ``tensorboard``, with ``--config.scores.every`` also ``scores`` and
``scores.png``, and an autoencoder's ``latents.json``. DIR may be ``gs://BUCKET/PATH``: the same files,
with the extra ``gcs``.

On several hosts the same command runs on each of them, with one workdir that all can reach. They find
each other through Slurm, a Kubernetes JobSet or the metadata of a TPU pod, or by the flags
``--coordinator``, ``--processes`` and ``--process``. A signal to one of them stops all after the same
step; an error on one of them ends all, and is named in ``error-<process>.log``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence

import jax
import numpy as np

from dit import cli, media, reconstruct, rng, scoring, storage
from dit.config import parse_spec
from dit.data.source import digest
from dit.draw import Sampler
from dit.experiment import Experiment, build, load_config
from dit.parallel import multihost
from dit.parallel.frozen import shapes
from dit.parallel.mesh import make_mesh
from dit.prompts import with_conditions
from dit.recipe import recipe_from, stamped
from dit.scaling.flops import training_flops
from dit.training.checkpoint import taken_from
from dit.training.loop import train
from dit.training.scores import PREFIX
from dit.training.state import TrainState
from dit.types import Positive, UserError

LEAST = 20  # samples that a score is made of: its error is that of ten groups of them


def arguments() -> argparse.ArgumentParser:
    parser = cli.Parser(prog="dit train", description=__doc__)
    parser.add_argument("--config", required=True, help="a Python file with get_config()")
    parser.add_argument(
        "--workdir", required=True, help="where the run is kept: a directory, or gs://BUCKET/PATH"
    )
    parser.add_argument(
        "--new-lr",
        type=cli.number(Positive),
        help="go on from the latest checkpoint with this optimizer.lr",
    )
    multihost.add_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit status. UserError for bad input."""
    args, overrides = cli.parse(arguments(), argv)
    when_stopped = stopped_status()
    multihost.connect(args)
    level = logging.WARNING if multihost.is_main() else logging.ERROR
    logging.basicConfig(format="%(message)s", level=level)
    workdir = storage.workdir(args.workdir)
    with multihost.guard(workdir), cli.full_disk():
        storage.check(workdir)
        allowed = () if args.new_lr is None else ("optimizer.lr",)
        overrides |= dict.fromkeys(allowed, args.new_lr)
        experiment = build(load_config(args.config, overrides))
        stopped = run(experiment, workdir, allowed)
    return when_stopped if stopped else 0


def stopped_status() -> int:
    """The exit status of a run that a signal stopped: ``DIT_STOPPED_STATUS``, or 0."""
    text = os.environ.get("DIT_STOPPED_STATUS") or "0"
    if not text.isdecimal() or int(text) > 255:
        raise UserError(f"got DIT_STOPPED_STATUS={text!r}; expected a number from 0 to 255")
    return int(text)


def run(experiment: Experiment, workdir: storage.Place, allowed: Collection[str] = ()) -> bool:
    """Train, draw the curve and the last samples, and say how it went; whether a signal stopped it.

    ``allowed``: as for ``train``.
    """
    reconstructs = experiment.process is None
    picture = (reconstruct.painter if reconstructs else painter)(experiment, workdir)
    scores = scorer(experiment, workdir)
    outcome = train(
        experiment,
        workdir,
        batches=experiment.batches(),
        draw=picture,
        scorer=scores,
        flops_per_example=experiment.mean(
            lambda shape: training_flops(
                experiment.model,
                shape,
                experiment.context_len,
                experiment.level,
                frozen=experiment.lora is not None,
            )
        )
        + experiment.flops_beside,
        allowed=allowed,
    )
    if outcome.stopped:
        kept = f"step {outcome.step} is saved in {workdir}" if outcome.step else "before step 1"
        multihost.say(f"{outcome.stopped}: {kept}; the same command goes on")
        return True
    if multihost.is_main():
        media.plot_curve(workdir / "metrics.jsonl", workdir / "curve.png")
        if scores is not None:
            media.plot_scores(workdir / "metrics.jsonl", workdir / "scores.png", prefix=PREFIX)
    if picture is not None and not _due(experiment, outcome.step):
        picture(outcome.state, outcome.step)
    if reconstructs:
        reconstruct.measure_latents(experiment, taken_from(outcome.state), workdir)
    multihost.say(f"trained to step {outcome.step}; see {workdir}/curve.png and {workdir}/samples")
    return False


def _due(experiment: Experiment, step: int) -> bool:
    """Whether the loop itself drew samples at ``step``."""
    return experiment.config.samples.every > 0 and step % experiment.config.samples.every == 0


def painter(
    experiment: Experiment, workdir: storage.Place
) -> Callable[[TrainState, int], None] | None:
    """What draws the samples of a step: a grid, or a filmstrip and a GIF of clips; for each bucket.

    None for latents, which nothing here can decode. Raises UserError for settings of ``samples`` that
    cannot work: before the first step, and not at the first picture.
    """
    if not experiment.codec.pixels or not experiment.config.samples.num:
        return None
    recipe = recipe_from(experiment.config.samples.to_dict(), experiment.num_classes)
    buckets = {experiment.shapes[i]: i for i in reversed(experiment.used)}  # the first of a shape
    each, longer = [], experiment.config.samples.frames
    for one in map(experiment.bucket, sorted(buckets.values())):
        told, conditions = with_conditions(one, recipe)
        one = one if longer is None else one.shaped((longer, *one.source.shape[1:]))
        each.append((Sampler(one, told), conditions))
    for sampler, conditions in each:
        rehearse(sampler, conditions)

    def paint(state: TrainState, step: int) -> None:
        taken = taken_from(state)
        for sampler, conditions in each:
            # by all processes: each holds a part of the parameters
            drawn = sampler(taken.params, **conditions)
            if not multihost.is_main():
                continue
            digests = {name: digest(array) for name, array in conditions.items()}
            stamp = stamped(sampler.recipe, taken, drawn.nfe, digests)
            frames, height, width = drawn.samples.shape[1:4]
            name = f"step_{step:07d}"
            if len(each) > 1:
                name += f"_{frames}x{height}x{width}"
            if len(each) > 1 or longer is not None:
                stamp |= {"size": [frames, height, width]}
            for suffix in (".png", ".gif") if frames > 1 else (".png",):
                out = workdir / "samples" / f"{name}{suffix}"
                captions = sampler.recipe.prompts
                media.save_samples(out, drawn.samples, drawn.labels, stamp, captions=captions)

    return paint


def scorer(experiment: Experiment, workdir: storage.Place) -> Scorer | None:
    """What scores the samples of a step, of each shape of the data; None where ``scores.every`` is 0.

    Raises UserError for settings of ``scores`` that cannot work, before the first step.
    """
    settings = experiment.settings("scores")
    if not settings.every:
        return None
    if experiment.process is None or not experiment.codec.pixels:
        raise UserError(
            f"got scores.every={settings.every} for a model that draws no pictures: set it to 0 or, "
            "where the data are latents, codec.name to the autoencoder that made them"
        )
    if settings.num < LEAST:
        raise UserError(
            f"got scores.num={settings.num}, too few to score; expected {LEAST} or more, and a few "
            "thousand for scores to be compared by"
        )
    features, names = (
        (given,) if isinstance(given, str) else given
        for given in (settings.features, settings.names)
    )
    networks, mesh = scoring.seen_by(features), make_mesh(experiment.settings("mesh"))
    buckets = {experiment.shapes[i]: i for i in reversed(experiment.used)}
    each = []
    for one in map(experiment.bucket, sorted(buckets.values())):
        recipe, conditions = scoring.recipe_of(one, settings.num)
        about = settings.num, networks, names, settings.reference, mesh, workdir / "scores"
        judge, sampler = scoring.plan(one, *about, recipe.prompts), Sampler(one, recipe)
        for name, why in judge.left_out.items():
            raise UserError(f"got scores.names={names}: there is no {name}, as {why}; leave it out")
        rehearse(sampler, conditions)
        each.append((judge, sampler, conditions))
    return Scorer(each, workdir / "scores")


@dataclasses.dataclass(frozen=True)
class Scorer:
    """``scorer(state, step)``: the figures of the step's samples, of each shape; on all processes.

    Samples pass through the feature networks on the devices that drew them, and are never held together.
    The figures with their protocols are written to ``folder`` too, as ``dit.evaluate`` writes them.
    """

    each: Sequence[tuple[scoring.Scoring, Sampler, Mapping[str, np.ndarray]]]
    folder: storage.Place

    def prepare(self) -> None:
        """Make the references, or read those that were kept."""
        for judge, *_ in self.each:
            judge.prepare()

    def __call__(self, state: TrainState, step: int) -> dict[str, float]:
        taken, figures = taken_from(state), {}
        for judge, sampler, conditions in self.each:
            scored = judge.draw(sampler, taken.params, **conditions)
            shape = "x".join(map(str, judge.experiment.source.shape[:3]))
            prefix, suffix = (f"{shape}/", f"_{shape}") if len(self.each) > 1 else ("", "")
            figures |= {f"{prefix}{name}": value for name, value in scored.figures.items()}
            if multihost.is_main():
                report = {"figures": dict(scored.figures), "protocol": scored.protocol}
                report["recipe"] = stamped(sampler.recipe, taken, scored.nfe)
                self.folder.mkdir(parents=True, exist_ok=True)
                file = self.folder / f"step_{step:07d}{suffix}.json"
                storage.write(file, json.dumps(report, indent=2) + "\n")
        return figures


def rehearse(sampler: Sampler, conditions: Mapping[str, np.ndarray]) -> None:
    """Trace the sampler, and draw two blank samples of its shapes; UserError for what cannot work."""
    experiment, recipe = sampler.experiment, sampler.recipe
    if parse_spec(recipe.guidance, number="cfg:scale")["name"] == "autoguidance":
        raise UserError(
            f"got samples.guidance={recipe.guidance!r}, which needs a weaker model, and training has "
            "one model: set samples.guidance=1, and give --guidance and --weak to dit.sample"
        )
    given = {**sampler.words, **conditions}
    two = {k: np.resize(v, (2, *v.shape[1:])) for k, v in given.items()}
    batch = {"id": np.arange(2), **two}
    if recipe.labels:
        batch["label"] = np.zeros(2, np.int32)
    params = jax.eval_shape(experiment.init, rng.root(0))
    frozen = shapes(experiment.sampled_with)
    samples = jax.eval_shape(sampler.run, params, None, batch, frozen)[0]
    blank = np.zeros(samples.shape, np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        media.save_samples(f"{folder}/blank.png", blank, np.zeros(2, np.int32), {})


if __name__ == "__main__":
    cli.run(main)
