"""The shipped configs at a size that a test can afford, on stand-in data where they read files."""

import json
import pathlib
import tempfile

import autoencoder_files
import numpy as np
import records_files
import text_cases
import wan_vae_cases

from dit.experiment import load_config

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.py"))


def stand_ins(directory, config, dtype=np.float16, each=6):
    """What a config reads, small: latents of the right shape, an autoencoder, text encoders."""
    found = latents(directory, config, dtype, each)
    if config.codec.name == "autoencoder_kl":
        autoencoder_files.save(directory / "vae", config.codec.get("family") or "tiny")
        found["codec.path"] = str(directory / "vae")
    if config.codec.name == "wan_vae":
        wan_vae_cases.save(directory / "vae", "latent")
        found["codec.path"] = str(directory / "vae")
    if config.get("text", {}).get("name") == "pretrained":
        encoders = []
        for i, each in enumerate(config.text.encoders):
            place = directory / f"encoder_{i}"
            kind = each["name"] if each["name"] != "minilm" else "bert"
            text_cases.save(place, kind, projected=kind == "clip", seed=i)
            encoders.append({**each, "name": kind, "path": str(place)})
        found["text.encoders"] = tuple(encoders)
    return found


def latents(directory, config, dtype=np.float16, each=6):
    """Stand-in latents where a config reads some: the right shape, ``each`` examples or two more."""
    if config.data.name == "records":
        shape, classes = config.data.shape, config.data.num_classes
        shape = shape if shape[0] > 1 else shape[1:]
        records_files.write(directory, shape, classes, config.data.flip, dtype, each)
        return {"data.path": str(directory), "loader.workers": 0}
    if config.data.name != "latents":
        return {}
    *rest, channels = config.data.shape
    size = (each + 2, *rest, channels * (1 + config.data.moments))
    x = np.random.default_rng(0).standard_normal(size, np.float32)
    np.save(directory / "latents.npy", np.abs(x, out=x).astype(dtype))
    np.save(directory / "labels.npy", np.arange(each + 2))
    return {"data.path": str(directory), "data.held_out": 0.25, "loader.workers": 0}


def pictures(config):
    """Small ones, or short clips, where a config draws them."""
    if config.objective.name == "autoencoder" and config.data.name == "world":
        return {"data.frames": 5, "batch_size": 2}
    if config.objective.name == "autoencoder":
        return {"data.parts": tuple({**part, "size": 16} for part in config.data.parts)}
    return {"data.size": 32} if config.data.name == "emoji" else {}


def shrunken(file, directory, dtype=np.float16, **more):
    """The config in ``file``, one narrow layer deep, for two steps; ``dtype``: of latents."""
    plain = load_config(str(file))
    frames, *sides, channels = plain.data.get("shape") or (1, 1)
    clip = frames > 1
    shape = {}
    if clip or max(sides, default=1) > 32:
        plain.data.shape = (8 if clip else 1, 16, 16, channels)
        shape = {"data.shape": plain.data.shape}
    adversary = {"objective.lpips": 0.0, "objective.start": 1}  # without the weights of LPIPS
    small = {
        "steps": 2,
        "batch_size": 8,
        "model.depth": 1,
        "model.width": 24 if plain.model.get("shortcuts") else 32,
        "model.heads": 2,
        "samples.every": 0,
        "log.every": 1,
        "checkpoint.every": 100,
        **(adversary if plain.objective.name == "autoencoder" else {}),
        **shape,
        **stand_ins(directory, plain, dtype),
        **pictures(plain),
        **more,
    }
    if plain.get("init_from", {}).get("path"):
        small |= {"init_from.path": None, "init_from.format": None}  # random, and not so large
    if (plain.model.get("size") or "").startswith("FLUX"):
        small["model.single_depth"] = 1
    if (plain.model.get("size") or "").startswith("SD-"):
        small |= {"model.multipliers": (1, 2), "model.attention_levels": (0,)}
    if "heads" not in plain.model:
        del small["model.heads"]
    if "rope_axes" in plain.model:
        small["model.rope_axes"] = (0, 8, 8)
    config = load_config(str(file), small)
    if "warmup" in config.schedule:
        config.schedule.warmup = 1
    if config.model.get("patch") == 1 or "xl1" in file.stem:
        config.model.patch = 4  # fewer tokens
    if clip:
        config.model.patch = (2, 4, 4)
    return config


def drop_paths(section):
    section.pop("path", None)
    for part in section.get("encoders", ()):
        part.pop("path")


def distinct():
    """One config file of each that shrink to the same: sizes of one recipe do."""
    found = {}
    for file in CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            config = shrunken(file, pathlib.Path(folder)).to_dict()
        for section in ("data", "codec", "text"):
            drop_paths(config.get(section, {}))
        config["model"].pop("size", None)
        found.setdefault(json.dumps(config, sort_keys=True), file)
    return list(found.values())
