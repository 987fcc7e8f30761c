"""Samples from a trained model, as training, evaluation and the command line all draw them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import dit
from dit import cli, experiment, media, models, rng
from dit.config import resolve
from dit.diffusion.process import denoiser
from dit.experiment import Experiment
from dit.parallel.mesh import (
    batch_sharding,
    batch_shards,
    make_mesh,
    mesh_of,
    parse_mesh,
    replicated,
)
from dit.parallel.rules import in_force, shardings
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

    Where the parameters lie on a mesh, each of its devices makes a share of the samples. Raises
    UserError for a bad recipe.
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
            models.check_labels(recipe.labels, made.num_classes or 0)
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
        mesh = mesh_of(params)
        parts = self._parts(start, mask, batch_shards(mesh) if mesh else 1)
        if self._autoguided != (weak is not None):
            raise UserError(
                "autoguidance steers away from a weaker model: give --guidance=autoguidance:scale=... "
                f"and --weak=NAME together; got guidance {self.recipe.guidance!r}"
            )
        if self._compiled is None:
            self._compiled = self.jitted(mesh).lower(params, weak, placed(parts[0], mesh)).compile()
        before = time.perf_counter()
        results = [self._compiled(params, weak, placed(part, mesh)) for part in parts]
        results = jax.device_get(results)
        seconds = time.perf_counter() - before
        decoded = np.concatenate([x for x, _ in results])[: self.n]
        pixels = self.made.codec.pixels
        samples = media.to_uint8(decoded, self.made.codec) if pixels else decoded
        labels = np.asarray(self.recipe.labels or [0] * self.n, np.int32)
        return Drawn(samples, labels, self._count(max(int(c) for _, c in results)), seconds)

    def _parts(
        self, start: np.ndarray | None, mask: np.ndarray | None, shards: int
    ) -> list[dict[str, Any]]:
        """Equal batches, a multiple of ``shards``: the sample ids and what belongs to each.

        The last one repeats a sample.
        """
        n, shape = self.n, self.made.shape
        for name, given in (("start", start), ("mask", mask)):
            if given is not None and given.shape != (n, *shape):
                raise UserError(f"got a {name} of shape {given.shape}; expected {(n, *shape)}")
        if mask is not None and start is None:
            raise UserError("got a mask and nothing to keep under it; give --init too")
        labels = np.asarray(self.recipe.labels, np.int32) if self.recipe.labels else None
        data = {"labels": labels, "start": start, "mask": mask}
        size = -(-min(self.recipe.batch, n) // shards) * shards
        ids = np.minimum(np.arange(-(-n // size) * size), n - 1)
        return [
            {"id": i, **{k: v[i] for k, v in data.items() if v is not None}}
            for i in np.split(ids, len(ids) // size)
        ]

    def jitted(self, mesh: Mesh | None) -> Any:
        """``run`` under jit, over the mesh; all processes get all of the result."""
        if mesh is None:
            return jax.jit(self.run)

        def run(params, weak, batch):
            with in_force(mesh):
                return self.run(params, weak, batch)

        return jax.jit(run, out_shardings=replicated(mesh))

    def run(self, params: Params, weak: Params | None, batch: dict[str, Any]):
        """Decoded samples, and how often the denoiser was called for each; to be jitted.

        ``batch``: ``id`` of the samples and, where they apply, ``labels``, ``start`` and ``mask``.
        """
        made, recipe, grid, path = self.made, self.recipe, self._grid, self.made.process.path
        params, weak = (None if p is None else models.unstack(p) for p in (params, weak))
        keys = rng.per_sample(rng.stream(rng.root(recipe.seed), "sample"), batch["id"])
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


def placed(batch: dict[str, np.ndarray], mesh: Mesh | None) -> dict[str, Any]:
    """The arrays on the devices that work on them; every process has all of each."""
    if mesh is None:
        return batch
    where = batch_sharding(mesh)
    return {
        k: jax.make_array_from_callback(v.shape, where, v.__getitem__) for k, v in batch.items()
    }


def load(
    workdir: str, which: str | None = None, step: int | None = None, mesh: str = "dp"
) -> tuple[Experiment, Restored]:
    """The experiment that was trained in ``workdir`` and a checkpoint's parameters.

    ``mesh``: where they are put, as on the command line; by default a copy on every device.
    """
    made = experiment.build(read_meta(workdir, step)["config"])
    return made, load_params(made, workdir, which, step, mesh)


def load_params(
    made: Experiment, workdir: str, which: str | None, step: int | None, mesh: str = "dp"
) -> Restored:
    """The parameters, or the average ``which`` of them, of a checkpoint of ``made``, on a mesh."""
    devices = make_mesh(parse_mesh(mesh))
    abstract = jax.eval_shape(made.init, rng.root(0))
    where = shardings(abstract, made.axes, devices)
    target = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, where
    )
    return restore_params(workdir, target, which=which, step=step)


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
