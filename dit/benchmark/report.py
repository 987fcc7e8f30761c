"""Timings as JSON, as a table, and as the table in the README."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dit.types import UserError

START, END = "<!-- benchmark: {} -->", "<!-- end of benchmark -->"


def row(name: str, seconds: Sequence[float], images: int, flops: int, peak: float) -> dict:
    """One line: the median and range of ``seconds``, images a second, and the share of ``peak``."""
    middle = float(np.median(seconds))
    return {
        "name": name,
        "median_s": middle,
        "min_s": float(min(seconds)),
        "max_s": float(max(seconds)),
        "images_per_s": images / middle,
        "flops": flops,
        "utilisation": flops / middle / peak,
        "runs": len(seconds),
    }


def ratios(ours: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]]) -> dict:
    """Ours over theirs, pair by pair in the order they were run: the median, and the range."""
    pairs = {
        f"{a} / {b}": np.divide(ours[a], theirs[b])
        for a in ours
        for b in theirs
        if a.split(",")[0] == b.split(",")[0]
    }
    return {
        k: {"median": float(np.median(v)), "min": float(v.min()), "max": float(v.max())}
        for k, v in pairs.items()
    }


def table(report: Mapping[str, Any]) -> str:
    """The report as Markdown, with the conditions it was measured under."""
    lines = [
        "| | median | range | images/s | GFLOP | utilisation |",
        "|---|---|---|---|---|---|",
    ]
    for r in report["rows"]:
        lines.append(
            f"| {r['name']} | {_time(r['median_s'])} | {_time(r['min_s'])} to {_time(r['max_s'])} | "
            f"{r['images_per_s']:.3g} | {r['flops'] / 1e9:.1f} | {r['utilisation']:.0%} |"
        )
    if report["ratios"]:
        lines += ["", "| ours over torch, pair by pair | median | range |", "|---|---|---|"]
    for name, r in report["ratios"].items():
        lines.append(f"| {name} | {r['median']:.2f} | {r['min']:.2f} to {r['max']:.2f} |")
    return "\n".join([*lines, "", _conditions(report)])


def _conditions(report: Mapping[str, Any]) -> str:
    peak = f"{report['peak_flops'] / 1e9:,.0f} GFLOP/s ({report['peak_source']})"
    versions = ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    return (
        f"{report['model']}, {report['dtype']}, batch {report['batch']} in training and "
        f"{report['sample_batch']} in sampling, on {report['device']}; {report['rows'][0]['runs']} "
        f"interleaved runs; utilisation against {peak}; {versions}."
    )


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def insert(readme: pathlib.Path, name: str, report: Mapping[str, Any]) -> None:
    """Replace the table called ``name`` in a Markdown file; UserError if it has no place for it."""
    start = START.format(name)
    text = readme.read_text()
    if start not in text:
        raise UserError(f"{readme} has no line {start!r} to put the table behind")
    pattern = re.escape(start) + ".*?" + re.escape(END)
    fresh = f"{start}\n{table(report)}\n{END}"
    readme.write_text(re.sub(pattern, lambda _: fresh, text, count=1, flags=re.DOTALL))
