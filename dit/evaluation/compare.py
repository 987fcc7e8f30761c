"""Is one set of samples better than another? Two score files, runs or files of features.

Of two ``scores.json`` the difference of a score has the error ``sqrt(e_a^2 + e_b^2)``. Files of features
(``dit.evaluate --keep``) say more: sample i of both runs began with the same noise and label, so both
are compared by pairs. Where a score is smooth in the samples (``Plan.moves``: Frechet distances) the
error is that of the mean difference of what each of a pair adds to it. Others are scored on the same
random halves of the samples, and the differences vary about as much as those of new samples would (the
delete-half jackknife, Shao & Wu 1989). A bootstrap that draws with replacement would do the same, but
for scores of neighbours: a sample that is drawn twice is its own neighbour.

Scores are compared where all of their protocol is equal but for the samples' pixels.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import ItemsView, Mapping, Sequence
from typing import Any

import numpy as np

from dit import storage
from dit.config import parse_spec, resolve
from dit.evaluation.collect import Collector, Cosines, Rows
from dit.evaluation.features import Features
from dit.evaluation.reference import Collected, parsed
from dit.evaluation.scores import About, Key, Need, Plan
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
    paired = _paired(a, b)
    return [_verdict(name, a, b, paired) for name in common]


def _verdict(name: str, a: Side, b: Side, paired: Mapping[str, float]) -> Verdict:
    values = a.figures[name], b.figures[name]
    if differ := _differ(a.protocol[name], b.protocol[name]):
        return Verdict(name, values, f"not comparable: {differ}")
    gap = values[1] - values[0]
    error = float(np.hypot(*(side.figures[f"{name}_error"] for side in (a, b))))
    error = paired.get(name, error)
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


def _paired(a: Side, b: Side) -> dict[str, float]:
    """The error of the difference of each score, of two files of features with as many samples."""
    if not (a.sets and b.sets):
        return {}
    count = _count(a)
    if count != _count(b) or count < 4:
        return {}
    moves = [
        {
            name: each
            for plan in _plans(side, count)
            if plan.moves
            for name, each in _moves(side, plan)
        }
        for side in (a, b)
    ]
    found = {
        name: float(np.std(moves[1][name] - each, ddof=1) / np.sqrt(count))
        for name, each in moves[0].items()
        if name in moves[1]
    }
    return found | _halves(a, b, count)


def _halves(a: Side, b: Side, count: int) -> dict[str, float]:
    """``_paired`` of scores without moves, from their differences on random halves of the samples."""
    gaps: dict[str, list[float]] = {}
    rng = np.random.default_rng(0)
    plans = [(side, [p for p in _plans(side, count // 2) if not p.moves]) for side in (a, b)]
    for _ in range(HALVES if any(each for _, each in plans) else 0):
        ids = np.sort(rng.permutation(count)[: count // 2])
        one, other = (_scored(side, plan, ids) for side, plan in plans)
        for name in one.keys() & other.keys():
            gaps.setdefault(name, []).append(other[name] - one[name])
    return {name: float(np.std(each, ddof=1)) for name, each in gaps.items()}


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
        found |= plan.measure({**side.sets, "samples": _collected(side, plan, ids)})
    return found


def _moves(side: Side, plan: Plan) -> ItemsView[str, np.ndarray]:
    """What each sample of a file adds to the scores of a plan with ``moves``."""
    samples = {**side.sets["samples"], **_collected(side, plan, np.arange(_count(side)))}
    return plan.moves({**side.sets, "samples": samples}).items()


def _collected(side: Side, plan: Plan, ids: np.ndarray) -> dict[Key, Collector]:
    """What a plan needs of some of a file's samples."""
    return {n.key: _of(side, n, ids) for n in plan.needs if "samples" in n.of}


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
