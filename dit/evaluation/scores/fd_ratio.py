"""How many times farther samples are from the reference than new real pictures: the mean over networks.

Of each network ``FD(samples, reference) / FD(held out, reference)``: 1 for samples as good as pictures
of the same data. Averaged over several networks (six, in papers that call it FDr6) no one of them can
be pleased at the others' cost. Both distances are biased by their counts: the protocol names them.
"""

from __future__ import annotations

import numpy as np

from dit.evaluation.scores import About, Plan, Sets, with_errors
from dit.evaluation.scores.fd import moments, of_moments

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
            ours, theirs, new = (sets[of][network, "features", "moments"] for of in SETS)
            distance, error = of_moments(ours, theirs)
            floor = of_moments(new, theirs)[0] or np.nan
            ratios.append(distance / floor)
            errors.append(error / floor)
        mean, count = float(np.mean(ratios)), len(networks)
        # The networks see the same samples, so their errors may all point one way.
        return {"fd_ratio": mean, "fd_ratio_error": float(np.sum(errors) / count)}

    needs = tuple(need for one in about.networks for need in moments(one, "features", SETS))
    why = "" if about.held_out else "there are no held-out pictures beside the reference"
    return Plan(needs, with_errors(["fd_ratio"], why), measure, {"fd_ratio": tuple(networks)})
