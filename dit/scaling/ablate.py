"""Ablations: arms x seeds, each arm at its own best learning rate, kept as rows of a registry.

An arm is a config with a few fields changed. Every arm is first run at each learning rate with a seed
reserved for this (stage ``probe``), then at its best rate with the seeds of the comparison (stage
``main``). For each seed, all arms see the same data in the same order, the same times and noise, and all
runs are evaluated on one frozen set, so differences are paired (``verdict.compare``). Rows that are
already stored are not run again: after a kill, the same call continues where it stopped.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from dit.config import fingerprint, suggest
from dit.scaling.costs import Costs, costs, one_shape
from dit.scaling.evaluate import (
    Evaluator,
    check_evaluation,
    check_weights,
    evaluate_all,
    freeze,
    in_terms_of,
    summaries,
)
from dit.scaling.failure import OWN, failed
from dit.scaling.registry import Registry
from dit.scaling.run import objective_of, versions
from dit.scaling.short import Trainer
from dit.training.workdir import plain
from dit.types import UserError

Make = Callable[[Mapping[str, Any]], Any]  # a config to an experiment
Measure = Callable[[str, Any, Any], Mapping[str, float]]  # (arm, experiment, Trained) to figures
Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation:
    """What is compared. ``base``: a config; ``arms``: the changes that each arm makes to it, by name.

    A change is ``{"section.field": value}``, or ``{"section": {...}}`` for a whole section. The
    first arm is the baseline, whose objective evaluates all runs. ``lrs``: the rates tried for every
    arm. While the best rate is the smallest or the largest tried, the search continues beyond it, up
    to ``extend`` times; a single rate that is not to be extended is taken untried. ``weights``: the
    weights whose loss decides the rate, ``params`` or an average's name. ``match``: every arm trains
    for the base's ``steps``, or for as many steps as cost the baseline's ``flops``. ``evaluation``:
    keywords of ``freeze``. ``measured``: settings of the other measurements, which are part of a
    row's identity.
    """

    base: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any]]
    lrs: Sequence[float]
    extend: int = 2
    seeds: Sequence[int] = (1, 2, 3)
    probe_seed: int = 0
    weights: str = "params"
    match: str = "steps"
    evaluation: Mapping[str, int] = dataclasses.field(default_factory=dict)
    measured: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if len(self.arms) < 1 or len(set(self.lrs)) < len(self.lrs) or not self.lrs:
            raise UserError(
                f"got arms {list(self.arms)} and lrs={self.lrs}; expected different ones of each"
            )
        if not all(0 < lr < math.inf for lr in self.lrs):
            raise UserError(f"got lrs={self.lrs}; expected positive, finite learning rates")
        for seed in (*self.seeds, self.probe_seed):
            if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
                raise UserError(f"got seed {seed!r}; expected whole numbers of at least 0")
        if len(set(self.seeds)) < max(2, len(self.seeds)) or self.probe_seed in self.seeds:
            raise UserError(
                f"got seeds={self.seeds} and probe_seed={self.probe_seed}; expected two different seeds "
                "or more, and another one for the probes, lest the choice of the rate favour an arm"
            )
        if self.match not in ("steps", "flops"):
            raise UserError(f"got match={self.match!r}; expected 'steps' or 'flops'")
        check_evaluation(self.evaluation)
        chosen = {"seed": "seeds", "optimizer.lr": "lrs"}
        if self.match == "flops":
            chosen["steps"] = "match='flops'"
        for arm, changes in self.arms.items():
            whole = changes.get("optimizer")
            lr = ["optimizer.lr"] if isinstance(whole, Mapping) and "lr" in whole else []
            for key in (*changes, *lr):
                if key in chosen:
                    raise UserError(
                        f"arm {arm!r} changes {key!r}, which {chosen[key]} decides here"
                    )

    @property
    def baseline(self) -> str:
        """The name of the first arm."""
        return next(iter(self.arms))

    def config(self, arm: str, *, lr: float, seed: int, steps: int | None = None) -> dict[str, Any]:
        """The config of one run; ``steps`` as in the base by default."""
        config = changed(self.base, self.arms[arm])
        optimizer = {**config.get("optimizer", {}), "lr": lr}
        run = {"seed": seed, "optimizer": optimizer}
        return plain(config | run | ({} if steps is None else {"steps": steps}))


def changed(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` overridden by ``{"section.field": value}`` or ``{"section": {...}}``."""
    config = {k: dict(v) if isinstance(v, Mapping) else v for k, v in plain(base).items()}
    for key, value in changes.items():
        section, _, field = key.partition(".")
        if field:
            config[section] = {**config.get(section, {}), field: value}
        else:
            config[section] = value
    return config


