"""Two networks in one sampling run, each at its own times: one from a boundary on, one below.

So Wan 2.2 A14B samples (boundary 0.875 of text to video, 0.9 of image to video). Both have the same
inputs and outputs; of the two one is evaluated at a time.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dit.diffusion.process import Denoiser
from dit.sampling.denoisers import Stateful, stateful
from dit.sampling.guidance import Guidance


def switched(high: Denoiser, low: Denoiser, boundary: float) -> Denoiser:
    """``high`` at times from ``boundary`` on, ``low`` below it.

    The time is the largest of a batch, whose samples go together: parts of them that are known (at time
    0) are seen by the network of the others. Each keeps a memory of its own, if it has one.
    """
    both = high, low
    if not any(isinstance(one, Stateful) for one in both):
        return Denoiser(
            lambda x, t: jax.lax.cond(jnp.max(t) >= boundary, high.full, low.full, x, t)
        )

    def start(x):
        return tuple(one.start(x) if isinstance(one, Stateful) else () for one in both)

    def advance(x, t, memory):
        def by(i):
            def run(x, t, memory):
                if not isinstance(both[i], Stateful):
                    return both[i].full(x, t), memory
                estimate, new = both[i].advance(x, t, memory[i])
                return estimate, (*memory[:i], new, *memory[i + 1 :])

            return run

        return jax.lax.cond(jnp.max(t) >= boundary, by(0), by(1), x, t, memory)

    return stateful(start, advance)


def counted(high: Guidance, low: Guidance, boundary: float) -> Guidance:
    """``high`` with the network evaluations of both rules: those of ``low`` below the boundary."""
    counts = high.evaluations, low.evaluations
    if isinstance(counts[0], int) and counts[0] == counts[1]:
        return high

    def evaluations(path, t):
        each = (c(path, t) if callable(c) else jnp.full(t.shape, c) for c in counts)
        return jnp.where(t >= boundary, *each)

    return Guidance(high.guide, evaluations)
