"""Files of a directory of weights and settings, which nobody vouches for."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dit.interop import files
from dit.interop.mapping import State
from dit.types import UserError

LARGEST_JSON = 10 * 2**20  # bytes
NAMES = (  # that libraries give to weights; each may be in parts, with an index
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)


PART = re.compile(r".+-\d+-of-(\d+)\.\w+")  # of a file of so many
PARTS = ("transformer", "unet")  # of a pipeline's directory, where its network is
STATISTICS = "latents_stats.pt"  # of the latents of an autoencoder
SECOND = "transformer_2"  # where it has another, for times below a boundary


def find(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The file ``name`` in a directory; UserError, which says what is there, if it is not."""
    if not (folder / name).exists():
        there = sorted(p.name for p in folder.iterdir())[:12] if folder.is_dir() else []
        raise UserError(
            f"no {name} in {str(folder)!r}; expected a directory as transformers and diffusers save "
            f"it, with config.json and weights; there is {', '.join(there) or 'nothing'}"
        )
    return folder / name


def read_json(file: pathlib.Path, kind: type = dict) -> Any:
    """The object in a JSON file (or, with ``kind``, the list); UserError for anything else."""
    file = find(file.parent, file.name)
    try:
        if file.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it has {file.stat().st_size} bytes")
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, kind):
            raise ValueError(f"it holds a {type(found).__name__}")
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"cannot read {str(file)!r}: {error}; expected a JSON {kind.__name__}"
        ) from error
    return found


def with_statistics(settings: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """``settings`` with the mean and the deviation of each latent channel, of the file ``STATISTICS``.

    LightningDiT's authors publish it beside VA-VAE. Settings that say a scale of their own stay as they
    are. UserError for a file without the two.
    """
    place = folder / STATISTICS
    if not place.exists() or settings.get("scaling_factor") or settings.get("latents_mean"):
        return dict(settings)
    found = files.read(place, None)
    if not {"mean", "std"} <= set(found):
        raise UserError(f"expected mean and std in {str(place)!r}; got {', '.join(sorted(found))}")
    mean, std = (np.asarray(found[key], np.float64).reshape(-1).tolist() for key in ("mean", "std"))
    return {**settings, "latents_mean": mean, "latents_std": std}


def opened(path: str, weights: str | None = "ema") -> tuple[State, dict[str, Any], pathlib.Path]:
    """The weights at ``path``, mapped where they can be, the ``config.json`` beside them, and where.

    ``path``: a file, an index of parts, a directory of either, or one with such a directory named
    ``transformer`` or ``unet`` in it. ``weights``: as for ``files.read``. The settings are empty
    without a ``config.json``. UserError for what is none of these.
    """
    place = pathlib.Path(path).expanduser()
    if not place.exists():
        raise UserError(f"there is nothing at {path!r}; expected a file or directory of weights")
    if not place.is_dir():
        folder = place.parent
        indexed = place.name.endswith(".index.json")
        state = _parts(place) if indexed else dict(files.read(place, weights))
    else:
        folder = next((place / part for part in PARTS if (place / part).is_dir()), place)
        names = [p.name.removesuffix(".index.json") for p in folder.glob("*.safetensors*")]
        alone = sorted(set(names)) if len(set(names)) == 1 else []
        state = read(folder, (*NAMES, *alone))
    settings = folder / "config.json"
    return state, read_json(settings) if settings.exists() else {}, folder


def read(folder: pathlib.Path, names: Sequence[str]) -> State:
    """The weights in a directory, mapped where they can be, from the first of ``names`` that is there.

    Each may be in parts, with an index. UserError where there is none of them.
    """
    for name in names:
        if (folder / name).exists():
            return dict(files.read(folder / name))
        if (folder / f"{name}.index.json").exists():
            return _parts(folder / f"{name}.index.json")
    return dict(files.read(find(folder, names[0])))


def _parts(file: pathlib.Path) -> State:
    """The weights of the files that an index names."""
    index = read_json(file).get("weight_map")
    named = isinstance(index, dict) and all(isinstance(name, str) for name in index.values())
    if not named or any(pathlib.Path(name).name != name for name in index.values()):
        raise UserError(f"{str(file)!r} has no weight_map of names to files beside it")
    parts = sorted(set(index.values()))
    counts = {int(found[1]) if (found := PART.fullmatch(name)) else None for name in parts}
    if len(counts) == 1 and counts.isdisjoint({None, len(parts)}):
        raise UserError(
            f"{str(file)!r} names {len(parts)} parts of {counts.pop()}, such as {parts[0]!r}; expected "
            "an index of all: get it again, from where the weights come from"
        )
    state: State = {}
    for name in parts:
        state |= files.read(find(file.parent, name))
    differ = sorted(set(index) ^ set(state))
    if differ:
        raise UserError(
            f"{str(file)!r} and the files that it names differ in {len(differ)} names, such as "
            f"{differ[0]!r}: is a file missing, or of another model?"
        )
    return state
