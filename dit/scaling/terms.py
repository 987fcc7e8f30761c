"""Sums of power laws in logarithms, and their least-squares fits: the model behind every fit here.

A loss ``L = E + A N^-alpha + B D^-beta`` is ``log L = logsumexp_k(X_k theta)`` with the terms linear in
``theta = (log E, log A, alpha, log B, beta)``. A power law of one variable, with or without a floor, is
the same with fewer terms. ``X`` is the design, an array ``(n, k, p)``: n runs, k terms, p parameters.
Everything is float64 NumPy. Variables are first divided by their geometric mean (``centre``), so that a
coefficient and its exponent are not nearly the same parameter.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from dit.types import UserError

Array = np.ndarray


def positive(**columns) -> list[Float[Array, " n"]]:
    """The columns as float64 vectors of equal length; UserError unless all are positive and finite."""
    arrays = [np.asarray(v, np.float64).reshape(-1) for v in columns.values()]
    for name, a in zip(columns, arrays, strict=True):
        if len(a) != len(arrays[0]):
            lengths = {k: len(v) for k, v in zip(columns, arrays, strict=True)}
            raise UserError(f"got columns of lengths {lengths}; expected one entry a run in each")
        bad = ~(np.isfinite(a) & (a > 0))
        if bad.any():
            raise UserError(
                f"got {name}={a[bad][0]} in row {int(bad.argmax())}; expected positive finite "
                "numbers: leave failed runs out of a fit"
            )
    return arrays


def need(n: int, parameters: int, what: str) -> None:
    """Raise UserError for fewer runs than a fit has parameters."""
    if n < parameters:
        raise UserError(f"got {n} runs for {what}; expected at least {parameters}, one a parameter")


def centre(x: Float[Array, " n"]) -> float:
    """The geometric mean."""
    return float(np.exp(np.log(x).mean()))


def design(floor: bool, *logs: Float[Array, " n"]) -> Float[Array, "n k p"]:
    """Terms ``c_j - g_j logs_j``, after a constant for a floor; ``theta = (e, c, g, ...)``."""
    n, k = len(logs[0]), len(logs) + floor
    out = np.zeros((n, k, 2 * len(logs) + floor))
    if floor:
        out[:, 0, 0] = 1
    for j, log in enumerate(logs):
        term, column = j + floor, 2 * j + floor
        out[:, term, column] = 1
        out[:, term, column + 1] = -log
    return out


def log_sum(
    design: Float[Array, "n k p"],
    theta: Float[Array, "b p"],
    offset: Float[Array, "n k"] | float = 0.0,
) -> tuple[Float[Array, "b n"], Float[Array, "b n p"]]:
    """``logsumexp_k(X theta + offset)`` for a batch of ``theta``, and its Jacobian."""
    n, k, p = design.shape
    z = (theta @ design.reshape(n * k, p).T).reshape(-1, n, k) + offset
    top = z.max(-1, keepdims=True)
    w = np.exp(z - top)
    total = w.sum(-1, keepdims=True)
    w /= total
    jacobian = np.matmul(w.transpose(1, 0, 2), design).transpose(1, 0, 2)
    return (top + np.log(total))[..., 0], jacobian


def cost(r: Float[Array, "..."], delta: float | None) -> Float[Array, "..."]:
    """Half the square, or Huber's function: linear beyond ``delta`` (Huber 1964)."""
    if delta is None:
        return 0.5 * r * r
    a = np.abs(r)
    return np.where(a <= delta, 0.5 * r * r, delta * (a - 0.5 * delta))


def solve(
    design: Float[Array, "n k p"],
    y: Float[Array, "#b n"],
    theta: Float[Array, "b p"],
    *,
    offset: Float[Array, "n k"] | float = 0.0,
    weights: Float[Array, "#b n"] | float = 1.0,
    delta: float | None = None,
    steps: int = 200,
) -> tuple[Float[Array, "b p"], Float[Array, " b"]]:
    """Minimise ``sum_i w_i rho(log L_hat_i - y_i)`` from ``theta`` by the Levenberg-Marquardt method.

    Solves a batch of problems with one design, which differ in ``y``, ``weights`` or their start. With
    ``delta`` the cost is Huber's, by reweighting. Returns ``(theta, cost)``.
    """
    theta = np.array(theta, np.float64)
    shape = (len(theta), design.shape[0])
    y, weights = np.broadcast_to(y, shape), np.broadcast_to(weights, shape)
    damping = np.full(len(theta), 1e-3)
    value, jacobian = log_sum(design, theta, offset)
    best = (weights * cost(value - y, delta)).sum(-1)
    active = np.arange(len(theta))
    eye = np.eye(design.shape[2])
    for _ in range(steps):
        if not len(active):
            break
        r, w, J = value[active] - y[active], weights[active], jacobian[active]
        if delta is not None:
            w = w * np.minimum(1, delta / np.maximum(np.abs(r), 1e-300))
        Jw = J * w[..., None]
        H = np.matmul(Jw.transpose(0, 2, 1), J)
        g = np.matmul(Jw.transpose(0, 2, 1), r[..., None])
        scale = np.maximum(np.einsum("bii->bi", H), 1e-12 * np.abs(H).max((1, 2))[:, None] + 1e-300)
        H = H + eye * (damping[active, None] * scale)[:, None]
        move = -np.linalg.solve(H, g)[..., 0]
        move = np.clip(move, -2, 2)
        trial = theta[active] + move
        trial_value, trial_jacobian = log_sum(design, trial, offset)
        trial_cost = (weights[active] * cost(trial_value - y[active], delta)).sum(-1)
        better = trial_cost < best[active]
        small = np.abs(move).max(-1) < 1e-12 * (1 + np.abs(trial).max(-1))
        gain = best[active] - trial_cost
        took = active[better]
        theta[took], best[took] = trial[better], trial_cost[better]
        value[took], jacobian[took] = trial_value[better], trial_jacobian[better]
        damping[active] = np.where(better, damping[active] / 10, damping[active] * 10)
        flat = better & (gain <= 1e-13 * best[active]) & (damping[active] < 1e-4)
        active = active[~(small | flat | (damping[active] > 1e12))]
        damping = np.maximum(damping, 1e-15)
    return theta, best
