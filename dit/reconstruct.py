"""What a trained autoencoder makes of pictures: in grids, in figures, and to serve as a codec."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

import dit
from dit import lpips, media, storage
from dit.data.source import Source, Split
from dit.evaluation import fidelity
from dit.experiment import Experiment
from dit.parallel import multihost
from dit.parallel.mesh import mesh_of, replicated
from dit.parallel.rules import in_force
from dit.training.checkpoint import Restored, taken_from
from dit.types import Cond, Params, UserError

BATCH = 64  # pictures, or frames of clips, at once
MEASURED = 1024  # training pictures, or frames, that the latents are measured on
LATENTS = "latents.json"  # in the workdir
DRAWN = 18  # pairs


def check(experiment: Experiment) -> None:
    """Raise UserError for an autoencoder of anything but pixels as they are."""
    name = experiment.config.codec.name
    if not experiment.codec.pixels or experiment.codec.weights is not None:
        raise UserError(
            f"got codec {name!r} for an autoencoder, whose reconstructions are compared with pictures; "
            "expected --config.codec.name=pixel"
        )


class Reconstructor:
    """``(params, x) -> y``: pictures by way of the mean of their latents, uint8 ``n f h w c``."""

    def __init__(self, experiment: Experiment):
        check(experiment)
        self._experiment = experiment

    def __call__(self, params: Params, x: np.ndarray) -> np.ndarray:
        run = self._jitted(mesh_of(params))
        return np.concatenate([part[:n] for part, n in _mapped(lambda x: run(params, x), x)])

    @functools.cache  # noqa: B019 (as long as this object)
    def _jitted(self, mesh: Mesh | None) -> Callable[[Params, Any], Any]:
        experiment, codec = self._experiment, self._experiment.codec

        def run(params, x):
            z = codec.encode({}, x)
            y = experiment.apply_fn(params, z, jnp.zeros(len(z)), Cond())
            return media.to_uint8(codec.decode({}, y), codec)

        return _jit(run, mesh)


def _jit(run: Callable, mesh: Mesh | None) -> Callable:
    """``run`` under jit, over the mesh of the parameters; all devices get the result."""
    if mesh is None:
        return jax.jit(run)

    def over_mesh(*args):
        with in_force(mesh):
            return run(*args)

    return jax.jit(over_mesh, out_shardings=replicated(mesh))


def at_once(x: np.ndarray) -> int:
    """How many pictures or clips are taken together."""
    return min(max(1, BATCH // x.shape[1]), len(x))


def _mapped(run: Callable, x: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """``run`` of equal parts of ``x``, and how many rows of each count."""
    size, found = at_once(x), []
    for first in range(0, len(x), size):
        part = x[first : first + size]
        filled = np.concatenate([part, part[-1:].repeat(size - len(part), 0)])
        found.append((np.asarray(run(filled)), len(part)))
    return found


def spread(split: Split, num: int) -> np.ndarray:
    """``num`` pictures from all over a split, or all of them, ``n f h w c``."""
    if len(split) == 0:
        raise UserError("there are no such examples: hold some out (data.held_out)")
    num = min(num, len(split))
    rows = [(len(split) - 1) * i // max(num - 1, 1) for i in range(num)]
    return np.stack([split[i]["x"] for i in rows])


def painter(experiment: Experiment, workdir: storage.Place) -> Callable[[Any, int], None] | None:
    """What draws the reconstructions of a step: rows of held-out pictures, each above its own.

    At least ``samples.num`` pictures, of the first shape. Clips are drawn as strips, each above its own,
    and as a GIF of the rows of pictures.
    """
    if not experiment.config.samples.num:
        return None
    side = 2 * math.ceil(math.sqrt(2 * experiment.config.samples.num) / 2)
    x = spread(experiment.bucket(experiment.used[0]).source.held_out, side**2 // 2)
    x = np.resize(x, (side**2 // 2, *x.shape[1:]))
    run = Reconstructor(experiment)

    def paint(state: Any, step: int) -> None:
        taken = taken_from(state)
        y = run(taken.params, x)  # by all processes: each holds a part of the parameters
        if multihost.is_main():
            for suffix in (".png", ".gif") if x.shape[1] > 1 else (".png",):
                out = workdir / "samples" / f"step_{step:07d}{suffix}"
                save_pairs(out, x, y, stamped(taken), experiment.source.fps)

    return paint


def draw_pairs(
    experiment: Experiment, restored: Restored, out: str, num: int, split: str = "held_out"
) -> None:
    """Draw up to ``num`` examples of a split, and at most ``DRAWN``, above their reconstructions."""
    x = spread(getattr(experiment.source, split), min(num, DRAWN))
    y = Reconstructor(experiment)(restored.params, x)
    if multihost.is_main():
        save_pairs(storage.place(out), x, y, stamped(restored), experiment.source.fps)


def save_pairs(
    out: storage.Place, x: np.ndarray, y: np.ndarray, stamp: Mapping[str, Any], fps: float | None
) -> None:
    """Draw pictures or clips ``x`` above their reconstructions ``y``, as many as fill rows of both.

    Clips are strips in a ``.png``, and rows of pictures that move in other files.
    """
    side = 2 * max(1, int(math.sqrt(2 * len(x)) / 2))
    if out.suffix.lower() == ".png" and x.shape[1] > 1:
        pairs = np.stack([x, y], axis=1)
    else:
        x, y = (part[: side**2 // 2] for part in (x, y))
        rows = min(side // 2, len(x))
        pairs = np.stack([x, y]).reshape(2, rows, -1, *x.shape[1:]).swapaxes(0, 1)
    told = {"rows": "each row above its reconstructions", **stamp}
    media.save_samples(out, pairs.reshape(-1, *x.shape[1:]), None, told, fps=fps or media.FPS)


def stamped(restored: Restored) -> dict[str, Any]:
    """Which parameters something was made with."""
    return {
        "ema": restored.which,
        "checkpoint_step": restored.step,
        "checkpoint_fingerprint": restored.fingerprint,
        "version": dit.__version__,
        "jax": jax.__version__,
    }


def figures(
    experiment: Experiment, params: Params, num: int, split: str = "held_out"
) -> tuple[dict[str, float], dict[str, str]]:
    """Means over the pictures of a split, and what could not be measured, with why.

    ``psnr``, ``ssim``, ``lpips_alex``, ``lpips_vgg``, with ``psnr_error``, the standard error;
    ``ratio``: numbers of a picture for each of its latents; and the first three of the same pictures
    made smaller until they have as many numbers as the latents, and larger again (``resized_...``).
    Of a mixture each figure is there for its parts too, as ``psnr_emoji``.
    """
    found, left_out = _figures(experiment, params, spread(getattr(experiment.source, split), num))
    for name, part in parts_of(experiment.source).items():
        own, lacking = _figures(experiment, params, spread(getattr(part, split), num))
        found |= {f"{figure}_{name}": value for figure, value in own.items()}
        left_out |= {f"{figure}_{name}": why for figure, why in lacking.items()}
    return found, left_out


def parts_of(source: Source) -> dict[str, Source]:
    """The parts of a mixture by name, numbered where a name occurs twice; none of another source."""
    names = [part.fingerprint.partition("-")[0] for part in source.parts]
    numbers = [f"{n}_{i}" if names.count(n) > 1 else n for i, n in enumerate(names)]
    return dict(zip(numbers, source.parts, strict=True)) if len(names) > 1 else {}


def _figures(
    experiment: Experiment, params: Params, x: np.ndarray
) -> tuple[dict[str, float], dict[str, str]]:
    """Those of these pictures."""
    latents = jax.eval_shape(functools.partial(moments, experiment), params, x[:1])[0]
    ratio = x[0].size / latents.size
    y, z = Reconstructor(experiment)(params, x), resized(x, math.sqrt(ratio))
    found: dict[str, float] = {"pictures": float(len(x)), "ratio": ratio}
    found["psnr"] = float(fidelity.psnr(x, y).mean())
    if len(x) > 1:
        found["psnr_error"] = float(fidelity.psnr(x, y).std(ddof=1) / math.sqrt(len(x)))
    found["resized_psnr"] = float(fidelity.psnr(x, z).mean())
    left_out: dict[str, str] = {}
    for name, measure in measures(x.shape).items():
        try:
            for prefix, other in (("", y), ("resized_", z)):
                found[prefix + name] = float(measure(x, other).mean())
        except UserError as error:
            left_out[name] = str(error)
    return found, left_out


def measures(shape: tuple[int, ...]) -> dict[str, Callable]:
    """The distances that not all data, or not all installations, permit."""

    def by(net: lpips.Net) -> Callable:
        def measure(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            weights = lpips.weights(net)

            @jax.jit
            def run(pair):
                x, y = (part / 127.5 - 1 for part in jnp.split(pair.astype(jnp.float32), 2, axis=1))
                return lpips.distance(weights, net, x, y)

            both = np.concatenate([x, y], axis=1)
            return np.concatenate([part[:n] for part, n in _mapped(run, both)])

        return measure

    return {"ssim": fidelity.ssim, "lpips_alex": by("alex"), "lpips_vgg": by("vgg")}


def resized(x: np.ndarray, factor: float) -> np.ndarray:
    """Pictures with sides ``factor`` times smaller (averaged), then as large as before (bicubic)."""
    height, width = x.shape[2:4]
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    out = np.empty_like(x)
    for place in np.ndindex(*x.shape[:2], x.shape[-1]):
        where = (*place[:2], slice(None), slice(None), place[2])
        picture = Image.fromarray(x[where]).resize(small, Image.Resampling.BOX)
        out[where] = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
    return out


def moments(experiment: Experiment, params: Params, x: Any) -> tuple[Any, Any]:
    """The mean and the variance of the latents of pictures."""
    z = experiment.codec.encode({}, x)
    mean, logvar = experiment.model.apply({"params": params}, z, method="encode")
    return mean, jnp.exp(logvar)


def measure_latents(experiment: Experiment, taken: Restored, workdir: storage.Place) -> None:
    """Write ``latents.json``: the mean and standard deviation of each channel of the latents.

    Of draws from the encoder's Gaussians, over training pictures, with the parameters ``taken``. A codec
    shifts and scales by them, so that what a diffusion model sees has about unit variance.
    """
    mesh = mesh_of(taken.params)

    def sums(params, x):
        mean, variance = (a.reshape(-1, a.shape[-1]) for a in moments(experiment, params, x))
        return jnp.stack([mean, jnp.square(mean) + variance]).mean(1)[None]

    run, one = _jit(sums, mesh), experiment.bucket(experiment.largest)
    x = spread(one.source.train, max(1, MEASURED // one.source.shape[0]))
    x = x[: len(x) // at_once(x) * at_once(x)]  # equal parts
    parts = _mapped(lambda x: run(taken.params, x), x)
    mean, square = np.mean([part[0].astype(np.float64) for part, _ in parts], axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    found: Mapping[str, Any] = {"mean": mean.tolist(), "std": std.tolist(), "pictures": len(x)}
    if multihost.is_main():
        text = json.dumps({**found, **stamped(taken)}, indent=2)
        storage.write(workdir / LATENTS, text + "\n")
