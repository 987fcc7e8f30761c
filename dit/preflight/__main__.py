"""Will it fit, and how fast will it be: ``python -m dit.preflight --config=FILE --topology=v5e:16x16``.

Compiles the real train step (with ``--sampler`` the sampler too) with the real compiler of a pod, on
any machine, and prints where its memory goes, what it computes and communicates, and how long a step
should take. ``--sweep`` ranks meshes, remat policies and batch sizes. Nothing is run, no data are read.
For a TPU the compiler gets the flags that the launchers set, or what ``LIBTPU_INIT_ARGS`` or ``--flags``
says instead. The exit status is 3 where the program does not fit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from dit import cli, experiment
from dit.parallel import flags, topology
from dit.parallel.mesh import OPTION, parse_mesh
from dit.preflight import programs, report
from dit.types import UserError

DOES_NOT_FIT = 3


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dit.preflight", description=__doc__)
    add = parser.add_argument
    add("--config", required=True, help="a Python file with get_config()")
    add("--topology", default="", help="v5e:16x16, cpu:8, cuda:N:FILE (default: the devices here)")
    add("--slices", type=int, default=1, help="of a multi-slice pod (default: %(default)s)")
    add("--mesh", help=OPTION)
    add("--batch", type=int, help="images a step, over all devices (default: the config's)")
    add("--remat", help="policy (default: the config's)")
    add("--flags", help="of the TPU compiler; none, or '--xla_a=b ...' (default: the launchers')")
    add("--sampler", action="store_true", help="compile the sampler of the config too")
    add("--sweep", action="store_true", help="try meshes, remat policies and batch sizes")
    add("--out", help="write the report here as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; UserError for bad input."""
    args, overrides = cli.parse(arguments(), argv)
    set_flags(args.topology, args.flags)
    where = topology.find(args.topology, args.slices)
    config = stand_in(experiment.load_config(args.config, overrides), where)
    if args.sweep:
        return sweep(config, where, args)
    made = experiment.build(chosen(config, args.mesh, args.batch, args.remat))
    reports = [programs.train_step(made, where)]
    if args.sampler and reports[0].fits:
        reports.append(programs.sampler(made, where))
    for each in reports:
        print(report.table(each), flush=True)
    write(args.out, [each.as_json() for each in reports])
    return 0 if all(each.fits for each in reports) else DOES_NOT_FIT


def set_flags(name: str, text: str | None) -> None:
    """Set the flags that a topology is launched with: libtpu reads them once, when it is loaded.

    ``text``: other flags, ``"none"``, or None for what ``LIBTPU_INIT_ARGS`` says, if it is set, or
    else the launchers'. Raises UserError for flags without a TPU, and for what are no flags.
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


def stand_in(config: ConfigDict, where: topology.Topology) -> ConfigDict:
    """The config with noise of the data's shape, in the precision of the devices."""
    config = ConfigDict(config)
    data = config.data
    if data.get("shape") is not None and data.name != "noise":
        shape, classes = data.shape, data.num_classes
        config.data = ConfigDict({"name": "noise", "shape": shape, "num_classes": classes})
    if config.precision.compute == "auto" and where.platform != "cpu":
        config.precision.compute = "bfloat16"
    config.loader.workers = 0
    return config


def chosen(
    config: ConfigDict, mesh: str | None, batch: int | None, remat: str | None
) -> dict[str, Any]:
    """The config with what the command line says of mesh, batch and remat policy."""
    out = config.to_dict()
    if mesh is not None:
        out["mesh"] = parse_mesh(mesh)
    if batch is not None:
        out["batch_size"] = batch
    if remat is not None:
        out["model"]["remat"] = remat
    return out


def sweep(config: ConfigDict, where: topology.Topology, args: argparse.Namespace) -> int:
    """Compile every combination and rank them; status 3 if none fits.

    By images a second, or where there is no prediction by memory.
    """
    base = args.batch or config.batch_size
    meshes = [args.mesh] if args.mesh else ["dp", "fsdp", "hsdp"]
    policies = [args.remat] if args.remat else ["none", "dots", "full"]
    tried = []
    for mesh, remat, batch in itertools.product(meshes, policies, (base, 2 * base)):
        name = f"mesh={mesh} remat={remat} batch={batch}"
        try:
            found = programs.train_step(experiment.build(chosen(config, mesh, batch, remat)), where)
        except UserError as error:
            print(f"{name}: {error}", flush=True)
            continue
        print(f"{name}: {report.one_line(found)}", flush=True)
        tried.append((name, found))
    ranked = sorted(tried, key=lambda pair: pair[1].rank)
    print("\nranked:")
    for name, found in ranked:
        print(f"  {name}: {report.one_line(found)}")
    write(args.out, [{"name": name, **found.as_json()} for name, found in ranked])
    return 0 if any(found.fits for _, found in ranked) else DOES_NOT_FIT


def write(path: str | None, reports: list[dict[str, Any]]) -> None:
    """The reports as JSON."""
    if path:
        pathlib.Path(path).write_text(json.dumps(reports, indent=2) + "\n")
        print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
