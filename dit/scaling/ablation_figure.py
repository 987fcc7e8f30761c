"""The picture of an ablation: every seed as a dot, means with their intervals, and the verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dit.scaling.report import COLOURS
from dit.scaling.verdict import BETTER, WORSE, Comparison, MeanInterval, Values, t_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERDICT_COLOURS = {BETTER: COLOURS[0], WORSE: COLOURS[5]}  # blue, vermilion; others are grey
GREY = "0.35"
MARKERS = "osD^vP"
Row = Mapping[str, Any]


def plot(values: Values, found: Sequence[Comparison], quantity: str) -> Figure:
    """On the left the ``quantity`` (name and unit), on the right its paired difference to the baseline.

    Arms are rows, in the order of ``found``. A diamond is a mean, its bar the 95% t-interval. The axes
    are scaled to the dots, so the bar of a few scattered seeds may leave the panel.
    """
    from matplotlib.figure import Figure

    baseline = found[0].arm
    figure = Figure(figsize=(8.6, 1.4 + 0.5 * len(found)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    differences = {}
    for i, c in enumerate(found):
        colour = VERDICT_COLOURS.get(c.verdict, GREY)
        own = np.array([v for v in values[c.arm].values() if np.isfinite(v)])
        _row(left, i, own, c.value, colour)
        if c.difference is not None:
            pairs = [(v, values[baseline].get(s, np.nan)) for s, v in values[c.arm].items()]
            d = np.array([a - b for a, b in pairs if np.isfinite(a - b)])
            differences[c.arm] = d
            _row(right, i, d, c.difference, colour)
        right.annotate(
            c.verdict, (1.02, i), xycoords=("axes fraction", "data"), va="center", color=colour
        )
    right.axvline(0, color="0.6", lw=1, zorder=0)
    _limits(left, [v for c in found for v in values[c.arm].values() if np.isfinite(v)])
    _limits(right, [0.0, *(x for d in differences.values() for x in d)])
    left.set(xlabel=quantity, ylim=(len(found) - 0.5, -0.5))
    left.set_yticks(range(len(found)), [c.arm for c in found])
    counts = sorted({c.difference.n for c in found if c.difference}) or [found[0].value.n]
    n = "n = " + " to ".join(str(x) for x in dict.fromkeys((counts[0], counts[-1])))
    right.set_xlabel(f"difference to {baseline}\nwith the same seed ({n} seeds)")
    for axes in (left, right):
        axes.grid(axis="x", color="0.9", lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    return figure


def by_time(
    rows: Sequence[Row], weights: str, baseline: str, *, ends: tuple[float, float], quantity: str
) -> Figure:
    """Each arm's loss divided by the baseline's with the same seed, against time.

    Shows geometric means over seeds and 95% t-intervals of the logarithm, for equal parts of the time
    between ``ends``, the smallest and the largest.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    arms = list(dict.fromkeys(r["arm"] for r in rows))
    bins = {
        (r["arm"], r["seed"]): np.array(r["losses"][weights]["bins"])
        for r in rows
        if r["stage"] == "main" and r["status"] == "done"
    }
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(1, color="0.6", lw=1, zorder=0)
    axes.set(xlabel="time t (0: data, 1: noise)", ylabel=quantity, yscale="log", xlim=(0, 1))
    others = [a for a in arms if a != baseline]
    for i, arm in enumerate(others):
        seeds = [s for a, s in bins if a == arm and (baseline, s) in bins]
        ratios = np.stack([np.log(bins[arm, s] / bins[baseline, s]) for s in seeds], axis=1)
        edges = np.linspace(*ends, len(ratios) + 1)
        x = _beside((edges[1:] + edges[:-1]) / 2, i, len(others))
        _line(axes, i, x, np.exp(_bounds(ratios)), arm)
    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high > 8 * low else (1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 7.0)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_locator(LogLocator(subs=()))
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _plain(axes)
    return figure


def curves(
    panels: Mapping[str, Mapping[str, Mapping[float, Sequence[float]]]], abscissa: str
) -> Figure:
    """One panel per quantity, one line per name: means of ``{x: values}`` and 95% t-intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 3.2), layout="constrained")
    for axes, (quantity, lines) in zip(
        np.ravel(figure.subplots(1, len(panels))), panels.items(), strict=True
    ):
        for i, (name, points) in enumerate(lines.items()):
            x = _beside(np.array(list(points)), i, len(lines))
            _line(axes, i, x, _bounds(np.array(list(points.values()))), name)
        axes.set(xlabel=abscissa, ylabel=quantity)
        axes.legend(frameon=False)
        _plain(axes)
    return figure


def _bounds(values: np.ndarray) -> np.ndarray:
    """The mean, low and high end, as rows, for each row of ``values``, which holds the seeds."""
    intervals = [t_interval(row) for row in values]
    return np.array([[c.mean, c.low, c.high] for c in intervals]).T


def _beside(x: np.ndarray, i: int, count: int) -> np.ndarray:
    """``x`` shifted slightly, so that the bars of ``count`` lines stand side by side."""
    return x + 0.008 * np.ptp(x) * (i - (count - 1) / 2)


def _line(axes, i: int, x: np.ndarray, bounds: np.ndarray, name: str) -> None:
    """Draw line ``i``: means and their intervals."""
    mean, low, high = bounds
    reach = np.array([mean - low, high - mean])
    axes.errorbar(
        x,
        mean,
        np.where(np.isfinite(reach), reach, 0),
        color=COLOURS[i % len(COLOURS)],
        marker=MARKERS[i % len(MARKERS)],
        ls=("-", "--", ":")[i // len(COLOURS) % 3],
        ms=5,
        lw=1.5,
        elinewidth=1,
        capsize=2,
        label=name,
    )


def _plain(axes) -> None:
    axes.grid(color="0.9", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _row(axes, i: int, points: np.ndarray, interval: MeanInterval, colour: str) -> None:
    """Draw an arm's seeds as small dots, and its mean and interval below them."""
    axes.plot(points, np.full(len(points), i - 0.13), "o", color=colour, ms=4, alpha=0.55, mew=0)
    if np.isfinite(interval.low):
        axes.plot([interval.low, interval.high], [i + 0.13] * 2, color=colour, lw=2)
    axes.plot([interval.mean], [i + 0.13], "D", color=colour, ms=6)


def _limits(axes, points: Sequence[float]) -> None:
    """Set limits a third wider than the dots on each side; intervals of few seeds may reach further."""
    low, high = min(points), max(points)
    room = 0.35 * (high - low) or 1.0
    axes.set_xlim(low - room, high + room)
