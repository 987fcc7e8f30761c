"""How tests compile: quickly, here and in what they start.

Few programs of tests run long enough to win back what it takes to optimise them. That what users get,
fully optimised, computes the same is what tests/quality and CI's training runs are for.
"""

import importlib.metadata

# Each program as one module and, where XLA still offers it, loops by LLVM alone, without MLIR before
# it: half the time again. XLA ends a process that is given a flag it does not know.
_FLAGS = ["xla_cpu_parallel_codegen_split_count=1"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _FLAGS.append("xla_cpu_use_fusion_emitters=false")
XLA_FLAGS = " ".join(f"--{flag}" for flag in _FLAGS)


def devices(count=1):
    """``XLA_FLAGS`` for ``count`` simulated devices; not for a process that loads libtpu."""
    return f"--xla_force_host_platform_device_count={count} {XLA_FLAGS}"
