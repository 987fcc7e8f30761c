"""Evaluate a trained model: ``python -m dit.evaluate --workdir=DIR``.

Draws samples of every class in turn (for a model that takes more than labels, with the conditions and
captions of held-out examples) and compares them with real held-out data by a classifier that was trained
on the real training split (``dit.evaluation``), next to what the real data themselves score. Also the
denoising loss on held-out data under frozen noise. Prints a table and writes the figures, with the
recipe they were measured by, to ``evaluation.json`` in the workdir, or to ``--out``. Scores that the
data do not permit (no labels, a single class, few held-out examples) are named before anything is drawn.

Where the captions are those of ``shapes_text``, each sample is read back in closed form: whether it has
the colours, shapes, number, order and letters that were asked for, of pairs that occur in training and
of pairs that do not. With ``--blank`` the samples are drawn without their prompts, and judged as if with
them: the same figures, by chance. With ``--split=train`` they are given the captions of training
examples: a model that has memorised passes for one that can draw, until it is asked for others.

``--features=efficientnet_lite0`` compares pictures in the features of a network that was trained on
other pictures: the Frechet distance, and of how many samples the nearest real picture, among all that
were asked for, has the caption that was asked for.

``--scores=fd,kd,precision_recall`` measures what papers report (``dit/evaluation/scores``: also mind,
sfid, inception_score, copies, fd_ratio, clip_score) in the features named: FID is fd in inception_v3.
The samples go by, 50,000 as well as 500, and are compared with the training data or ``--reference``:
held_out, train:limit=5000, or a file .npz of pictures or moments, as ADM's. Every score is written with
its protocol and its standard error, to ``scores.json``.

``--compare A B`` says of every score that two runs have whether the second's is better, worse or
neither; A and B are workdirs, score files or, which say the most, files of features of ``--keep``.

With ``--task=image_to_video`` (or another that gives frames) each sample has the first frame of the
clip whose caption it has: the same figures, and how well it goes on (``evaluation/given.py``), beside
samples that were given the frame of another clip.

With ``--rollout=autoregressive:block=3 --frames=36`` the samples are longer than the clips of training,
as for ``dit.sample``: how they drift (``evaluation/drift.py``), beside real clips of that length.

Of an autoencoder, held-out pictures are compared with their reconstructions: PSNR, SSIM, LPIPS where its
weights are installed, and beside them what making the pictures smaller would score, at as many numbers.

For scripts and CI, each ``--demand="accuracy>=0.97"`` compares a score with a bound; if one is not met,
the exit status is 3. Others are ``--demand="frechet_matched<=2*frechet_floor"`` and
``--demand="copies<=0.05"``.

On several hosts the same command runs on each of them, as for ``dit.train``: all draw, the first one
judges and writes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dit import cli, edits, experts, media, reconstruct, rng, rollouts, scoring, storage
from dit.data.pipeline import eval_batches
from dit.draw import Sampler, load_experiment, load_params
from dit.evaluation import compare, demands
from dit.evaluation import given as evaluated
from dit.evaluation.demands import Demand, lines
from dit.evaluation.full import evaluation_of
from dit.evaluation.parts import Evaluation
from dit.experiment import Experiment
from dit.parallel import multihost
from dit.parallel.frozen import place
from dit.parallel.mesh import OPTION, make_mesh, mesh_of, parse_mesh, replicated
from dit.recipe import Recipe, rules, stamped
from dit.training.step import objective, told
from dit.types import Count, Params, Seed, UserError, Whole

LOSS_SAMPLES, LOSS_BATCH = 1024, 128
UNMET = 3  # exit status


def held_out_loss(experiment: Experiment, params: Params) -> dict[str, float]:
    """The training objective on held-out data: mean and standard error over examples.

    Noise and times depend on the example alone, so two models are compared on the same draws.
    """
    key, mesh = rng.root(0), mesh_of(params)
    frozen = place(experiment.frozen, mesh)
    loss_fn = objective(experiment.loss, *experiment.parts)

    def losses(params, batch, frozen):
        return loss_fn(params, batch, key, **told(frozen, jnp.zeros((), jnp.int32)))[1]["loss"]

    losses = jax.jit(losses, out_shardings=replicated(mesh) if mesh else None)
    values = []
    for batch in eval_batches(
        experiment.source.held_out, batch_size=LOSS_BATCH, limit=LOSS_SAMPLES
    ):
        mask = batch.pop("mask")
        values.append(np.asarray(losses(params, batch, frozen))[mask])
    values = np.concatenate(values)
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return {"held_out_loss": float(values.mean()), "held_out_loss_error": error}


def arguments() -> argparse.ArgumentParser:
    parser = cli.Parser(prog="dit evaluate", description=__doc__)
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--workdir", help="where the model was trained")
    what.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="draw nothing: compare the scores of two runs, or of two files of --out or --keep",
    )
    add(
        "--num",
        type=cli.number(Count),
        default=1000,
        help="how many samples (default: %(default)s)",
    )
    add("--solver", help="as for dit.sample; so are the next ones")
    add("--grid")
    add("--steps", type=cli.number(Count))
    add("--guidance")
    add("--negative", help="a text that guidance leads away from")
    add(
        "--blank",
        action="store_true",
        help="draw with the empty prompt, and judge as if with captions: what chance would score",
    )
    add(
        "--task",
        help="give the samples frames of the clips whose captions they have (image_to_video, "
        "in_between, extend:frames=3, ...), and judge how they go on",
    )
    add("--rollout", help="as for dit.sample: judge clips of any number of --frames by their drift")
    add(
        "--split",
        choices=("held_out", "train"),
        default="held_out",
        help="whose captions and conditions the samples are given (default: %(default)s)",
    )
    add(
        "--features",
        action="append",
        default=[],
        metavar="NAME[,NAME]",
        help="compare pictures in the features of these networks too: efficientnet_lite0, inception_v3, "
        "dinov2:size=l,port=hub, clip:path=DIR",
    )
    add(
        "--scores",
        action="append",
        default=[],
        metavar="NAME[,NAME]",
        help="measure these alone, in the features that are named: fd, kd, mind, sfid, inception_score, "
        "precision_recall:k=3, copies, fd_ratio, clip_score:path=DIR",
    )
    add(
        "--reference",
        help="what --scores compare samples with: train (default), held_out or a file",
    )
    add("--keep", metavar="FILE.npz", help="write the samples' features there, for --compare")
    add(
        "--pairs",
        metavar="FILE",
        help="of an autoencoder: draw some of the pictures or clips above their reconstructions: a "
        ".png, .gif, .webp or .mp4",
    )
    add("--seed", type=cli.number(Seed))
    add("--batch", type=cli.number(Count))
    add("--mesh", default="dp", help=f"of all devices: {OPTION}")
    add("--ema", help="which parameters: params, or an average, such as ema_6931")
    cli.add_size(parser, "the samples and the data they are compared with, of several shapes")
    add("--step", type=cli.number(Whole), help="which checkpoint (default: the latest)")
    add("--out", help="the .json file to write (default: evaluation.json in the workdir)")
    add(
        "--demand",
        action="append",
        default=[],
        metavar="COMPARISON",
        help="what the figures must meet, such as 'frechet_matched<=2*frechet_floor'; may be repeated. "
        f"Exit status {UNMET} if one is not met, 2 for a mistake, which is found before drawing",
    )
    experts.add_options(parser)
    multihost.add_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit status. UserError for bad input."""
    args, rest = cli.parse(arguments(), argv)
    if rest:
        raise UserError(f"--config.{next(iter(rest))} belongs to dit.train; see --help")
    if args.compare:
        return run_comparison(args)
    demanded = [demands.parse(text) for text in args.demand]
    names = ("solver", "grid", "steps", "guidance", "seed", "batch", "rollout")
    given = {k: getattr(args, k) for k in names if getattr(args, k) is not None}
    negative = {} if args.negative is None else {"negative": (args.negative,)}
    rules(Recipe(num=args.num, task=args.task, **given))
    multihost.connect(args)
    with multihost.guard(storage.workdir(args.workdir), writes=False), cli.full_disk():
        return run(args, given | negative, demanded)


