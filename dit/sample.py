"""Draw samples from a trained model: ``python -m dit.sample --workdir=DIR --labels=0,1,2``.

The suffix of ``--out`` decides what is written: a ``.png`` grid (a filmstrip for clips) that carries
its recipe, a moving ``.gif``, or ``.npz`` arrays. ``--like=grid.png`` reads the recipe of a PNG and
makes the same picture again, bit for bit on the same machine.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dit import cli, media
from dit.config import call
from dit.data.npy import read_npz
from dit.draw import Recipe, Sampler, load, load_params, recipe_from, stamped
from dit.experiment import Experiment
from dit.parallel.mesh import OPTION
from dit.types import UserError


def read_data(path: str, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array ``key`` of an .npz file as ``n f h w c``; UserError if it does not fit."""
    array = read_npz(path, key)
    if array.ndim == 4:
        array = array[:, None]
    if array.shape[1:] != shape:
        raise UserError(f"got {key} of shape {array.shape} in {path}; expected (n, *{shape})")
    return array


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dit.sample", description=__doc__)
    add = parser.add_argument
    add("--workdir", required=True, help="where the model was trained")
    add("--out", default="samples.png", help="a .png, .gif or .npz file (default: %(default)s)")
    add("--labels", help="class labels, like 0,1,5-7 (default: the config's)")
    add("--num", type=int, help="how many samples: without --labels, cycling through the classes")
    add("--solver", help="name or name:key=value,... of a solver, such as heun or ddim:eta=0.5")
    add("--grid", help="of a time grid, such as uniform or karras:rho=7")
    add("--steps", type=int, help="solver steps")
    add("--guidance", help="a classifier-free scale (1: off), or a rule, such as apg:scale=4")
    add("--seed", type=int)
    add("--batch", type=int, help="samples made at once")
    add("--mesh", default="dp", help=f"of all devices: {OPTION}")
    add("--ema", help="which parameters: params, or an average, such as ema_6931")
    add("--step", type=int, help="which checkpoint (default: the latest)")
    add("--weak", help="the average that autoguidance steers away from")
    add("--init", help=".npz with 'samples' (uint8) to start from: image-to-image")
    add("--strength", type=float, help="how much of the way from --init to noise, in (0, 1]")
    add("--mask", help=".npz with 'mask', true where --init is kept: inpainting")
    add("--like", help="a PNG whose recipe is followed; other options override it")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; UserError for bad input."""
    args, rest = cli.parse(arguments(), argv)
    if rest:
        raise UserError(f"--config.{next(iter(rest))} belongs to dit.train; see --help")
    stamp = media.read_recipe(args.like) if args.like else {}
    which = args.ema or stamp.get("ema")
    step = stamp.get("checkpoint_step") if args.step is None else args.step
    made, restored = load(args.workdir, which, step, args.mesh)
    same = stamp.get("checkpoint_fingerprint", restored.fingerprint) == restored.fingerprint
    if not same and args.step is None and args.ema is None:
        raise UserError(
            f"{args.like} was made from checkpoint {stamp['checkpoint_fingerprint']} and step "
            f"{restored.step} in {args.workdir} is {restored.fingerprint}: another run's. Give the "
            "workdir it came from"
        )
    recipe = choose(args, made, stamp)
    weak = None
    if args.weak:
        weak = load_params(made, args.workdir, args.weak, step, args.mesh).params
    start = read_data(args.init, "samples", made.shape) if args.init else None
    mask = read_data(args.mask, "mask", made.shape) if args.mask else None
    drawn = Sampler(made, recipe)(restored.params, weak=weak, start=start, mask=mask)
    media.save_samples(args.out, drawn.samples, drawn.labels, stamped(recipe, restored, drawn.nfe))
    print(
        f"{len(drawn.samples)} samples in {drawn.seconds:.2f} s after compilation, "
        f"{drawn.nfe} network evaluations each, from {restored.which} at step {restored.step}: "
        f"{args.out}"
    )


def choose(args: argparse.Namespace, made: Experiment, stamp: Mapping[str, Any]) -> Recipe:
    """The recipe of the command line: over the PNG's if there is one, over the config's if not."""
    recipe = recipe_from(made.config.samples.to_dict(), made.num_classes)
    if stamp:
        missing = [f.name for f in dataclasses.fields(Recipe) if f.name not in stamp]
        if missing:
            raise UserError(f"the recipe in {args.like} lacks {', '.join(missing)}; was it edited?")
        fields = {f.name: stamp[f.name] for f in dataclasses.fields(Recipe)}
        recipe = call(Recipe, f"the recipe in {args.like}", **fields)
    if args.num is not None:
        recipe = recipe_from({**dataclasses.asdict(recipe), "num": args.num}, made.num_classes)
    if args.labels is not None:
        labels = tuple(cli.parse_labels(args.labels, made.num_classes))
        recipe = dataclasses.replace(recipe, labels=labels, num=len(labels))
    names = ("solver", "grid", "steps", "guidance", "seed", "batch", "strength")
    given = {k: getattr(args, k) for k in names if getattr(args, k) is not None}
    return dataclasses.replace(recipe, **given)


if __name__ == "__main__":
    cli.run(main)
