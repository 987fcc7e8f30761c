"""Evaluate a trained model: ``python -m dit.evaluate --workdir=DIR``.

Draws samples of every class in turn and compares them with real held-out data by a classifier that was
trained on the real training split (``dit.evaluation``), next to what the real data themselves score.
Also the denoising loss on held-out data under frozen noise. Prints a table and writes the figures,
with the recipe they were measured by, to ``evaluation.json`` in the workdir.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dit import cli, storage
from dit.data.pipeline import eval_batches
from dit.draw import Sampler, load, recipe_from, stamped
from dit.evaluation.clips import evaluate_clips
from dit.evaluation.images import evaluate_images
from dit.experiment import Experiment
from dit.parallel.mesh import OPTION
from dit.types import Params, UserError

LOSS_SAMPLES, LOSS_BATCH = 1024, 128


def held_out_loss(made: Experiment, params: Params) -> dict[str, float]:
    """The training objective on held-out data: mean and standard error over examples.

    Noise and times depend on the example alone, so two models are compared on the same draws.
    """
    key = jax.random.key(0)

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
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; UserError for bad input."""
    args, rest = cli.parse(arguments(), argv)
    if rest:
        raise UserError(f"--config.{next(iter(rest))} belongs to dit.train; see --help")
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
    print(f"drawing {args.num} samples: {recipe.solver}, {recipe.steps} steps, {recipe.guidance}")
    drawn = Sampler(made, recipe)(restored.params)
    if made.source.shape[0] == 1:
        figures = evaluate_images(drawn.samples[:, 0], drawn.labels, made.source)
    else:
        figures = evaluate_clips(drawn.samples, drawn.labels, made.source)
    figures |= {"sampling_seconds": drawn.seconds, "nfe": float(drawn.nfe)}
    figures |= held_out_loss(made, restored.params)
    for name, value in figures.items():
        print(f"{name:24} {value:.5g}")
    report = {"figures": figures, "recipe": stamped(recipe, restored, drawn.nfe)}
    report["recipe"]["labels"] = f"{args.num} samples, classes in turn"
    out = storage.place(args.workdir) / "evaluation.json"
    storage.write(out, json.dumps(report, indent=2) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    cli.run(main)