def cost_of(experiment: Any) -> Costs:
    """What the model of an experiment costs on its data."""
    shape, beside = one_shape(experiment), experiment.flops_beside
    return costs(experiment.model, shape, experiment.context_len, experiment.level, beside)


class _Arm:
    """One arm and its compiled programs.

    The constructor builds everything that a run needs and traces its programs. It raises UserError for
    settings that do not fit together.
    """

    def __init__(
        self,
        ablation: Ablation,
        name: str,
        make: Make,
        reference: Any,
        frozen: Any,
        measure: Measure | None = None,
    ):
        self.name, self._make, self._ablation = name, make, ablation
        lr, seed = ablation.lrs[0], ablation.probe_seed
        experiment = make(ablation.config(name, lr=lr, seed=seed))
        if experiment.config.path != reference.config.path:
            raise UserError(
                "its path is not the baseline's, so their losses are not for the same x_t"
            )
        data, expected = ((m.source.shape, m.num_classes) for m in (experiment, reference))
        if data != expected:
            raise UserError(
                f"got data of shape {data[0]} with {data[1]} classes; expected the baseline's, "
                f"{expected[0]} and {expected[1]}, as all arms are judged on the same examples"
            )
        self.costs, self.steps = cost_of(experiment), experiment.config.steps
        if ablation.match == "flops":
            whole = reference.config.batch_size * cost_of(reference).training
            step = experiment.config.batch_size * self.costs.training
            self.steps = max(1, round(reference.config.steps * whole / step))
            experiment = make(ablation.config(name, lr=lr, seed=seed, steps=self.steps))
        self.trainer = Trainer(experiment)
        judge, apply_fn = in_terms_of(reference.process, experiment.process, experiment.apply_fn)
        self.evaluate = Evaluator(
            frozen,
            apply_fn=apply_fn,
            process=judge,
            objective=objective_of(reference),
            encode=experiment.codec.encode,
            tell=experiment.tell,
            show=experiment.show,
            beside=experiment.frozen,
        )
        check_weights(ablation.weights, experiment)
        self.evaluate.check(self.trainer.check(experiment).params)
        if hasattr(measure, "check"):
            measure.check(name, experiment)

    def run(
        self, line: dict[str, Any], config: Mapping[str, Any], measure: Measure | None
    ) -> dict[str, Any]:
        """The row of a run, with its losses or with its error."""
        experiment = self._make(config)
        images = self.steps * experiment.config.batch_size
        line |= {
            "lr": config["optimizer"]["lr"],
            "seed": config["seed"],
            "steps": self.steps,
            "batch": experiment.config.batch_size,
            "images": images,
            "C": images * self.costs.training,
            **dataclasses.asdict(self.costs),
            "data": experiment.source.fingerprint,
            "evaluation_set": self.evaluate.frozen.hash,
            "versions": versions(),
            "device": jax.devices()[0].device_kind,
        }
        start = time.perf_counter()
        batches = experiment.batches()
        try:
            trained = self.trainer(batches, lr=line["lr"], seed=line["seed"])
        except OWN as error:
            return line | failed(error)
        finally:
            batches.close()
            line["seconds"] = round(time.perf_counter() - start, 2)
        losses = summaries(evaluate_all(self.evaluate, trained))
        if not all(math.isfinite(x["loss"]) for x in losses.values()):
            return line | {"status": "failed", "error": "the loss is not finite"}
        line |= {"status": "done", "losses": losses}
        if measure is not None and line["stage"] == "main":
            line["measures"] = {
                k: float(v) for k, v in measure(self.name, experiment, trained).items()
            }
        return line


