"""Draw samples from a trained model: ``python -m dit.sample --workdir=DIR --labels=0,1,2``.

A model that reads text takes ``--prompt="a red circle"``, which may be repeated, or ``--prompts=FILE``,
one a line; ``--negative`` says what guidance is to lead away from. The prompts are drawn beneath the
pictures.

The suffix of ``--out`` decides what is written: a ``.png`` grid (a filmstrip for clips) that carries
its recipe, a moving ``.gif``, ``.webp`` or ``.mp4``, or ``.npz`` arrays. ``--like=grid.png`` reads the
recipe of a PNG and makes the same picture again, bit for bit on the same machine; what an edit began
with must be given again (``--init``, ``--mask``, ``--image``, ...), and must be the same. The training
data need not be there.

A model of clips goes on from what it is given: ``--image=first.png``, with ``--last=last.png`` from one
to the other, or ``--video=clip.mp4 --task=extend`` (``extend_back``, ``in_between``, ``inpaint``). What
is given comes out as it went in. ``--video=clip.mp4 --strength=0.6`` draws another clip like it. Files
must have the size of the samples, ``--size``.

``--frames=40 --rollout=autoregressive:block=4`` makes a clip that is longer than those the model was
trained on, of which it sees a window at once; ``--image`` and ``--task=extend`` go on from files so.

``--low=WORKDIR --boundary=0.875`` draws with two networks, of which the other is used at times below:
Wan 2.2's, of which a converted directory with both says so itself.

On several hosts the same command runs on each of them, as for ``dit.train``; the first one writes.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dit import cli, experts, given, media, storage
from dit.config import call
from dit.data.npy import npz_names, read_npz
from dit.data.source import check_finite, digest
from dit.draw import (
    Sampler,
    load_experiment,
    load_params,
)
from dit.experiment import Experiment
from dit.parallel import multihost
from dit.parallel.mesh import OPTION
from dit.prompts import MADE_BY, check_made_by, read_prompts
from dit.recipe import LATER, Recipe, recipe_from, rules, stamped
from dit.types import Count, Positive, Seed, Share, UserError, Whole

INPUTS = ("init", "image", "last", "video", "mask")  # options that name files, in a recipe


def read_data(path: str, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array ``key`` of an .npz file as ``n f h w c``; UserError if it does not fit."""
    array = read_npz(path, key)
    if array.ndim == 4:
        array = array[:, None]
    if array.shape[1:] != shape:
        raise UserError(f"got {key} of shape {array.shape} in {path}; expected (n, *{shape})")
    if np.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
        raise UserError(f"{key} in {path} holds values that are not finite")
    return array


