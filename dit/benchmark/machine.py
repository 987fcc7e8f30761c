"""What a timing was taken with, in words."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from typing import Any


def describe(device: Any) -> str:
    """A JAX device: its kind and how many there are, and the cores of a CPU."""
    if device.platform != "cpu":
        import jax

        return f"{jax.device_count()} x {device.device_kind}"
    return f"CPU, {len(os.sched_getaffinity(0))} cores"


def versions(names: Sequence[str]) -> dict[str, str]:
    """The installed versions of some packages."""
    return {name: importlib.metadata.version(name) for name in names}
