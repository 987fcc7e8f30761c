"""Files of small autoencoders with random weights, as they are published."""

import autoencoder_cases as cases
import numpy as np
from weights_files import write_json, write_safetensors

from dit import config
from dit.interop import autoencoder_diffusers, autoencoder_original, mapping
from dit.interop.autoencoder import STATISTICS, entries

FILE = "diffusion_pytorch_model.safetensors"
SCALES = {
    "sd": (0.18215, None),
    "tiny": (2.0, 0.5),
    "sd3": (1.5305, 0.0609),
    "flux": (0.3611, 0.1159),
}


def state_of(kind, layout="diffusers", old=False, seed=0):
    """The model, its parameters, and the state of a file of them."""
    model = cases.make(kind)
    params = cases.params_of(model, seed)
    weights = config.resolve("interop", f"autoencoder_{layout}")
    state = weights.to_state(params, model, cases.shape_of(model))
    if old and layout == "diffusers":
        state = mapping.to_state(params, list(entries(model, autoencoder_diffusers.OLD)))
    if old and layout == "original":
        state = mapping.to_state(params, list(entries(model, autoencoder_original.INSIDE)))
    return model, params, state


def beside(kind, seed=0):
    """The statistics of the latents that FLUX.2 keeps."""
    if kind != "flux2":
        return {}
    draw = np.random.default_rng(seed)
    drawn = draw.normal(size=128), draw.uniform(0.5, 2, 128)
    found = {n: x.astype(np.float32) for n, x in zip(STATISTICS.values(), drawn, strict=True)}
    return {**found, "bn.num_batches_tracked": np.array(7)}


def settings_of(kind):
    """The content of ``config.json``."""
    model = cases.settings(kind)
    scale, shift = SCALES.get(kind, (None, None))
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(model["widths"]),
        "layers_per_block": model["depth"],
        "latent_channels": model["latent_channels"],
        "norm_num_groups": model["norm_groups"],
        **({} if scale is None else {"scaling_factor": scale, "shift_factor": shift}),
    }


def save(folder, kind="sd", parts=1, **options):
    """A directory as diffusers saves it; the model and its parameters."""
    model, params, state = state_of(kind, **options)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", settings_of(kind))
    state |= beside(kind)
    if parts == 1:
        write_safetensors(folder / FILE, state)
        return model, params
    where = {}
    for i in range(parts):
        name, names = f"part-{i}.safetensors", sorted(state)[i::parts]
        write_safetensors(folder / name, {n: state[n] for n in names})
        where |= dict.fromkeys(names, name)
    write_json(folder / f"{FILE}.index.json", {"weight_map": where})
    return model, params
