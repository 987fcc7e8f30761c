"""Solvers with their options, the paths, and one path that is any of them: to compile once for all."""

from __future__ import annotations

import pytest

from dit import config
from dit.sampling.closed_form import one_of

OPTIONS = {
    "ddim": [{}, {"eta": 0.7}],
    "ddpm": [{}, {"variance": "large"}],
    "dpmpp_3m": [{}, {"third_order": True}],
    "dpmpp_sde": [{}, {"order": 1}, {"variant": "heun"}],
    "euler_maruyama": [{}, {"diffusion": "variance"}],
    "pndm": [{}, {"runge_kutta": True}],
    "unipc": [{}, {"variant": "bh1"}, {"order": 3}],
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
    return one_of(list(PATHS.values()), which)
