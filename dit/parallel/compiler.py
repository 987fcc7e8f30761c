"""What the compiler is asked for program by program, as ``jax.jit``'s ``compiler_options``.

A pod's flags are per process: ``dit.parallel.flags``.
"""

from __future__ import annotations

from functools import cache

import jax

# Batched products, of which attention is made, by oneDNN: those of the backward pass take half the
# time, and a train step of DiT-S/2 an eighth less. A forward pass by itself gains nothing.
CPU = {
    "xla_cpu_use_onednn": True,
    "xla_cpu_experimental_onednn_fusion_type": "LIBRARY_FUSION_TYPE_DOT",
}


def options(platform: str) -> dict[str, bool | str] | None:
    """The options for a program on ``platform``: ``CPU`` where its XLA knows them, else None."""
    return CPU if platform == "cpu" and _known() else None


@cache
def _known() -> bool:
    """Whether this jaxlib takes ``CPU``; the options are experimental, and may change their names."""
    try:
        jax.jit(lambda: 0, compiler_options=CPU).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
