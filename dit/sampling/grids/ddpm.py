"""Integer timesteps of a discrete path, spaced as others space them (Lin et al. 2023, table 2).

``linspace``: round(linspace(0, T - 1, steps)), both ends included, as in diffusers. ``respaced``: the
same as the original DiT and ADM code has it, which adds up the stride step by step; for 278 of the
numbers of steps below 1000 (not for 10, 20, 50, 100 or 250) one timestep falls on the other side of a
half. ``trailing``: T, T - T / steps, ..., minus 1. ``leading``: multiples of T // steps, plus
``offset``, as the first DDIM and Stable Diffusion samplers had it. Integer timestep i is time ``(i
+ 1) / T``.

A leading grid starts below t_max: alone among the grids, so that x_T is not quite noise there. It
is for compatibility.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import numpy as np

from dit.sampling.grids import GridFn, check_steps
from dit.types import UserError, Whole


def build(
    *,
    spacing: Literal["linspace", "respaced", "trailing", "leading"] = "linspace",
    offset: Whole = 0,
) -> GridFn:
    """Raises UserError for a path without timesteps, for more steps than there are, and for an
    ``offset`` with another spacing than ``leading``."""
    if offset and spacing != "leading":
        raise UserError(f"got offset={offset} with spacing={spacing!r}; only 'leading' has one")

    def grid(path, steps):
        check_steps(steps)
        T = path.timesteps
        if T is None:
            raise UserError(
                "grid 'ddpm' needs a path with integer timesteps (path 'ddpm'); on this one use "
                "'uniform', 'quadratic', 'karras' or 'logsnr'"
            )
        if steps > T:
            raise UserError(f"got steps={steps}; expected at most the path's {T} timesteps")
        if steps == 1 and spacing in ("linspace", "respaced"):
            index = [T - 1]
        elif spacing == "linspace":
            index = np.round(np.linspace(0, T - 1, steps))[::-1]
        elif spacing == "respaced":
            strides = np.full(steps - 1, (T - 1) / (steps - 1))
            index = np.round(np.cumsum([0.0, *strides]))[::-1]
        elif spacing == "trailing":
            index = np.round(np.arange(T, 0, -T / steps))[:steps] - 1
        else:
            index = np.arange(steps)[::-1] * (T // steps) + offset
        times = (np.asarray(index, np.float64) + 1) / T
        if times[0] > path.t_max:
            raise UserError(f"got offset={offset}; timestep {index[0]} is beyond the last, {T - 1}")
        return jnp.asarray(np.append(times, 0.0))

    return grid
