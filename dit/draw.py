"""Samples from a trained model, as training, evaluation and the command line all draw them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dit
from dit import cli, experiment, media, rng
from dit.config import resolve
from dit.diffusion.process import denoiser
from dit.experiment import Experiment
from dit.models import check_labels
from dit.sampling.denoisers import pair, paired
from dit.sampling.edit import image_to_image, inpaint
from dit.sampling.nfe import nfe
from dit.sampling.sample import initial_noise, solve
from dit.training.checkpoint import Restored, read_meta, restore_params
from dit.types import Cond, Params, UserError


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that decides a set of samples, but for the parameters. Specs are ``name:key=value,...``.

    ``labels`` is empty for a model without classes, which makes ``num`` samples. Sample i draws from
    its own key, a function of ``seed`` and i; ``batch`` are made at once.
    """

    labels: tuple[int, ...] = ()
    num: int = 0
    seed: int = 0
    solver: str = "heun"
    grid: str = "uniform"
    steps: int = 50
    guidance: str = "1"
    batch: int = 250
    strength: float = 1.0


@dataclasses.dataclass(frozen=True)
class Drawn:
    """``samples``: what the codec decodes, ``n f h w c``, uint8 for pixels. ``nfe`` for each sample."""

    samples: np.ndarray
    labels: np.ndarray
    nfe: int
    seconds: float


def draw(
    made: Experiment,
    params: Params,
    recipe: Recipe,
    *,
    weak: Params | None = None,
    start: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> Drawn:
    """Samples by ``recipe`` from ``params``.

    ``weak``: parameters of the model that autoguidance steers away from. ``start``: data ``n f h w c``
    to edit, noised to ``recipe.strength``; with a ``mask`` of that shape, what is true in it is kept.
    ``seconds`` leaves compilation out. Raises UserError for a bad recipe.
    """
    n = len(recipe.labels) or recipe.num
    if n < 1:
        raise UserError("nothing to sample; expected --labels, or a positive --num")
    if recipe.labels:
        check_labels(np.asarray(recipe.labels), made.num_classes or 0)
    for name, given in (("start", start), ("mask", mask)):
        if given is not None and given.shape != (n, *made.shape):
            raise UserError(f"got a {name} of shape {given.shape}; expected {(n, *made.shape)}")
    if mask is not None and start is None:
        raise UserError("got a mask and nothing to keep under it; give --init too")
    data = {"start": start, "mask": mask, "labels": np.asarray(recipe.labels, np.int32)}
    data = {k: v for k, v in data.items() if v is not None and len(v)}
    size = min(recipe.batch, n)
    padded = np.minimum(np.arange(-(-n // size) * size), n - 1)  # whole batches; the rest is cut
    parts = [
        {"id": jnp.asarray(ids), **{k: jnp.asarray(v[ids]) for k, v in data.items()}}
        for ids in np.split(padded, len(padded) // size)
    ]
    run, count = sampler(made, recipe, weak is not None)
    compiled = run.lower(params, weak, parts[0]).compile()
    before = time.perf_counter()
    results = jax.device_get([compiled(params, weak, part) for part in parts])
    seconds = time.perf_counter() - before
    decoded = np.concatenate([x for x, _ in results])[:n]
    samples = media.to_uint8(decoded, made.codec) if made.codec.pixels else decoded
    labels = data.get("labels", np.zeros(n, np.int32))
    return Drawn(samples, labels, count(max(int(calls) for _, calls in results)), seconds)


def sampler(
    made: Experiment, recipe: Recipe, has_weak: bool
) -> tuple[Callable, Callable[[int], int]]:
    """``run(params, weak, batch) -> (decoded samples, calls of the denoiser)``, jitted, and ``count``.

    ``batch`` holds ``id`` and, as the case may be, ``labels``, ``start`` and ``mask``; ``count(calls)``
    is the number of network evaluations for each sample.
    """
    path = made.process.path
    solver = resolve("sampling.solvers", **cli.parse_spec(recipe.solver))
    grid = resolve("sampling.grids", **cli.parse_spec(recipe.grid))(path, recipe.steps)
    spec = cli.parse_spec(recipe.guidance, number="cfg:scale")
    guidance = resolve("sampling.guidance", **spec)
    if (spec["name"] == "autoguidance") != has_weak:
        raise UserError(
            "autoguidance steers away from a weaker model: give --guidance=autoguidance:scale=... and "
            f"--weak=NAME together; got guidance {spec['name']!r}"
        )
    guided = guidance.evaluations != 1

    @jax.jit
    def run(params, weak, batch):
        keys = rng.per_sample(rng.stream(jax.random.key(recipe.seed), "sample"), batch["id"])
        cond = Cond(label=batch.get("labels"))
        denoise = denoiser(made.process, made.apply_fn, params, cond)
        if has_weak and guided:
            both = pair(denoise, denoiser(made.process, made.apply_fn, weak, cond))
            denoise = guidance(both, path, grid)
        elif guided:
            denoise = guidance(paired(made.process, made.apply_fn, params, cond), path, grid)
        if "start" in batch:
            known = made.codec.encode(batch["start"])
            x, times = image_to_image(keys, path, grid, known, recipe.strength)
            if "mask" in batch:
                denoise = inpaint(denoise, known, batch["mask"])
        else:
            x, times = initial_noise(keys, made.shape, path), grid
        solution = solve(keys, denoise, path, solver, times, x)
        return made.codec.decode(solution.x_0), jnp.asarray(solution.evaluations)

    def count(calls: int) -> int:
        if isinstance(guidance.evaluations, int):
            return calls * guidance.evaluations
        return nfe(solver, recipe.steps, guidance, path=path, grid=grid)

    return run, count


def load(
    workdir: str, which: str | None = None, step: int | None = None
) -> tuple[Experiment, Restored]:
    """The experiment that was trained in ``workdir`` and a checkpoint's parameters."""
    made = experiment.build(read_meta(workdir, step)["config"])
    abstract = jax.eval_shape(made.init, jax.random.key(0))
    return made, restore_params(workdir, abstract, which=which, step=step)


def recipe_from(settings: Mapping[str, Any], num_classes: int | None) -> Recipe:
    """The recipe of a config's ``samples`` section: its ``num`` samples, with the classes in turn."""
    kept = {f.name for f in dataclasses.fields(Recipe)}
    given = {k: v for k, v in settings.items() if k in kept}
    labels = tuple(i % num_classes for i in range(given["num"])) if num_classes else ()
    return Recipe(**{**given, "labels": labels, "guidance": str(given["guidance"])})


def stamped(recipe: Recipe, restored: Restored, nfe: int) -> dict[str, Any]:
    """The recipe as a PNG carries it: with the checkpoint it was made from, and by what."""
    return {
        **dataclasses.asdict(recipe),
        "nfe": nfe,
        "ema": restored.which,
        "checkpoint_step": restored.step,
        "checkpoint_fingerprint": restored.fingerprint,
        "version": dit.__version__,
        "jax": jax.__version__,
    }
