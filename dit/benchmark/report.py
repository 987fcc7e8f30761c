"""Timings as JSON, as a table, and as the table in the README."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
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


def peak_memory(device: jax.Device) -> int | None:
    """The most bytes of its memory that this process has held at once, or None on a CPU."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


def table(report: Mapping[str, Any]) -> str:
    """The report as Markdown, with the conditions it was measured under."""
    lines = [
        "| | median | range | images/s | GFLOP | utilisation |",
        "|---|---|---|---|---|---|",
    ]
    for r in report["rows"]:
        lines.append(
            f"| {r['name']} | {duration(r['median_s'])} | "
            f"{duration(r['min_s'])} to {duration(r['max_s'])} | {r['images_per_s']:.3g} | "
            f"{r['flops'] / 1e9:.1f} | {r['utilisation']:.0%} |"
        )
    if report["ratios"]:
        lines += ["", "| ours over torch, pair by pair | median | range |", "|---|---|---|"]
    for name, r in report["ratios"].items():
        lines.append(f"| {name} | {r['median']:.2f} | {r['min']:.2f} to {r['max']:.2f} |")
    return "\n".join([*lines, "", _conditions(report)])


def _conditions(report: Mapping[str, Any]) -> str:
    peak = f"{report['peak_flops'] / 1e9:,.0f} GFLOP/s ({report['peak_source']})"
    versions = ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    device = report["device"]
    if report["memory"]:
        device += f", {report['memory'] / 2**30:.1f} GiB at most (ours)"
    return (
        f"{report['model']}, {report['dtype']}, batch {report['batch']} in training and "
        f"{report['sample_batch']} in sampling, on {device}; {report['rows'][0]['runs']} "
        f"interleaved runs; utilisation against {peak}; {versions}."
    )


def duration(seconds: float) -> str:
    """Seconds, or milliseconds, with a sensible number of digits."""
    return f"{seconds:.2f} s" if abs(seconds) >= 1 else f"{1000 * seconds:.3g} ms"


def publish(report: Mapping[str, Any], text: str, out: str | None, readme: str | None) -> None:
    """Print the table ``text``, write the report as JSON, and renew the table in a Markdown file."""
    print(text)
    if out:
        pathlib.Path(out).write_text(json.dumps(report, indent=2) + "\n")
    if readme:
        insert(pathlib.Path(readme), pathlib.Path(out).stem, text)


def insert(readme: pathlib.Path, name: str, text: str) -> None:
    """Replace the table called ``name`` in a Markdown file; UserError if it has no place for it."""
    start = START.format(name)
    whole = readme.read_text()
    if start not in whole:
        raise UserError(f"{readme} has no line {start!r} to put the table behind")
    pattern = re.escape(start) + ".*?" + re.escape(END)
    fresh = f"{start}\n{text}\n{END}"
    readme.write_text(re.sub(pattern, lambda _: fresh, whole, count=1, flags=re.DOTALL))
