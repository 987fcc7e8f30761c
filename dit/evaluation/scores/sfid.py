"""sFID: the Frechet distance in a map of InceptionV3 rather than its mean (Nash et al. 2021).

The first 7 channels of ``mixed_6/conv``, 17 x 17: where things are counts.
"""

from __future__ import annotations

import numpy as np

from dit.evaluation.scores import About, Plan, Sets, by_network, with_errors
from dit.evaluation.scores.fd import SETS, measured, moments, moved

MISSING = "it is of --features=inception_v3"


def build():
    """Of every network that gives a ``spatial`` map."""
    return plan


def plan(about: About) -> Plan:
    """See ``evaluation.scores``."""
    networks = [one for one in about.networks if "spatial" in one.others]
    names = {one.name: "sfid" + one.name.removeprefix("inception_v3") for one in networks}

    def measure(sets: Sets) -> dict[str, float]:
        found = {}
        for network, name in names.items():
            found[name], found[f"{name}_error"] = measured(sets, network, "spatial")
        return found

    def moves(sets: Sets) -> dict[str, np.ndarray]:
        return {name: moved(sets, network, "spatial") for network, name in names.items()}

    needs = tuple(need for one in networks for need in moments(one, "spatial", SETS))
    lacks = with_errors(list(names.values())) if names else with_errors(["sfid"], MISSING)
    return Plan(needs, lacks, measure, by_network(names), moves=moves)