def run_comparison(args: argparse.Namespace) -> int:
    """Compare the scores of two runs or files, and print what can be said; the exit status."""
    usual = {name: arguments().get_default(name) for name in vars(args)}
    odd = [name for name, value in vars(args).items() if value != usual[name] and name != "compare"]
    if odd:
        raise UserError(f"got --{odd[0]} with --compare, which draws nothing; leave it out")
    sides = [compare.read(address) for address in args.compare]
    print(f"is {sides[1].name} better than {sides[0].name}?")
    print("\n".join(str(verdict) for verdict in compare.compare(*sides)))
    return 0


def chosen_bucket(experiment: Experiment, args: argparse.Namespace) -> Experiment:
    """The experiment on the data of the shape asked for; UserError for none, and none of several."""
    example = experiment.example
    shapes = [tuple(shape[:3]) for shape in example.get("shapes", [example["shape"]])]
    wanted, distinct = cli.size_of(args, shapes[0]), dict.fromkeys(shapes)
    if args.rollout or experiment.config.samples.rollout:
        return rollouts.lasting(experiment, wanted)
    if wanted not in shapes or (len(distinct) > 1 and not (args.size or args.frames)):
        known = ", ".join(f"--size={h}x{w} --frames={f}" for f, h, w in distinct)
        raise UserError(
            "samples are compared with data of one shape: give one of those that the model was trained "
            f"on, {known}"
        )
    return experiment.bucket(shapes.index(wanted))


