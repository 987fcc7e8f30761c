"""CLIP score (Hessel et al. 2021): how well samples fit the captions that they were asked for.

The mean of ``100 max(cos, 0)`` of a picture's and its caption's features, in the towers of one CLIP. The
paper's own figure is that times 2.5/100.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from dit.evaluation.collect import Cosines
from dit.evaluation.scores import About, Need, Plan, Sets, with_errors
from dit.text.pretrained import clip
from dit.types import UserError

BATCH = 64  # captions at a time


def build(*, path: str | None = None):
    """Of the network ``clip``; ``path``: the directory of the text tower and its vocabulary."""

    def plan(about: About) -> Plan:
        """See ``evaluation.scores``."""
        keys = {
            f"clip_score_{one.name}": (one.name, "features", "cosines")
            for one in about.networks
            if one.name.startswith("clip_")
        }
        why = "" if about.captions else "the model is given no captions"
        why = why or ("" if about.frames == 1 else "it is of pictures, of one frame")
        why = why or ("" if keys else "it is of --features=clip:path=DIR")
        why = why or ("" if path else "the text tower is missing: --scores=clip_score:path=DIR")
        lacks = with_errors(list(keys) or ["clip_score"], why)
        if why:
            return Plan((), lacks, lambda sets: {})
        assert path is not None
        target = embed(path, about.captions)

        def measure(sets: Sets) -> dict[str, float]:
            found = {}
            for name, key in keys.items():
                each = 100 * np.maximum(sets["samples"][key].cosine, 0)
                found[name] = float(each.mean())
                spread = each.std(ddof=1) if len(each) > 1 else np.nan
                found[f"{name}_error"] = float(spread / np.sqrt(len(each)))
            return found

        def make(samples: int, size: int, frames: int) -> Cosines:
            if target.shape[1] != size:
                raise UserError(
                    f"the text tower gives {target.shape[1]} features and the image tower {size}: they "
                    "are of different CLIPs"
                )
            return Cosines.empty(target)

        needs = tuple(Need(key, make, ("samples",)) for key in keys.values())
        return Plan(needs, lacks, measure, {k: v[:1] for k, v in keys.items()}, {"text": path})

    return plan


def embed(path: str, captions: Sequence[str]) -> Float[np.ndarray, "n d"]:
    """The projected features of captions, of the text tower in the directory ``path``."""
    encoder = clip.build(path=path, use="pooled", padding="real")
    params, run = encoder.load(), jax.jit(encoder.encode)
    known = list(dict.fromkeys(captions))
    found = []
    for first in range(0, len(known), BATCH):
        part = known[first : first + BATCH]
        tokens = encoder.tokens(part + part[-1:] * (BATCH - len(part)))
        found.append(np.asarray(run(params, tokens.ids, tokens.mask).pooled)[: len(part)])
    rows = np.concatenate(found)
    return rows[[known.index(caption) for caption in captions]]
