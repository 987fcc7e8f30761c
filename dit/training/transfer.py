"""muP: hyperparameters that carry over from small models to wide or deep ones, from axis names.

Maximal update parametrisation (Yang et al. 2022, "Tensor Programs V", table 8) for transformers whose
head size stays the same. With ``m = width / base_width``, by kind of parameter:

| kind | initial spread | Adam's rate | Muon's rate |
|---|---|---|---|
| hidden: width to width | as ``1 / sqrt(fan_in)`` | ``1 / m`` | ``1 / sqrt(m)`` |
| input: from patches, time, context or a table | does not depend on width | 1 | 1 |
| output: from width to patches | zero here | ``1 / m`` | (by Adam) |
| vector: biases, norms | zero or one | 1 | 1 |

Muon's update has the same size in every direction, so at a given root mean square its norm grows as
``sqrt(m)``; in Muon's own scale (``rms=None``) nothing needs correcting. For the depth, with
``r = depth / base_depth``, each branch is multiplied by ``r^-p`` (Dey et al. 2025, "CompleteP": p = 1).
The factor is folded into the initial spread and the rate of the branch's last linear map; the other
rates of the blocks are multiplied by ``r^(p - 1)``. At the base width and depth all multipliers are 1.
What lies in a module named ``text``, an encoder, keeps its size, and has none. The U-Net's time
embedding reads as many sinusoids as it has channels, so its first map is hidden, not an input.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import optax

from dit.parallel.rules import Axes, is_axes
from dit.training.optimizers import groups, is_matrix
from dit.types import Params, UserError

# Axes that grow with the width.
WIDE = {"embed", "embed_out", "condition", "heads", "mlp", "modulation"}
XAVIER = {"patch", "context"}  # inputs whose initial spread follows from both fans
SINUSOIDS = {"time", "r", "guidance"}  # modules that embed a number
KINDS = ("hidden", "input", "output", "vector")


@dataclasses.dataclass(frozen=True)
class Transfer:
    """The sizes at which hyperparameters were tuned; a size that is None has no effect.

    ``depth_power``: p above, from 0 to 1. Raises UserError for sizes that are not positive.
    """

    base_width: int | None = None
    base_depth: int | None = None
    depth_power: float = 1.0

    def __post_init__(self):
        for name in ("base_width", "base_depth"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"got mup_{name}={value}; expected a positive number or None")
        if not 0 <= self.depth_power <= 1:
            raise UserError(f"got mup_depth_power={self.depth_power}; expected 0 to 1")

    def __bool__(self) -> bool:
        return self.base_width is not None or self.base_depth is not None


def kind(axes: Axes) -> str:
    """``hidden``, ``input``, ``output`` or ``vector``, from the names of a parameter's axes."""
    if "classes" in axes:
        return "input"
    if not is_matrix(axes):
        return "vector"
    first, *_, last = (any(axes[i] in WIDE for i in group) for group in groups(axes))
    if first:
        return "hidden" if last else "output"
    return "input"


def labels(axes: Any) -> Any:
    """The kind of every parameter, in a tree like theirs."""
    return jax.tree.map(kind, axes, is_leaf=is_axes)


def is_branch_end(path: tuple[Any, ...], names: Axes) -> bool:
    """Whether a parameter belongs to the last linear map of a branch, whose output is added to x."""
    return "layers" in names and any(part.key == "out" for part in path)


def is_text(path: tuple[Any, ...]) -> bool:
    """Whether a parameter belongs to a text encoder, which does not grow with the network."""
    return any(part.key == "text" for part in path[:1])


