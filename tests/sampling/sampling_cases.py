"""Solvers with their options, the paths, and one path that is any of them: to compile once for all."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit import config
from dit.diffusion.path import Path

OPTIONS = {
    "ddim": [{}, {"eta": 0.7}],
    "ddpm": [{}, {"variance": "large"}],
    "dpmpp_3m": [{}, {"third_order": True}],
    "dpmpp_sde": [{}, {"order": 1}, {"variant": "heun"}],
    "euler_maruyama": [{}, {"diffusion": "variance"}],
    "unipc": [{}, {"variant": "bh1"}, {"order": 3}, {"order": 3, "variant": "bh1"}],
}
CASES = [
    (name, kwargs)
    for name in config.names("sampling.solvers")
    for kwargs in OPTIONS.get(name, [{}])
]
PATHS = {
    "linear": config.resolve("diffusion.paths", "linear"),
    "cosine": config.resolve("diffusion.paths", "cosine"),
    "ddpm": config.resolve("diffusion.paths", "ddpm"),
    "ddpm_zero": config.resolve("diffusion.paths", "ddpm", zero_terminal_snr=True),
    "edm": config.resolve("diffusion.paths", "edm"),
}
NEED_TIMES = ("edm_stochastic", "diffrax_adaptive")  # read t_min and t_max, which ``chosen`` lacks


def cases(wanted=lambda case: True):
    """Parameters of a test over solvers; those with other options than the defaults are slow."""
    return [
        pytest.param(case, id=label(case), marks=[pytest.mark.slow] if case[1] else [])
        for case in CASES
        if wanted(case)
    ]


def solver(name, kwargs):
    return config.resolve("sampling.solvers", name, **kwargs)


def label(case):
    name, kwargs = case
    return "-".join([name, *(f"{k}={v}" for k, v in kwargs.items())])


def chosen(which):
    """The path of this index (an array) among PATHS: alpha and sigma only."""

    def switch(functions):
        return lambda t: jax.lax.switch(which, functions, t)

    paths = list(PATHS.values())
    return Path(switch([p.alpha for p in paths]), switch([p.sigma for p in paths]), 0.0, 1.0)


def smooth_grid(path, steps, last=0.0):
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
