"""Will it fit, how fast, for how much: ``python -m dit.preflight --config=FILE --topology=v5e:16x16``.

Compiles the real train step (with ``--sampler`` the sampler too) with the real compiler of a pod, on
any machine, and prints where its memory goes, what it computes and communicates, how long a step
should take, and what the run takes to its end: hours, chip-hours, and their cost at ``--price``.
``--max-batch`` finds the largest batch that fits; ``--sweep`` the best mesh, remat policy and batch.
If examples have several shapes, the step of each is compiled, and hours follow from the mean step.
Nothing is run, no data are read. For a TPU the compiler gets the flags that the launchers set, or what
``LIBTPU_INIT_ARGS`` or ``--flags`` says instead.

Exit status: 0 it fits; 2 bad input, in one line; 3 it does not fit (of a sweep: nothing does); 1
anything else.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from dit import cli
from dit.experiment import build, load_config
from dit.parallel import flags, topology
from dit.parallel.frozen import without
from dit.parallel.mesh import OPTION, make_mesh, parse_mesh
from dit.preflight import advice, buckets, cost, programs, report, search
from dit.preflight.account import Choice, account
from dit.sections import mesh_sizes
from dit.types import Count, Positive, UserError

DOES_NOT_FIT = 3
PIXELS = 3  # channels of pictures; latents have more
FILES = ("path", "tokenizer")  # of a text encoder


def arguments() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="dit preflight",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", required=True, help="a Python file with get_config()")
    add("--topology", default="", help="v5e:16x16, cuda:8:h100, cpu:8 (default: the devices here)")
    add(
        "--slices",
        type=cli.number(Count),
        default=1,
        help="of a multi-slice pod (default: %(default)s)",
    )
    add("--mesh", help=OPTION)
    add(
        "--batch",
        type=cli.number(Count),
        help="images a step, over all devices (default: the config's)",
    )
    add("--remat", help="policy (default: the config's)")
    add("--flags", help="of the TPU compiler; none, or '--xla_a=b ...' (default: the launchers')")
    add(
        "--encoders",
        help="sizes of the config's text encoders where their files are not here: t5-xxl",
    )
    add("--sampler", action="store_true", help="compile the sampler of the config too")
    add("--price", type=cli.number(Positive), help="of one chip for one hour: what the run costs")
    add(
        "--images",
        type=cli.number(Count),
        help="hours and cost are of training on so many (default: the config's steps)",
    )
    add("--max-batch", action="store_true", help="find the largest batch that fits")
    add("--sweep", action="store_true", help="find the best mesh, remat policy and batch size")
    add(
        "--tries",
        type=cli.number(Count),
        default=4,
        help="what a sweep compiles that fits (default: %(default)s)",
    )
    add("--out", help="write the report here as JSON; a sweep keeps its rows here, and resumes")
    add("--json", action="store_true", help="print JSON instead of tables")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; UserError for bad input."""
    args, overrides = cli.parse(arguments(), argv)
    check(args)
    set_flags(args.topology, args.flags)
    where = topology.find(args.topology, args.slices)
    config = stand_in(load_config(args.config, overrides), where, args.encoders)
    if args.sweep:
        return sweep(config, where, args)
    if args.max_batch:
        return max_batch(config, where, args)
    experiment = build(chosen(config, args.mesh, args.batch, args.remat))
    reports = buckets.train_steps(experiment, where)
    rows = [each.as_json() for each in reports]
    step = buckets.mean(rows)
    rows[0] |= cost.cost(step, args.price, args.images)
    if args.sampler and reports[0].fits:
        reports.append(programs.sampler(experiment.bucket(experiment.used[0]), where))
        rows.append(reports[-1].as_json())
    if not args.json:
        show(reports[0], step, experiment.config, where, args)
        for each in reports[1:]:
            print(report.table(each))
            if not each.fits:
                print("draw fewer at a time: --config.samples.batch")
    write(args, rows)
    return 0 if all(each.fits for each in reports) else DOES_NOT_FIT


def check(args: argparse.Namespace) -> None:
    """Raise UserError for options that cannot work, before any work begins."""
    together = [name for name in ("sweep", "max_batch", "sampler") if getattr(args, name)]
    if len(together) > 1:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in together)
        raise UserError(f"got {names}; expected one of them at a time")
    if args.max_batch and args.batch is not None:
        raise UserError(
            "got --max-batch and --batch; expected one of them: the first finds the second"
        )
    if args.out is not None:
        path = pathlib.Path(args.out)
        if not args.out or path.is_dir() or not path.absolute().parent.is_dir():
            raise UserError(f"got --out={args.out!r}; expected a file in a directory that exists")
        at = path if path.exists() else path.absolute().parent
        if not os.access(at, os.W_OK):
            raise UserError(f"got --out={args.out!r}; expected a file that can be written")


