"""Files of a directory in the layout of ``transformers``, which nobody vouches for."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from dit.types import UserError

LARGEST_JSON = 10 * 2**20  # bytes


def find(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The file ``name`` in a directory; UserError, which says what is there, if it is not."""
    if not (folder / name).exists():
        there = sorted(p.name for p in folder.iterdir())[:12] if folder.is_dir() else []
        raise UserError(
            f"no {name} in {str(folder)!r}; expected a directory as transformers saves it, with "
            f"config.json and model.safetensors; there is {', '.join(there) or 'nothing'}"
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
