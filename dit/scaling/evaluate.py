"""Evaluation losses that can be compared: the same held-out examples, times and noise for every model.

Draw ``i`` consists of an example, a time and noise, all functions of a frozen seed and of ``i``. Times
are stratified: one draw in each of n equal parts of the time distribution. Two models see the same
draws, so the noise of the draws cancels in their difference (``paired``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from dit import config, rng
from dit.diffusion.process import Process, denoiser
from dit.parallel.frozen import Frozen, place, shapes
from dit.parallel.mesh import mesh_of
from dit.scaling.floor import optimal_network, stratified_error
from dit.training.state import EMPTY
from dit.training.step import Show, Tell, told, unchanged, unshown, untold
from dit.training.step import objective as of_batch
from dit.types import ApplyFn, Params, UserError, match_time

Array = np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSet:
    """``examples`` of data and the draws on them: draw ``i`` is of example ``i % len(x)``.

    ``label`` is None for unlabelled data; ``others``: further conditions, by name. ``hash`` changes with
    the data, the seed and the number of draws.
    """

    x: Array
    label: Int[Array, " n"] | None
    draws: int
    seed: int
    others: Mapping[str, Array] = dataclasses.field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Sixteen hex digits."""
        sha = hashlib.sha256(f"{self.x.shape}{self.x.dtype}{self.draws},{self.seed}".encode())
        for a in self.batch(slice(None)).values():
            sha.update(np.ascontiguousarray(a).tobytes())
        return sha.hexdigest()[:16]

    def batch(self, rows: Array | slice) -> dict[str, Array]:
        """``x`` of some examples, and their conditions, where there are any."""
        label = {} if self.label is None else {"label": self.label[rows]}
        return {"x": self.x[rows], **label, **{k: v[rows] for k, v in self.others.items()}}


def freeze(
    split: Any, *, examples: int | None = None, draws: int | None = None, seed: int = 0
) -> EvaluationSet:
    """The first ``examples`` of a split (all by default), with ``draws`` of time and noise over them.

    Raises UserError where there are not so many, or fewer draws than examples.
    """
    examples = len(split) if examples is None else examples
    draws = examples if draws is None else draws
    if not 1 <= examples <= min(len(split), draws):
        raise UserError(
            f"got examples={examples} and draws={draws} of a split of {len(split)}; expected at least "
            "one, no more than the split has, and a draw or more of each"
        )
    rows = [split[i] for i in range(examples)]
    label = np.array([row["label"] for row in rows], np.int32) if "label" in rows[0] else None
    apart = ("x", "label", "caption")  # words are no condition; their tokens are
    others = {k: np.stack([r[k] for r in rows]) for k in rows[0] if k not in apart}
    return EvaluationSet(np.stack([row["x"] for row in rows]), label, draws, seed, others)


def check_evaluation(options: Mapping[str, Any]) -> None:
    """Raise UserError unless ``options`` are keywords of ``freeze``."""
    known = [name for name in inspect.signature(freeze).parameters if name != "split"]
    for name in options:
        if name not in known:
            raise UserError(
                f"got the option {name!r} of the evaluation: {config.suggest(name, known)}"
            )


def check_weights(name: str, experiment: Any) -> None:
    """Raise UserError unless an experiment has weights of that name: ``params``, or an average."""
    known = ["params", *experiment.settings("ema").names]
    if name not in known:
        raise UserError(f"no weights {name!r}: {config.suggest(name, known)}")


@dataclasses.dataclass(frozen=True, eq=False)
class Losses:
    """The loss of every draw, with its time, example and place in the time distribution."""

    loss: Float[Array, " n"]
    t: Float[Array, " n"]
    example: Int[Array, " n"]
    set_hash: str

    @property
    def mean(self) -> float:
        """Over all draws."""
        return float(np.mean(self.loss, dtype=np.float64))

    @property
    def error(self) -> float:
        """The standard error of the mean; draws of one example count as one."""
        return mean_error(self.loss, self.t, self.example)

    def bins(self, count: int = 10) -> list[dict[str, float]]:
        """Mean and standard error in ``count`` equal parts of the draws, in the order of time."""
        parts = np.array_split(np.argsort(self.t, kind="stable"), count)
        return [
            {
                "t_low": float(self.t[part].min()),
                "t_high": float(self.t[part].max()),
                "loss": float(np.mean(self.loss[part], dtype=np.float64)),
                "error": float(np.std(self.loss[part], ddof=1) / np.sqrt(len(part))),
                "draws": len(part),
            }
            for part in parts
            if len(part) > 1
        ]


def mean_error(
    values: Float[Array, " n"], t: Float[Array, " n"], example: Int[Array, " n"]
) -> float:
    """The standard error of a mean of draws whose times are stratified.

    The larger of two estimates: from the variance at nearly equal times, and from that between examples.
    """
    values = np.asarray(values, np.float64)
    within = stratified_error(values, t)
    counts = np.bincount(example)
    if len(counts) == len(values) or len(counts) < 3:
        return within
    means = np.bincount(example, values) / counts
    return max(within, float(means.std(ddof=1) / np.sqrt(len(means))))


