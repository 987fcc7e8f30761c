"""Samples from a trained model, as training, evaluation and the command line all draw them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dit
from dit import cli, experiment, media, models, rng
from dit.config import resolve
from dit.diffusion.process import denoiser
from dit.experiment import Experiment
from dit.parallel.multihost import everywhere
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


class Sampler:
    """Draws samples by a recipe, from any parameters of a model; compiled at the first call.

    Raises UserError for a bad recipe.
    """

    def __init__(self, made: Experiment, recipe: Recipe):
        self.n = len(recipe.labels) or recipe.num
        if self.n < 1:
            raise UserError("nothing to sample; expected --labels, or a positive --num")
        for name, least in (("steps", 1), ("batch", 1), ("seed", 0)):
            if getattr(recipe, name) < least:
                raise UserError(
                    f"got {name}={getattr(recipe, name)} for the samples; expected at least {least}"
                )
        if recipe.labels:
            models.check_labels(jnp.asarray(recipe.labels), made.num_classes or 0)
        self.made, self.recipe = made, recipe
        self._solver = resolve("sampling.solvers", **cli.parse_spec(recipe.solver))
        grid = resolve("sampling.grids", **cli.parse_spec(recipe.grid))
        self._grid = grid(made.process.path, recipe.steps)
        spec = cli.parse_spec(recipe.guidance, number="cfg:scale")
        self._guidance = resolve("sampling.guidance", **spec)
        self._autoguided = spec["name"] == "autoguidance"
        self._compiled = None

    def __call__(
        self,
        params: Params,
        *,
        weak: Params | None = None,
        start: np.ndarray | None = None,
        mask: np.ndarray | None = None,
    ) -> Drawn:
        """Samples of ``params``.

        ``weak``: parameters of the model that autoguidance steers away from. ``start``: data, ``n f
        h w c``, to edit, noised to ``recipe.strength``; what is true in a ``mask`` like it is kept.
        ``seconds`` leaves compilation out. Raises UserError for inputs that do not fit together.
        """
        parts = self._parts(start, mask)
        if self._autoguided != (weak is not None):
            raise UserError(
                "autoguidance steers away from a weaker model: give --guidance=autoguidance:scale=... "
                f"and --weak=NAME together; got guidance {self.recipe.guidance!r}"
            )
        if self._compiled is None:
            run = jax.jit(self.run, out_shardings=everywhere(params))
            self._compiled = run.lower(params, weak, parts[0]).compile()
        before = time.perf_counter()
        results = jax.device_get([self._compiled(params, weak, part) for part in parts])
        seconds = time.perf_counter() - before
        decoded = np.concatenate([x for x, _ in results])[: self.n]
        pixels = self.made.codec.pixels
        samples = media.to_uint8(decoded, self.made.codec) if pixels else decoded
        labels = np.asarray(self.recipe.labels or [0] * self.n, np.int32)
        return Drawn(samples, labels, self._count(max(int(c) for _, c in results)), seconds)

    def _parts(self, start: np.ndarray | None, mask: np.ndarray | None) -> list[dict[str, Any]]:
        """Equal batches: the sample ids and what belongs to each. The last one repeats a sample."""
        n, shape = self.n, self.made.shape
        for name, given in (("start", start), ("mask", mask)):
            if given is not None and given.shape != (n, *shape):
                raise UserError(f"got a {name} of shape {given.shape}; expected {(n, *shape)}")
        if mask is not None and start is None:
            raise UserError("got a mask and nothing to keep under it; give --init too")
        labels = np.asarray(self.recipe.labels, np.int32) if self.recipe.labels else None
        data = {"labels": labels, "start": start, "mask": mask}
        size = min(self.recipe.batch, n)
        ids = np.minimum(np.arange(-(-n // size) * size), n - 1)
        return [
            {"id": i, **{k: v[i] for k, v in data.items() if v is not None}}
            for i in np.split(ids, len(ids) // size)
        ]

    def run(self, params: Params, weak: Params | None, batch: dict[str, Any]):
        """Decoded samples, and how often the denoiser was called for each; to be jitted.

        ``batch``: ``id`` of the samples and, where they apply, ``labels``, ``start`` and ``mask``.
        """
        made, recipe, grid, path = self.made, self.recipe, self._grid, self.made.process.path
        params, weak = (None if p is None else models.unstack(p) for p in (params, weak))
        keys = rng.per_sample(rng.stream(jax.random.key(recipe.seed), "sample"), batch["id"])
        cond = Cond(label=batch.get("labels"))
        denoise = denoiser(made.process, made.apply_fn, params, cond)
        if self._autoguided:
            weaker = denoiser(made.process, made.apply_fn, weak, cond)
            denoise = self._guidance(pair(denoise, weaker), path, grid)
        elif self._guidance.evaluations != 1:
            both = paired(made.process, made.apply_fn, params, cond)
            denoise = self._guidance(both, path, grid)
        if "start" in batch:
            known = made.codec.encode(batch["start"])
            x, times = image_to_image(keys, path, grid, known, recipe.strength)
            if "mask" in batch:
                denoise = inpaint(denoise, known, batch["mask"])
        else:
            x, times = initial_noise(keys, made.shape, path), grid
        solution = solve(keys, denoise, path, self._solver, times, x)
        return made.codec.decode(solution.x_0), jnp.asarray(solution.evaluations)

    def _count(self, calls: int) -> int:
        """Network evaluations of a sample, from those of its denoiser."""
        each = self._guidance.evaluations
        return calls * each if isinstance(each, int) else self.evaluations

    @property
    def evaluations(self) -> int:
        """Network evaluations of a sample, counted from the recipe."""
        path, steps = self.made.process.path, self.recipe.steps
        return nfe(self._solver, steps, self._guidance, path=path, grid=self._grid)


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
