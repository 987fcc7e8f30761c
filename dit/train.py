"""Train what a config says: ``python -m dit.train --config=configs/digits.py --workdir=DIR``.

``--config.section.field=value`` overrides a field. Ctrl-C and SIGTERM save, say so and exit with status
0; the same command goes on from there. Bad input and a diverged run exit with 2 and one message.
The workdir holds ``config.json``, ``metrics.jsonl``, ``curve.png``, ``checkpoints``, ``samples`` and
``tensorboard``.
"""

from __future__ import annotations

import argparse
import logging
import pathlib
from collections.abc import Callable, Sequence

from dit import cli, experiment, media
from dit.draw import Sampler, recipe_from, stamped
from dit.experiment import Experiment
from dit.scaling.flops import training_flops
from dit.training.checkpoint import taken_from
from dit.training.loop import train
from dit.training.state import TrainState


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dit.train", description=__doc__)
    parser.add_argument("--config", required=True, help="a Python file with get_config()")
    parser.add_argument("--workdir", required=True, help="where the run is kept, and resumed from")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; UserError for bad input."""
    args, overrides = cli.parse(arguments(), argv)
    logging.basicConfig(format="%(message)s")
    made = experiment.build(experiment.load_config(args.config, overrides))
    workdir = pathlib.Path(args.workdir)
    picture = painter(made, workdir)
    outcome = train(
        made,
        workdir,
        batches=made.batches(),
        draw=picture,
        flops_per_example=float(training_flops(made.model, made.shape)),
    )
    if outcome.stopped:
        kept = f"step {outcome.step} is saved in {workdir}" if outcome.step else "before step 1"
        print(f"{outcome.stopped}: {kept}; the same command goes on")
        return
    media.plot_curve(workdir / "metrics.jsonl", workdir / "curve.png")
    if picture is not None and not _due(made, outcome.step):
        picture(outcome.state, outcome.step)
    print(f"trained to step {outcome.step}; see {workdir}/curve.png and {workdir}/samples")


def _due(made: Experiment, step: int) -> bool:
    """Whether the loop itself drew samples at ``step``."""
    return made.config.samples.every > 0 and step % made.config.samples.every == 0


def painter(made: Experiment, workdir: pathlib.Path) -> Callable[[TrainState, int], None] | None:
    """What draws the samples of a step: a grid, or a filmstrip and a GIF of clips.

    None for latents, which nothing here can decode.
    """
    if not made.codec.pixels or not made.config.samples.num:
        return None
    recipe = recipe_from(made.config.samples.to_dict(), made.num_classes)
    sampler = Sampler(made, recipe)

    def paint(state: TrainState, step: int) -> None:
        taken = taken_from(state)
        drawn = sampler(taken.params)
        stamp = stamped(recipe, taken, drawn.nfe)
        for suffix in (".png", ".gif") if drawn.samples.shape[1] > 1 else (".png",):
            out = workdir / "samples" / f"step_{step:07d}{suffix}"
            media.save_samples(out, drawn.samples, drawn.labels, stamp)

    return paint


if __name__ == "__main__":
    cli.run(main)