def run(args: argparse.Namespace, given: dict[str, Any], demanded: list[Demand]) -> int:
    """Draw, judge and write; the exit status. Process 0 does what comes after drawing."""
    experiment = load_experiment(args.workdir, args.step)
    if experiment.process is None:
        return run_autoencoder(args, experiment, given, demanded)
    if not experiment.codec.pixels:
        raise UserError(
            "this model makes latents: decode samples (dit.sample --out=samples.npz) with the "
            "autoencoder they belong to, and evaluate the pixels"
        )
    name = "scores.json" if args.scores else "evaluation.json"
    out = storage.place(args.out or storage.workdir(args.workdir) / name)
    if multihost.is_main():
        media.check_place(out, (".json",))
    one = chosen_bucket(experiment, args)
    recipe, conditions = scoring.recipe_of(one, args.num, args.split)
    recipe = experts.chosen(dataclasses.replace(recipe, **given), args)
    captions = recipe.prompts
    if args.pairs:
        raise UserError("got --pairs, which is for autoencoders; leave it out")
    for name in ("reference", "keep"):
        if getattr(args, name) and not args.scores:
            raise UserError(f"got --{name} without --scores, which it is for; leave it out")
    if args.blank and not captions:
        raise UserError("got --blank for a model that is given no prompts; leave it out")
    if args.split != "held_out" and not one.conditions:
        raise UserError(f"got --split={args.split} for a model that is told nothing of the data's")
    if args.blank:
        recipe = dataclasses.replace(recipe, prompts=("",) * args.num)
    if args.task is not None:
        if args.scores or args.num < 2 or args.task == "text_to_video":
            raise UserError(
                f"got --task={args.task}; expected one that is given frames, with --num=2 or more and "
                "without --scores"
            )
        recipe, conditions["start"] = edits.with_frames(one, recipe, args.task, args.split)
    sampler = Sampler(one, recipe)
    if args.task is not None:
        sampler.check(False, conditions)
    judge: Evaluation | scoring.Scoring
    keep = storage.place(args.keep) if args.keep else None
    if keep is not None and multihost.is_main():
        media.check_place(keep, (".npz",))
    if args.scores:
        seen, against = scoring.seen_by(args.features), args.reference or "train"
        about = args.num, seen, args.scores, against
        mesh, kept = make_mesh(parse_mesh(args.mesh)), storage.workdir(args.workdir) / "scores"
        judge = scoring.plan(one, *about, mesh, kept, captions, keep)
    else:
        seams = None if sampler.rollout is None else sampler.rollout.seams
        judge = evaluation_of(one.source, args.num, captions, args.split, args.features, seams)
    others = ("sampling_seconds", "nfe", "held_out_loss", "held_out_loss_error")
    others = (*others, *(evaluated.FIGURES if args.task is not None else ()))
    for demand in demanded:
        demand.check((*judge.figures, *others), judge.left_out)
    for why in dict.fromkeys(judge.left_out.values()):
        names = [name for name, other in judge.left_out.items() if other == why]
        multihost.say(f"not measured, {why}: {', '.join(names)}")
    restored = load_params(experiment, args.workdir, args.ema, args.step, args.mesh)
    loss = held_out_loss(experiment, restored.params)
    if not np.isfinite(loss["held_out_loss"]):
        raise UserError(
            f"the held-out loss of these parameters is {loss['held_out_loss']}: training diverged; "
            "evaluate an earlier checkpoint (--step)"
        )
    multihost.say(
        f"drawing {args.num} samples: {recipe.solver}, {recipe.steps} steps, {recipe.guidance}"
    )
    report: dict[str, Any] = {"not_measured": judge.left_out}
    if isinstance(judge, scoring.Scoring):
        drawn = judge.draw(sampler, restored.params, **conditions)
        figures, report["protocol"] = dict(drawn.figures), drawn.protocol
    else:
        multihost.say(f"judging them at {judge.size} pixels")
        drawn = sampler(restored.params, **conditions)
        figures = judge(drawn.samples, drawn.labels) if multihost.is_main() else {}
        if args.task is not None:
            real = conditions["start"]
            control = sampler(restored.params, **{**conditions, "start": np.roll(real, 1, 0)})
            if multihost.is_main():
                figures |= evaluated.score(drawn.samples, control.samples, real, sampler.kept)
    if not multihost.is_main():
        return 0
    figures |= {"sampling_seconds": drawn.seconds, "nfe": float(drawn.nfe)} | loss
    report = {"figures": figures, **report}
    report["recipe"] = stamped(recipe, restored, drawn.nfe, experts.digests(recipe))
    whose = {"held_out": "held-out", "train": "training"}[args.split]
    classes = f"of {whose} examples" if one.conditions else "in turn"
    classes = "without labels" if experiment.num_classes is None else f"classes {classes}"
    report["recipe"]["labels"] = f"{args.num} samples, {classes}"
    if captions:
        asked = f"the captions of {args.num} {whose} examples"
        report["recipe"]["prompts"] = f"empty, and judged by {asked}" if args.blank else asked
    report["recipe"]["shape"] = list(one.source.shape)
    if not args.scores:
        report["recipe"]["judged_at"] = judge.size
    report["recipe"]["features"] = list(args.features)
    return finish(figures, report, out, demanded)


