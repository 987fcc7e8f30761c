"""What a new run begins with: the parameters of a checkpoint or of a file, or a part of them.

The optimizer, the averages and the count of steps begin anew. A run that goes on never reads them
again: what they were taken from need not be there any more.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from dit.config import resolve
from dit.interop import files
from dit.training.checkpoint import restore_params
from dit.types import Params, UserError, Whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitFrom:
    """Parameters are random where ``path`` is None.

    ``path``: the workdir of a run or, with ``format`` (a name in ``dit.interop``), a file of weights.
    ``which``: ``params`` or an average of them, by default that of the longest half-life; of a file
    ``ema``, the default, or ``model``. ``step``: of the run's checkpoints, by default the latest.
    ``only``: patterns of names, such as ``blocks/*``, of what is taken. The rest is random; of a
    checkpoint it need not be there, or fit.
    """

    path: str | None = None
    format: str | None = None
    which: str | None = None
    step: Whole | None = None
    only: str | tuple[str, ...] | None = None

    def __post_init__(self):
        given = {k for k, v in dataclasses.asdict(self).items() if v is not None}
        if given and self.path is None:
            raise UserError(
                f"got init_from.{min(given)} and no init_from.path; give both or neither"
            )
        if self.format is not None and self.step is not None:
            raise UserError("got init_from.step for a file of weights; only a run has steps")


class Given(NamedTuple):
    """Parameters by name, those that are to be random left out, and what they are, in words."""

    params: dict[str, Array]
    origin: str


NOTHING = Given({}, "")


def read(settings: InitFrom, target: Params, model: Any, shape: tuple[int, ...]) -> Given:
    """The parameters that ``settings`` name, with the shapes and shardings of ``target``.

    ``model`` and ``shape``, of its data: what a file's weights have to fit, as a whole. Raises
    UserError for what is not there or does not fit, and for patterns that match nothing.
    """
    if settings.path is None:
        return NOTHING
    wanted = flatten_dict(target, sep="/")
    if settings.only is not None:
        names = matching(wanted, settings.only)
        wanted = {name: wanted[name] for name in names}
    if settings.format is None:
        found = restore_params(
            settings.path,
            unflatten_dict(wanted, sep="/"),
            which=settings.which,
            step=settings.step,
            part=settings.only is not None,
        )
        origin = f"{found.which} of step {found.step} in {settings.path} ({found.fingerprint})"
        return Given(flatten_dict(found.params, sep="/"), origin)
    weights = resolve("interop", settings.format)
    state = files.read(settings.path, settings.which or "ema")
    params = flatten_dict(weights.to_params(state, model, shape), sep="/")
    placed = {name: jax.device_put(params[name], x.sharding) for name, x in wanted.items()}
    return Given(placed, f"{settings.format} weights in {settings.path}")


def matching(names: Iterable[str], only: str | tuple[str, ...]) -> list[str]:
    """The names that a pattern matches; UserError for a pattern that matches none."""
    names, patterns = list(names), (only,) if isinstance(only, str) else tuple(only)
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            tops = sorted({name.partition("/")[0] for name in names})
            raise UserError(
                f"got init_from.only={pattern!r}, which is the name of no parameter; expected a pattern "
                f"such as {tops[0] + '/*'!r}: the model has {', '.join(tops)}"
            )
    return [n for n in names if any(fnmatch.fnmatchcase(n, pattern) for pattern in patterns)]
