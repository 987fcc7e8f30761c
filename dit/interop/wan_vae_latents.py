"""The mean and standard deviation of each channel of the latents of Wan's autoencoders.

The model sees ``(z - mean) / std``. The numbers are those that the authors publish with the weights;
Qwen-Image's are those of Wan 2.1. A ``config.json`` of diffusers has them too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dit.models import wan_vae
from dit.models.wan_vae import SIZES, WanVAE
from dit.types import UserError

Numbers = tuple[float, ...]
KEYS = ("latents_mean", "latents_std")
PUBLISHED: dict[str, tuple[Numbers, Numbers]] = {
    "Wan2.1": (
        (
            *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
            *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
        ),
        (
            *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
            *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
        ),
    ),
    "Wan2.2": (
        (
            *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557),
            *(-0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825),
            *(-0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
            *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230),
            *(-0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748),
            *(0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
        ),
        (
            *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013),
            *(0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978),
            *(0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
            *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093),
            *(0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887),
            *(0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
        ),
    ),
}


def statistics(model: WanVAE, settings: Mapping[str, Any]) -> tuple[Numbers, Numbers] | None:
    """Mean and standard deviation by ``config.json``, or as published for this size, or None."""
    found = tuple(settings.get(key) for key in KEYS)
    if found == (None, None):
        own = (model.encoder_stages, model.decoder_stages, model.latent_channels)
        for size, other in ((size, wan_vae.build(size=size)) for size in SIZES):
            if own == (other.encoder_stages, other.decoder_stages, other.latent_channels):
                return PUBLISHED[size]
        return None
    for key, values in zip(KEYS, found, strict=True):
        check(values, model.latent_channels, f"config.json says {key}={values!r}")
    if min(found[1]) <= 0:
        raise UserError(f"config.json says {KEYS[1]}={found[1]!r}; expected positive numbers")
    return tuple(map(tuple, found))


def check(values: Any, channels: int, what: str) -> None:
    """Raise UserError, which begins with ``what``, unless there is one number a channel."""
    numbers = isinstance(values, list | tuple) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )
    if not numbers or len(values) != channels:
        raise UserError(f"{what}; expected {channels} numbers")


def read(model: WanVAE, settings: Mapping[str, Any]) -> dict[str, list[float]] | None:
    """What a workdir keeps of them: see ``mapping.Format``."""
    found = statistics(model, settings)
    return (
        None if found is None else {k: list(v) for k, v in zip(("mean", "std"), found, strict=True)}
    )


def written(latents: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of ``config.json`` that say what a workdir keeps."""
    return {key: latents[name] for key, name in zip(KEYS, ("mean", "std"), strict=True)}
