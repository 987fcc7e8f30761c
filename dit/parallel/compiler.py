"""What XLA is asked for on a CPU, program by program: ``jax.jit``'s ``compiler_options``.

Options may change speed and never a number beyond rounding: ``tests/quality`` compares every config's
programs with the plain ``jax.jit`` of the same functions, on restricted instruction sets too. A pod's
flags are per process: ``dit.parallel.flags``.
"""

from __future__ import annotations

from functools import cache

import jax

# XLA hands what it can to the YNN library, which runs a batched product, such as attention's two,
# on one thread. Named here is what may go there, so that products stay with Eigen, on all threads:
# 100 GFLOP/s instead of 55 on two cores, and a train step of DiT-S/2 a tenth less.
CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
# For programs that run once. Compiling is all that they cost.
CPU_ONCE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def options(platform: str, *, once: bool = False) -> dict[str, bool | int | str] | None:
    """The options of a program on ``platform``, or None; ``once``: of one that runs a single time."""
    chosen = CPU_ONCE if once else CPU
    return chosen if platform == "cpu" and _known(tuple(chosen.items())) else None


@cache
def _known(chosen: tuple) -> bool:
    """Whether this jaxlib takes the options: names with ``experimental`` in them come and go."""
    try:
        jax.jit(lambda: 0, compiler_options=dict(chosen)).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
