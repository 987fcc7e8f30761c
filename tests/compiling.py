"""How tests compile: quickly, here and in what they start.

Few programs of tests run long enough to win back what it takes to optimise them. That what users get,
fully optimised, computes the same is what tests/quality and CI's training runs are for.
"""

import importlib.util
import mmap
import pathlib

# Loops by LLVM alone, without MLIR before it, and each program as one module: half the time again.
_FLAGS = ("xla_cpu_use_fusion_emitters=false", "xla_cpu_parallel_codegen_split_count=1")


def _known(flags):
    """Those that this jaxlib has: XLA ends a process that is given another."""
    library = pathlib.Path(importlib.util.find_spec("jaxlib").origin).parent / "libjax_common.so"
    if not library.exists():
        return []
    with open(library, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return [flag for flag in flags if text.find(flag.partition("=")[0].encode()) >= 0]


XLA_FLAGS = " ".join(f"--{flag}" for flag in _known(_FLAGS))


def devices(count=1):
    """``XLA_FLAGS`` for ``count`` simulated devices; not for a process that loads libtpu."""
    return f"--xla_force_host_platform_device_count={count} {XLA_FLAGS}"
