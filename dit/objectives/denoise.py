"""The denoising loss: the weighted squared error of the network's output.

``L = E_{x_0, eps, t} w(t) |F(c_in x_t, c_noise) - (p x_0 + q eps)|^2`` over any path, prediction, time
distribution and weight. A network with ``2 c`` output channels also learns the variance of the reverse
step by the variational bound (Nichol & Dhariwal 2021, eq. 16), as the original DiT does.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Array, Bool, Float

from dit import rng
from dit.diffusion.posterior import log_variance, posterior_mean
from dit.diffusion.process import (
    Process,
    corrupt,
    network_input,
    split_variance,
    target,
    to_x0,
)
from dit.diffusion.tasks import Mix, Patch, grid_of, mix
from dit.diffusion.times import Quantile, draw
from dit.diffusion.weights import Weight
from dit.objectives import LossFn
from dit.types import (
    ApplyFn,
    Cond,
    Count,
    Fraction,
    Key,
    Params,
    Times,
    UserError,
    Video,
    match_time,
    repeat_patches,
)


def build(
    *,
    times: Quantile,
    weight: Weight,
    condition_dropout: Fraction = 0.1,
    level: Literal["sample", "frame", "token"] = "sample",
    tasks: tuple[str, ...] = (),
    patch: tuple[Count, Count, Count] = (1, 1, 1),
    strata: Count | None = None,
) -> LossFn:
    """The loss for a time distribution and a weight.

    ``condition_dropout``: how often the condition is replaced by the null one (Ho & Salimans 2022).
    ``level``: what has a noise level of its own: a sample, every frame (diffusion forcing, Chen et al.
    2024) or every token.
    ``tasks``: a mix of what is given clean, with t = 0 and without a loss (``diffusion.tasks``), such as
    ``("text_to_video:weight=2", "image_to_video")``; none: nothing is. ``patch``: the frames, height and
    width of one token.
    ``strata``: set to the batch size to stratify the times over each batch.
    Metrics: ``loss`` (weighted), ``mse`` (unweighted), ``t`` (the mean over levels), and ``vb`` in
    bits a dimension with a learned variance; all of them means over what is not known.
    """
    mixed = mix(tasks)

    def loss(
        key: Key, params: Params, apply_fn: ApplyFn, process: Process, batch: dict[str, Array]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, " b"]]]:
        x_0, ids = batch["x"], batch["id"]
        streams = {n: rng.stream(key, n) for n in ("noise", "time", "dropout")}
        eps = rng.normal(rng.per_sample(streams["noise"], ids), x_0.shape[1:], x_0.dtype)
        levels = {"sample": (), "frame": x_0.shape[1:2], "token": grid_of(x_0.shape[1:], patch)}[
            level
        ]
        t, density = draw(streams["time"], ids, process.path, times, levels=levels, strata=strata)
        if level == "token":
            t, density = repeat_patches(t, patch), repeat_patches(density, patch)
        cond = Cond.of(
            batch, rng.uniform(rng.per_sample(streams["dropout"], ids)) < condition_dropout
        )
        x_t, told, learned = corrupt(process, x_0, eps, t), t, None
        clean = known_tokens(key, batch, mixed, patch)
        if clean is not None:
            learned = ~clean[..., None]
            x_t = jnp.where(learned, x_t, x_0)
            told = told_times(t, clean, mixed.whole)
        out = apply_fn(params, *network_input(process, x_t, told), cond).astype(x_0.dtype)
        out, variance = split_variance(out, x_0.shape[-1])
        error = jnp.square(out - target(process, x_0, eps, t))
        w = weight(process, match_time(t, x_0), match_time(density, x_0))
        metrics = {
            "loss": _mean(w * error, learned),
            "mse": _mean(error, learned),
            "t": t if t.ndim == 1 else t.reshape(len(t), -1).mean(1),
        }
        if variance is not None:
            metrics["vb"] = variational_bound(process, x_0, x_t, out, variance, t, learned)
            metrics["loss"] += metrics["vb"]
        return metrics["loss"].mean(), metrics

    return loss


def known_tokens(
    key: Key, batch: dict[str, Array], mixed: Mix | None, patch: Patch
) -> Bool[Array, "b f h w"] | None:
    """Where x is given clean, by a mix of tasks; None for nowhere.

    Raises UserError for a batch with a ``known`` of its own that no task asks for, and the reverse; and
    where no task fits samples of this shape.
    """
    of_data = mixed is not None and mixed.of_data
    if ("known" in batch) != of_data:
        specs = () if mixed is None else mixed.specs
        raise UserError(
            f"got objective.tasks={specs} and batches of {', '.join(batch)}; expected the task 'data' "
            "where the data have a key 'known', and only there"
        )
    if mixed is None:
        return None
    return mixed.known(key, batch["id"], batch["x"].shape[1:], patch, batch.get("known"))


def told_times(t: Times, clean: Bool[Array, "b f h w"], whole: bool) -> Times:
    """The times that the network is told: 0 where x is clean, ``t`` elsewhere.

    One a token or, where frames are ``whole`` and have one level, one a frame: of those a network that
    is modulated makes fewer vectors.
    """
    if whole and t.ndim < 3:
        return jnp.where(clean[:, :, 0, 0], 0, t.reshape(len(t), -1))
    return jnp.where(clean, 0, t.reshape(t.shape + (1,) * (4 - t.ndim)))


def _mean(x: Video, where: Bool[Array, "b f h w 1"] | None = None) -> Float[Array, " b"]:
    if where is None:
        return x.reshape(x.shape[0], -1).mean(1)
    numbers = where.reshape(x.shape[0], -1).sum(1) * x.shape[-1]
    return jnp.where(where, x, 0).reshape(x.shape[0], -1).sum(1) / jnp.maximum(numbers, 1)


def variational_bound(
    process: Process,
    x_0: Video,
    x_t: Video,
    out: Video,
    v: Video,
    times: Times,
    where: Bool[Array, "b f h w 1"] | None = None,
) -> Float[Array, " b"]:
    """One term of the variational bound, in bits a dimension, with the mean held fixed.

    The KL divergence between the true and the learned posterior of the step from t to the timestep
    before it; at the last one, the likelihood of 8-bit data (Ho et al. 2020, eqs. 5 and 13). Raises
    UserError on a path without discrete timesteps.
    """
    path = process.path
    if path.timesteps is None:
        raise UserError("a learned variance needs a path with discrete timesteps: use path 'ddpm'")
    t = match_time(times, x_0)
    s = t - 1 / path.timesteps
    s = jnp.where(s < 0.5 / path.timesteps, 0, s)
    x0_hat = jax.lax.stop_gradient(to_x0(process, x_t, out, times))
    truth = posterior_mean(path, x_0, x_t, t, s)
    mean = posterior_mean(path, x0_hat, x_t, t, s)
    true_log_var, log_var = log_variance(path, None, t, s), log_variance(path, v, t, s)
    ratio = jnp.exp(true_log_var - log_var)
    kl = log_var - true_log_var + ratio - 1 + jnp.square(truth - mean) * jnp.exp(-log_var)
    nats = jnp.where(s == 0, -_log_likelihood_8bit(x_0, mean, 0.5 * log_var), 0.5 * kl)
    return _mean(nats, where) / math.log(2)


def _log_likelihood_8bit(x: Array, mean: Array, log_std: Array) -> Array:
    """Log probability of the 1/127.5-wide bin around ``x``; the outer bins reach to infinity."""
    upper = jnp.where(x > 0.999, jnp.inf, (x - mean + 1 / 255) * jnp.exp(-log_std))
    lower = jnp.where(x < -0.999, -jnp.inf, (x - mean - 1 / 255) * jnp.exp(-log_std))
    flip = (lower > 0) & jnp.isfinite(lower)  # in the upper tail the complement keeps the digits
    upper, lower = jnp.where(flip, -lower, upper), jnp.where(flip, -upper, lower)
    return jnp.log(jnp.maximum(ndtr(upper) - ndtr(lower), 1e-12))
