"""Where the weights of a feature network are found: a file that is given, or one of a usual name.

Nothing is ever fetched. Weights whose licence or size keeps them out of any package are put by hand into
one directory, ``$DIT_WEIGHTS``, or are where PyTorch's hub left them.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dit.interop import files, folder
from dit.types import UserError

HUB = "~/.cache/torch/hub/checkpoints"
WHOLE = ("model.safetensors", "pytorch_model.bin")  # in a directory, as transformers has it


def read(
    network: str, path: str | None, usual: Sequence[str], source: str
) -> tuple[Mapping[str, Any], str]:
    """The arrays of a file or directory ``path``, or of a file of a ``usual`` name; and its name.

    ``source``: where such files come from, for the UserError that says that there is none.
    """
    found = pathlib.Path(path).expanduser() if path else _usual(usual)
    if found is None or not found.exists():
        where = f"no {path!r}" if path else f"none of {', '.join(usual)} in {_places()}"
        raise UserError(
            f"the weights of the features {network!r} are not at hand ({where}): get them from {source} "
            f"and put them into a directory that DIT_WEIGHTS names, or give {network}:path=FILE"
        )
    if found.is_dir():
        return folder.read(found, WHOLE), found.name
    return files.read(found), found.name


def _usual(names: Sequence[str]) -> pathlib.Path | None:
    there = (place / name for place in _places() for name in names)
    return next((path for path in there if path.exists()), None)


def _places() -> list[pathlib.Path]:
    given = os.environ.get("DIT_WEIGHTS")
    return [pathlib.Path(place).expanduser() for place in ([given] if given else []) + [HUB]]


def check(network: str, found: Mapping[str, tuple], wanted: Mapping[str, tuple]) -> None:
    """Raise UserError unless names and shapes are those of the network."""
    odd = sorted(set(found) ^ set(wanted))
    if odd:
        raise UserError(f"these are no weights of {network}: {', '.join(odd[:4])} differ")
    for name, shape in wanted.items():
        if tuple(found[name]) != tuple(shape):
            raise UserError(
                f"these are no weights of {network}: {name} has the shape {tuple(found[name])}; "
                f"expected {tuple(shape)}"
            )
