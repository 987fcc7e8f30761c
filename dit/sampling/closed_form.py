"""A problem whose solution is known, on which every solver shows its order: a Gaussian mixture.

For data from ``sum_k w_k N(m_k, S_k)`` the noised density is a mixture with means ``alpha m_k`` and
covariances ``alpha^2 S_k + sigma^2 I``, so that the exact denoiser ``E[x_0 | x_t]`` is a closed form.
Where the probability-flow ODE takes a point is solved for once, in float64, to about 1e-10. Samples are
``b 1 1 1 d``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.integrate import solve_ivp

from dit import rng
from dit.diffusion.path import Path
from dit.sampling.sample import sample
from dit.sampling.solver import Solver

END = 1e-5  # where the reference flow stops, an angle: what is left changes x_0 by 1e-10


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """``sum_k weights_k N(means_k, covariances_k)`` in d dimensions."""

    weights: Float[np.ndarray, " k"]
    means: Float[np.ndarray, "k d"]
    covariances: Float[np.ndarray, "k d d"]

    def posterior_mean(self, x: Float[Array, "b d"], alpha, sigma) -> Float[Array, "b d"]:
        """``E[x_0 | x_t]`` for scalar alpha and sigma, in the dtype of ``x``."""
        return self._posterior_mean(x, alpha, sigma, jnp)

    def _posterior_mean(self, x, alpha, sigma, xp):
        values, vectors = np.linalg.eigh(self.covariances)  # k d, k d d
        values, vectors, means, logs = (
            a.astype(x.dtype) for a in (values, vectors, self.means, np.log(self.weights))
        )
        local = xp.einsum("kde,bkd->bke", vectors, x[:, None] - alpha * means[None])
        variances = alpha**2 * values + sigma**2  # k d
        logits = logs[None] - 0.5 * (local**2 / variances[None] + xp.log(variances)[None]).sum(-1)
        weight = xp.exp(logits - logits.max(-1, keepdims=True))
        weight = weight / weight.sum(-1, keepdims=True)
        shift = xp.einsum("kde,bke->bkd", vectors, alpha * values[None] / variances[None] * local)
        return (weight[..., None] * (means[None] + shift)).sum(1)

    def denoiser(self, path: Path) -> Callable[[Array, Array], Array]:
        """The exact ``denoise(x_t, t)``, in the dtype of ``x_t``."""

        def one(x, t):  # one sample: its time may differ from the others'
            x_0 = self.posterior_mean(x.reshape(1, -1), path.alpha(t), path.sigma(t))
            return x_0.reshape(x.shape)

        return lambda x, t: jax.vmap(one)(x, t).astype(x.dtype)

    def flow(
        self, x_T: Float[np.ndarray, "b d"], alpha: float, sigma: float
    ) -> Float[np.ndarray, "b d"]:
        """``x_0`` at the end of the probability-flow ODE from ``x_T``.

        On the unit circle ``alpha = cos a, sigma = sin a``, where every path's flow is the same curve
        up to scale: ``dx/da = -sin a x0_hat + cos a eps_hat``, which has no singular end in closed
        form.
        """

        def slope(a, z):
            z = z.reshape(x_T.shape)
            c, s = np.cos(a), np.sin(a)
            # eps_hat = (z - c x_0) / s, so that the slope is (c z - x_0) / s, which is 0 / 0 at data.
            return ((c * z - self._posterior_mean(z, c, s, np)) / s).ravel()

        start = (x_T / np.hypot(alpha, sigma)).ravel()
        ends = (np.arctan2(sigma, alpha), END)
        solution = solve_ivp(slope, ends, start, method="DOP853", rtol=1e-11, atol=1e-12)
        return solution.y[:, -1].reshape(x_T.shape)

    def moments(self) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
        """Mean and covariance of the data."""
        mean = self.weights @ self.means
        square = self.covariances + self.means[:, :, None] * self.means[:, None]
        return mean, np.einsum("k,kde->de", self.weights, square) - np.outer(mean, mean)


def _three() -> Mixture:
    factors = np.array(
        [[[0.5, 0.1], [0.0, 0.3]], [[0.3, 0.0], [-0.2, 0.4]], [[0.4, 0.2], [0.1, 0.4]]]
    )
    return Mixture(
        weights=np.array([0.4, 0.35, 0.25]),
        means=np.array([[0.8, 0.3], [-0.6, 0.5], [0.1, -0.7]]),
        covariances=factors @ factors.transpose(0, 2, 1),
    )


THREE = _three()  # Gaussians in the plane, overlapping


def one_of(paths: Sequence[Path], which: Array) -> Path:
    """The path of this index, an array: alpha and sigma only. One program then serves all paths."""

    def switch(functions):
        return lambda t: jax.lax.switch(which, functions, t)

    return Path(switch([p.alpha for p in paths]), switch([p.sigma for p in paths]), 0.0, 1.0)


def smooth_grid(path: Path, steps: int, last: float = 0.0) -> Float[np.ndarray, " nodes"]:
    """Nodes that crowd smoothly towards both ends, in the angle ``arctan(sigma / alpha)``; float64.

    At both ends log-SNR is infinite, and with equal steps in t some steps are never small in it,
    however many there are; on this grid every solver shows its order. It may go below t_min, unless
    ``last``, the angle at the last node but the end, is above that.
    """
    with jax.enable_x64(True):
        ends = jnp.asarray([path.t_max])
        top = jnp.arctan2(path.sigma(ends), path.alpha(ends))
        shares = jnp.linspace(1, 0, steps + 1 if last == 0 else steps)
        angle = last + (top - last) * jnp.sin(0.5 * jnp.pi * shares) ** 2
        low, high = jnp.zeros_like(angle), jnp.full_like(angle, path.t_max)
        for _ in range(60):
            middle = 0.5 * (low + high)
            noisy = jnp.arctan2(path.sigma(middle), path.alpha(middle)) > angle
            low, high = jnp.where(noisy, low, middle), jnp.where(noisy, middle, high)
        nodes = np.append(np.asarray(low), 0.0)[: steps + 1]
    nodes[0], nodes[-1] = path.t_max, 0.0
    return nodes


@functools.lru_cache
def reference(
    mixture: Mixture, path: Path, samples: int = 3, seed: int = 0
) -> tuple[Float[np.ndarray, "b d"], Float[np.ndarray, "b d"]]:
    """Noise ``x_T`` and where the exact flow takes it."""
    eps = np.random.default_rng(seed).normal(size=(samples, mixture.means.shape[1]))
    with jax.enable_x64(True):
        end = jnp.asarray(path.t_max, jnp.float64)
        alpha, sigma = float(path.alpha(end)), float(path.sigma(end))
    return sigma * eps, mixture.flow(sigma * eps, alpha, sigma)


def errors(
    solver: Solver, paths: Mapping[str, Path], steps: Sequence[int], mixture: Mixture = THREE
) -> dict[str, Float[np.ndarray, " s"]]:
    """For each path, the root-mean-square error of ``solver`` after so many steps of ``smooth_grid``.

    In float64, for a deterministic solver: the error of order p falls as ``steps^-p``.
    """
    key, found = rng.root(0), {name: [] for name in paths}
    with jax.enable_x64(True):
        for n in steps:

            @jax.jit
            def run(which, x, grid):
                path = one_of(list(paths.values()), which)
                return sample(key, mixture.denoiser(path), path, solver, grid, x)

            for which, (name, path) in enumerate(paths.items()):
                x_T, x_0 = reference(mixture, path)
                x = jnp.asarray(x_T).reshape(len(x_T), 1, 1, 1, -1)
                out = np.asarray(run(which, x, smooth_grid(path, n))).reshape(x_0.shape)
                found[name].append(np.sqrt(np.mean((out - x_0) ** 2)))
    return {name: np.array(values) for name, values in found.items()}
