"""Are samples copies of the training data, in features? No other score here minds.

``copies``: the share of samples whose nearest reference picture is nearer than those of 99% of the
held-out pictures: 0.01 for new pictures of the same data, 1 for copies, be they moved or recoloured a
little where the network does not look. The error is binomial.
"""

from __future__ import annotations

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from dit.evaluation.knn import nearest
from dit.evaluation.nearest import ENOUGH
from dit.evaluation.scores import About, Need, Plan, Sets, by_network, with_errors
from dit.evaluation.scores.kd import rows

SETS = ("samples", "reference", "held_out")


def build():
    """Of every network."""
    return plan


def plan(about: About) -> Plan:
    """See ``evaluation.scores``."""
    names = {one.name: f"copies_{one.name}" for one in about.networks}

    def measure(sets: Sets) -> dict[str, float]:
        found = {}
        for network, name in names.items():
            ours, train, new = (sets[of][network, "features", "rows"].x for of in SETS)
            share = copies(ours, train, new, about.mesh)
            found[name] = share
            found[f"{name}_error"] = float(np.sqrt(share * (1 - share) / len(ours)))
        return found

    few = f"it needs {ENOUGH} held-out pictures beside the training data as the reference"
    why = "" if about.held_out >= ENOUGH else f"{few}; there are {about.held_out}"
    needs = tuple(Need((name, "features", "rows"), rows, SETS) for name in names)
    return Plan(needs, with_errors(list(names.values()), why), measure, by_network(names))


def copies(
    ours: Float[np.ndarray, "n d"],
    train: Float[np.ndarray, "m d"],
    new: Float[np.ndarray, "k d"],
    mesh: Mesh | None = None,
) -> float:
    """See the module."""
    known, found = (nearest(x, train, 1, mesh)[0][:, 0] for x in (new, ours))
    return float(np.mean(found < np.quantile(known, 0.01)))
