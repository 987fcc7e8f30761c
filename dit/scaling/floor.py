"""The exact floor of the denoising loss over a finite data set, below which no network can go.

Given ``x_t``, the best output is the posterior mean of the target. With ``target = p x_0 + q eps`` and
``x_t = alpha x_0 + sigma eps``, its error is ``((sigma p - alpha q) / sigma) (x_0 - E[x_0 | x_t])``. For
a data set of n equally likely examples, ``E[x_0 | x_t]`` is their mean weighted by the softmax of
``-|x_t - alpha x_i|^2 / (2 sigma^2)``. Nothing is trained, and only the mean over noise is Monte Carlo.
For a network that is given the label, the mean is over the examples with that label.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dit.diffusion.path import identity
from dit.diffusion.process import Process, determinant
from dit.diffusion.times import Quantile, at
from dit.diffusion.weights import Weight
from dit.types import ApplyFn, UserError

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Floor:
    """The lowest possible loss, its standard error over the noise, and the number of draws."""

    loss: float
    error: float
    draws: int


def posterior_mean(
    data: Float[Array, "n d"],
    x_t: Float[Array, "m d"],
    alpha: Float[Array, " m"],
    sigma: Float[Array, " m"],
    allowed: Array | None = None,
) -> Float[Array, "m d"]:
    """``E[x_0 | x_t]`` for x_0 uniform over the rows of ``data``, in float64.

    ``allowed``, ``(m, n)``: which rows each may come from. At sigma 0 the mean is the nearest row.
    """
    squares = np.square(data).sum(1)
    distance = np.square(alpha)[:, None] * squares[None] - 2 * alpha[:, None] * (x_t @ data.T)
    if allowed is not None:
        distance = np.where(allowed, distance, np.inf)
    distance -= distance.min(1, keepdims=True)
    variance = np.maximum(np.square(sigma), 1e-30)[:, None]
    weights = np.exp(-0.5 * distance / variance)
    return (weights @ data) / weights.sum(1, keepdims=True)


def optimal_errors(
    process: Process,
    data: Float[Array, "n d"],
    x_0: Float[Array, "m d"],
    eps: Float[Array, "m d"],
    t: Float[Array, " m"],
    labels: tuple[Int[Array, " n"], Int[Array, " m"]] | None = None,
    batch: int = 1024,
) -> Float[Array, " m"]:
    """The mean squared error of the best output for given draws, to be paired with a network's.

    ``labels``: of the data and of the draws, for networks that are given them.
    """
    times = jnp.asarray(t)
    alpha, sigma, gap = (
        np.asarray(v, np.float64)
        for v in (process.path.alpha(times), process.path.sigma(times), determinant(process, times))
    )
    data, x_0, eps = (np.asarray(v, np.float64) for v in (data, x_0, eps))
    out = np.empty(len(x_0))
    for start in range(0, len(x_0), batch):
        rows = slice(start, start + batch)
        a, s = alpha[rows], sigma[rows]
        x_t = a[:, None] * x_0[rows] + s[:, None] * eps[rows]
        allowed = None if labels is None else labels[1][rows, None] == labels[0][None]
        missed = np.square(x_0[rows] - posterior_mean(data, x_t, a, s, allowed)).mean(1)
        gain = np.square(gap[rows] / np.where(s > 0, s, 1))
        out[rows] = np.where(s > 0, gain * missed, 0)
    return out


def floor(
    process: Process,
    x: Float[Array, "n ..."],
    *,
    times: Quantile,
    weight: Weight,
    label: Int[Array, " n"] | None = None,
    condition_dropout: float = 0.0,
    draws: int = 20_000,
    seed: int = 0,
) -> Floor:
    """The floor of the loss of ``objectives.denoise`` over the encoded examples ``x``.

    ``label``: for a network that is given it, except in a share ``condition_dropout`` of the draws.
    Times are stratified and every example is drawn equally often. Raises UserError for no examples.
    """
    n = len(x)
    if n < 1 or draws < 2:
        raise UserError(
            f"got {n} examples and draws={draws}; expected one or more, and two or more"
        )
    data = np.asarray(x, np.float64).reshape(n, -1)
    random = np.random.default_rng(seed)
    which = np.concatenate([random.permutation(n) for _ in range(-(-draws // n))])[:draws]
    u = (random.permutation(draws) + random.random(draws)) / draws
    path = process.path
    t, density = at(path, times, jnp.asarray(u, jnp.float32))
    eps = random.standard_normal((draws, data.shape[1]))
    w = np.broadcast_to(np.asarray(weight(process, t, density), np.float64), t.shape)
    t = np.asarray(t)
    errors = optimal_errors(process, data, data[which], eps, t)
    if label is not None:
        told = optimal_errors(
            process, data, data[which], eps, t, (np.asarray(label), np.asarray(label)[which])
        )
        errors = condition_dropout * errors + (1 - condition_dropout) * told
    values = w * errors
    return Floor(float(values.mean()), stratified_error(values, u), draws)


def optimal_network(
    process: Process, x: Float[Array, "n f h w c"], label: Int[Array, " n"] | None = None
) -> tuple[Process, ApplyFn]:
    """The best network for data that are uniform over ``x``, and the process to run it with.

    The process is the given one, except that the network sees ``t`` itself. ``label``: the labels of
    ``x``; the network then reads labels from its condition.
    """
    path = dataclasses.replace(process.path, c_noise=identity)
    known = Process(path, process.prediction)
    sigma_data = process.prediction.sigma_data or path.sigma_data
    data = jnp.asarray(np.asarray(x).reshape(len(x), -1))
    squares, classes = jnp.square(data).sum(1), None if label is None else jnp.asarray(label)

    def apply(params, x_in, t, cond):
        flat = x_in.reshape(len(x_in), -1)
        alpha, sigma = path.alpha(t)[:, None], jnp.maximum(path.sigma(t)[:, None], 1e-20)
        p, q = (
            jnp.broadcast_to(v, t.shape)[:, None] for v in process.prediction.coefficients(path, t)
        )
        if sigma_data is not None:
            flat = flat * jnp.sqrt(jnp.square(alpha * sigma_data) + jnp.square(sigma))
        product = jnp.matmul(flat, data.T, precision="highest")
        logits = (alpha * product - 0.5 * jnp.square(alpha) * squares[None]) / jnp.square(sigma)
        if classes is not None:
            same = cond.label[:, None] == classes[None]
            if cond.drop is not None:
                same = same | cond.drop[:, None]
            logits = jnp.where(same, logits, -jnp.inf)
        x0_hat = jnp.matmul(jax.nn.softmax(logits, 1), data, precision="highest")
        out = p * x0_hat + q * (flat - alpha * x0_hat) / sigma
        return out.reshape(x_in.shape)

    return known, apply


def stratified_error(values: Float[Array, " n"], by: Float[Array, " n"], strata: int = 50) -> float:
    """The standard error of a mean over draws stratified in ``by``, from the variance within strata."""
    ordered = np.asarray(values, np.float64)[np.argsort(by, kind="stable")]
    parts = np.array_split(ordered, max(1, min(strata, len(ordered) // 2)))
    variance = sum(len(part) * part.var(ddof=1) for part in parts if len(part) > 1)
    return float(np.sqrt(variance) / len(ordered))
