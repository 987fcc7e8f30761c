"""The report of a sweep: markdown, figures and a table of raw rows, from the registry alone.

``report.md`` holds the fit, the optimal allocation by all three approaches, the forecasts for the
held-out runs, and the settings that were held fixed. ``runs.csv`` holds every row; ``isoflop.png`` and
``surface.png`` are the figures.
"""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dit.scaling.approaches import budgets, parabola
from dit.scaling.fit import Fit, Runs, fit
from dit.types import UserError

Row = Mapping[str, Any]
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
FIXED = {  # what a law assumes to be fixed, and the columns that must hold a single value for that
    "evaluation set": "evaluation_set",
    "training data": "data",
    "tokens a sample": "tokens",
    "batch size": "batch",
}
COLUMNS = (
    *("stage", "budget", "N", "depth", "width", "heads", "parameters", "per_token", "tokens", "lr"),
    *(
        "batch",
        "seed",
        "steps",
        "C",
        "images",
        "unique_images",
        "status",
        "seconds",
        "row",
        "config",
        "error",
    ),
)


def runs_of(rows: Sequence[Row], weights: str, stages: Sequence[str] = ("probe", "main")) -> Runs:
    """The finished rows of these stages as columns: N as planned, D in images, exact C."""
    rows = [r for r in rows if r["status"] == "done" and r["stage"] in stages]
    if not rows:
        raise UserError(f"no finished runs of the stages {', '.join(stages)}")
    names = {"N": "N", "D": "images", "C": "C", "lr": "lr", "batch": "batch"}
    columns = {k: np.array([r[v] for r in rows], float) for k, v in names.items()}
    return Runs(**columns, loss=np.array([r["losses"][weights]["loss"] for r in rows]))


def held_out(rows: Sequence[Row], found: Fit, weights: str) -> list[dict[str, float | int]]:
    """Forecast and measured loss of every run beyond the fitted budgets."""
    out = []
    for r in rows:
        if r["stage"] == "held_out" and r["status"] == "done":
            truth, forecast = (
                r["losses"][weights]["loss"],
                float(found.surface(r["N"], r["images"])),
            )
            relative = forecast / truth - 1
            out.append(
                {"C": r["C"], "N": r["N"], "loss": truth, "forecast": forecast, "error": relative}
            )
    return out


def interior(runs: Runs) -> list[tuple[float, bool]]:
    """For each budget, whether its lowest loss is at neither the smallest nor the largest size."""
    out = []
    for rows in budgets(runs.C):
        sizes = np.unique(runs.N[rows])
        inside = len(sizes) >= 3 and parabola(runs.N[rows], runs.loss[rows]).interior
        out.append((float(np.exp(np.log(runs.C[rows]).mean())), bool(inside)))
    return out


def write_report(
    rows: Sequence[Row], out: str | pathlib.Path, *, weights: str = "params", method: str = "huber"
) -> Fit:
    """Write ``report.md``, ``runs.csv`` and the figures into ``out``; return the fit they show.

    ``weights``: the weights whose losses are fitted, ``params`` or an average's name. Raises UserError
    for fewer finished runs than a fit needs.
    """
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    runs = runs_of(rows, weights)
    found = fit(runs, method=method)
    write_table(rows, out / "runs.csv")
    plot_isoflop(runs.tuned(), found, out / "isoflop.png")
    plot_surface(runs.tuned(), found, held_out(rows, found, weights), out / "surface.png")
    (out / "report.md").write_text("\n".join(_markdown(rows, runs, found, weights, method)) + "\n")
    return found