def ratios(transfer: Transfer, axes: Any, shapes: Any) -> tuple[float, float]:
    """``m`` and ``r``: the width and depth over those that were tuned at, 1 where none are given.

    The width is that of the narrowest axis ``embed``, the depth the length of the axes ``layers``, of
    all stages of blocks together. Raises UserError for a network without such an axis.
    """
    found: dict[str | None, int] = {}
    stages: dict[str, int] = {}
    leaves = jax.tree.leaves(axes, is_leaf=is_axes), jax.tree_util.tree_leaves_with_path(shapes)
    for names, (path, array) in zip(*leaves, strict=True):
        if is_text(path):
            continue
        for name, size in zip(names, array.shape, strict=True):
            found[name] = min(size, found.get(name, size))
        if "layers" in names:
            stage = next(part.key for part in path if part.key != "model")
            stages[stage] = array.shape[names.index("layers")]
    if stages:
        found["layers"] = sum(stages.values())
    bases = {"embed": transfer.base_width, "layers": transfer.base_depth}
    missing = [name for name, base in bases.items() if base is not None and name not in found]
    if missing:
        raise UserError(
            f"got mup_base_{'width' if missing[0] == 'embed' else 'depth'} for a network none of whose "
            f"parameters has an axis {missing[0]!r}; leave it out"
        )
    m, r = (1.0 if base is None else found[name] / base for name, base in bases.items())
    return m, r


def init_multipliers(transfer: Transfer, axes: Any, shapes: Any) -> Any:
    """The factor of each initial parameter."""
    m, r = ratios(transfer, axes, shapes)

    def one(path, names, array):
        if is_text(path):
            return 1.0
        factor = _branch(transfer, r, path, names)
        if kind(names) == "hidden" and any(part.key in SINUSOIDS for part in path):
            return factor / math.sqrt(m)  # their embedding has a fixed initial spread
        grows = XAVIER & set(names) and WIDE & set(names)  # not between channels of the data
        if kind(names) == "input" and grows:  # both fans count the window, if any
            fan_in, fan_out = (array.shape[group[-1]] for group in groups(names))
            return factor * math.sqrt((fan_in + fan_out) / (fan_in + fan_out / m))
        return factor

    return jax.tree_util.tree_map_with_path(one, axes, shapes, is_leaf=is_axes)


def rate_multipliers(transfer: Transfer, axes: Any, shapes: Any, powers: Any = 1.0) -> Any:
    """The factor of each parameter's rate.

    ``powers``: of ``1 / m`` for hidden and output parameters, one for all or a tree of them: 1 for
    Adam's updates, 0.5 for Muon's of a fixed root mean square, 0 for Muon's own.
    """
    m, r = ratios(transfer, axes, shapes)
    if isinstance(powers, float | int):
        powers = jax.tree.map(lambda _: powers, axes, is_leaf=is_axes)

    def one(path, names, power):
        if is_text(path):
            return 1.0
        factor = m**-power if kind(names) in ("hidden", "output") else 1.0
        if "layers" in names:
            factor *= r ** (transfer.depth_power - 1) * _branch(transfer, r, path, names)
        return factor

    return jax.tree_util.tree_map_with_path(one, axes, powers, is_leaf=is_axes)


def _branch(transfer: Transfer, r: float, path: tuple[Any, ...], names: Axes) -> float:
    return r**-transfer.depth_power if is_branch_end(path, names) else 1.0


def of_section(optimizer: Mapping[str, Any]) -> Transfer:
    """The parametrisation that the ``optimizer`` section of a config asks for."""
    power = optimizer.get("mup_depth_power", 1.0)
    return Transfer(optimizer.get("mup_base_width"), optimizer.get("mup_base_depth"), power)


def scale_init(transfer: Transfer, axes: Any, params: Params) -> Params:
    """Initial parameters in this parametrisation."""
    if not transfer:
        return params
    factors = init_multipliers(transfer, axes, params)
    return jax.tree.map(lambda p, f: p * f if f != 1 else p, params, factors)


def scale_rates(transfer: Transfer, axes: Any, powers: Any = 1.0) -> optax.GradientTransformation:
    """Multiply updates by ``rate_multipliers``, between an optimizer's direction and its decay.

    So weight decay remains the rate times the decay at every width.
    """

    def update(updates, state, params=None):
        factors = rate_multipliers(transfer, axes, updates, powers)
        return jax.tree.map(lambda u, f: u * f if f != 1 else u, updates, factors), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
