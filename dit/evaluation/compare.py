"""Is one set of samples better than another? Two score files, runs or files of features.

Of two ``scores.json`` the difference of a score has the error ``sqrt(e_a^2 + e_b^2)``. Files of features
(``dit.evaluate --keep``) say more: sample i of both runs began with the same noise and label, so both
are scored on the same random halves of the samples, and the differences vary about as much as those of
new samples would (the delete-half jackknife, Shao & Wu 1989). A bootstrap that draws with replacement
would do the same, but for scores of neighbours: a sample that is drawn twice is its own neighbour.

Scores are compared where all of their protocol is equal but for the samples' pixels.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dit import storage
from dit.config import parse_spec, resolve
from dit.evaluation.collect import Collector, Cosines, Rows
from dit.evaluation.features import Features
from dit.evaluation.reference import Collected, parsed
from dit.evaluation.scores import About, Need, Plan
from dit.types import UserError

HALVES = 50
Z = 1.96  # 95% confidence


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """``figures`` with their errors and ``protocol``; ``sets`` and ``scores`` of a file of features."""

    name: str
    figures: Mapping[str, float]
    protocol: Mapping[str, Any]
    sets: Mapping[str, Collected] = dataclasses.field(default_factory=dict)
    scores: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Verdict:
    """``word``: better, worse or inconclusive, of the second against the first; or why not said."""

    figure: str
    values: tuple[float, float]
    word: str
    low: float = np.nan  # of the second less the first, with 95% confidence
    high: float = np.nan

    def __str__(self) -> str:
        between = f"{self.low:.4g} to {self.high:.4g}"
        values = "{:.5g} and {:.5g}".format(*self.values)
        known = f" (difference {between})" if np.isfinite(self.low) else ""
        return f"{self.figure:24} {values}{known}: {self.word}"


def save(
    file: storage.Place,
    figures: Mapping[str, float],
    protocol: Mapping[str, Any],
    sets: Mapping[str, Collected],
    scores: Sequence[str],
) -> None:
    """Write a file of features, ``.npz``, which ``read`` reads."""
    told = {"figures": dict(figures), "protocol": dict(protocol), "scores": list(scores)}
    arrays = {"told": np.array(json.dumps(told))}
    for of, collected in sets.items():
        for key, one in collected.items():
            arrays |= {"/".join((of, *key, name)): x for name, x in one.arrays().items()}
    data = io.BytesIO()
    np.savez(data, **arrays)
    storage.write(file, data.getvalue())


def read(address: str) -> Side:
    """A run's directory, a ``.json`` of scores or a ``.npz`` of features; UserError for others."""
    file = storage.place(address)
    if not address.endswith((".json", ".npz")):
        file = file / "scores.json"
    try:
        if address.endswith(".npz"):
            with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
                told = json.loads(str(arrays["told"]))
                sets = {of: _set(arrays, of) for of in ("samples", "reference", "held_out")}
                return Side(address, told["figures"], told["protocol"], sets, told["scores"])
        told = json.loads(file.read_text())
        return Side(address, told["figures"], told["protocol"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"cannot read scores from {address!r} ({type(error).__name__}: {error}); expected a run "
            "that dit.evaluate --scores has measured, the .json that it wrote, or the .npz of its --keep"
        ) from error


def _set(arrays: Mapping[str, np.ndarray], of: str) -> Collected:
    prefix = f"{of}/"
    return parsed({k.removeprefix(prefix): arrays[k] for k in arrays if k.startswith(prefix)})


def compare(a: Side, b: Side) -> list[Verdict]:
    """What can be said of every score that both have; UserError if they have none in common."""
    common = [name for name in a.protocol if name in b.protocol]
    if not common:
        raise UserError(
            f"got {a.name!r} with the scores {', '.join(a.protocol) or 'none'} and {b.name!r} with "
            f"{', '.join(b.protocol) or 'none'}; expected one in common or more"
        )
    halves = _halves(a, b)
    return [_verdict(name, a, b, halves) for name in common]


def _verdict(name: str, a: Side, b: Side, halves: Mapping[str, np.ndarray]) -> Verdict:
    values = a.figures[name], b.figures[name]
    if differ := _differ(a.protocol[name], b.protocol[name]):
        return Verdict(name, values, f"not comparable: {differ}")
    gap = values[1] - values[0]
    error = float(np.hypot(*(side.figures[f"{name}_error"] for side in (a, b))))
    if name in halves:
        error = float(np.std(halves[name], ddof=1))
    if not np.isfinite(error):
        return Verdict(name, values, "inconclusive: the error is not known")
    low, high = gap - Z * error, gap + Z * error
    word = "inconclusive"
    if low > 0 or high < 0:
        higher = a.protocol[name]["better"] == "higher"
        word = "better" if (gap > 0) == higher else "worse"
    return Verdict(name, values, word, low, high)


def _differ(a: Any, b: Any, at: str = "") -> str:
    """Where two protocols differ first, but for the pixels of the samples; ``""`` if nowhere."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            if (at, key) != ("samples", "hash") and (
                found := _differ(a.get(key), b.get(key), f"{at}.{key}" if at else key)
            ):
                return found
        return ""
    return "" if a == b else f"{at} is {a} and {b}"


def _halves(a: Side, b: Side) -> dict[str, np.ndarray]:
    """The differences of each score on random halves of the samples, of two files of features."""
    if not (a.sets and b.sets):
        return {}
    counts = [_count(side) for side in (a, b)]
    if counts[0] != counts[1] or counts[0] < 4:
        return {}
    found: dict[str, list[float]] = {}
    rng = np.random.default_rng(0)
    plans = [(side, _plans(side, counts[0] // 2)) for side in (a, b)]
    for _ in range(HALVES):
        ids = np.sort(rng.permutation(counts[0])[: counts[0] // 2])
        one, other = (_scored(side, plan, ids) for side, plan in plans)
        for name in one.keys() & other.keys():
            found.setdefault(name, []).append(other[name] - one[name])
    return {name: np.array(gaps) for name, gaps in found.items()}


def _count(side: Side) -> int:
    rows = next(one for one in side.sets["samples"].values() if isinstance(one, Rows))
    return len(rows.x) // rows.each


def _plans(side: Side, samples: int) -> list[Plan]:
    """The scores of a file, of so many samples; of networks whose features are all that is needed."""
    outputs: dict[str, set[str]] = {}
    for network, output, _ in side.sets["samples"]:
        outputs.setdefault(network, set()).add(output)
    seen_by = tuple(
        Features(name, {}, _blind, side=0, origin="", others=tuple(sorted(more - {"features"})))
        for name, more in outputs.items()
    )
    held_out = max(
        (len(x.x) for x in side.sets["held_out"].values() if isinstance(x, Rows)), default=2
    )
    about = About(seen_by, samples, held_out=held_out if side.sets["held_out"] else 0)
    plans = [resolve("evaluation.scores", **parse_spec(text))(about) for text in side.scores]
    return [plan for plan in plans if not all(plan.lacks.values())]


def _blind(params: Any, x: Any) -> Any:
    raise NotImplementedError  # a file of features has no network


def _scored(side: Side, plans: Sequence[Plan], ids: np.ndarray) -> dict[str, float]:
    """The scores of some of a file's samples."""
    found = {}
    for plan in plans:
        samples = {n.key: _of(side, n, ids) for n in plan.needs if "samples" in n.of}
        found |= plan.measure({**side.sets, "samples": samples})
    return found


def _of(side: Side, need: Need, ids: np.ndarray) -> Collector:
    network, output, kind = need.key
    kept = side.sets["samples"]
    if kind == "cosines":
        whole = kept[need.key]
        assert isinstance(whole, Cosines)
        return Cosines(whole.target[ids], whole.cosine[ids])
    rows = kept[network, output, "rows"]
    assert isinstance(rows, Rows)
    x = rows.x.reshape(-1, rows.each, rows.x.shape[1])[ids]
    collector = need.make(len(ids), x.shape[-1], rows.each)
    collector.add(np.repeat(np.arange(len(ids)), rows.each), x.reshape(-1, x.shape[-1]))
    return collector
