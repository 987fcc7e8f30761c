"""How many times farther samples are from the reference than new real pictures: the mean over networks.

Of each network ``FD(samples, reference) / FD(held out, reference)``: 1 for samples as good as pictures
of the same data. Averaged over several networks (six, in papers that call it FDr6) no one of them can
be pleased at the others' cost. Both distances are biased by their counts: the protocol names them.
"""

from __future__ import annotations

import numpy as np

from dit.evaluation.scores import About, Plan, Sets, with_errors
from dit.evaluation.scores.fd import Transport, measured, moments, moved

SETS = ("samples", "reference", "held_out")


def build():
    """Of all networks together."""
    return plan


def plan(about: About) -> Plan:
    """See ``evaluation.scores``."""
    networks = [one.name for one in about.networks]

    def measure(sets: Sets) -> dict[str, float]:
        ratios, errors = [], []
        for network in networks:
            distance, error = measured(sets, network, "features")
            unit = floor(sets, network)
            ratios.append(distance / unit)
            errors.append(error / unit)
        mean, count = float(np.mean(ratios)), len(networks)
        # The networks see the same samples, so their errors may all point one way.
        return {"fd_ratio": mean, "fd_ratio_error": float(np.sum(errors) / count)}

    def moves(sets: Sets) -> dict[str, np.ndarray]:
        of_each = [moved(sets, one, "features") / floor(sets, one) for one in networks]
        return {"fd_ratio": np.mean(of_each, 0)}

    needs = tuple(need for one in about.networks for need in moments(one, "features", SETS))
    why = "" if about.held_out > 1 else "there are no held-out pictures beside the reference"
    lacks = with_errors(["fd_ratio"], why)
    return Plan(needs, lacks, measure, {"fd_ratio": tuple(networks)}, moves=moves)


def floor(sets: Sets, network: str) -> float:
    """The squared distance of the held-out pictures from the reference."""
    new, theirs = (sets[of][network, "features", "moments"] for of in ("held_out", "reference"))
    return Transport.between(new, theirs).value or np.nan