def ablate(
    root: str | pathlib.Path,
    make: Make,
    ablation: Ablation,
    *,
    measure: Measure | None = None,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Run what is not yet in ``root/registry.jsonl``; return all rows of the ablation, probes first.

    ``measure(arm, experiment, trained)`` returns further figures of a ``main`` run, which its row keeps
    under ``measures``; list what they depend on in ``ablation.measured``. If ``measure`` has a method
    ``check(arm, experiment)``, as ``quality.Quality`` has, it is called first and raises for what cannot
    be measured. All arms are built and checked before the first run. Raises UserError for a mistake in
    any of them, and later if every rate of an arm fails.
    """
    registry = Registry(pathlib.Path(root) / "registry.jsonl")
    known, arms, rows = registry.latest(), {}, []

    def one(arm: str, stage: str, lr: float, seed: int) -> dict[str, Any]:
        config = ablation.config(arm, lr=lr, seed=seed)
        whole = [config, ablation.config(ablation.baseline, lr=lr, seed=seed), ablation.match]
        settings = [plain(ablation.evaluation), stage == "main" and plain(ablation.measured)]
        name = f"{arm}/{stage}/lr={lr:g}/seed={seed}/{fingerprint({'run': whole + settings})}"
        if name not in known:
            if not arms:  # build all arms at once, so that mistakes surface before any training
                arms.update(prepared(make, ablation, measure))
            start = {"row": name, "arm": arm, "stage": stage}
            full = ablation.config(arm, lr=lr, seed=seed, steps=arms[arm].steps)
            known[name] = arms[arm].run(start, full, measure)
            registry.append(known[name])
            done = known[name]["status"] == "done"
            shown = f"{loss_of(known[name], ablation.weights):.5g}" if done else "failed"
            say(f"{arm}, {stage}, lr {lr:g}, seed {seed}: {shown}")
        rows.append(known[name])
        return known[name]

    if len(ablation.lrs) == 1 and not ablation.extend:
        rates = dict.fromkeys(ablation.arms, ablation.lrs[0])
    else:
        for arm in ablation.arms:
            for lr in ablation.lrs:
                one(arm, "probe", lr, ablation.probe_seed)
            for _ in range(ablation.extend):
                further = beyond(rows, arm, ablation.weights)
                if further is None:
                    break
                one(arm, "probe", further, ablation.probe_seed)
        rates = best_rates(rows, ablation.weights)
    for arm, lr in rates.items():
        for seed in ablation.seeds:
            one(arm, "main", lr, seed)
    return rows


def prepared(make: Make, ablation: Ablation, measure: Measure | None = None) -> dict[str, _Arm]:
    """Build and check all arms, without training; UserError for the first that cannot run."""
    at = {"lr": ablation.lrs[0], "seed": ablation.probe_seed}
    arms, arm = {}, ablation.baseline
    try:
        reference = make(ablation.config(arm, **at))
        frozen = freeze(reference.source.held_out, **ablation.evaluation)
        for arm in ablation.arms:
            arms[arm] = _Arm(ablation, arm, make, reference, frozen, measure)
    except UserError as error:
        raise UserError(f"arm {arm!r}: {error}") from error
    except Exception as error:
        error.add_note(f"while arm {arm!r} was prepared; nothing has been trained")
        raise
    return arms


def loss_of(row: Row, weights: str) -> float:
    """The loss of a finished run with these weights; UserError if it has no such weights."""
    if weights not in row["losses"]:
        raise UserError(f"no weights {weights!r}: {suggest(weights, list(row['losses']))}")
    return row["losses"][weights]["loss"]


def best_rates(rows: Sequence[Row], weights: str = "params") -> dict[str, float]:
    """The rate with the lowest loss among each arm's probes; UserError if all of them failed."""
    best: dict[str, float] = {}
    for arm in dict.fromkeys(r["arm"] for r in rows):
        probes = [r for r in rows if (r["arm"], r["stage"]) == (arm, "probe")]
        done = [r for r in probes if r["status"] == "done"]
        if not done:
            raise UserError(f"arm {arm!r}: no learning rate of the probes worked; try smaller ones")
        best[arm] = min(done, key=lambda r: loss_of(r, weights))["lr"]
    return best


def beyond(rows: Sequence[Row], arm: str, weights: str) -> float | None:
    """The next rate to try if an arm's best one is at an edge, one ratio further; else None."""
    best = best_rates([r for r in rows if r["arm"] == arm], weights)[arm]
    tried = sorted(r["lr"] for r in rows if (r["arm"], r["stage"]) == (arm, "probe"))
    if len(tried) < 2 or best not in (tried[0], tried[-1]):
        return None
    neighbour = tried[1] if best == tried[0] else tried[-2]
    return float(f"{best * best / neighbour:.3g}")


def probe_table(rows: Sequence[Row], weights: str = "params") -> list[dict[str, Any]]:
    """A table of the probes: the loss of every rate, the best one, and whether it is at an edge.

    A best rate at an edge may not be the optimum: try rates beyond it.
    """
    rates = sorted({r["lr"] for r in rows if r["stage"] == "probe"})
    out = []
    for arm, best in best_rates(rows, weights).items():
        probes = {r["lr"]: r for r in rows if (r["arm"], r["stage"]) == (arm, "probe")}
        shown = dict.fromkeys(rates, "")
        for lr, r in probes.items():
            done = r["status"] == "done"
            shown[lr] = f"{loss_of(r, weights):.4g}" if done else "failed"
        edge = "yes" if best in (min(probes), max(probes)) else "no"
        losses = {f"loss at lr {lr:g}": text for lr, text in shown.items()}
        out.append({"arm": arm, **losses, "best lr": best, "at an edge": edge})
    return out


def values(rows: Sequence[Row], *keys: str) -> dict[str, dict[int, float]]:
    """``{arm: {seed: value}}`` of the ``main`` runs, NaN for those that failed.

    ``keys``: the path to the value in a row, such as ``"losses", "params", "loss"`` or ``"measures",
    "frechet"``. UserError if a row has no such value.
    """
    found: dict[str, dict[int, float]] = {}
    for row in (r for r in rows if r["stage"] == "main"):
        value: Any = row if row["status"] == "done" else math.nan
        for key in keys if row["status"] == "done" else ():
            if key not in value:
                raise UserError(f"row {row['row']}: no {key!r} in {list(value)}")
            value = value[key]
        found.setdefault(row["arm"], {})[row["seed"]] = float(value)
    return found


MATCHED = {  # quantities that arms may share, and their columns
    "steps": "steps",
    "images seen": "images",
    "training FLOPs": "C",
    "parameters": "parameters",
}


def matched(rows: Sequence[Row], within: float = 0.005) -> tuple[list[dict[str, Any]], str]:
    """What each arm cost, and a sentence on which costs were equal to within the share ``within``.

    FLOPs are exact counts of the matrix products (``costs``).
    """
    arms = {r["arm"]: r for r in rows if r["stage"] == "main"}
    first = next(iter(arms.values()))
    ratios = {what: [r[c] / first[c] for r in arms.values()] for what, c in MATCHED.items()}
    same = [what for what, x in ratios.items() if max(x) / min(x) <= 1 + within]
    other = [
        f"{w} ({min(x):.2f} to {max(x):.2f} times)" for w, x in ratios.items() if w not in same
    ]
    sentence = f"Matched: {', '.join(same) or 'nothing'}."
    if other:
        sentence += f" Not matched, relative to {first['arm']}: {', '.join(other)}."
    table = [
        {
            "arm": arm,
            "steps": r["steps"],
            "images seen": r["images"],
            "training FLOPs": f"{r['C']:.4g}",
            "relative": f"{r['C'] / first['C']:.3f}",
            "parameters": r["parameters"],
            "per token": r["per_token"],
        }
        for arm, r in arms.items()
    ]
    return table, sentence
