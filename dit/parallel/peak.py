"""The highest floating-point rate of a device, from which its utilisation follows.

For TPUs and GPUs this is the dense bfloat16 peak from the makers' data sheets (float32 runs as TF32 or
slower, so its utilisation is understated). For anything else a matrix product is timed.
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

DATASHEET = {  # start of device_kind -> FLOP/s of one JAX device, dense, bfloat16
    "TPU v2": 23e12,  # a core
    "TPU v3": 61e12,  # a core
    "TPU v4 lite": 138e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,  # half a chip
    "TPU v7x": 1153.5e12,
    "NVIDIA GB200": 2500e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA T4": 65e12,
    "Tesla T4": 65e12,
    "NVIDIA V100": 125e12,
    "Tesla V100": 125e12,
}


def peak_flops(device: jax.Device) -> float:
    """FLOP/s of one device, from the data sheet or measured (a host's CPU devices share its rate)."""
    known = datasheet(device.device_kind)
    if known is not None:
        return known
    measured = measure_matmul(device)
    return measured / jax.local_device_count("cpu") if device.platform == "cpu" else measured


def datasheet(device_kind: str) -> float | None:
    """The peak of a kind of device, or None if it is not in the table."""
    found = (v for k, v in DATASHEET.items() if device_kind.lower().startswith(k.lower()))
    return next(found, None)


def measure_matmul(device: jax.Device, size: int = 1536, repeats: int = 5) -> float:
    """FLOP/s of the fastest of several square float32 matrix products."""
    x = jax.device_put(jnp.ones((size, size), jnp.float32), device)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