def run_autoencoder(
    args: argparse.Namespace,
    experiment: Experiment,
    given: Mapping[str, Any],
    demanded: Sequence[Demand],
) -> int:
    """Compare held-out pictures with their reconstructions, and write the figures; the exit status."""
    names = ("blank", "task", "features", "scores", "reference", "keep", *experts.OPTIONS)
    drawing = [f"--{name}" for name in (*given, *(name for name in names if getattr(args, name)))]
    if drawing:
        raise UserError(
            f"got {drawing[0]} for an autoencoder, which draws no samples; leave it out"
        )
    reconstruct.check(experiment)
    out = storage.place(args.out or storage.workdir(args.workdir) / "evaluation.json")
    one = chosen_bucket(experiment, args)
    if multihost.is_main():
        media.check_place(out, (".json",))
        if args.pairs:
            media.check_place(args.pairs, (".png", *media.MOVING))
    restored = load_params(experiment, args.workdir, args.ema, args.step, args.mesh)
    figures, left_out = reconstruct.figures(one, restored.params, args.num, args.split)
    if args.pairs:
        reconstruct.draw_pairs(one, restored, args.pairs, args.num, args.split)
    if args.ema is None and args.step is None:  # what a codec takes, too: of a run that was stopped
        reconstruct.measure_latents(experiment, restored, storage.workdir(args.workdir))
    for name, why in left_out.items():
        multihost.say(f"not measured: {name}: {why}")
    for demand in demanded:
        demand.check(figures, left_out)
    if not multihost.is_main():
        return 0
    report = {"figures": figures, "not_measured": left_out}
    report["recipe"] = {**reconstruct.stamped(restored), "shape": list(one.source.shape)}
    report["recipe"]["split"] = args.split
    return finish(figures, report, out, demanded)


def finish(
    figures: Mapping[str, float],
    report: Mapping[str, Any],
    out: storage.Place,
    demanded: Sequence[Demand],
) -> int:
    """Print the figures, write the report, and compare with what is demanded; the exit status."""
    print("\n".join(lines(figures)))
    storage.write(out, json.dumps(report, indent=2) + "\n")
    print(f"written to {out}")
    unmet = [failure for demand in demanded if (failure := demand.failure(figures))]
    for failure in unmet:
        print(f"unmet demand {failure}", file=sys.stderr)
    return UNMET if unmet else 0


if __name__ == "__main__":
    cli.run(main)
