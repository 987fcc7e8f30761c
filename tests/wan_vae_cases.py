"""Small causal video autoencoders of both kinds, with random weights, and files of them."""

import functools

import autoencoder_cases
import numpy as np
from weights_files import write_json, write_safetensors

from dit import config
from dit.models import wan_vae

TINY = {"width": 4, "multipliers": (1, 2, 2), "depth": 1, "latent_channels": 5}
KINDS = {  # keywords of ``build``
    "plain": TINY | {"width": 6, "temporal": (True, True)},
    "shortcuts": TINY
    | {"decoder_width": 6, "temporal": (True, True), "shortcuts": True, "patch": 2},
}
LARGE = {"latent": KINDS["plain"] | {"latent_channels": 16}}  # with as many channels as Wan 2.1's
FILE = "diffusion_pytorch_model.safetensors"


def make(kind, **more):
    return wan_vae.build(**{**KINDS, **LARGE}[kind], **more)


@functools.cache
def params_of(kind):
    return autoencoder_cases.params_of(make(kind))


def state_of(kind, layout="diffusers_wan_vae"):
    """The state of a file."""
    model = make(kind)
    form = config.resolve("interop", layout)
    return form.to_state(params_of(kind), model, autoencoder_cases.shape_of(model))


def latents_of(channels=5):
    """A mean and a standard deviation for each channel."""
    draw = np.random.default_rng(0)
    found = draw.normal(size=channels), draw.uniform(0.5, 2, channels)
    return {f"latents_{name}": x.tolist() for name, x in zip(("mean", "std"), found, strict=True)}


def save(folder, kind, **settings):
    """A directory as diffusers saves it; its ``config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    model = make(kind)
    form = config.resolve("interop", "diffusers_wan_vae")
    told = form.settings(model, (5, 16, 16, 3)) | latents_of(model.latent_channels) | settings
    write_json(folder / "config.json", told)
    write_safetensors(folder / FILE, state_of(kind))
    return told
