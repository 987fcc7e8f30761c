"""Training objectives, one a file; ``build(**kwargs) -> loss``.

``loss(key, params, apply_fn, process, batch) -> (scalar, metrics)``. ``batch`` is a dict: ``x`` holds
the latents, ``b f h w c``; ``id`` the samples' positions in the training stream, a word or two each, on
which all their randomness depends; conditions have the names of ``Cond``'s fields. Every metric is per
example, shape ``(b,)``; of packed examples ``(b, s)``, with a metric ``weight`` of mean 1 that is zero
where there is none (``objectives.packed``). ``means`` takes both.

An objective that trains further networks beside the model is a ``Phased``. An objective whose ``build``
has no keyword ``times`` is not about diffusion, and is given None for the process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Float

from dit.types import Weights

UNSUMMED = ("t", "weight")  # metrics that say what the others are of
LossFn = Callable[..., tuple[Float[Array, ""], dict[str, Float[Array, "b ..."]]]]


@dataclasses.dataclass(frozen=True)
class Phase:
    """The training of one further network, in the same step as the model's.

    ``network``: a description, as those of ``dit.models``. ``loss``: as that of ``Phased``; its gradient
    is taken with respect to the parameters of this network. ``start``: the first step that trains it.
    """

    network: Any
    loss: LossFn
    start: int = 0


@dataclasses.dataclass(frozen=True)
class Phased:
    """A loss of the model that depends on further networks, and how those are trained.

    ``loss(key, params, apply_fn, process, batch, networks=, step=)``, with ``networks`` the parameters
    of the further networks by name, and ``step`` the number of the step, both of the state before it.
    All phases of a step see that one state and the same key: none sees what another has just changed.
    ``frozen``: the weights of networks that nothing trains, by name.
    """

    loss: LossFn
    phases: Mapping[str, Phase] = dataclasses.field(default_factory=dict)
    frozen: Mapping[str, Weights] = dataclasses.field(default_factory=dict)

    def __call__(
        self, *args, **kwargs
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, "b ..."]]]:
        return self.loss(*args, **kwargs)


def phases(loss: LossFn) -> Mapping[str, Phase]:
    """The phases of an objective beside the model's own, by the names of the networks they train."""
    return loss.phases if isinstance(loss, Phased) else {}


def frozen(loss: LossFn) -> Mapping[str, Weights]:
    """The weights of the networks that an objective uses as they are."""
    return loss.frozen if isinstance(loss, Phased) else {}


def means(metrics: Mapping[str, Float[Array, "..."]]) -> dict[str, Float[Array, ""]]:
    """Each metric's mean over the examples of a batch, without those of ``UNSUMMED``."""
    weight = metrics.get("weight")
    named = {name: m for name, m in metrics.items() if name not in UNSUMMED}
    return {name: (m if weight is None else m * weight).mean() for name, m in named.items()}
