"""The devices that a program is compiled for, present or not, and what their chips can do.

``v5e:16x16``, ``v5p:4x4x4``, ``v6e:16x16``, ``v4:4x4x4``: a TPU slice that nobody needs to own; the real
TPU compiler runs on any CPU machine through ``libtpu``. ``cpu:8``: simulated devices. ``cuda:N:FILE``: N
GPUs described by XLA's ``GpuTargetConfig`` in a text file. Nothing: the devices of this machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from dit.config import suggest
from dit.parallel.peak import datasheet
from dit.types import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """``hbm``: bytes; ``clock``: cycles a second; ``link``: bytes a second one way on one ICI link.

    From the makers' data sheets and "How to Scale Your Model" (Austin et al. 2025, ch. 2).
    """

    hbm: float
    clock: float
    link: float


CHIPS = {
    "v4": Chip(32e9, 1.05e9, 4.5e10),
    "v5e": Chip(16e9, 1.5e9, 4.5e10),
    "v5p": Chip(95e9, 1.75e9, 9e10),
    "v6e": Chip(32e9, 1.75e9, 9e10),
}
ALONE = {  # libtpu then looks for no TPU around it
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "none",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
DCN = 6.25e9  # bytes a second and chip between slices


@dataclasses.dataclass(frozen=True)
class Topology:
    """``chip`` is None, and ``peak`` (FLOP/s a device) too, for devices that are not in the tables."""

    name: str
    devices: Sequence[jax.Device]
    chip: Chip | None
    peak: float | None
    slices: int = 1

    @property
    def platform(self) -> str:
        """``tpu``, ``cuda`` or ``cpu``."""
        return self.devices[0].platform


def find(name: str, slices: int = 1) -> Topology:
    """The topology of that name; UserError for one that does not exist or cannot be compiled for.

    To be called before anything else uses JAX: ``cpu:N`` sets how many devices there are.
    """
    kind, _, rest = name.partition(":")
    if slices < 1 or (slices > 1 and kind not in CHIPS):
        raise UserError(f"got {slices} slices of {name!r}; expected 1, or more of a TPU slice")
    if not name:
        devices = jax.devices()
    elif kind == "cpu" and rest.isdigit() and int(rest) > 0:
        with contextlib.suppress(RuntimeError):  # JAX runs already, with the devices that it has
            jax.config.update("jax_num_cpu_devices", int(rest))
        if len(jax.devices("cpu")) < int(rest):
            raise UserError(f"JAX already runs with fewer CPU devices than {name!r}; start afresh")
        devices = jax.devices("cpu")[: int(rest)]
    elif kind == "cuda":
        devices = _cuda(name, rest)
    elif kind in CHIPS and rest:
        devices = _tpu(name, slices)
    else:
        known = [f"{chip}:ROWSxCOLUMNS" for chip in CHIPS] + ["cpu:N", "cuda:N:FILE"]
        raise UserError(f"no topology {name!r}: {suggest(name, known)}")
    return Topology(
        name or devices[0].device_kind,
        devices,
        CHIPS.get(kind),
        datasheet(devices[0].device_kind),
        slices,
    )


def _tpu(name: str, slices: int) -> Sequence[jax.Device]:
    for variable, value in ALONE.items():
        os.environ.setdefault(variable, value)
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=name, **({"num_slices": slices} if slices > 1 else {})
        )
    except Exception as error:
        text = str(error)
        if "not installed" in text:
            raise UserError("compiling for TPUs needs libtpu: pip install libtpu") from error
        raise UserError(f"no topology {name!r}: {text.splitlines()[0]}") from error
    return found.devices


def _cuda(name: str, rest: str) -> Sequence[jax.Device]:
    count, _, file = rest.partition(":")
    if not count.isdigit() or not pathlib.Path(file).is_file():
        raise UserError(f"got {name!r}; expected cuda:N:FILE with a GpuTargetConfig in FILE")
    try:
        found = topologies.get_topology_desc(
            platform="cuda",
            topology_name="",
            topology=f"1x1x{count}",
            target_config=pathlib.Path(file).read_text(),
        )
    except Exception as error:
        raise UserError(f"cannot compile for {name!r}: {str(error).splitlines()[0]}") from error
    return found.devices
