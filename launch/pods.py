"""Reads a part of a Pod from a file, and merges it with the Pod of a launcher."""

from __future__ import annotations

import json
import pathlib
from typing import Any

# Lists of named entries. Entries of the same name are merged field by field, or replaced.
JOINED = {"containers": "name", "initContainers": "name"}
REPLACED = {"volumes": "name", "env": "name", "volumeMounts": "mountPath"}


def read(path: str) -> dict[str, Any]:
    """``{"metadata": ..., "spec": ...}`` of a YAML or JSON file; ValueError for anything else."""
    try:
        text = pathlib.Path(path).read_text()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    tree = _parsed(path, text)
    wrong = set(tree) - {"apiVersion", "kind", "metadata", "spec"} if isinstance(tree, dict) else ()
    if not isinstance(tree, dict) or wrong:
        got = ", ".join(sorted(wrong)) or type(tree).__name__
        raise ValueError(f"got {got} in {path}; expected a Pod in part, with metadata and spec")
    parts = {key: tree[key] or {} for key in ("metadata", "spec") if key in tree}
    if not all(isinstance(part, dict) for part in parts.values()):
        raise ValueError(f"metadata and spec of {path} are to be mappings")
    _check_names(path, parts.get("spec"))
    return parts


def _check_names(path: str, tree: Any) -> None:
    """Raise ValueError if an entry of a list of named entries has no name."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        name = JOINED.get(key) or REPLACED.get(key)
        entries = value if isinstance(value, list) else []
        good = all(isinstance(entry, dict) and name in entry for entry in entries)
        if name and not (isinstance(value, list) and good):
            raise ValueError(f"{key} of {path} is to be a list of entries with a {name!r} each")
        for entry in [value, *entries]:
            _check_names(path, entry)


def _parsed(path: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        import yaml
    except ImportError as error:
        raise ValueError(
            f"{path} is not JSON, and YAML needs a library: pip install pyyaml"
        ) from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is neither JSON nor YAML: {error}") from error


def join(ours: Any, theirs: Any, name: str = "") -> Any:
    """Merge ``theirs`` into ``ours``: mappings by key, lists by appending; anything else is replaced.

    ``name``: the field that holds them. Lists of named entries are merged by name.
    """
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = dict(ours)
        for key, value in theirs.items():
            found[key] = join(ours[key], value, key) if key in ours else value
        return found
    if not (isinstance(ours, list) and isinstance(theirs, list)):
        return theirs
    key = JOINED.get(name) or REPLACED.get(name)
    if key is None:
        return [*ours, *theirs]
    found = {entry[key]: entry for entry in ours}
    for entry in theirs:
        before = found.get(entry[key], {}) if name in JOINED else {}
        found[entry[key]] = join(before, entry)
    return list(found.values())