def read_mask(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array ``mask`` of an .npz file as truth values; UserError for other numbers than 0 and 1."""
    return truth(read_data(path, "mask", shape), path, "--init is kept")


def read_conditions(
    path: str, names: Sequence[str], made_by: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; UserError for one that the model does not take, or not finite.

    And for embeddings by other encoders than its data's, ``made_by``.
    """
    found = {name: read_npz(path, name) for name in npz_names(path)}
    if MADE_BY in found:
        check_made_by(str(found.pop(MADE_BY)), made_by, path)
    for name, array in found.items():
        if name not in (*names, "context_mask"):
            raise UserError(f"got {name!r} in {path}; the model takes {', '.join(names) or 'none'}")
        check_finite(array, lambda name=name: f"{name} in {path}")
    if "context_mask" in found:
        found["context_mask"] = truth(found["context_mask"], path, "a token of the context is real")
    return found


def truth(mask: np.ndarray, path: str, means: str) -> np.ndarray:
    """``mask`` as truth values; UserError for other numbers than 0 and 1."""
    if not np.isin(mask, (0, 1)).all():
        raise UserError(
            f"the mask in {path} holds {mask.dtype} values other than 0 and 1; expected true where "
            f"{means}"
        )
    return mask.astype(bool)


def arguments() -> argparse.ArgumentParser:
    parser = cli.Parser(prog="dit sample", description=__doc__)
    add = parser.add_argument
    add("--workdir", required=True, help="where the model was trained")
    add(
        "--out",
        default="samples.png",
        help="a .png, .gif, .webp, .mp4 or .npz file (default: %(default)s)",
    )
    add(
        "--fps", type=cli.number(Positive), help="frames a second of a file that moves (default: 8)"
    )
    add("--labels", help="class labels, like 0,1,5-7 (default: the config's)")
    add(
        "--num",
        type=cli.number(Count),
        help="how many samples: in place of --labels, cycling through the classes, or the prompts",
    )
    add("--prompt", action="append", metavar="TEXT", help="what to draw; may be repeated")
    add("--prompts", metavar="FILE", help="a text file of prompts, one a line")
    add(
        "--negative",
        action="append",
        metavar="TEXT",
        help="what guidance leads away from, in place of the null condition: one for all, or one for "
        "each prompt",
    )
    add("--solver", help="name or name:key=value,... of a solver, such as heun or ddim:eta=0.5")
    add("--grid", help="of a time grid, such as uniform or karras:rho=7")
    add("--steps", type=cli.number(Count), help="solver steps")
    add("--guidance", help="a classifier-free scale (1: off), or a rule, such as apg:scale=4")
    add("--seed", type=cli.number(Seed))
    add("--batch", type=cli.number(Count), help="samples made at once")
    add("--mesh", default="dp", help=f"of all devices: {OPTION}")
    add("--ema", help="which parameters: params, or an average, such as ema_6931")
    cli.add_size(parser, "the samples (default: of the first shape trained on)")
    add("--step", type=cli.number(Whole), help="which checkpoint (default: the latest)")
    add("--weak", help="the average that autoguidance steers away from")
    add("--init", help=".npz with 'samples' (uint8) to start from: image-to-image")
    add("--image", metavar="FILE", help="a picture, the first frame: image to video")
    add(
        "--last",
        metavar="FILE",
        help="a picture, the last frame; with --image, from one to the other",
    )
    add("--video", metavar="FILE", help="a clip: see --task, --strength and --mask")
    add(
        "--task",
        help="what is given of --video or --init: extend (its last frames, which come first), "
        "extend_back, in_between, inpaint, or any of objective.tasks, such as extend:frames=3",
    )
    add(
        "--rollout",
        help="of clips: how frames come to be, also of more --frames than the model was trained on: "
        "autoregressive:block=4, pyramid, full, or autoregressive:cache=true,sinks=1 of a frame-causal "
        "model; each with window=N frames seen at once, noise=T of those that are done",
    )
    add(
        "--strength",
        type=cli.number(Share),
        help="how much of the way from --init or --video to noise, in (0, 1]",
    )
    add("--mask", help=".npz with 'mask', true where --init or --video is kept")
    add(
        "--known",
        choices=("noised", "clean", "channels"),
        help="how the network sees what is kept: noised with the rest; clean, for a model trained with "
        "tokens or frames that are (objective.tasks; objective.level=token or frame); or as channels, "
        "for one trained so (section concat). Default: channels for such a model; else noised with "
        "--mask, clean with a task where the model allows",
    )
    add(
        "--cond",
        help=".npz with the other conditions of each sample, by the names of Cond's fields",
    )
    add("--like", help="a PNG whose recipe is followed; other options override it")
    experts.add_options(parser)
    multihost.add_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; UserError for bad input."""
    args, rest = cli.parse(arguments(), argv)
    if rest:
        raise UserError(f"--config.{next(iter(rest))} belongs to dit.train; see --help")
    check(args)
    multihost.connect(args)
    with multihost.guard(storage.workdir(args.workdir), writes=False), cli.full_disk():
        run(args)


def check(args: argparse.Namespace) -> None:
    """Raise UserError for options that cannot work, whatever the model is."""
    if args.num is not None and args.labels is not None:
        raise UserError("got both --labels and --num; expected one of them: labels have a number")
    if args.prompt and args.prompts is not None:
        raise UserError("got both --prompt and --prompts; expected one of them")
    moves = storage.place(args.out).suffix.lower() in media.MOVING
    if args.fps is not None and not moves and args.video is None:
        raise UserError(
            f"--fps is of no effect on {args.out!r}: files that move end in {', '.join(media.MOVING)}"
        )
    if args.known is not None and not any((args.mask, args.image, args.last, args.task)):
        raise UserError(
            "--known is of no effect without --mask, which says what is kept, or a task"
        )
    for option in ("mask", "strength"):
        if getattr(args, option) is not None and args.init is None and args.video is None:
            raise UserError(f"--{option} is of no effect without --init or --video to start from")
    given.check_options(args)
    rules(Recipe(**chosen(args, "num")))


def run(args: argparse.Namespace) -> None:
    """Draw and write, on process 0 of all that have come so far."""
    if multihost.is_main():
        media.check_place(args.out)
    stamp = media.read_recipe(args.like) if args.like else {}
    which = args.ema or stamp.get("ema")
    step = stamp.get("checkpoint_step") if args.step is None else args.step
    experiment = load_experiment(args.workdir, step)
    recipe = experts.chosen(choose(args, experiment, stamp), args)
    used: dict[str, Any] = {}
    if (size := size_asked(args, experiment, stamp)) != experiment.example["shape"][:3]:
        experiment = experiment.shaped((*size, experiment.example["shape"][3]))
        used = {"size": size}
    shape = experiment.codec.decoded_shape(experiment.shape)
    files = given.read_files(vars(args), shape, args.fps)
    recipe = given.with_task(recipe, experiment, files, args.known, args.mask is not None)
    sampler = Sampler(experiment, recipe)
    if args.init:
        start = read_data(args.init, "samples", shape)
    else:
        start = given.start_of(files, sampler.kept, recipe, shape)
    mask = read_mask(args.mask, sampler.shape) if args.mask else None
    conditions = {}
    if args.cond:
        made_by = experiment.example.get("text")
        conditions = read_conditions(args.cond, experiment.arrays, made_by)
    read = {"init": start if args.init else None, **files, "mask": mask, **conditions}
    inputs = {k: digest(v) for k, v in read.items() if v is not None} | experts.digests(recipe)
    check_inputs(args, stamp, inputs, (*INPUTS, *experiment.arrays, "low"))
    weak_name = args.weak or (stamp.get("weak") if sampler.autoguided else None)
    arrays = {"start": start, "mask": mask, **conditions}
    arrays = {k: v for k, v in arrays.items() if v is not None}
    sampler.check(weak_name is not None, arrays)
    shape = (sampler.n, *sampler.shape)
    media.check_drawable(
        args.out, shape, sampler.labels, experiment.codec.pixels, sampler.recipe.prompts
    )
    weak = None
    if weak_name is not None:
        loaded = load_params(experiment, args.workdir, weak_name, step, args.mesh)
        weak, inputs["weak"] = loaded.params, loaded.fingerprint
        check_inputs(args, stamp, inputs, ("weak",))
    restored = load_params(experiment, args.workdir, which, step, args.mesh)
    same = stamp.get("checkpoint_fingerprint", restored.fingerprint) == restored.fingerprint
    if not same and args.step is None and args.ema is None:
        raise UserError(
            f"{args.like} was made from checkpoint {stamp['checkpoint_fingerprint']} and step "
            f"{restored.step} in {args.workdir} is {restored.fingerprint}: another run's. Give the "
            "workdir it came from"
        )
    arrays["weak"] = weak
    if storage.place(args.out).suffix.lower() == ".npz" and multihost.is_main():
        with media.npz_writer(args.out, sampler.n, sampler.labels, recipe.prompts) as write:
            nfe, seconds = sampler.draw(restored.params, write, **arrays)
    else:
        drawn = sampler(restored.params, **arrays)
        nfe, seconds = drawn.nfe, drawn.seconds
        if multihost.is_main():
            used |= {} if weak_name is None else {"weak": weak_name}
            recipe_of = {**stamped(recipe, restored, nfe, inputs), **used}
            words, fps = recipe.prompts, args.fps or media.FPS
            media.save_samples(
                args.out, drawn.samples, drawn.labels, recipe_of, captions=words, fps=fps
            )
    multihost.say(
        f"{sampler.n} samples in {seconds:.2f} s after compilation, {nfe} network evaluations each, "
        f"from {restored.which} at step {restored.step}: {args.out}"
    )


def size_asked(
    args: argparse.Namespace, experiment: Experiment, stamp: Mapping[str, Any]
) -> list[int]:
    """Frames, height and width of an example like the samples that are asked for.

    The options count frames and pixels of samples: where the data are latents, others than theirs.
    """
    *usual, channels = experiment.example["shape"]
    kept = stamp.get("size", usual)
    if args.size is None and args.frames is None:
        return list(kept)
    codec = experiment.codec
    latents = codec.encoded_shape((*kept, channels))
    *seen, colours = codec.decoded_shape(latents)
    asked = cli.size_of(args, seen)
    if seen == list(kept):
        return list(asked)
    return list(codec.encoded_shape((*asked, colours))[:3])


def check_inputs(
    args: argparse.Namespace,
    stamp: Mapping[str, Any],
    inputs: Mapping[str, str],
    names: tuple[str, ...],
) -> None:
    """Raise UserError unless what a picture was made from is given again, for one like it."""
    before = stamp.get("inputs", {})
    if not isinstance(before, Mapping):
        raise UserError(f"the recipe in {args.like} has inputs {before!r}; was it edited?")
    for name in names:
        wanted, got = before.get(name), inputs.get(name)
        if wanted not in (None, got):
            raise UserError(
                f"{args.like} was made with --{name}, of digest {wanted}; "
                f"{f'this one has {got}' if got else 'none was given'}. Give the same one, or leave "
                "--like out and say all of the recipe"
            )


def choose(args: argparse.Namespace, experiment: Experiment, stamp: Mapping[str, Any]) -> Recipe:
    """The recipe of the command line: over the PNG's if there is one, over the config's if not."""
    recipe = recipe_from(experiment.config.samples.to_dict(), experiment.num_classes)
    if stamp:
        names = [f.name for f in dataclasses.fields(Recipe)]
        missing = [name for name in names if name not in stamp and name not in LATER]
        if missing:
            raise UserError(f"the recipe in {args.like} lacks {', '.join(missing)}; was it edited?")
        fields = {name: stamp[name] for name in names if name in stamp}
        recipe = call(Recipe, f"the recipe in {args.like}", **fields)
    fields, num, labels = dataclasses.asdict(recipe), args.num, None
    prompts = args.prompt if args.prompts is None else read_prompts(args.prompts)
    if prompts:
        fields["prompts"], num = prompts, num or len(prompts)
    if args.negative:
        fields["negative"] = tuple(args.negative)
    if args.labels is not None:
        labels = tuple(cli.parse_labels(args.labels, experiment.num_classes))
        num = len(labels)
    if num is None:
        recipe = Recipe(**fields)
    else:
        recipe = recipe_from({**fields, "num": num}, experiment.num_classes)
    if labels is not None:
        recipe = dataclasses.replace(recipe, labels=labels)
    return dataclasses.replace(recipe, **chosen(args))


def chosen(args: argparse.Namespace, *more: str) -> dict[str, Any]:
    """The fields of a recipe that the options of the same names give, and ``more`` of them."""
    names = ("solver", "grid", "steps", "guidance", "seed", "batch", "strength", "known", "task")
    names = (*names, "rollout", *more)
    return {k: getattr(args, k) for k in names if getattr(args, k) is not None}


if __name__ == "__main__":
    cli.run(main)