def set_flags(name: str, text: str | None) -> None:
    """Set the flags that a topology is launched with: libtpu reads them once, when it is loaded.

    ``text``: other flags, ``"none"``, or None for what ``LIBTPU_INIT_ARGS`` says, if it is set, or
    else the launchers'. Raises UserError for flags without a TPU, and for text that is no flags.
    """
    (variable,) = flags.variables("v4")
    chip = name.partition(":")[0]
    if chip not in flags.TPUS:
        if text is not None:
            raise UserError(
                f"--flags are the TPU compiler's; got topology {name or 'of this host'!r}"
            )
    elif text is None:
        os.environ.setdefault(variable, flags.variables(chip)[variable])
    elif text == "none" or all(word.startswith("--") for word in text.split()):
        os.environ[variable] = "" if text == "none" else text
    else:
        raise UserError(f"got --flags={text!r}; expected 'none', or flags that each begin with --")


def stand_in(
    config: ConfigDict, where: topology.Topology, encoders: str | None = None
) -> ConfigDict:
    """The config with noise of the data's shape, in the precision of the devices.

    Noise with captions, for a config that reads text: encoders are counted as part of the step.
    ``encoders``: published sizes in the place of the config's, in their order. A codec whose files are
    not here gives way to the one of stored latents, which are all that it would be given. Raises
    UserError for sizes that are not as many as the encoders.
    """
    config = ConfigDict(config)
    data = config.data
    if data.get("shape") is not None and data.name != "noise":
        shape, classes = data.shape, data.num_classes
        noise = {"name": "noise", "shape": shape, "num_classes": classes}
        config.data = ConfigDict({**noise, "captioned": "text" in config})
        path = config.codec.get("path")
        if path is not None and not pathlib.Path(path).exists() and shape[-1] > PIXELS:
            config.codec = ConfigDict({"name": "latent", "scale": 1.0, "shift": 0.0})
            config.mesh.whole = without("codec", config.mesh.whole)
    if encoders is not None:
        config.text.encoders = published(config, encoders.split(","))
    if config.precision.compute == "auto" and where.platform != "cpu":
        config.precision.compute = "bfloat16"
    config.loader.workers = 0
    return config