def write_table(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Write every row, with the loss and its standard error for every set of weights."""
    names = sorted({name for r in rows for name in r.get("losses", {})})
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        losses = [column for name in names for column in (f"loss_{name}", f"error_{name}")]
        table.writerow([*COLUMNS, *losses, "evaluation_set", "device"])
        for r in rows:
            found = [
                r.get("losses", {}).get(name, {}).get(k)
                for name in names
                for k in ("loss", "error")
            ]
            last = (r.get("evaluation_set"), r.get("device"))
            table.writerow([*(r.get(c) for c in COLUMNS), *found, *last])


def _markdown(rows, runs: Runs, found: Fit, weights: str, method: str) -> list[str]:
    s, (k, g) = found.surface, found.cost
    done = sum(r["status"] == "done" for r in rows)
    lines = [
        "# Scaling law",
        "",
        f"{done} runs finished, {len(rows) - done} failed; the loss is that of `{weights}` on the "
        f"frozen held-out set, the fit is `{method}`. N: as the ladder counts it. D: images seen.",
        "",
        f"L(N, D) = {s.E:.5g} + {s.A:.5g} N^-{s.alpha:.4g} + {s.B:.5g} D^-{s.beta:.4g}",
        "",
        f"Cost: C = {k:.4g} N^{g:.4g} D, fitted to exact FLOPs.",
        "",
        "| parameter | 90% interval (profile likelihood of least squares) |",
        "|---|---|",
        *(f"| {name} | {i.low:.4g} to {i.high:.4g} |" for name, i in found.intervals.items()),
        "",
        "## Optimal allocation",
        "",
        "| approach | N grows as | D grows as |",
        "|---|---|---|",
    ]
    for name, a in found.approaches.items():
        cells = "not possible | " if a is None else f"C^{a.N.exponent:.3f} | C^{a.D.exponent:.3f}"
        lines.append(f"| {name} | {cells} |")
    for name, i in found.exponents.items():
        lines.append(
            f"\n90% interval of the exponent of {name} (bootstrap): {i.low:.3f} to {i.high:.3f}."
        )
    if found.bias is not None:
        lines.append(
            f"\nBias of approach 2 in the optimal N at ten times the largest budget, were the surface "
            f"true: {found.bias:+.1%}."
        )
    lines += ["", "## Tuned settings", ""]
    for name, tuned in found.tuning.items():
        if tuned.law is None:
            lines.append(
                f"- {name}: no power law; too few budgets with a best value inside those tried"
            )
        else:
            lines.append(f"- {name}: {tuned.law.coefficient:.4g} C^{tuned.law.exponent:.4g}")
    lines += ["", "## Does it foretell?", ""]
    if found.extrapolation is not None:
        lines += ["Largest budget held out, relative error of the least loss there:", ""]
        lines += [f"- {name}: {error:+.2%}" for name, error in found.extrapolation.best.items()]
    lines += [
        f"- run at C = {r['C']:.3g}, N = {r['N']}: {r['loss']:.5g}, forecast {r['forecast']:.5g} "
        f"({r['error']:+.2%})"
        for r in held_out(rows, found, weights)
    ]
    lines += _failures(rows)
    rows = [r for r in rows if r["status"] == "done"]
    lines += ["", "## Checklist", "", "Held fixed by the runs that finished, or not:", ""]
    for what, column in FIXED.items():
        values = sorted({str(r[column]) for r in rows})
        lines.append(f"- [{'x' if len(values) == 1 else ' '}] one {what}: {', '.join(values[:4])}")
    repeated = [r for r in rows if r["images"] > r["unique_images"]]
    lines.append(
        f"- [{' ' if repeated else 'x'}] every image seen once ({len(repeated)} runs repeat)"
    )
    for cost, inside in interior(runs.tuned()):
        lines.append(f"- [{'x' if inside else ' '}] a minimum between the sizes at C = {cost:.3g}")
    lines += ["", "Notes:", "", *(f"- {note}" for note in found.notes)]
    return lines


def _failures(rows: Sequence[Row]) -> list[str]:
    """A table of the failed runs with their errors; empty if there are none."""
    failed = [r for r in rows if r["status"] == "failed"]
    if not failed:
        return []
    lines = [
        "",
        "## Failed runs",
        "",
        "They are in no fit. `python -m dit.scaling run --retry` runs them again.",
        "",
        "| row | stage | C | N | rate | seed | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in failed:
        rate = "none" if r["lr"] is None else f"{r['lr']:.3g}"
        error = r["error"].replace("|", "\\|")
        lines.append(
            f"| {r['row']} | {r['stage']} | {r['budget']:.3g} | {r['N']:.3g} | {rate} | "
            f"{r['seed']} | {error} |"
        )
    return lines


def plot_isoflop(runs: Runs, found: Fit, path: pathlib.Path) -> None:
    """Plot loss against N, one curve per budget: the runs, and the fitted surface."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    k, g = found.cost
    for colour, rows in zip(_cycle(), budgets(runs.C), strict=False):
        cost = float(np.exp(np.log(runs.C[rows]).mean()))
        axes.plot(runs.N[rows], runs.loss[rows], "o", color=colour, ms=4, label=f"C = {cost:.2g}")
        N = np.geomspace(runs.N[rows].min() / 1.5, runs.N[rows].max() * 1.5, 100)
        axes.plot(N, found.surface(N, cost / (k * N**g)), color=colour, lw=1.2)
    axes.set(xscale="log", xlabel="parameters N", ylabel="evaluation loss")
    readable(axes.xaxis)
    axes.legend(frameon=False, title="FLOPs")
    figure.savefig(path, dpi=150)


def readable(axis: Any) -> None:
    """Put ticks at 1, 2 and 5 of each decade of a logarithmic axis, written as 5k or 20M."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(EngFormatter(sep=""))


def plot_surface(runs: Runs, found: Fit, beyond: Sequence[Row], path: pathlib.Path) -> None:
    """Plot the surface's prediction against the measured loss; held-out runs are marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axes = figure.subplots()
    said = found.surface(runs.N, runs.D)
    axes.plot(runs.loss, said, "o", color=COLOURS[0], ms=4, label="fitted")
    truth, forecast = ([r[k] for r in beyond] for k in ("loss", "forecast"))
    if beyond:
        axes.plot(truth, forecast, "D", color=COLOURS[5], label="held out")
    everything = np.concatenate([runs.loss, said, truth, forecast])
    ends = [everything.min(), everything.max()]
    axes.plot(ends, ends, color="0.6", lw=1, zorder=0)
    axes.set(xlabel="measured loss", ylabel="loss by the surface")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _cycle():
    while True:
        yield from COLOURS
