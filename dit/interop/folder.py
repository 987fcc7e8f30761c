"""Files of a directory of weights and settings, which nobody vouches for."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from dit.interop import files
from dit.interop.mapping import State
from dit.types import UserError

LARGEST_JSON = 10 * 2**20  # bytes


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
    state: State = {}
    for name in sorted(set(index.values())):
        state |= files.read(find(file.parent, name))
    differ = sorted(set(index) ^ set(state))
    if differ:
        raise UserError(
            f"{str(file)!r} and the files that it names differ in {len(differ)} names, such as "
            f"{differ[0]!r}: is a file missing, or of another model?"
        )
    return state
