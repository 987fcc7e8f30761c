"""XLA's options on a CPU, chosen for each program: ``jax.jit``'s ``compiler_options``.

Options may change speed, but no number beyond rounding: ``tests/quality`` compares every config's
programs with the plain ``jax.jit`` of the same functions, also on restricted instruction sets. The flags
of a pod are per process; see ``dit.parallel.flags``.
"""

from __future__ import annotations

from functools import cache

import jax

# By default XLA passes batched products, such as attention's two, to the YNN library, which runs them
# on one thread. This restricts the library to reductions, so that products stay with Eigen, on all
# threads: 100 GFLOP/s instead of 55 on two cores, and a train step of DiT-S/2 in a tenth less time.
CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
# For programs that run once, whose only real cost is compilation.
CPU_ONCE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def options(platform: str, *, once: bool = False) -> dict[str, bool | int | str] | None:
    """The options for a program on ``platform``, or None. ``once``: it runs a single time."""
    chosen = CPU_ONCE if once else CPU
    return chosen if platform == "cpu" and _known(tuple(chosen.items())) else None


@cache
def _known(chosen: tuple) -> bool:
    """Whether this jaxlib accepts the options: names with ``experimental`` in them come and go."""
    try:
        jax.jit(lambda: 0, compiler_options=dict(chosen)).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
