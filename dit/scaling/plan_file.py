"""A plan as a file: the rows, the config they start from, and how they are evaluated."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from dit.scaling.costs import Costs
from dit.scaling.evaluate import check_evaluation
from dit.scaling.ladder import Size
from dit.scaling.plan import Machine, Plan, Row
from dit.training.workdir import of_today
from dit.types import UserError


def save_plan(
    path: str | pathlib.Path, plan: Plan, base: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    """Write the plan; UserError if ``path`` holds a different one, as its runs are stored beside it.

    ``base``: the config as plain data. ``options``: ``evaluation``, keywords of ``freeze``, and
    ``weights``, whose loss decides (``params`` or an average's name).
    """
    path = pathlib.Path(path)
    check_evaluation(options["evaluation"])
    content = {"plan": dataclasses.asdict(plan), "base": dict(base), "options": dict(options)}
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    if path.exists() and path.read_text() != text:
        raise UserError(f"{path} holds another plan; give another directory, or delete that one")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    fresh.write_text(text)
    os.replace(fresh, path)


def load_plan(path: str | pathlib.Path) -> tuple[Plan, dict[str, Any], dict[str, Any]]:
    """``(plan, base, options)``; UserError if the file is missing or damaged.

    ``base`` is in the keywords of this version, whichever version made the plan.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"no plan {path}; make one first: python -m dit.scaling plan")
    try:
        content = json.loads(path.read_text())
        plan = content["plan"]
        rows = tuple(Row(**{**row, "size": _size(row["size"])}) for row in plan["rows"])
        probed = tuple(map(_size, plan["probed"]))
        machine = Machine(**plan["machine"])
        return (
            Plan(rows, tuple(plan["budgets"]), machine, probed),
            of_today(content["base"]),
            content["options"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); make the plan again") from error


def _size(plain: Mapping[str, Any]) -> Size:
    return Size(**{**plain, "costs": Costs(**plain["costs"])})
