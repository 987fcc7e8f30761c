"""The loss surface ``L(N, D) = E + A N^-alpha + B D^-beta`` (Hoffmann et al. 2022, eq. 2), and its fits.

``fit_surface`` has two stages. *Variable projection* (Golub & Pereyra 1973): for given exponents the
surface is linear in E, A and B, so only the two exponents are searched for. Then, optionally, the
minimum of ``sum Huber_delta(log L_hat - log L)`` by L-BFGS from many starts (Hoffmann et al. 2022, eq.
3), or the maximum of the likelihood of that Huber density with a free scale (Besiroglu et al. 2024). N
and D are whatever the caller counts: parameters and images, for example, or per-token parameters and
tokens.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from jaxtyping import Float
from scipy import optimize

from dit.config import suggest
from dit.scaling import huber, terms
from dit.types import UserError

Array = np.ndarray
METHODS = ("projection", "least_squares", "huber", "likelihood")
EXPONENTS = np.geomspace(0.03, 2.0, 22)


@dataclasses.dataclass(frozen=True)
class Surface:
    """``E + A N^-alpha + B D^-beta``. ``objective``: the minimum of what the fit minimised.

    ``sigma``: the scale of the likelihood's density, or None.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    objective: float = 0.0
    sigma: float | None = None

    def __call__(self, N, D) -> Float[Array, "..."] | float:
        """The loss at ``(N, D)``."""
        N, D = np.asarray(N, np.float64), np.asarray(D, np.float64)
        return self.E + self.A * N**-self.alpha + self.B * D**-self.beta

    def optimum(self, C, *, k: float = 6.0, g: float = 1.0) -> tuple[Array | float, Array | float]:
        """The ``(N, D)`` of the lowest loss at cost ``C = k N^g D``.

        ``N = (alpha A / (g beta B))^(1/s) (C/k)^(beta/s)`` with ``s = alpha + g beta``; with g = 1 it is
        eq. 4 of Hoffmann et al. 2022. ``g`` differs from 1 where a sample's cost is not
        proportional to N; ``cost_law`` measures both.
        """
        C, s = np.asarray(C, np.float64), self.alpha + g * self.beta
        front = (self.alpha * self.A / (g * self.beta * self.B)) ** (1 / s)
        N = front * (C / k) ** (self.beta / s)
        return N, C / (k * N**g)

    def exponents(self, g: float = 1.0) -> tuple[float, float]:
        """``(a, b)``: the optimal N grows as ``C^a``, the optimal D as ``C^b``."""
        a = self.beta / (self.alpha + g * self.beta)
        return a, 1 - g * a

    @property
    def theta(self) -> Float[Array, "5"]:
        """``(log E, log A, alpha, log B, beta)``."""
        tiny = np.finfo(float).tiny
        E, A, B = np.log(np.maximum((self.E, self.A, self.B), tiny))
        return np.array([E, A, self.alpha, B, self.beta])


def cost_law(N, D, C) -> tuple[float, float]:
    """``(k, g)`` of the cost law ``C = k N^g D``, fitted to the runs in logs."""
    N, D, C = terms.positive(N=N, D=D, C=C)
    if np.ptp(np.log(N)) == 0:
        return float(np.exp(np.mean(np.log(C / (N * D))))), 1.0
    g, log_k = np.polyfit(np.log(N), np.log(C / D), 1)
    return float(np.exp(log_k)), float(g)


def project(
    alpha: float, beta: float, u: Float[Array, " n"], v: Float[Array, " n"], L: Float[Array, " n"]
) -> tuple[Float[Array, " 3"], Float[Array, " n"]]:
    """The best ``E, A, B >= 0`` for these exponents, and the relative residuals."""
    X = np.stack([np.ones_like(u), np.exp(-alpha * u), np.exp(-beta * v)], 1) / L[:, None]
    coefficients = np.linalg.lstsq(X, np.ones_like(u), rcond=None)[0]
    if (coefficients < 0).any():
        coefficients = optimize.nnls(X, np.ones_like(u))[0]
    return coefficients, X @ coefficients - 1


def fit_surface(
    N, D, loss, *, method: str = "huber", delta: float = 1e-3, starts: int = 24
) -> Surface:
    """Fit the surface to the runs ``(N, D, loss)``.

    ``method``: ``projection`` (variable projection alone), ``least_squares`` (of log residuals),
    ``huber`` or ``likelihood``, the last two with threshold ``delta``, from ``starts`` points. Raises
    UserError for numbers that are not positive and for fewer than five runs.
    """
    if method not in METHODS:
        raise UserError(f"no method {method!r}: {suggest(method, list(METHODS))}")
    N, D, L = terms.positive(N=N, D=D, loss=loss)
    terms.need(len(L), 5, "a surface")
    for name, x in (("N", N), ("D", D)):
        if len(np.unique(x)) < 2:
            raise UserError(f"all runs have {name}={x[0]:.6g}; a surface needs it to vary")
    scale = terms.centre(N), terms.centre(D)
    u, v = np.log(N / scale[0]), np.log(D / scale[1])
    cells = [
        (float(np.square(project(a, b, u, v, L)[1]).sum()), a, b)
        for a, b in itertools.product(EXPONENTS, EXPONENTS)
    ]
    cells.sort()
    thetas = [_theta(a, b, project(a, b, u, v, L)[0]) for _, a, b in cells[: max(starts, 1)]]
    best = _projected(u, v, L, cells[0][1:])
    if method == "projection":
        residual = project(best[2], best[4], u, v, L)[1]
        return _surface(best, scale, float(0.5 * np.square(residual).sum()))
    matrix, y = terms.design(True, u, v), np.log(L)
    thetas = np.array([best, *thetas])
    if method == "least_squares":
        solved, cost = terms.solve(matrix, y[None], thetas)
        return _surface(solved[cost.argmin()], scale, float(cost.min()))
    if method == "huber":
        theta, objective = huber.minimise(matrix, y, thetas, delta)
        return _surface(theta, scale, objective)
    theta, sigma, objective = huber.likelihood(matrix, y, thetas, delta)
    return _surface(theta, scale, objective, sigma)


def _projected(u: Array, v: Array, L: Array, start: tuple[float, float]) -> Float[Array, "5"]:
    """Variable projection: the two exponents by least squares of the projected residual."""

    def residual(logs):
        return project(*np.exp(logs), u, v, L)[1]

    found = optimize.least_squares(
        residual, np.log(start), jac="3-point", xtol=1e-15, ftol=1e-15, gtol=1e-15, x_scale="jac"
    )
    alpha, beta = np.exp(found.x)
    return _theta(alpha, beta, project(alpha, beta, u, v, L)[0])


def _theta(alpha: float, beta: float, coefficients: Array) -> Float[Array, "5"]:
    e, a, b = np.log(np.maximum(coefficients, 1e-8))
    return np.array([e, a, alpha, b, beta])


def _surface(
    theta: Array, scale: tuple[float, float], objective: float, sigma: float | None = None
) -> Surface:
    e, a, alpha, b, beta = map(float, theta)
    A, B = np.exp(a + alpha * np.log(scale[0])), np.exp(b + beta * np.log(scale[1]))
    return Surface(float(np.exp(e)), float(A), float(B), alpha, beta, objective, sigma)
