"""Scaling laws: ``python -m dit.scaling plan|run|fit|report --dir=DIR``.

``plan`` writes ``DIR/plan.json`` from a config and a budget. ``run`` trains the rows that are not done
yet; if it is killed, the same command continues. ``fit`` prints the law; ``report`` writes markdown,
figures and a table. For ``plan``, ``--config.section.field=value`` overrides a field of the config.
"""

from __future__ import annotations

import argparse
import logging
import pathlib
from collections.abc import Sequence
from typing import Annotated

import jax

from dit import cli, storage
from dit.experiment import build, load_config
from dit.scaling import ladder, plan, plan_file, report, run
from dit.scaling.costs import one_shape
from dit.scaling.evaluate import check_weights
from dit.scaling.surface import METHODS
from dit.training.workdir import plain
from dit.types import Count, NonNegative, Positive, Range, Share, UserError

Large = Annotated[float, Range(1, 1e36)]
Ratio = Annotated[float, Range(1, 1e6, open="low")]


def budgets(text: str) -> int | list[float]:
    """The number of budgets, or the cost of each."""
    return cli.number(Count)(text) if text.isdecimal() else cli.number(Large, several=True)(text)


def arguments() -> argparse.ArgumentParser:
    parser = cli.Parser(prog="dit scaling", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str):
        subparser = commands.add_parser(name, help=text)
        subparser.add_argument(
            "--dir", required=True, help="where plan, registry and runs are kept"
        )
        return subparser.add_argument

    add = command("plan", "from a budget to runs")
    add("--config", required=True, help="a Python file with get_config()")
    add("--total", type=cli.number(Large), help="FLOPs of all runs together")
    add("--device-hours", type=cli.number(Positive), help="the same, in hours of --chip")
    add("--chip", help="a chip of the data sheet, such as 'TPU v5e'")
    add(
        "--utilisation",
        type=cli.number(Share),
        default=0.4,
        help="share of its peak (default: %(default)s)",
    )
    add("--flops-per-second", type=cli.number(Large), help="the measured rate, instead of a chip")
    add("--devices", type=cli.number(Count), default=1)
    add(
        "--start-seconds",
        type=cli.number(NonNegative),
        default=20.0,
        help="to start and compile a run",
    )
    add(
        "--budgets",
        type=budgets,
        default="3",
        help="how many, or costs: 3e10,1e11,3e11 (default: %(default)s)",
    )
    add(
        "--spacing",
        type=cli.number(Ratio),
        default=10**0.5,
        help="ratio of budgets (default: %(default).3g)",
    )
    add(
        "--per-budget",
        type=cli.number(Count),
        default=5,
        help="sizes at each (default: %(default)s)",
    )
    add("--seeds", type=cli.number(Count), default=2)
    add(
        "--lrs",
        type=cli.number(Positive, several=True),
        default="1e-3,2e-3,4e-3",
        help="tried at each budget (default: %(default)s)",
    )
    add(
        "--batches",
        type=cli.number(Count, several=True),
        help="batch sizes tried at each budget (default: the config's)",
    )
    add(
        "--ratio",
        type=cli.number(Positive),
        default=20.0,
        help="tokens a parameter expected at the optimum",
    )
    add(
        "--held-out",
        type=cli.number(NonNegative),
        default=3.0,
        help="one more run at so many times the largest budget",
    )
    add("--least-steps", type=cli.number(Count), default=100)
    add("--most-epochs", type=cli.number(Positive), default=4.0)
    add("--smallest", type=cli.number(Large), required=True, help="N of the least model")
    add("--largest", type=cli.number(Large), required=True, help="N of the largest")
    add(
        "--sizes",
        type=cli.number(Count),
        default=8,
        help="rungs of the ladder (default: %(default)s)",
    )
    add("--head-dim", type=cli.number(Count), default=64)
    add(
        "--aspect",
        type=cli.number(Positive),
        default=64.0,
        help="width / depth (default: %(default)s)",
    )
    add(
        "--slack",
        type=cli.number(Ratio),
        default=2.0,
        help="depths may miss it so much (default: %(default)s)",
    )
    add("--least-depth", type=cli.number(Count), default=1, help="layers of the least model")
    add("--by", default="per_token", help="the N of the law: per_token or parameters")
    add(
        "--examples",
        type=cli.number(Count),
        default=256,
        help="held-out examples (default: %(default)s)",
    )
    add("--draws", type=cli.number(Count), default=1024, help="of time and noise over them")
    add("--weights", default="params", help="whose loss decides: params, or an average's name")
    add = command("run", "train what is left")
    add("--row", help="one row of the plan, by name")
    add("--retry", action="store_true", help="failed rows too")
    for name, text in (("fit", "print the law"), ("report", "write the report")):
        add = command(name, text)
        add("--method", default="huber", choices=METHODS)
    command("rows", "print the names of the rows, for one job a row")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status. Raises UserError for bad input."""
    args, overrides = cli.parse(arguments(), argv)
    logging.basicConfig(format="%(message)s")
    if overrides and args.command != "plan":
        raise UserError("--config.… belongs to plan: the runs of a plan keep its config")
    root = storage.local(args.dir)
    if args.command == "plan":
        print(plan.describe(make_plan(args, overrides, root)))
    elif args.command == "run":
        keep_compiled(root)
        return 0 if run.sweep(root, build, only=args.row, retry=args.retry) else 1
    elif args.command == "rows":
        print("\n".join(row.name for row in plan_file.load_plan(root / "plan.json")[0].rows))
    else:
        weights = plan_file.load_plan(root / "plan.json")[2]["weights"]
        out = root / "report"
        report.write_report(run.read_registry(root), out, weights=weights, method=args.method)
        shown = (out / "report.md").read_text() if args.command == "fit" else f"written to {out}"
        print(shown)
    return 0


def make_plan(args: argparse.Namespace, overrides: dict, root: pathlib.Path) -> plan.Plan:
    """The plan that the arguments ask for, written to ``root``."""
    config = load_config(args.config, overrides)
    experiment = build(config)
    if experiment.process is None:
        raise UserError(
            f"got objective {config.objective.name!r}; a plan is for the losses of diffusion models"
        )
    model, text = config.model.to_dict(), experiment.text
    if text is not None and "text" not in experiment.frozen:
        raise UserError(
            "got a config whose section text trains an encoder, which a plan neither varies nor counts: "
            "plan for a frozen one (--config.text.name=pretrained), for labels, or for no condition "
            "(--config.text.name=none)"
        )
    if text is not None:
        model |= {"context_dim": text.context_dim, "pooled_dim": text.pooled_dim}
    network = model.pop("name")
    for key in ("size", "depth", "width", "heads"):
        model.pop(key, None)
    if experiment.num_classes is not None:
        model["num_classes"] = experiment.num_classes
    sizes = ladder.ladder(
        one_shape(experiment),
        smallest=args.smallest,
        largest=args.largest,
        count=args.sizes,
        head_dim=args.head_dim,
        aspect=args.aspect,
        slack=args.slack,
        least_depth=args.least_depth,
        by=args.by,
        context_len=experiment.context_len,
        level=experiment.level,
        beside=experiment.flops_beside,
        network=network,
        **model,
    )
    if args.chip:
        machine = plan.on_chip(args.chip, args.utilisation, args.devices, args.start_seconds)
    elif args.flops_per_second:
        rate, start = args.flops_per_second, args.start_seconds
        machine = plan.Machine("this machine", rate, args.devices, start_seconds=start)
    else:
        raise UserError("give the speed: --chip, or a measured --flops-per-second")
    total = machine.budget(args.device_hours) if args.device_hours else args.total
    result = plan.plan(
        sizes,
        machine,
        total=total,
        budgets=args.budgets,
        spacing=args.spacing,
        per_budget=args.per_budget,
        seeds=args.seeds,
        lrs=args.lrs,
        batches=args.batches or [config.batch_size],
        ratio=args.ratio,
        held_out=args.held_out or None,
        least_steps=args.least_steps,
        unique=None if experiment.source.streaming else len(experiment.source.train),
        most_epochs=args.most_epochs,
    )
    check_weights(args.weights, experiment)
    run.check_schedules(result, plain(config))
    examples = min(args.examples, len(experiment.source.held_out))
    evaluation = {"examples": examples, "draws": max(args.draws, examples), "seed": 0}
    options = {"evaluation": evaluation, "weights": args.weights}
    plan_file.save_plan(root / "plan.json", result, plain(config), options)
    return result


def keep_compiled(root: pathlib.Path) -> None:
    """Cache compiled programs under ``root`` unless a cache is set; seeds and restarts share them."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(root.resolve() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


if __name__ == "__main__":
    cli.run(main)
