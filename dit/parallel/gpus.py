"""Descriptions of absent GPUs for XLA: the ``GpuTargetConfig`` of a few data-centre cards.

XLA can compile for a card from such a description alone. Numbers come from the makers' data sheets and
from CUDA's ``deviceQuery``; ``COMMON`` is what all these cards share.
"""

from __future__ import annotations

import dataclasses

from dit.parallel.chips import GPUS

COMMON = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 48 * 1024,
    "threads_per_core_limit": 2048,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
    "registers_per_core_limit": 2**16,
    "registers_per_block_limit": 2**16,
}


@dataclasses.dataclass(frozen=True)
class Gpu:
    """``kind``: as JAX names the device; ``capability``: of CUDA; ``cores``: streaming multiprocessors.

    ``lanes``: float32 units of a core; ``shared``, ``optin``: KiB of shared memory of a core, and of
    one block that asks for it; ``l2``: bytes; ``clock``: GHz; ``bandwidth``: bytes a second.
    """

    kind: str
    capability: int
    cores: int
    lanes: int
    shared: int
    optin: int
    l2: int
    clock: float
    bandwidth: float


CARDS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 8, 108, 64, 164, 163, 40 << 20, 1.41, 2.039e12),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 9, 132, 128, 228, 227, 50 << 20, 1.98, 3.352e12),
    "h200": Gpu("NVIDIA H200", 9, 132, 128, 228, 227, 50 << 20, 1.98, 4.8e12),
    "b200": Gpu("NVIDIA B200", 10, 148, 128, 228, 227, 132_644_864, 1.965, 7.672e12),
}


def target_config(name: str) -> str:
    """The ``GpuTargetConfig`` of one of ``CARDS`` as a text proto."""
    gpu = CARDS[name]
    fields = COMMON | {
        "core_count": gpu.cores,
        "fpus_per_core": gpu.lanes,
        "shared_memory_per_core": gpu.shared * 1024,
        "shared_memory_per_block_optin": gpu.optin * 1024,
        "l2_cache_size": gpu.l2,
        "clock_rate_ghz": gpu.clock,
        "memory_bandwidth": int(gpu.bandwidth),
        "device_memory_size": GPUS[name],
    }
    lines = [f"  {key}: {value}" for key, value in fields.items()]
    return "\n".join(
        [
            "gpu_device_info {",
            *lines,
            f"  cuda_compute_capability {{ major: {gpu.capability} minor: 0 }}",
            "}",
            'platform_name: "CUDA"',
            "dnn_version_info { major: 9 minor: 10 }",
            f'device_description_str: "{gpu.kind}"',
            "",
        ]
    )
