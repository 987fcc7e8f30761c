"""What a new run begins with: the parameters of a checkpoint or of a file, or a part of them.

The optimizer, the averages and the count of steps begin anew. A run that goes on never reads them
again: what they were taken from need not be there any more. A run with ``lora`` is another matter: they
are its frozen network, of which it keeps the fingerprint alone.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from dit import models
from dit.config import resolve
from dit.interop import folder
from dit.training.checkpoint import read_meta, restore_params
from dit.training.lora import Lora, LoraSettings
from dit.training.lora import build as build_lora
from dit.types import Params, UserError, Weights, Whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitFrom:
    """Parameters are random where ``path`` is None.

    ``path``: the workdir of a run or, with ``format`` (a name in ``dit.interop``), a file of weights,
    or a directory of its parts, of which every process reads the slices that its devices hold.
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
        rank = read_meta(settings.path, settings.step)["config"].get("lora", {}).get("rank")
        if rank is not None:
            raise UserError(
                f"the run in {settings.path} trained a LoRA, which is no network by itself: merge it "
                f"first (dit convert --merge --workdir={settings.path} --out=DIR), and begin with that"
            )
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
    state = folder.opened(settings.path, settings.which or "ema")[0]
    params = weights.to_params(state, model, shape, unflatten_dict(wanted, sep="/"))
    return Given(flatten_dict(params, sep="/"), f"{settings.format} weights in {settings.path}")


def beside(
    lora: LoraSettings, source: InitFrom, model: Any, shape: tuple[int, ...], expected: str | None
) -> tuple[Lora | None, Weights | None]:
    """What ``lora`` trains, and the frozen network of ``source`` beside it; None twice without a rank.

    ``expected``: the fingerprint that the network must have. Raises UserError where there is none.
    """
    if lora.rank is None:
        return None, None
    if source.path is None or source.only is not None:
        raise UserError(
            "got lora.rank; expected the frozen network too, as a whole: give init_from.path, and no "
            "init_from.only"
        )
    abstract, axes = models.abstract(model, shape), models.logical_axes(model, shape)
    pairs = build_lora(lora, abstract, axes)

    def load(shardings: Any) -> Params:
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
        )
        return unflatten_dict(read(source, target, model, shape).params, sep="/")

    where = f"the weights of the frozen network in {source.path}"
    return pairs, pairs.base(Weights(abstract, axes, load, where, expected))


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
