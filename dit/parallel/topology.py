"""The devices to compile a program for, present or not, and what their chips can do.

``v5e:16x16``, ``v5p:4x4x4``, ``v6e:16x16``, ``v4:4x4x4``, ``tpu7x:4x4x4``: a TPU slice, which need not
be present (``chips.py`` lists them): through ``libtpu``, the real TPU compiler runs on any CPU machine.
``cuda:8:h100``: eight GPUs of one kind (``gpus.py`` lists them), through JAX's CUDA plugin;
``cuda:8:FILE``: the same for the ``GpuTargetConfig`` in a text file. ``cpu:8``: simulated devices. No
name: the devices of this machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from dit.config import suggest
from dit.parallel import gpus
from dit.parallel.chips import GPUS, TPUS, Chip, slice_shape
from dit.parallel.peak import datasheet
from dit.types import UserError

ALONE = {  # so that libtpu does not look for a TPU
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "none",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
ONE_DEVICE = {"v4": "megacore"}  # the configuration in which a chip's two cores are one device
PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
GPU_SHARE = 0.92  # of a card's memory, which the launchers give to JAX
MOST_SLICES = 256


@dataclasses.dataclass(frozen=True)
class Topology:
    """``chip`` is None except on TPUs; ``peak`` (FLOP/s a device) and ``hbm`` (bytes) may be unknown."""

    name: str
    devices: Sequence[jax.Device]
    chip: Chip | None
    peak: float | None
    hbm: int | float | None = None
    slices: int = 1

    @property
    def platform(self) -> str:
        """``tpu``, ``cuda`` or ``cpu``."""
        return self.devices[0].platform

    @property
    def kind(self) -> str:
        """The part of the name before the colon: ``v5e``."""
        return self.name.partition(":")[0]

    @property
    def chips(self) -> int:
        """The number of chips, which are what is paid for; a chip may be several devices."""
        return len(self.devices) // (self.chip.devices if self.chip else 1)


def find(name: str, slices: int = 1) -> Topology:
    """The topology of this name; UserError for one that is unknown or cannot be compiled for.

    Call this before anything else uses JAX: ``cpu:N`` sets the number of devices.
    """
    kind, _, rest = name.partition(":")
    count = int(rest) if rest.isascii() and rest.isdecimal() else 0
    if slices != 1 and (kind not in TPUS or not 1 <= slices <= MOST_SLICES):
        raise UserError(
            f"got {slices} slices of {name!r}; expected 1, or up to {MOST_SLICES} of a TPU slice"
        )
    hbm = None
    if not name:
        devices = jax.devices()
    elif kind == "cpu" and count:
        with contextlib.suppress(
            RuntimeError
        ):  # JAX is already running, with a fixed number of devices
            jax.config.update("jax_num_cpu_devices", count)
        if len(jax.devices("cpu")) < count:
            raise UserError(f"JAX already runs with fewer CPU devices than {name!r}; start afresh")
        devices = jax.devices("cpu")[:count]
    elif kind == "cuda":
        devices, hbm = _cuda(name, rest)
    elif kind in TPUS:
        devices, hbm = _tpu(kind, rest, slices), TPUS[kind].hbm
    else:
        known = [f"{chip}:SLICE" for chip in TPUS] + ["cpu:N"] + [f"cuda:N:{gpu}" for gpu in GPUS]
        raise UserError(f"no topology {name!r}: {suggest(name, known)}")
    return Topology(
        name or devices[0].device_kind,
        devices,
        TPUS.get(kind),
        datasheet(devices[0].device_kind),
        hbm,
        slices,
    )


def _tpu(kind: str, shape: str, slices: int) -> Sequence[jax.Device]:
    try:
        slice_shape(kind, shape)
    except ValueError as error:  # libtpu accepts some of these, and others kill it by a signal
        raise UserError(f"no topology '{kind}:{shape}': {error}") from error
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            'compiling for TPUs needs libtpu, and no TPU: pip install "dit-jax[preflight]"'
        )
    for variable, value in ALONE.items():
        os.environ.setdefault(variable, value)
    options = {"num_slices": slices} if slices > 1 else {}
    if kind in ONE_DEVICE:
        options["chip_config_name"] = ONE_DEVICE[kind]
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{kind}:{shape}", **options
        )
    except Exception as error:
        raise UserError(f"no topology '{kind}:{shape}': {str(error).splitlines()[0]}") from error
    return found.devices


def _cuda(name: str, rest: str) -> tuple[Sequence[jax.Device], int | float | None]:
    """The devices, and their bytes of memory for a known card."""
    count, _, card = rest.partition(":")
    good = count.isascii() and count.isdecimal() and int(count) > 0
    if not good or not (card in gpus.CARDS or pathlib.Path(card).is_file()):
        raise UserError(
            f"got {name!r}; expected cuda:N:CARD with a number of GPUs and one of "
            f"{', '.join(gpus.CARDS)}, or a file that holds a GpuTargetConfig"
        )
    if all(importlib.util.find_spec(plugin) is None for plugin in PLUGINS):
        raise UserError(
            f"compiling for {name!r} needs JAX's CUDA plugin, and no GPU: "
            'pip install "dit-jax[gpu]" (on Linux)'
        )
    known = card in gpus.CARDS
    try:
        found = topologies.get_topology_desc(
            platform="cuda",
            topology_name="",
            topology=f"1x1x{count}",
            target_config=gpus.target_config(card) if known else pathlib.Path(card).read_text(),
        )
    except Exception as error:
        raise UserError(f"cannot compile for {name!r}: {str(error).splitlines()[0]}") from error
    return found.devices, GPU_SHARE * GPUS[card] if known else None
