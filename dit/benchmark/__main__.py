"""Time training and sampling: ``python -m dit.benchmark [--torch] [--out=benchmark.json]``.

A train step of the paper's recipe (noise, forward, backward, AdamW, an average of the parameters) and
DDIM sampling without guidance, run in turn: ours, and with ``--torch`` a torch DiT of the same shape,
eager and compiled, on the same number of threads. So a machine that slows down slows all of them, and
the ratios hold. Torch has a process of its own, so that neither library's threads and allocator stand
in the other's way; on a GPU, leave it half of the memory by ``XLA_PYTHON_CLIENT_MEM_FRACTION=.45``.
FLOPs are counted from the shapes (2 a multiply-add); utilisation is against the data sheet's peak, or
against a matrix product timed here where there is none.

How long a run takes to start, and what saving costs it: ``python -m dit.benchmark.loop``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import tqdm

from dit import cli
from dit.benchmark import ours, report
from dit.benchmark.machine import describe, versions
from dit.models.sizes import parse
from dit.parallel.peak import datasheet, peak_flops
from dit.sections import precision
from dit.types import Count, Scale, UserError

WARM_UP = 2


def arguments() -> argparse.ArgumentParser:
    parser = cli.Parser(prog="dit benchmark", description=__doc__)
    add = parser.add_argument
    add("--size", default="S/2", help="of the model (default: %(default)s)")
    add("--batch", type=cli.number(Count), default=8, help="of a train step (default: %(default)s)")
    add(
        "--sample-batch",
        type=cli.number(Count),
        default=2,
        help="images sampled at once (default: %(default)s)",
    )
    add("--steps", type=cli.number(Count), default=50, help="DDIM steps (default: %(default)s)")
    add("--side", type=cli.number(Count), default=32, help="of the latents (default: %(default)s)")
    add(
        "--channels",
        type=cli.number(Count),
        default=4,
        help="of the latents (default: %(default)s)",
    )
    add("--dtype", default="auto", help="float32, bfloat16 or auto: by device")
    add("--remat", default="none", help="remat policy (default: %(default)s)")
    add("--guidance", type=cli.number(Scale), default=1.0, help="scale in sampling (default: off)")
    add(
        "--runs",
        type=cli.number(Count),
        default=7,
        help="timed runs of each (default: %(default)s)",
    )
    add("--torch", action="store_true", help="also a torch DiT, eager and compiled")
    add("--out", help="write the report here as JSON")
    add("--readme", help="a Markdown file whose table of this report (named as --out) to renew")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; UserError for bad input."""
    args, rest = cli.parse(arguments(), argv)
    if rest:
        raise UserError(f"--config.{next(iter(rest))} belongs to dit.train; see --help")
    if args.readme and not args.out:
        raise UserError("--readme names its table after --out; give both")
    experiment = ours.experiment(
        size=args.size,
        batch=args.batch,
        side=args.side,
        channels=args.channels,
        dtype=args.dtype,
        remat=args.remat,
    )
    dtype = precision(**experiment.config.precision)
    train, draw = "train step", f"{args.steps} DDIM steps"
    step, step_flops = ours.train_step(experiment)
    sample, sample_flops = ours.sampler(
        experiment, batch=args.sample_batch, steps=args.steps, guidance=args.guidance
    )
    timed: dict[str, Callable] = {f"{train}, ours": step, f"{draw}, ours": sample}
    with contextlib.ExitStack() as stack:
        if args.torch:
            timed |= stack.enter_context(torch_twins(args, dtype, train, draw))
        in_turn = sorted(timed, key=lambda name: name.startswith(draw))
        seconds = interleave({name: timed[name] for name in in_turn}, args.runs)

    device = jax.devices()[0]
    peak = peak_flops(device) * jax.device_count()
    images = {train: args.batch, draw: args.sample_batch}
    flops = {train: step_flops, draw: sample_flops}
    rows = [
        report.row(name, times, images[what], flops[what], peak)
        for what in (train, draw)
        for name, times in seconds.items()
        if name.startswith(what)
    ]
    mine = {k: v for k, v in seconds.items() if k.endswith(", ours")}
    result = {
        "model": f"DiT-{args.size}, {args.side}x{args.side}x{args.channels}",
        "dtype": dtype,
        "batch": args.batch,
        "sample_batch": args.sample_batch,
        "device": describe(device),
        "memory": report.peak_memory(device),
        "peak_flops": peak,
        "peak_source": "data sheet" if datasheet(device.device_kind) else "measured matmul",
        "versions": versions(("jax", "torch") if args.torch else ("jax",)),
        "rows": rows,
        "ratios": report.ratios(mine, {k: v for k, v in seconds.items() if k not in mine}),
    }
    report.publish(result, report.table(result), args.out, args.readme)


def interleave(timed: dict[str, Callable], runs: int) -> dict[str, list[float]]:
    """Seconds of every function in turn, ``runs`` times, after ``WARM_UP`` calls that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    calls = [name for name in timed for _ in range(WARM_UP)] + [*timed] * runs
    with tqdm.tqdm(calls, unit="call") as bar:
        for name in bar:
            bar.set_description(name)
            before = time.perf_counter()
            timed[name]()
            seconds[name].append(time.perf_counter() - before)
    return {name: found[WARM_UP:] for name, found in seconds.items()}


@contextlib.contextmanager
def torch_twins(
    args: argparse.Namespace, dtype: str, train: str, draw: str
) -> Iterator[dict[str, Callable[[], None]]]:
    """The torch calls by name, answered by another process; UserError where none are like ours."""
    if importlib.util.find_spec("torch") is None:
        raise UserError('--torch needs torch: pip install -e ".[torch]"')
    if args.guidance != 1:
        raise UserError("--torch compares sampling without guidance; drop --guidance")
    device = jax.devices()[0].platform
    device = {"gpu": "cuda"}.get(device, device)
    if device not in ("cpu", "cuda"):
        raise UserError(
            f"--torch compares on CPUs and NVIDIA GPUs, and JAX computes on {device!r} here; "
            "drop --torch"
        )
    from dit.benchmark import twin

    shape = {**parse(args.size), "channels": args.channels, "side": args.side, "classes": 1000}
    here, there = (context := multiprocessing.get_context("spawn")).Pipe()
    process = context.Process(
        target=twin.serve,
        args=(there, shape, args.batch, args.sample_batch, args.steps, device, dtype),
    )
    process.start()
    there.close()

    def ask(what: str, kind: str) -> Callable[[], None]:
        def call() -> None:
            here.send((what, kind))
            here.recv()

        return call

    names = {train: "train", draw: "draw"}
    try:
        yield {f"{name}, {kind}": ask(names[name], kind) for kind in twin.KINDS for name in names}
    finally:
        here.close()
        process.join()


if __name__ == "__main__":
    cli.run(main)
