"""One time grid a file; ``build(**kwargs) -> grid_fn``, ``grid_fn(path, steps) -> (steps + 1,)``
times.

A grid falls from ``t_max`` (exactly) to 0 (exactly). Every node but the last lies in ``[t_min,
t_max]``, since the network is evaluated there; the last step goes from the last such node to data.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dit.diffusion.path import Path
from dit.diffusion.path import logsnr as logsnr_at  # a module here is called logsnr
from dit.types import UserError

GridFn = Callable[[Path, int], Float[Array, " nodes"]]


def check_steps(steps: int) -> None:
    """Raise UserError unless there is at least one step."""
    if steps < 1:
        raise UserError(f"got steps={steps}; expected at least 1")


def closed(path: Path, nodes: Float[Array, " steps"]) -> Float[Array, " nodes"]:
    """The grid of these nodes: within the network's times, the first t_max, and 0 at the end."""
    inner = jnp.clip(nodes, path.t_min, path.t_max)
    return jnp.append(inner.at[0].set(path.t_max), 0.0)


def power_law(path: Path, steps: int, power: float) -> Float[Array, " nodes"]:
    """``t = t_max (1 - i / steps)^power``; where that would end below t_min, evenly spread in the
    same variable between t_max and t_min."""
    check_steps(steps)
    last = max(path.t_min, path.t_max / steps**power)
    roots = np.linspace(path.t_max ** (1 / power), last ** (1 / power), steps)
    return closed(path, jnp.asarray(roots**power))


def logsnr_ends(path: Path, highest: float | Array, lowest: float | Array) -> tuple[Array, Array]:
    """Log-SNR at t_max and at t_min, or at these levels ``sigma / alpha`` where it is infinite."""
    noisy, clean = logsnr_at(path, jnp.asarray([path.t_max, path.t_min]))
    return (
        jnp.where(jnp.isfinite(noisy), noisy, -2 * jnp.log(highest)),
        jnp.where(jnp.isfinite(clean), clean, -2 * jnp.log(lowest)),
    )
