"""What a network scores that learns nothing from its input: the best constant prediction.

The target is ``p(t) x_0 + q(t) eps``. The best output that does not depend on ``x_t`` is its mean at
that time, ``p(t) E[x_0]``, pixel by pixel. With V the variance of a pixel of the data, averaged over
pixels, it scores

    ``E_t[w(t) (p(t)^2 V + q(t)^2)]``.

It is the network's *output* that is constant in ``x_t``; it may still depend on t. For EDM's F that
means ``x0_hat = c_skip(t) x_t + c_out(t) const(t)``, which already removes some noise: what counts is
what the network adds to it. A loss at or above this score says that nothing has been learned.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from dit.diffusion.process import Process
from dit.diffusion.times import Quantile, at
from dit.diffusion.weights import Weight

POINTS, REACH = 8193, 5.5  # of the quadrature over times; beyond 5.5 sigma float32 has no quantiles


@dataclasses.dataclass(frozen=True)
class Moments:
    """Of encoded data. ``variance``: of a pixel, averaged over pixels; ``size``: numbers an example.

    ``std``: standard deviation over examples of the mean squared distance from the mean.
    ``count``: how many examples were looked at; ``all``: whether there are no others.
    """

    variance: float
    std: float
    size: int
    count: int
    all: bool


@dataclasses.dataclass(frozen=True)
class Constant:
    """The score of the best constant prediction.

    ``loss``: weighted, and without the variational bound of a learned variance. ``std``: the
    standard deviation of one example's loss. ``error``: the standard error of ``loss`` itself, where
    the data were sampled.
    """

    loss: float
    std: float
    error: float

    def beaten_by(self, loss: float, examples: int | float) -> bool:
        """Whether a mean loss over so many examples is lower by more than chance, and than 1%.

        Half of it is always enough, however long the tail of the weights.
        """
        noise = math.hypot(self.std / math.sqrt(max(examples, 1)), self.error)
        return loss < 0.99 * self.loss - min(2 * noise, 0.5 * self.loss)


def best_constant(
    process: Process, times: Quantile, weight: Weight, moments: Moments
) -> Constant | None:
    """The score, for a time distribution and a weight; None where it is not a positive number."""
    z = np.linspace(-REACH, REACH, POINTS)
    mass = np.exp(-(z**2) / 2)
    mass = mass / mass.sum()
    found = _coefficients(process, times, weight, jnp.asarray(z, jnp.float32))
    w, p, q = (np.asarray(a, np.float64) for a in found)
    v, n = moments.variance, moments.size
    at_t = w * (p**2 * v + q**2)
    loss = float(mass @ at_t)
    within = w**2 * (p**4 * moments.std**2 + 4 * p**2 * q**2 * v / n + 2 * q**4 / n)
    std = math.sqrt(max(float(mass @ (within + at_t**2)) - loss**2, 0.0))
    of_data = 0.0 if moments.all else moments.std / math.sqrt(moments.count)
    found = Constant(loss, std, float(mass @ (w * p**2)) * of_data)
    good = all(map(math.isfinite, dataclasses.astuple(found))) and loss > 0
    return found if good else None


def _coefficients(
    process: Process, times: Quantile, weight: Weight, z: Float[Array, " n"]
) -> tuple[Float[Array, " n"], ...]:
    """``w``, ``p`` and ``q`` at the times of the normal quantiles ``z``.

    Normal quantiles, and not the uniform ones that they stand for, since times of noise levels that
    spread over decades have long tails.
    """

    @jax.jit
    def coefficients(z):
        t, density = at(process.path, times, ndtr(z))
        p, q = process.prediction.coefficients(process.path, t)
        return weight(process, t, density), p, q

    return coefficients(z)
