"""The weights of an autoencoder, in whatever layout they are, opened and not yet read."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dit import models, storage
from dit.config import resolve
from dit.interop import autoencoder, autoencoder_diffusers, autoencoder_original, files, mapping
from dit.interop.folder import read, read_json, with_statistics
from dit.models.autoencoder import AutoencoderKL
from dit.models.wan_vae import WanVAE
from dit.training.checkpoint import read_meta, restore_params
from dit.types import Params, UserError, Weights

NAMES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
MEASURED = "latents.json"  # of the latents of an autoencoder trained here, in its workdir


@dataclasses.dataclass(frozen=True)
class Opened:
    """``weights``: ``{"network": parameters}``, with ``"statistics"`` beside it where there are any.

    ``scale``, ``shift``: of the latents, as the files say; a number, or one a channel.
    """

    model: AutoencoderKL | WanVAE
    weights: Weights
    statistics: bool = False
    scale: float | tuple[float, ...] | None = None
    shift: float | tuple[float, ...] = 0.0


def open_weights(path: str, *, dtype: str = "float32", which: str | None = None) -> Opened:
    """The autoencoder at ``path``: a directory, a file or a workdir; see ``autoencoder_kl.build``.

    Raises UserError for what is none of them, and for files that do not go together.
    """
    if is_workdir(path):
        return from_workdir(path, dtype, which, "autoencoder")
    state, settings = files_at(path, which)
    state = autoencoder_original.only(state)
    old = any(name.startswith("encoder.down.") for name in state)
    layout = autoencoder_original if old else autoencoder_diffusers
    names = layout.names(state)
    model = autoencoder.describe(state, names, settings, dtype=dtype)
    found = autoencoder.statistics(state)
    each = autoencoder.of_each_channel(model, settings)
    scale, shift = number(settings, "scaling_factor", None), number(settings, "shift_factor", 0.0)
    if each is not None:
        scale, shift = tuple(1 / std for std in each["std"]), tuple(each["mean"])
    return Opened(
        model=model,
        weights=weights_of(model, state, list(autoencoder.entries(model, names)), path),
        statistics=found,
        scale=scale,
        shift=shift,
    )


def files_at(path: str, which: str | None) -> tuple[mapping.State, dict[str, Any]]:
    """The weights in a directory or a file, and what files beside them say: nothing without any."""
    place = pathlib.Path(path).expanduser()
    if which is not None:
        raise UserError(f"got codec.which={which!r} for files of weights; only a run has averages")
    if (place / "vae").is_dir():
        place = place / "vae"
    if place.is_dir():
        settings = read_json(place / "config.json")
        return read(place, NAMES), with_statistics(settings, place)
    if not place.exists():
        raise UserError(
            f"there is nothing at {path!r}; expected the weights of an autoencoder: a directory with "
            "config.json, a file, or a workdir"
        )
    beside = place.parent / "config.json"
    settings = with_statistics(read_json(beside) if beside.exists() else {}, place.parent)
    return dict(files.read(place, weights=None)), settings


def weights_of(
    model: AutoencoderKL | WanVAE, state: mapping.State, entries: list[mapping.Entry], path: str
) -> Weights:
    """The weights of a state: the network's, and the statistics that may be beside them."""
    beside = {k: v for k, v in autoencoder.STATISTICS.items() if autoencoder.statistics(state)}
    apart = {*autoencoder.STATISTICS.values(), autoencoder.COUNTER}
    own = {name: x for name, x in state.items() if name not in apart}
    mapping.check_names(own, entries, "config.json")
    abstract, axes = described(model)
    if beside:
        width = 4 * model.latent_channels
        odd = [name for name in beside.values() if state[name].shape != (width,)]
        if odd:
            raise UserError(f"{odd[0]} has shape {state[odd[0]].shape}; expected ({width},)")
        one = jax.ShapeDtypeStruct((width,), jnp.float32)
        abstract["statistics"] = dict.fromkeys(beside, one)
        axes["statistics"] = dict.fromkeys(beside, (None,))

    def load(shardings: Any) -> Params:
        network = mapping.placed(own, entries, abstract["network"], shardings["network"])
        found = {"network": network}
        if beside:
            vectors = {k: np.asarray(state[name], np.float32) for k, name in beside.items()}
            found["statistics"] = jax.device_put(vectors, shardings["statistics"])
        return found

    return Weights(abstract, axes, load, f"the autoencoder's weights in {path!r}")


def described(model: AutoencoderKL | WanVAE) -> tuple[dict[str, Any], dict[str, Any]]:
    """The shapes of the parameters of the network, and the names of their axes."""
    side = 2**model.halvings
    shape = (1, side, side, model.in_channels)
    return {"network": models.abstract(model, shape)}, {
        "network": models.logical_axes(model, shape)
    }


def is_workdir(path: str) -> bool:
    """Whether a path is a run's, rather than that of files of weights."""
    if "://" in path:
        return True
    place = pathlib.Path(path).expanduser()
    return (place / "checkpoints").is_dir()


def from_workdir(path: str, dtype: str, which: str | None, network: str) -> Opened:
    """The autoencoder that a run trained, with the scale that was measured of its latents."""
    meta = read_meta(path)
    section = dict(meta["config"]["model"])
    if section.get("name") != network:
        raise UserError(
            f"the run in {path} trained network {section.get('name')!r}; expected an autoencoder, "
            f"{network!r}"
        )
    channels = meta["example"]["shape"][-1]
    how = {k: v for k, v in section.items() if k not in ("name", "remat", "attention")}
    model = resolve("models", network, **how, in_channels=channels, dtype=dtype)
    abstract, axes = described(model)

    def load(shardings: Any) -> Params:
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
        )
        return {"network": restore_params(path, target["network"], which=which).params}

    where = f"the autoencoder's weights in {path}"
    return Opened(model, Weights(abstract, axes, load, where), **measured(path, model))


def measured(path: str, model: AutoencoderKL | WanVAE) -> dict[str, tuple[float, ...]]:
    """The scale and shift of each channel, where they were measured; UserError for a bad file."""
    file = storage.workdir(path) / MEASURED
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text())
        mean, std = (np.array(found[key], np.float64) for key in ("mean", "std"))
        fits = mean.shape == std.shape == (model.latent_channels,)
        if not (fits and np.isfinite(mean).all() and (std > 0).all() and np.isfinite(std).all()):
            raise ValueError(f"expected {model.latent_channels} means and standard deviations")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error}): evaluate the run again") from error
    return {"scale": tuple((1 / std).tolist()), "shift": tuple(mean.tolist())}


def number(settings: Mapping[str, Any], key: str, default: float | None) -> float | None:
    """A number of ``config.json``; UserError for anything else."""
    value = settings.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise UserError(f"config.json says {key}={value!r}; expected a number")
    return float(value)
