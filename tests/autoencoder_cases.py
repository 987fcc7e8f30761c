"""Small autoencoders as Stable Diffusion, Flux, VA-VAE and others have them, with random weights."""

import jax
import numpy as np
from random_params import random_params

from dit import models
from dit.models import autoencoder

SMALL = {"widths": (8, 16), "depth": 1, "norm_groups": 4}
KINDS = {  # keywords of ``make``
    "sd": {"widths": (8, 16), "depth": 2, "norm_groups": 4, "latent_channels": 4},
    "sd3": {
        **SMALL,
        **{"latent_channels": 16, "quant_conv": False, "post_quant_conv": False},
    },
    "flux": {
        **{"widths": (8, 8, 16), "depth": 1, "norm_groups": 2, "latent_channels": 16},
        **{"quant_conv": False, "post_quant_conv": False},
    },
    "vavae": {**SMALL, "latent_channels": 6, "attention_levels": (1,)},
    "uneven": {
        **{**SMALL, "latent_channels": 4, "attention_levels": (0, 1)},
        **{"decoder_attention_levels": ()},
    },
    "flux2": {**SMALL, "decoder_widths": (12, 20), "latent_channels": 32},
}
TINY = {"widths": (8, 8), "depth": 1, "norm_groups": 2, "latent_channels": 4}  # to be compiled


def settings(kind):
    return {**KINDS, "tiny": TINY, "three": TINY | {"latent_channels": 3}}[kind]


def make(kind, **more):
    return autoencoder.make(**settings(kind), **more)


def shape_of(model):
    """The smallest data that an autoencoder takes."""
    side = 2**model.halvings
    return (1, side, side, model.in_channels)


def params_of(model, seed=0, noise=0.2):
    """Random parameters, none of them zero, on the host."""
    init = lambda key: models.init(model, key, shape_of(model))  # noqa: E731
    return jax.tree.map(np.array, random_params(init, noise, seed))
