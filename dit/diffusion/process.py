"""A diffusion process: a path, and what the network predicts on it.

A prediction is two coefficients, ``target = p(t) x_0 + q(t) eps``. With ``x_t = alpha x_0 + sigma
eps`` the data follow from the output by Cramer's rule,
``x_0 = (sigma out - q x_t) / (sigma p - alpha q)``. A pair for which that is undefined somewhere in
``[t_min, t_max]`` is refused when the process is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dit.diffusion.path import Path
from dit.types import ApplyFn, Cond, Params, Times, UserError, Video, match_time

MAX_GAIN = 1e4  # of x_0 over an error in the output: beyond it float32 keeps nothing of the data


@dataclasses.dataclass(frozen=True)
class Prediction:
    """``coefficients(path, t) -> (p, q)``; ``sigma_data`` as in ``Path``, for those that need it."""

    name: str
    coefficients: Callable[[Path, Array], tuple[Array, Array]]
    sigma_data: float | None = None


@dataclasses.dataclass(frozen=True)
class Process:
    """A path with a prediction that is defined on all of it.

    Raises UserError for times that the path does not have, and where the output cannot determine
    ``x_0``: at that time the prediction says nothing of the data (``eps`` where alpha is 0) or is itself
    infinite (the score at sigma 0).
    """

    path: Path
    prediction: Prediction

    def __post_init__(self):
        path = self.path
        t = jnp.linspace(path.t_min, path.t_max, 1001)
        outside = ~((path.alpha(t) >= 0) & (path.sigma(t) >= 0))
        if outside.any():
            raise UserError(
                f"the path has no alpha or no sigma at t = {float(t[outside][0]):.4g}: set path.t_min "
                f"and path.t_max within it, not {path.t_min} and {path.t_max}"
            )
        p, q = self.prediction.coefficients(path, t)
        gain = np.abs(np.asarray(x0_gain(self, t)))
        bad = ~np.isfinite(np.asarray(p)) | ~np.isfinite(np.asarray(q)) | ~(gain < MAX_GAIN)
        if bad.any():
            where = t[bad]
            raise UserError(
                f"prediction {self.prediction.name!r} is undefined on this path at t = {where[0]:.4g}"
                f"{f' (and at {bad.sum() - 1} other times tried)' if bad.sum() > 1 else ''}: there "
                f"alpha = {float(path.alpha(where[0])):.3g} and sigma = "
                f"{float(path.sigma(where[0])):.3g}, and x_0 cannot be recovered from it. Use 'v', "
                "'velocity' or 'x0', or a path whose t_min or t_max stops short of that time"
            )


def determinant(process: Process, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """``sigma p - alpha q``: an output error ``e`` shows as ``sigma e / det`` in ``x_0``."""
    path = process.path
    p, q = process.prediction.coefficients(path, t)
    return path.sigma(t) * p - path.alpha(t) * q


def x0_gain(process: Process, t: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """How an error in the output shows in ``x_0``: ``sigma / determinant``, NaN where undefined.

    A prediction of ``x_0`` itself has q = 0, so that the ratio stays ``1 / p`` as sigma vanishes.
    """
    p, q = process.prediction.coefficients(process.path, t)
    det = determinant(process, t)
    return jnp.where(q == 0, 1 / p, process.path.sigma(t) / jnp.where(det == 0, jnp.nan, det))


def corrupt(process: Process, x_0: Video, eps: Video, t: Times) -> Video:
    """``x_t = alpha(t) x_0 + sigma(t) eps``."""
    t = match_time(t, x_0)
    return process.path.alpha(t) * x_0 + process.path.sigma(t) * eps


def target(process: Process, x_0: Video, eps: Video, t: Times) -> Video:
    """What the network should output: ``p(t) x_0 + q(t) eps``."""
    p, q = process.prediction.coefficients(process.path, match_time(t, x_0))
    return p * x_0 + q * eps


def to_x0(process: Process, x_t: Video, out: Video, t: Times) -> Video:
    """The data that an output stands for: ``(sigma out - q x_t) / (sigma p - alpha q)``.

    Where a sample has several levels, some may be 0: there x_t is the data, whatever the output.
    """
    several, t = t.ndim > 1, match_time(t, x_t)
    if several:
        clean = t <= 0
        t = jnp.where(clean, process.path.t_max, t)
    alpha, sigma = process.path.alpha(t), process.path.sigma(t)
    p, q = process.prediction.coefficients(process.path, t)
    det = sigma * p - alpha * q
    solved = (sigma * out - q * x_t) / jnp.where(det == 0, 1, det)
    x_0 = jnp.where(det == 0, out / jnp.where(p == 0, 1, p), solved)
    return jnp.where(clean, x_t, x_0) if several else x_0


def network_input(process: Process, x_t: Video, t: Times) -> tuple[Video, Times]:
    """``(c_in(t) x_t, c_noise(t))``: what the network is given for ``(x_t, t)``."""
    path, sigma_data = process.path, process.prediction.sigma_data or process.path.sigma_data
    if sigma_data is not None:
        s = match_time(t, x_t)
        x_t = x_t / jnp.sqrt(jnp.square(path.alpha(s) * sigma_data) + jnp.square(path.sigma(s)))
    return x_t, path.c_noise(t)


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """``denoise(x_t, t) -> x0_hat``: all that solvers and guidance see of a model.

    ``full(x_t, t) -> (x0_hat, v)`` also gives the learned-variance channels ``v`` (Nichol &
    Dhariwal 2021, eq. 15), or None for a model without them.
    """

    full: Callable[[Video, Times], tuple[Video, Video | None]]

    def __call__(self, x_t: Video, t: Times) -> Video:
        return self.full(x_t, t)[0]


def denoiser(process: Process, apply_fn: ApplyFn, params: Params, cond: Cond) -> Denoiser:
    """The posterior-mean estimate of a trained network, in float32.

    A network with twice the data's channels has a learned variance in the second half.
    """

    def full(x_t: Video, t: Times) -> tuple[Video, Video | None]:
        out = apply_fn(params, *network_input(process, x_t, t), cond).astype(x_t.dtype)
        out, variance = split_variance(out, x_t.shape[-1])
        return to_x0(process, x_t, out, t), variance

    return Denoiser(full)


def split_variance(out: Float[Array, "b f h w c_out"], channels: int) -> tuple[Video, Video | None]:
    """Split ``2 c`` output channels into the prediction and the learned variance, if there is one."""
    if out.shape[-1] == channels:
        return out, None
    if out.shape[-1] == 2 * channels:
        return out[..., :channels], out[..., channels:]
    raise ValueError(
        f"the network gives {out.shape[-1]} channels for data of {channels}; expected {channels}, "
        f"or {2 * channels} with a learned variance: set the model's out_channels"
    )
