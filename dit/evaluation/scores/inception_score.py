"""The Inception score (Salimans et al. 2016): ``exp E KL(p(y|x) || p(y))``, of the samples alone.

The mean over ten random parts of the samples, as torch-fidelity deals them; logits are without the bias.
It knows nothing of the data: a picture a class, repeated, scores highest.
"""

from __future__ import annotations

import numpy as np

from dit.evaluation.collect import Probabilities
from dit.evaluation.scores import About, Need, Plan, Sets, with_errors


def build():
    """Of every network that gives ``logits``."""
    return plan


def plan(about: About) -> Plan:
    """See ``evaluation.scores``."""
    networks = [one for one in about.networks if "logits" in one.others]
    keys = {
        "inception_score" + one.name.removeprefix("inception_v3"): (
            one.name,
            "logits",
            "probabilities",
        )
        for one in networks
    }

    def measure(sets: Sets) -> dict[str, float]:
        found = {}
        for name, key in keys.items():
            parts = sets["samples"][key].scores()
            found[name] = float(parts.mean())
            spread = np.std(parts, ddof=1) if len(parts) > 1 else np.nan
            found[f"{name}_error"] = float(spread / np.sqrt(len(parts)))
        return found

    def make(samples: int, size: int, frames: int) -> Probabilities:
        return Probabilities.empty(samples, size)

    needs = tuple(Need(key, make, ("samples",)) for key in keys.values())
    missing = "it is of --features=inception_v3"
    lacks = with_errors(list(keys)) if keys else with_errors(["inception_score"], missing)
    return Plan(needs, lacks, measure, {name: key[:1] for name, key in keys.items()})
