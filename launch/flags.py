"""What the environment of every worker holds, and why: the one table that all launchers use.

    eval "$(python launch/flags.py v5e)"        # or v4, v5p, v6e, gpu, cpu

prints it as shell commands. The compiler's flags are those of libtpu 0.0.52 and jaxlib 0.10.2, which
refuse a flag that they do not know: a test compiles with them where libtpu is installed.
"""

from __future__ import annotations

import argparse
import shlex

# TPU flags go into LIBTPU_INIT_ARGS.
TPU = {
    # Place each collective as early, and its end as late, as the data allow.
    "--xla_tpu_enable_latency_hiding_scheduler": "true",
    # Gather sharded parameters while the layer before still computes.
    "--xla_enable_async_all_gather": "true",
    # The same for the exchanges between neighbours, of which ring attention is made.
    "--xla_enable_async_collective_permute": "true",
    # Let the matrix units run while a collective is under way.
    "--xla_tpu_overlap_compute_collective_tc": "true",
    # Reduce the gradients of replicas during the backward pass, not after it,
    "--xla_tpu_enable_data_parallel_all_reduce_opt": "true",
    # also where they differ in size, as the parameters of a transformer do.
    "--xla_tpu_data_parallel_opt_different_sized_ops": "true",
}
# Carry collectives through the steps of a matrix product. Other chips than the v5e refuse it.
V5E = {
    "--xla_tpu_enable_async_collective_fusion": "true",
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "--xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
}
# GPU flags go into XLA_FLAGS.
GPU = {
    # As on TPUs: start early, end late.
    "--xla_gpu_enable_latency_hiding_scheduler": "true",
    # In a loop over layers, gather the next layer's parameters during this one,
    "--xla_gpu_enable_pipelined_all_gather": "true",
    # and scatter or reduce the last layer's gradients during this one.
    "--xla_gpu_enable_pipelined_reduce_scatter": "true",
    "--xla_gpu_enable_pipelined_all_reduce": "true",
    # The pipelining needs the loop's body twice, to have two buffers.
    "--xla_gpu_enable_while_loop_double_buffering": "true",
}
CHIPS = ("v4", "v5e", "v5p", "v6e", "gpu", "cpu")
CACHE = "/tmp/dit-compiled"
STOPPED = 75  # "try again later" of sysexits.h: the launchers start such a run again


def environment(chip: str, cache: str = CACHE) -> dict[str, str]:
    """The variables for one kind of chip. ``cache``: a directory, or gs://, of compiled programs."""
    found = {
        # Compiling takes minutes, and is the same after every restart.
        "JAX_COMPILATION_CACHE_DIR": cache,
        # Tell a run that a signal stopped, to be gone on with, from one that is finished.
        "DIT_STOPPED_STATUS": str(STOPPED),
        # Lines of a log that come when they are written.
        "PYTHONUNBUFFERED": "1",
        # A bar in a log file is a line at a time: seldom is enough.
        "TQDM_MININTERVAL": "30",
    }
    if chip.startswith("v"):
        flags = {**TPU, **(V5E if chip == "v5e" else {})}
        found["LIBTPU_INIT_ARGS"] = " ".join(f"{k}={v}" for k, v in flags.items())
    if chip == "gpu":
        found["XLA_FLAGS"] = " ".join(f"{k}={v}" for k, v in GPU.items())
        # JAX takes three quarters of the memory by default; the rest is for NCCL and cuDNN.
        found["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.92"
    return found


def shell(chip: str, cache: str = CACHE) -> str:
    """The same as shell commands, and the limit on open files."""
    lines = [
        f"export {name}={shlex.quote(text)}" for name, text in environment(chip, cache).items()
    ]
    # Data files, shards of checkpoints and connections are all open files.
    return "\n".join(['ulimit -n "$(ulimit -Hn)"', *lines])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="launch/flags.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("chip", choices=CHIPS)
    parser.add_argument("--cache", default=CACHE, help="where compiled programs are kept")
    args = parser.parse_args()
    print(shell(args.chip, args.cache))
