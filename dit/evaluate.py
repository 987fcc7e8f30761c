"""Evaluate a trained model: ``python -m dit.evaluate --workdir=DIR``.

Draws samples of every class in turn and compares them with real held-out data by a classifier that was
trained on the real training split (``dit.evaluation``), next to what the real data themselves score.
Also the denoising loss on held-out data under frozen noise. Prints a table and writes the figures,
with the recipe they were measured by, to ``evaluation.json`` in the workdir. What the data do not allow
to measure (no labels, a single class, few held-out examples) is said before anything is drawn.

For scripts and CI, every ``--demand="accuracy>=0.97"`` compares figures: where one is not met, the exit
status is 3. ``--demand="frechet_matched<=2*frechet_floor"`` and ``--demand="copies<=0.05"`` are others.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dit import cli, rng, storage
from dit.data.pipeline import eval_batches
from dit.draw import Sampler, load, recipe_from, stamped
from dit.evaluation import demands
from dit.evaluation.full import evaluation_of
from dit.experiment import Experiment
from dit.parallel.mesh import OPTION
from dit.types import Params, UserError

LOSS_SAMPLES, LOSS_BATCH = 1024, 128
UNMET = 3  # exit status


def held_out_loss(made: Experiment, params: Params) -> dict[str, float]:
    """The training objective on held-out data: mean and standard error over examples.

    Noise and times depend on the example alone, so two models are compared on the same draws.
    """
    key = rng.root(0)

    @jax.jit
    def losses(params, batch):
        batch = {**batch, "x": made.codec.encode(batch["x"])}
        return made.loss(key, params, made.apply_fn, made.process, batch)[1]["loss"]

    values = []
    for batch in eval_batches(made.source.held_out, batch_size=LOSS_BATCH, limit=LOSS_SAMPLES):
        mask = batch.pop("mask")
        values.append(np.asarray(losses(params, jax.tree.map(jnp.asarray, batch)))[mask])
    values = np.concatenate(values)
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return {"held_out_loss": float(values.mean()), "held_out_loss_error": error}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dit.evaluate", description=__doc__)
    add = parser.add_argument
    add("--workdir", required=True, help="where the model was trained")
    add("--num", type=int, default=1000, help="how many samples (default: %(default)s)")
    add("--solver", help="as for dit.sample; so are the next ones")
    add("--grid")
    add("--steps", type=int)
    add("--guidance")
    add("--seed", type=int)
    add("--batch", type=int)
    add("--mesh", default="dp", help=f"of all devices: {OPTION}")
    add("--ema", help="which parameters: params, or an average, such as ema_6931")
    add("--step", type=int, help="which checkpoint (default: the latest)")
    add(
        "--demand",
        action="append",
        default=[],
        metavar="COMPARISON",
        help="what the figures must meet, such as 'frechet_matched<=2*frechet_floor'; may be repeated. "
        f"Exit status {UNMET} if one is not met, 2 for a mistake, which is found before drawing",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: the exit status. UserError for bad input."""
    args, rest = cli.parse(arguments(), argv)
    if rest:
        raise UserError(f"--config.{next(iter(rest))} belongs to dit.train; see --help")
    demanded = [demands.parse(text) for text in args.demand]
    made, restored = load(args.workdir, args.ema, args.step, args.mesh)
    recipe = recipe_from({**made.config.samples.to_dict(), "num": args.num}, made.num_classes)
    names = ("solver", "grid", "steps", "guidance", "seed", "batch")
    given = {k: getattr(args, k) for k in names if getattr(args, k) is not None}
    recipe = dataclasses.replace(recipe, **given)
    if not made.codec.pixels:
        raise UserError(
            "this model makes latents: decode samples (dit.sample --out=samples.npz) with the "
            "autoencoder they belong to, and evaluate the pixels"
        )
    sampler = Sampler(made, recipe)
    evaluation = evaluation_of(made.source, args.num)
    others = ("sampling_seconds", "nfe", "held_out_loss", "held_out_loss_error")
    for demand in demanded:
        demand.check((*evaluation.figures, *others), evaluation.left_out)
    for why in dict.fromkeys(evaluation.left_out.values()):
        names = [name for name, other in evaluation.left_out.items() if other == why]
        print(f"not measured, {why}: {', '.join(names)}")
    loss = held_out_loss(made, restored.params)
    if not np.isfinite(loss["held_out_loss"]):
        raise UserError(
            f"the held-out loss of these parameters is {loss['held_out_loss']}: training diverged; "
            "evaluate an earlier checkpoint (--step)"
        )
    print(f"drawing {args.num} samples: {recipe.solver}, {recipe.steps} steps, {recipe.guidance}")
    print(f"judging them at {evaluation.size} pixels")
    drawn = sampler(restored.params)
    figures = evaluation(drawn.samples, drawn.labels)
    figures |= {"sampling_seconds": drawn.seconds, "nfe": float(drawn.nfe)} | loss
    for name, value in figures.items():
        print(f"{name:24} {value:.5g}")
    report = {"figures": figures, "not_measured": evaluation.left_out}
    report["recipe"] = stamped(recipe, restored, drawn.nfe)
    report["recipe"]["labels"] = f"{args.num} samples, classes in turn"
    report["recipe"]["judged_at"] = evaluation.size
    out = storage.workdir(args.workdir) / "evaluation.json"
    storage.write(out, json.dumps(report, indent=2) + "\n")
    print(f"written to {out}")
    unmet = [failure for demand in demanded if (failure := demand.failure(figures))]
    for failure in unmet:
        print(f"unmet demand {failure}", file=sys.stderr)
    return UNMET if unmet else 0


if __name__ == "__main__":
    cli.run(main)
