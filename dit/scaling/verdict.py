"""Is an arm of an ablation better than the baseline? A paired test over seeds, with a verdict.

For each seed, arm and baseline saw the same data in the same order, the same noise and the same
evaluation set, so the effect of these cancels in the difference ``d_s``. The interval is Student's:
``mean(d) +- t_{n-1} std(d) / sqrt(n)`` over n seeds. The p-values of all arms are corrected together by
Holm's step-down method (1979): the probability that any verdict other than "inconclusive" is wrong is 5%
at most. Intervals are for one arm at a time and not corrected.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from dit.types import UserError

LEVEL = 0.95  # of the intervals; 1 - LEVEL bounds the probability of a wrong verdict
BETTER, WORSE, INCONCLUSIVE = "better", "worse", "inconclusive"
Values = Mapping[str, Mapping[int, float]]  # arm -> seed -> value


@dataclasses.dataclass(frozen=True)
class MeanInterval:
    """The mean of ``n`` values and its t-interval, which is infinite for a single value."""

    mean: float
    low: float
    high: float
    n: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One arm: its ``value``, and its paired ``difference`` from the baseline (arm - baseline).

    ``p``: two-sided, for no difference; ``p_holm``: corrected for the number of arms. ``failed``: how
    many seeds have no value. The baseline has no difference, and its verdict is "baseline".
    """

    arm: str
    value: MeanInterval
    difference: MeanInterval | None
    p: float
    p_holm: float
    failed: int
    verdict: str


def t_interval(
    values: Float[np.ndarray, " n"] | Sequence[float], level: float = LEVEL
) -> MeanInterval:
    """Student's interval for the mean of independent ``values``; UserError if there are none."""
    values = np.asarray(values, np.float64)
    n = len(values)
    if n < 1 or not 0 < level < 1:
        raise UserError(f"got {n} values and level={level}; expected one value or more, and 0 to 1")
    mean = float(values.mean())
    if n == 1:
        return MeanInterval(mean, -np.inf, np.inf, 1)
    half = float(stats.t.ppf(0.5 + level / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return MeanInterval(mean, mean - half, mean + half, n)


def p_value(values: Float[np.ndarray, " n"] | Sequence[float]) -> float:
    """The two-sided p-value of a zero mean, by the t-test; 1 for a single value or for all zeros."""
    values = np.asarray(values, np.float64)
    if len(values) < 2 or not values.any():
        return 1.0
    error = values.std(ddof=1) / np.sqrt(len(values))
    return float(2 * stats.t.sf(abs(values.mean()) / error, len(values) - 1)) if error else 0.0


def holm(p: Sequence[float]) -> list[float]:
    """P-values corrected for their number by the step-down method; never lowered (Holm 1979)."""
    corrected, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(np.argsort(p, kind="stable")):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected


def compare(values: Values, baseline: str, *, lower_is_better: bool = True) -> list[Comparison]:
    """Compare every arm with ``baseline``, which comes first, over the seeds that both have.

    A seed without a finite value counts as failed. An arm with more failed seeds than the baseline is
    never "better". Raises UserError if the baseline is missing, or if an arm shares fewer than two seeds
    with it: a single seed says nothing about the others.
    """
    if baseline not in values:
        raise UserError(f"got baseline {baseline!r}; expected one of {', '.join(values)}")
    sound = {
        arm: {seed: v for seed, v in runs.items() if np.isfinite(v)} for arm, runs in values.items()
    }
    failed = {arm: len(runs) - len(sound[arm]) for arm, runs in values.items()}
    others = [arm for arm in values if arm != baseline]
    differences = {}
    for arm in others:
        seeds = sorted(set(sound[arm]) & set(sound[baseline]))
        if len(seeds) < 2:
            raise UserError(
                f"arm {arm!r} and the baseline {baseline!r} share {len(seeds)} finished seeds; expected "
                "two or more: run both with the same seeds"
            )
        differences[arm] = np.array([sound[arm][s] - sound[baseline][s] for s in seeds])
    plain = [p_value(differences[arm]) for arm in others]
    own = t_interval(list(sound[baseline].values()))
    found = [Comparison(baseline, own, None, 1.0, 1.0, failed[baseline], "baseline")]
    for arm, p, corrected in zip(others, plain, holm(plain), strict=True):
        d = t_interval(differences[arm])
        verdict = INCONCLUSIVE
        if corrected < 1 - LEVEL:
            verdict = BETTER if (d.mean < 0) == lower_is_better else WORSE
        if verdict == BETTER and failed[arm] > failed[baseline]:
            verdict = INCONCLUSIVE
        own = t_interval(list(sound[arm].values()))
        found.append(Comparison(arm, own, d, p, corrected, failed[arm], verdict))
    return found


def table(found: Sequence[Comparison], digits: int = 4) -> list[dict[str, str | int]]:
    """The comparisons as table rows of text."""

    def shown(x: MeanInterval | None) -> str:
        if x is None:
            return ""
        return f"{x.mean:.{digits}g} [{x.low:.{digits}g}, {x.high:.{digits}g}]"

    return [
        {
            "arm": c.arm,
            "mean [95% t-interval]": shown(c.value),
            "paired difference [95% t-interval]": shown(c.difference),
            "n": c.value.n if c.difference is None else c.difference.n,
            "p (Holm)": "" if c.difference is None else f"{c.p_holm:.2g}",
            "failed": c.failed,
            "verdict": c.verdict,
        }
        for c in found
    ]
