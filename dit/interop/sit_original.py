"""Weights of the original SiT (Ma et al. 2024): DiT's names, another clock and another sign.

There t runs from noise, 0, to data, 1, and the velocity points to the data; here both are turned. The
weights take that up, and the network is a DiT's: with ``s = 1 - t`` the sinusoids of time there are
``[cos ws, sin ws] = R [cos wt, sin wt]``, ``R = [[cos w, sin w], [sin w, -cos w]]``, its own inverse, so
the first map on them is multiplied by R (what comes out again differs by rounding); the last one changes
its sign. It has twice the channels, of which nothing reads the second half: those are left out, and
written as zeros. The network wants ``path.time_scale=1``, its default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from dit.interop import dit_original
from dit.interop.mapping import Entry, Format, State
from dit.interop.views import View
from dit.models.dit import DiT
from dit.models.embeddings import FREQUENCIES
from dit.types import UserError


@dataclasses.dataclass(frozen=True)
class Clock(View):
    """Columns of a map on the sinusoids of time, for the time that runs the other way."""

    axis: int = 1

    def read(self, x: np.ndarray) -> np.ndarray:
        """``x R``."""
        half = FREQUENCIES // 2
        if x.shape[-1] != FREQUENCIES:
            raise UserError(f"{self.name} has shape {x.shape}; expected {FREQUENCIES} columns")
        w = np.exp(-np.log(10000) * np.arange(half) / half)
        cos, sin, (a, b) = np.cos(w), np.sin(w), (x[..., :half], x[..., half:])
        return np.concatenate([a * cos + b * sin, a * sin - b * cos], axis=-1).astype(x.dtype)

    write = read


@dataclasses.dataclass(frozen=True)
class Velocity(View):
    """Rows of the last map that make the velocity, the first ``channels`` of twice as many, negated."""

    channels: int = 1

    def read(self, x: np.ndarray) -> np.ndarray:
        """Half of the rows."""
        if len(x) % (2 * self.channels):
            raise UserError(
                f"{self.name} has {len(x)} rows; expected a multiple of {2 * self.channels}: a SiT has "
                "twice the channels of its data"
            )
        pixels = x.reshape(-1, 2, self.channels, *x.shape[1:])
        return -pixels[:, 0].reshape(-1, *x.shape[1:])

    def write(self, x: np.ndarray) -> np.ndarray:
        """All rows, the others zero."""
        pixels = -x.reshape(-1, 1, self.channels, *x.shape[1:])
        both = np.concatenate([pixels, np.zeros_like(pixels)], axis=1)
        return both.reshape(-1, *x.shape[1:])

    def whole(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Twice the rows."""
        return (2 * shape[0], *shape[1:])


def build() -> Format:
    """The format, for square images and models that ``dit_original`` holds, without ``learn_sigma``."""
    fixed = dit_original.positions
    return Format(DiT, entries, fixed=fixed, views=views, sections=sections)


def entries(model: DiT, names: Collection[str] = ()) -> list[Entry]:
    """The table of names."""
    if model.out_channels != model.in_channels or model.time_scale != 1.0:
        raise UserError(
            "this format holds SiT, without learn_sigma and with time_scale=1; got a DiT with "
            f"in_channels={model.in_channels}, out_channels={model.out_channels} and "
            f"time_scale={model.time_scale}"
        )
    return dit_original.entries(model, names)


def views(model: DiT) -> Mapping[str, View]:
    """What is turned."""
    last = [f"final_layer.linear.{what}" for what in ("weight", "bias")]
    found: dict[str, View] = {name: Velocity(name, channels=model.in_channels) for name in last}
    return found | {"t_embedder.mlp.0.weight": Clock("t_embedder.mlp.0.weight")}


def sections(state: State, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The model by the shapes of its tensors, and the process and sampler of the paper."""
    found = dit_original.sections(state, settings)
    if not found["model"].pop("learn_sigma"):
        raise UserError("the weights have no second half of channels, as a SiT's have: not a SiT's")
    found |= {
        "path": {"name": "linear"},
        "prediction": {"name": "velocity"},
        "times": {"name": "uniform"},
    }
    return found | {"samples": {"every": 0, "solver": "euler_maruyama", "grid": "uniform"}}