def published(config: ConfigDict, sizes: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """The config's text encoders with published sizes and no files; UserError for another number."""
    asked = config.get("text", ConfigDict()).get("encoders", ())
    if len(sizes) != len(asked):
        raise UserError(
            f"got --encoders={','.join(sizes)} for a config of {len(asked)} pretrained text encoders; "
            "expected a size for each"
        )
    own = [{k: v for k, v in dict(each).items() if k not in FILES} for each in asked]
    return tuple(
        {**kept, "name": "published", "size": size} for kept, size in zip(own, sizes, strict=True)
    )


def chosen(
    config: ConfigDict,
    mesh: str | Mapping[str, int] | None,
    batch: int | None,
    remat: str | None,
) -> dict[str, Any]:
    """The config with the mesh, batch and remat policy of the command line, or of a search."""
    out = config.to_dict()
    if mesh is not None:
        sizes = parse_mesh(mesh) if isinstance(mesh, str) else dict(mesh)
        out["mesh"] = {"whole": out["mesh"]["whole"], **sizes}
    if batch is not None:
        out["batch_size"] = batch
    if remat is not None and "remat" in out["model"]:
        out["model"]["remat"] = remat
    elif remat not in (None, "none"):
        raise UserError(f"got remat={remat!r}; network {out['model']['name']!r} has no such choice")
    return out


def show(
    found: report.Report,
    row: dict[str, Any],
    config: ConfigDict,
    where: topology.Topology,
    args: argparse.Namespace,
) -> None:
    """Print the table of a train step, with its cost, or with what to change if it does not fit."""
    print(report.table(found), flush=True)
    if found.fits:
        print(f"\n{cost.line(row, args.price, args.images)}", flush=True)
        return
    own = account(experiment_with(config), where)
    tried = Choice(found.mesh, found.remat, found.images)
    print(advice.advise(found.memory["needed"], tried, own, where), flush=True)


def experiment_with(config: ConfigDict) -> Any:
    """``f(policy)``: the experiment with another remat policy."""
    return lambda policy: buckets.largest(chosen(config, None, None, policy))


def max_batch(config: ConfigDict, where: topology.Topology, args: argparse.Namespace) -> int:
    """Find and show the largest batch that fits; status 3 if none does."""
    if where.hbm is None:
        raise UserError(f"--max-batch needs a chip whose memory is known; got {where.name!r}")
    first = chosen(config, args.mesh, None, args.remat)
    mesh = make_mesh(mesh_sizes(**first["mesh"]), where.devices)
    unit = mesh.shape["data"] * mesh.shape["fsdp"] * config.optimizer.get("accumulate", 1)
    reports: dict[int, report.Report] = {}

    def compiled(batch: int) -> dict[str, Any]:
        experiment = buckets.largest(chosen(config, args.mesh, batch, args.remat))
        reports[batch] = programs.train_step(experiment, where)
        row = reports[batch].as_json()
        say(args, f"batch {batch}: {report.one_line(row)}")
        return row

    best, worst, tried = search.largest_batch(compiled, config.batch_size, unit)
    batch = (best or worst)["images"]
    settled = chosen(config, args.mesh, batch, args.remat)
    final = buckets.averaged(settled, where, reports[batch])
    final |= cost.cost(final, args.price, args.images)
    if not args.json:
        if best is not None:
            more = f"; {worst['images']} does not" if worst else ""
            print(f"the largest batch that fits is {batch}{more} ({tried} compiled)\n")
        show(reports[batch], final, ConfigDict(settled), where, args)
    write(args, [final])
    return 0 if best else DOES_NOT_FIT


def sweep(config: ConfigDict, where: topology.Topology, args: argparse.Namespace) -> int:
    """Compile the most promising meshes, policies and batches and rank them; status 3 if none fits."""
    rows = search.Rows(args.out)
    own = account(experiment_with(config), where)
    base = args.batch or config.batch_size
    given = parse_mesh(args.mesh) if args.mesh else None
    mesh = dict(make_mesh(given, where.devices).shape) if given else None
    candidates = search.choices(
        own,
        where,
        meshes=[mesh] if mesh else None,
        policies=[args.remat] if args.remat else None,
        batches=[base] if args.batch else [base, 2 * base],
    )
    say(args, f"{len(candidates)} could fit by formula; compiling until {args.tries} do")

    def settings(choice: Choice) -> dict[str, Any]:
        return chosen(config, choice.mesh, choice.batch, choice.remat)

    def compiled(choice: Choice) -> dict[str, Any]:
        name = f"--mesh={advice.mesh_text(choice)} --remat={choice.remat} --batch={choice.batch}"
        first = programs.train_step(buckets.largest(settings(choice)), where)
        return {"name": name, **buckets.averaged(settings(choice), where, first)}

    def told(choice: Choice, found: dict[str, Any] | UserError) -> None:
        text = str(found) if isinstance(found, UserError) else report.one_line(found)
        say(args, f"{advice.mesh_text(choice)}, remat {choice.remat}, batch {choice.batch}: {text}")

    key = functools.partial(search.digest, where=where, what="train step")
    ranked = search.sweep(
        candidates, compiled, lambda choice: key(settings(choice)), rows, args.tries, told
    )
    ranked = [row | cost.cost(row, args.price, args.images) for row in ranked]
    if args.json:
        print(json.dumps(ranked, indent=2))
    else:
        print("\nranked by time to the same number of images:")
        for row in ranked:
            print(f"  {row['name']}: {report.one_line(row)}")
            if row["fits"]:
                print(f"    {cost.line(row, args.price, args.images)}")
    fits = any(row["fits"] for row in ranked)
    if not fits and not args.json:
        least = min(
            (
                Choice(search.sizes(name, where), own.policies[-1], base)
                for name in ("fsdp", "fsdp+context")
            ),
            key=lambda choice: sum(own.parts(choice)),
        )
        print(advice.advise(sum(own.parts(least)), least, own, where))
    return 0 if fits else DOES_NOT_FIT


def say(args: argparse.Namespace, text: str) -> None:
    """Progress: beside JSON it goes to stderr."""
    print(text, file=sys.stderr if args.json else sys.stdout, flush=True)


def write(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """The reports as JSON, to the screen, a file, or both."""
    text = json.dumps(rows, indent=2)
    if args.json:
        print(text)
    if args.out:
        pathlib.Path(args.out).write_text(f"{text}\n")
        print(f"written to {args.out}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