class Evaluator:
    """``evaluate(params) -> Losses``, compiled once, for any parameters of one model."""

    def __init__(
        self,
        frozen: EvaluationSet,
        *,
        apply_fn: ApplyFn,
        process: Process,
        objective: Mapping[str, Any],
        encode: Callable = unchanged,
        tell: Tell = untold,
        show: Show = unshown,
        beside: Frozen = EMPTY,
        batch: int = 256,
    ):
        """``objective``: the ``name`` of an objective and its keywords, ``times`` and ``weight`` too;
        its times are stratified and no condition is dropped. ``encode``: makes latents of the data;
        ``tell``: what a frozen encoder makes of its tokens; ``show``: known channels of the data;
        ``beside``: the weights that nothing trains, those of all three among them.
        """
        kwargs = {**objective, "strata": frozen.draws, "condition_dropout": 0.0}
        loss = config.resolve("objectives", kwargs.pop("name"), **kwargs)
        key = rng.root(frozen.seed)
        self.frozen, self.batch, self._hash, self._beside = frozen, batch, frozen.hash, beside
        loss_fn = of_batch(loss, apply_fn, process, encode, tell, show)

        @jax.jit
        def losses(params, rows, beside):
            metrics = loss_fn(params, rows, key, **told(beside, jnp.zeros((), jnp.int32)))[1]
            return metrics["loss"], metrics["t"]

        self._losses = losses

    def _rows(self, start: int) -> dict[str, Array]:
        """The examples of a batch of draws, and the draws; the last is repeated to fill it."""
        ids = np.minimum(np.arange(start, start + self.batch), self.frozen.draws - 1)
        return {**self.frozen.batch(ids % len(self.frozen.x)), "id": ids.astype(np.int32)}

    def check(self, params: Params) -> None:
        """Trace the evaluation of parameters of these shapes, or raise what is wrong with them."""
        jax.eval_shape(self._losses, params, self._rows(0), shapes(self._beside))

    def __call__(self, params: Params) -> Losses:
        draws = self.frozen.draws
        starts = range(0, draws, self.batch)
        beside = place(self._beside, mesh_of(params)) if self._beside else {}
        found = [jax.device_get(self._losses(params, self._rows(i), beside)) for i in starts]
        value, t = (np.concatenate(parts)[:draws] for parts in zip(*found, strict=True))
        return Losses(value, t, np.arange(draws) % len(self.frozen.x), self._hash)


def evaluate_all(evaluate: Callable[[Params], Losses], state: Any) -> dict[str, Losses]:
    """The losses of a training state's raw parameters (``params``) and of each of its averages."""
    return {name: evaluate(p) for name, p in {"params": state.params, **state.ema}.items()}


def summaries(found: Mapping[str, Losses]) -> dict[str, dict[str, Any]]:
    """Losses as a registry keeps them: the mean, its standard error, and the means by time."""
    return {
        name: {"loss": x.mean, "error": x.error, "bins": [b["loss"] for b in x.bins()]}
        for name, x in found.items()
    }


def in_terms_of(reference: Process, process: Process, apply_fn: ApplyFn) -> tuple[Process, ApplyFn]:
    """A network that was trained for ``process``, with the prediction of ``reference``.

    Both must have one path. Whatever the network predicts gives ``x0_hat`` and with ``eps_hat = (x_t -
    alpha x0_hat) / sigma`` any other prediction: so networks of different predictions have comparable
    losses. The pair returned is for ``Evaluator``.
    """
    path = dataclasses.replace(reference.path, c_noise=lambda t: t, sigma_data=None)
    prediction = dataclasses.replace(reference.prediction, sigma_data=None)

    def predict(params, x_t, t, cond):
        x_0 = denoiser(process, apply_fn, params, cond)(x_t, t)
        s = match_time(t, x_t)
        sigma = path.sigma(s)
        eps = (x_t - path.alpha(s) * x_0) / jnp.where(sigma > 0, sigma, 1)
        p, q = reference.prediction.coefficients(reference.path, s)
        return p * x_0 + q * eps

    return Process(path, prediction), predict


@dataclasses.dataclass(frozen=True)
class Paired:
    """A mean difference of losses, its standard error, an interval, and the p-value of no difference."""

    difference: float
    error: float
    low: float
    high: float
    p: float
    draws: int


def paired(a: Losses, b: Losses, level: float = 0.95) -> Paired:
    """``a - b`` on the same draws; UserError if the draws are not the same."""
    if a.set_hash != b.set_hash or not np.array_equal(a.t, b.t):
        raise UserError(
            f"got losses on evaluation sets {a.set_hash} and {b.set_hash}; a paired test needs the same "
            "examples, times and noise"
        )
    values = a.loss.astype(np.float64) - b.loss
    difference, error = float(values.mean()), mean_error(values, a.t, a.example)
    freedom = max(1, len(np.unique(a.example)) - 1)
    half = float(stats.t.ppf(0.5 + level / 2, freedom)) * error
    p = float(2 * stats.t.sf(abs(difference) / error, freedom)) if error else float(difference == 0)
    return Paired(difference, error, difference - half, difference + half, p, len(values))


def floor_losses(
    frozen: EvaluationSet,
    *,
    process: Process,
    objective: Mapping[str, Any],
    encode: Callable = unchanged,
    told: bool = True,
    batch: int = 256,
) -> Losses:
    """What the best of all networks scores on the draws of a set that is all of its data.

    ``paired`` with a network's losses on its own training data, their distance from the floor is free of
    most of the noise. ``encode``: of a codec without parameters. ``told``: the network is given labels,
    where the data have any.
    """
    x = np.asarray(encode({}, jnp.asarray(frozen.x)))
    known, best = optimal_network(process, x, frozen.label if told else None)
    options = {"process": known, "objective": objective, "encode": encode, "batch": batch}
    return Evaluator(frozen, apply_fn=best, **options)(None)
