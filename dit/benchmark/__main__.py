"""Time training and sampling: ``python -m dit.benchmark [--torch] [--out=benchmark.json]``.

A train step of the paper's recipe (noise, forward, backward, AdamW, an average of the parameters) and
DDIM sampling without guidance, in one process, run in turn: ours, and with ``--torch`` a torch DiT of
the same shape, eager and compiled, on the same number of threads. So a machine that slows down slows
all of them, and the ratios hold. FLOPs are counted from the shapes (2 a multiply-add); utilisation is
against the data sheet's peak, or against a matrix product timed here where there is none.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import pathlib
import time
from collections.abc import Callable, Sequence

import jax

from dit import cli
from dit.benchmark import ours, report
from dit.models.sizes import parse
from dit.parallel.peak import datasheet, peak_flops
from dit.types import UserError


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dit.benchmark", description=__doc__)
    add = parser.add_argument
    add("--size", default="S/2", help="of the model (default: %(default)s)")
    add("--batch", type=int, default=8, help="of a train step (default: %(default)s)")
    add("--sample-batch", type=int, default=2, help="images sampled at once (default: %(default)s)")
    add("--steps", type=int, default=50, help="DDIM steps (default: %(default)s)")
    add("--side", type=int, default=32, help="of the latents (default: %(default)s)")
    add("--channels", type=int, default=4, help="of the latents (default: %(default)s)")
    add("--dtype", default="auto", help="float32, bfloat16 or auto: by device")
    add("--remat", default="none", help="remat policy (default: %(default)s)")
    add("--guidance", type=float, default=1.0, help="scale in sampling (default: off)")
    add("--runs", type=int, default=7, help="timed runs of each (default: %(default)s)")
    add("--torch", action="store_true", help="also a torch DiT, eager and compiled (CPU, float32)")
    add("--out", help="write the report here as JSON")
    add("--readme", help="a Markdown file whose table of this report (named as --out) to renew")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; UserError for bad input."""
    args, rest = cli.parse(arguments(), argv)
    if rest or min(args.batch, args.sample_batch, args.steps, args.runs) < 1:
        raise UserError("expected positive --batch, --sample-batch, --steps and --runs; see --help")
    if args.readme and not args.out:
        raise UserError("--readme names its table after --out; give both")
    made = ours.experiment(
        size=args.size,
        batch=args.batch,
        side=args.side,
        channels=args.channels,
        dtype=args.dtype,
        remat=args.remat,
    )
    train, draw = "train step", f"{args.steps} DDIM steps"
    step, step_flops = ours.train_step(made)
    sample, sample_flops = ours.sampler(
        made, batch=args.sample_batch, steps=args.steps, guidance=args.guidance
    )
    timed: dict[str, Callable] = {f"{train}, ours": step, f"{draw}, ours": sample}
    if args.torch:
        timed |= torch_twins(args, train, draw)
    seconds = interleave(timed, args.runs)

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
        "dtype": made.model.dtype,
        "batch": args.batch,
        "sample_batch": args.sample_batch,
        "device": describe(device),
        "peak_flops": peak,
        "peak_source": "data sheet" if datasheet(device.device_kind) else "measured matmul",
        "versions": versions(("jax", "torch") if args.torch else ("jax",)),
        "rows": rows,
        "ratios": report.ratios(mine, {k: v for k, v in seconds.items() if k not in mine}),
    }
    print(report.table(result))
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps(result, indent=2) + "\n")
    if args.readme:
        report.insert(pathlib.Path(args.readme), pathlib.Path(args.out).stem, result)


def interleave(timed: dict[str, Callable], runs: int) -> dict[str, list[float]]:
    """Seconds of every function in turn, ``runs`` times, after two calls each that do not count."""
    for name, call in timed.items():
        before = time.perf_counter()
        call()
        call()
        print(f"{name}: warmed up in {time.perf_counter() - before:.1f} s", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(runs):
        for name, call in timed.items():
            before = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - before)
    return seconds


def torch_twins(args: argparse.Namespace, train: str, draw: str) -> dict[str, Callable]:
    """The torch calls by name; UserError without torch, or off the CPU in float32."""
    try:
        import torch

        from dit.benchmark import twin
    except ImportError as error:
        raise UserError('--torch needs torch: pip install -e ".[torch]"') from error
    if jax.default_backend() != "cpu" or args.dtype == "bfloat16" or args.guidance != 1:
        raise UserError("--torch compares on the CPU in float32 without guidance; drop the others")
    torch.manual_seed(0)
    shape = {**parse(args.size), "channels": args.channels, "side": args.side, "classes": 1000}
    calls = {}
    for kind, compiled in (("torch eager", False), ("torch.compile", True)):
        model = twin.TorchDiT(**shape)
        calls[f"{train}, {kind}"] = twin.train_step(model, args.batch, args.side, compiled=compiled)
        model = twin.TorchDiT(**shape)
        calls[f"{draw}, {kind}"] = twin.ddim(
            model, args.sample_batch, args.side, args.steps, compiled=compiled
        )
    return calls


def describe(device: jax.Device) -> str:
    """The device in words: its kind and number, and the cores of a CPU."""
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    import os

    return f"CPU, {len(os.sched_getaffinity(0))} cores"


def versions(names: Sequence[str]) -> dict[str, str]:
    """The installed versions of some packages."""
    return {name: importlib.metadata.version(name) for name in names}


if __name__ == "__main__":
    cli.run(main)
