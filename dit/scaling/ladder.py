"""Model sizes for a scaling law: nearly log-spaced, with one head size and one rule for the depth.

With the head size fixed, widths are its multiples, and small sizes that also keep ``width / depth``
exactly lie far apart (ratios of 8, 3.4, 2.4, ...). So the depth may depart from the rule by a stated
factor. Each rung is the size nearest to its target, and records how far it departs.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from dit import config
from dit.scaling.costs import Costs, costs
from dit.types import UserError

COUNTS = ("per_token", "parameters")


@dataclasses.dataclass(frozen=True)
class Size:
    """One rung: what to give the network's ``build``, what it costs, and ``N`` as the ladder counts it.

    ``heads``: None for a network that takes no such number. ``rule``: ``depth / (width / aspect)``, 1
    where the rule is kept exactly.
    """

    depth: int
    width: int
    heads: int | None
    N: int
    costs: Costs
    rule: float

    @property
    def kwargs(self) -> dict[str, int]:
        """For the model section of a config."""
        sizes = {"depth": self.depth, "width": self.width, "heads": self.heads}
        return {name: size for name, size in sizes.items() if size is not None}


def ladder(
    shape: tuple[int, int, int, int],
    *,
    smallest: float,
    largest: float,
    count: int,
    head_dim: int = 64,
    aspect: float = 64.0,
    slack: float = 2.0,
    least_depth: int = 1,
    by: str = "per_token",
    context_len: int = 0,
    level: str = "sample",
    beside: int = 0,
    network: str = "dit",
    **model,
) -> list[Size]:
    """``count`` sizes from about ``smallest`` to about ``largest`` parameters, for data of ``shape``.

    ``shape``: (f, h, w, c): one frame is an image, more are a video. ``head_dim``: channels a head.
    ``aspect``: ``width / depth``, which depths may miss by a factor ``slack``. ``by``: which count of
    parameters (``per_token`` or ``parameters``, see ``Costs``) is spaced evenly. ``beside``: FLOPs of a
    sample that are the same for all sizes, as of ``costs``. ``network``: a name in
    ``dit.models``, whose ``build`` takes ``depth`` and ``width`` and perhaps ``heads``; ``model``: its
    other keywords. Raises UserError where no such sizes exist or two rungs fall together.
    """
    if by not in COUNTS:
        raise UserError(f"got by={by!r}: {config.suggest(by, list(COUNTS))}")
    if not (0 < smallest < largest and count >= 2 and slack >= 1):
        raise UserError(
            f"got smallest={smallest}, largest={largest}, count={count}, slack={slack}; expected "
            "0 < smallest < largest, two rungs or more and a slack of at least 1"
        )
    takes = config.keywords(config.builder("models", network))
    missing = [name for name in ("depth", "width") if name not in takes]
    if missing:
        raise UserError(
            f"network {network!r} takes no {' and no '.join(missing)}, by which a ladder would make it "
            "larger; give its build these keywords"
        )
    model = {"in_channels": shape[-1], **model}
    model = {k: tuple(v) if isinstance(v, list) else v for k, v in model.items()}  # as from JSON
    options = (tuple(shape), context_len, level, beside, network, tuple(sorted(model.items())))
    base, layer = _polynomials(by, head_dim, *options)
    candidates = []
    for heads in range(1, 10_000):
        width = heads * head_dim
        rule = width / aspect
        low = max(least_depth, math.ceil(rule / slack))
        high = max(low, math.floor(rule * slack))
        if base(width) + layer(width) * low > 1.5 * largest:
            break
        for depth in range(low, high + 1):
            N = base(width) + layer(width) * depth
            candidates.append((N, depth, width, heads, depth / rule))
    if not candidates:
        raise UserError(
            f"the least model with heads of {head_dim} channels has more than {largest:.3g} "
            "parameters; lower head_dim or raise largest"
        )
    sizes = []
    for target in np.geomspace(smallest, largest, count):
        _, depth, width, heads, rule = min(
            candidates,
            key=lambda c: abs(math.log(c[0] / target)) + 0.1 * abs(math.log(c[4])),
        )
        found = _costs(depth, width, heads, *options)
        given = heads if "heads" in takes else None
        size = Size(depth, width, given, getattr(found, by), found, rule)
        if sizes and size.N <= sizes[-1].N:
            raise UserError(
                f"rungs {len(sizes)} and {len(sizes) + 1} both become depth {depth}, width {width}: "
                "ask for fewer sizes, a smaller head_dim, or more slack"
            )
        sizes.append(size)
    return sizes


@functools.cache
def _costs(depth, width, heads, shape, context_len, level, beside, network, model) -> Costs:
    takes = config.keywords(config.builder("models", network))
    given = {"depth": depth, "width": width} | ({"heads": heads} if "heads" in takes else {})
    built = config.resolve("models", network, **given, **dict(model))
    return costs(built, shape, context_len, level, beside)


def _polynomials(by, head_dim, *options) -> tuple[np.poly1d, np.poly1d]:
    """Parameters are ``base(width) + layer(width) depth``, both quadratic but for rounded MLP sizes."""
    widths = [heads * head_dim for heads in (1, 2, 4)]
    counts = np.array(
        [
            [getattr(_costs(depth, width, width // head_dim, *options), by) for depth in (1, 2)]
            for width in widths
        ],
        float,
    )
    layer = counts[:, 1] - counts[:, 0]
    base = counts[:, 0] - layer
    return np.poly1d(np.polyfit(widths, base, 2)), np.poly1d(np.polyfit(widths, layer, 2))
