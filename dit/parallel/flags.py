"""The compilers' flags for a pod: what the launchers set, and what preflight compiles with.

Uses the standard library alone: launchers import it on machines without JAX. The flags are those of
libtpu 0.0.52 and jaxlib 0.10.2, which reject unknown flags; a test compiles with them where libtpu is
installed.
"""

from __future__ import annotations

from dit.parallel.chips import TPUS

# TPU flags go into LIBTPU_INIT_ARGS.
TPU = {
    # Start each collective as early as the data allow, and wait for it as late as possible.
    "--xla_tpu_enable_latency_hiding_scheduler": "true",
    # Gather sharded parameters while the previous layer still computes.
    "--xla_enable_async_all_gather": "true",
    # The same for exchanges between neighbours, which ring attention consists of.
    "--xla_enable_async_collective_permute": "true",
    # Let the matrix units work during a collective.
    "--xla_tpu_overlap_compute_collective_tc": "true",
    # Reduce the gradients of replicas during the backward pass, not after it,
    "--xla_tpu_enable_data_parallel_all_reduce_opt": "true",
    # even if they differ in size, as a transformer's parameters do.
    "--xla_tpu_data_parallel_opt_different_sized_ops": "true",
}
# Interleave collectives with the steps of a matrix product. Only the v5e accepts this.
V5E = {
    "--xla_tpu_enable_async_collective_fusion": "true",
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "--xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
}
# GPU flags go into XLA_FLAGS. Those that speak of a loop act with model.unroll=1 alone.
GPU = {
    # As on TPUs: start early, end late.
    "--xla_gpu_enable_latency_hiding_scheduler": "true",
    # In a loop over layers, gather the next layer's parameters during this one,
    "--xla_gpu_enable_pipelined_all_gather": "true",
    # and scatter or reduce the last layer's gradients during this one.
    "--xla_gpu_enable_pipelined_reduce_scatter": "true",
    "--xla_gpu_enable_pipelined_all_reduce": "true",
    # Pipelining needs the loop's body twice, for two buffers.
    "--xla_gpu_enable_while_loop_double_buffering": "true",
}


def variables(chip: str) -> dict[str, str]:
    """The environment variable that holds the compiler's flags for one of ``TPUS``, or ``gpu``.

    Empty for anything else.
    """
    if chip in TPUS:
        return {"LIBTPU_INIT_ARGS": _line({**TPU, **(V5E if chip == "v5e" else {})})}
    return {"XLA_FLAGS": _line(GPU)} if chip == "gpu" else {}


def _line(flags: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in flags.items())
