"""Improved precision and recall (Kynkaanniemi et al. 2019) in each network's features.

``precision``: the share of samples within some real picture's ball, whose radius is the distance to its
k-th nearest other real picture. ``recall``: the share of real pictures within some sample's ball. Both
grow with the number of pictures: compare at equal counts. The errors are binomial.
"""

from __future__ import annotations

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from dit.evaluation.knn import covered, nearest
from dit.evaluation.scores import About, Need, Plan, Sets, with_errors
from dit.evaluation.scores.kd import SETS, rows
from dit.types import Count


def build(*, k: Count = 3):
    """Of every network, with the balls of the ``k``-th neighbour."""

    def plan(about: About) -> Plan:
        """See ``evaluation.scores``."""
        networks = [one.name for one in about.networks]
        names = [f"{what}_{network}" for network in networks for what in ("precision", "recall")]

        def measure(sets: Sets) -> dict[str, float]:
            found = {}
            for network in networks:
                ours, theirs = (sets[of][network, "features", "rows"].x for of in SETS)
                shares = precision_recall(ours, theirs, k, about.mesh)
                counts = zip(("precision", "recall"), shares, (len(ours), len(theirs)), strict=True)
                for what, share, n in counts:
                    found[f"{what}_{network}"] = share
                    found[f"{what}_{network}_error"] = float(np.sqrt(share * (1 - share) / n))
            return found

        few = (
            ""
            if about.samples > k
            else f"it needs more than {k} samples; there are {about.samples}"
        )
        needs = tuple(Need((name, "features", "rows"), rows) for name in networks)
        used = {name: (name.partition("_")[2],) for name in names}
        return Plan(needs, with_errors(names, few), measure, used, {"k": k})

    return plan


def precision_recall(
    ours: Float[np.ndarray, "n d"],
    theirs: Float[np.ndarray, "m d"],
    k: int,
    mesh: Mesh | None = None,
) -> tuple[float, float]:
    """Precision and recall of samples ``ours``; a row is its own first neighbour."""
    balls = [nearest(x, x, min(k + 1, len(x)), mesh)[0][:, -1] for x in (ours, theirs)]
    precision = covered(ours, theirs, balls[1], mesh).mean()
    recall = covered(theirs, ours, balls[0], mesh).mean()
    return float(precision), float(recall)
