"""Train a model from a config: ``python -m dit.train --config=configs/digits.py --workdir=DIR``.

``--config.section.field=value`` overrides a field. ``--new-lr`` resumes with another learning rate.
Ctrl-C and SIGTERM save, say so and exit with status 0, or with ``DIT_STOPPED_STATUS`` where a launcher
must tell a stopped run from a finished one; the same command resumes the run. Bad input and a diverged
run exit with 2 and one message. The workdir holds ``config.json``, ``metrics.jsonl``, ``curve.png``,
``checkpoints``, ``samples`` and ``tensorboard``, and an autoencoder's ``latents.json`` too. DIR may be
``gs://BUCKET/PATH``: the same files, with the extra ``gcs``.

On several hosts the same command runs on each of them, with one workdir that all can reach. They find
each other through Slurm, a Kubernetes JobSet or the metadata of a TPU pod, or by the flags
``--coordinator``, ``--processes`` and ``--process``. A signal to one of them stops all after the same
step; an error on one of them ends all, and is named in ``error-<process>.log``.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence

import jax
import numpy as np

from dit import cli, media, reconstruct, rng, storage
from dit.config import parse_spec
from dit.data.source import digest
from dit.draw import Sampler, with_conditions
from dit.experiment import Experiment, build, load_config
from dit.parallel import multihost
from dit.parallel.frozen import shapes
from dit.recipe import recipe_from, stamped
from dit.scaling.flops import training_flops
from dit.training.checkpoint import taken_from
from dit.training.loop import train
from dit.training.state import TrainState
from dit.types import Positive, UserError


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
    outcome = train(
        experiment,
        workdir,
        batches=experiment.batches(),
        draw=picture,
        flops_per_example=experiment.mean(
            lambda shape: training_flops(
                experiment.model, shape, experiment.context_len, experiment.level
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
    each = []
    for one in map(experiment.bucket, sorted(buckets.values())):
        told, conditions = with_conditions(one, recipe)
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
                stamp |= {"size": [frames, height, width]}
            for suffix in (".png", ".gif") if frames > 1 else (".png",):
                out = workdir / "samples" / f"{name}{suffix}"
                captions = sampler.recipe.prompts
                media.save_samples(out, drawn.samples, drawn.labels, stamp, captions=captions)

    return paint


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
