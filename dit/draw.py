"""Samples from a trained model, as training, evaluation and the command line all draw them."""

from __future__ import annotations

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dit import edits, experts, media, models, prompts, rng, rollouts
from dit.experiment import Experiment, build
from dit.guided import Guided
from dit.parallel import compiler, multihost
from dit.parallel.frozen import place
from dit.parallel.mesh import (
    batch_sharding,
    batch_shards,
    make_mesh,
    mesh_of,
    parse_mesh,
    replicated,
)
from dit.parallel.rules import in_force, shardings
from dit.prompts import NEGATIVE, TOLD
from dit.recipe import Recipe, rules
from dit.sampling.denoisers import GUIDING
from dit.sampling.edit import coarse, first_step, image_to_image, inpaint, reveal, whole_patches
from dit.sampling.nfe import nfe
from dit.sampling.sample import Solution, initial_noise, solve
from dit.training.checkpoint import Restored, read_meta, restore_params
from dit.training.lora import join
from dit.training.state import EMPTY
from dit.types import MASKS, Key, Params, UserError

AHEAD = 2  # batches under way at once


@dataclasses.dataclass(frozen=True)
class Drawn:
    """``samples``: what the codec decodes, ``n f h w c``, uint8 for pixels. ``nfe`` for each sample.

    ``labels`` is None for a model without classes. Of several processes, process 0 has the samples and
    the others have none.
    """

    samples: np.ndarray
    labels: np.ndarray | None
    nfe: int
    seconds: float


class Sampler:
    """Draws samples by a recipe, from any parameters of a model; compiled at the first call.

    Where the parameters lie on a mesh, each of its devices makes a share of the samples. Raises
    UserError for a bad recipe, or one that the model cannot follow.
    """

    def __init__(self, experiment: Experiment, recipe: Recipe):
        self.n = recipe.count
        if self.n < 1:
            raise UserError("nothing to sample; expected --labels, or a positive --num")
        if recipe.labels:
            models.check_labels(recipe.labels, experiment.num_classes or 0)
        self.experiment, self.recipe, self._rules = experiment, recipe, rules(recipe)
        self._compiled: dict[Any, Any] = {}
        guided = any(each.guided for each in self._rules.each)
        self.beside = {**experiment.sampled_with, **experts.weights(experiment, recipe)}
        prompts.check(experiment, recipe, guided)
        self._grid = self._rules.grid(experiment.process.path, recipe.steps)
        objective = experiment.config.objective
        edits.check_way(experiment, recipe)
        about = experiment, recipe, self._rules, self._grid, self.kept
        self.rollout = None if recipe.rollout is None else rollouts.plan(*about)
        rollouts.check_together(experiment, self.rollout)
        if not guided:
            return
        if experiment.num_classes is None and not {*GUIDING} & {*experiment.conditions}:
            raise UserError(
                f"got guidance {recipe.guidance!r} for a model without classes, which has nothing to be "
                "guided towards: give --guidance=1, or autoguidance by a weaker model"
            )
        if objective.get("condition_dropout") == 0:
            raise UserError(
                f"got guidance {recipe.guidance!r} for a model that was never trained without labels "
                "(objective.condition_dropout is 0), so that its estimate without them means nothing: "
                "give --guidance=1, or train with 0.1"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample, as it is drawn, and of what an edit begins with."""
        return self.experiment.codec.decoded_shape(self.experiment.shape)

    @functools.cached_property
    def words(self) -> dict[str, np.ndarray]:
        """The tokens of each sample's prompt, and of its negative one; empty for a model without."""
        return prompts.words(self.experiment.text, self.recipe)

    @property
    def autoguided(self) -> bool:
        """Whether a weaker model is needed, to steer away from."""
        return self._rules.autoguided

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """The label of each sample, or None for a model without classes."""
        return np.asarray(self.recipe.labels, np.int32) if self.recipe.labels else None

    def __call__(
        self,
        params: Params,
        *,
        weak: Params | None = None,
        **inputs: np.ndarray | None,
    ) -> Drawn:
        """Samples of ``params``, all at once in the host's memory; the rest is as for ``draw``."""
        parts: list[np.ndarray] = []
        calls, seconds = self.draw(params, parts.append, weak=weak, **inputs)
        empty = np.zeros((0, *self.shape), np.uint8)
        return Drawn(np.concatenate(parts) if parts else empty, self.labels, calls, seconds)

    def draw(
        self,
        params: Params,
        put: Callable[[Any], None],
        *,
        weak: Params | None = None,
        gathered: bool = True,
        **inputs: np.ndarray | None,
    ) -> tuple[int, float]:
        """Draw samples and hand them on, a batch at a time and in order: ``(nfe, seconds)``.

        ``put(samples)`` is called on process 0; at most two batches are under way. Not ``gathered``, it
        is called on every process with the array on the devices, whose last rows repeat. ``weak``:
        parameters of the model that autoguidance steers away from. ``inputs``, with a row for each of
        the n samples: ``start``, data ``n f h w c`` to edit, noised to ``recipe.strength``; what is
        true in a ``mask`` like it is kept; and the conditions that the model takes besides labels, by
        the names of ``Cond``'s fields. ``seconds`` leave out compilation and ``put``. Raises UserError
        for inputs that do not fit together, and for samples that are not finite.
        """
        mesh = mesh_of(params)
        frozen = place(self.beside, mesh)
        given = {"label": self.labels, **self.words, **inputs}
        given = {k: v for k, v in given.items() if v is not None}
        self.check(weak is not None, given)
        given = self._with_task(given)
        parts = list(self._parts(batch_shards(mesh) if mesh else 1))
        shapes = ((k, v.shape[1:], str(v.dtype)) for k, v in given.items())
        key = (mesh, weak is None, *sorted(shapes))
        if key not in self._compiled:
            first = placed(self._batch(parts[0], given), mesh)
            self._compiled[key] = self.jitted(mesh).lower(params, weak, first, frozen).compile()
        run, most = self._compiled[key], _under_way(mesh)
        under_way: collections.deque = collections.deque()
        calls, left, seconds, since = 0, self.n, 0.0, time.perf_counter()
        for ids in [*parts, *[None] * most]:
            if ids is not None:
                under_way.append(run(params, weak, placed(self._batch(ids, given), mesh), frozen))
            if not under_way or (ids is not None and len(under_way) < most):
                continue
            samples, finite, count = under_way.popleft()
            calls = max(calls, int(count))
            if gathered:
                samples = _on_main(samples, mesh)[:left]
            left -= len(samples)
            if not finite:
                raise UserError(
                    "the samples hold values that are not finite: take an earlier checkpoint (--step), "
                    "another average (--ema), or less guidance"
                )
            seconds += time.perf_counter() - since
            if not gathered or multihost.is_main():
                put(samples)
            since = time.perf_counter()
        return self._count(calls, "start" in given), seconds

    def check(self, weak: bool, given: Mapping[str, np.ndarray]) -> None:
        """Raise UserError for inputs (as of ``draw``) that do not fit together, or with the recipe."""
        if self._rules.autoguided != weak:
            raise UserError(
                "autoguidance steers away from a weaker model: give --guidance=autoguidance:scale=... "
                f"and --weak=NAME together; got guidance {self.recipe.guidance!r}"
            )
        edits.check(self.experiment, self.recipe, self._with_task(given))
        if self.rollout is not None:
            rollouts.check(self.recipe, given)
        wanted = set(self.experiment.arrays)
        conditions = given.keys() - {"label", "start", "mask", *TOLD, *NEGATIVE}
        if conditions - {*MASKS} != wanted:
            raise UserError(
                f"got the conditions {sorted(conditions)}; the model takes {sorted(wanted)} besides "
                "labels: give them in an .npz file, --cond"
            )
        for name in conditions:
            if len(given[name]) != self.n:
                raise UserError(f"got {len(given[name])} rows of {name} for {self.n} samples")

    def _with_task(self, given: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The inputs with the mask of the recipe's task, and without what it does not give."""
        return given if self.kept is None else edits.with_task(given, self.kept, self._anew)

    @functools.cached_property
    def kept(self) -> np.ndarray | None:
        """What the recipe's task keeps of each sample; None without a task."""
        return None if self.recipe.task is None else edits.mask_of(self.experiment, self.recipe)

    @property
    def _anew(self) -> bool:
        """Whether what a task does not give is drawn from noise, and from nothing else."""
        return self.recipe.task is not None and self.recipe.strength == 1

    def _parts(self, shards: int) -> Iterator[np.ndarray]:
        """The ids of equal batches, a multiple of ``shards``; the last one repeats a sample."""
        size = -(-min(self.recipe.batch, self.n) // shards) * shards
        for first in range(0, self.n, size):
            yield np.minimum(np.arange(first, first + size), self.n - 1)

    def _batch(self, ids: np.ndarray, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The sample ids and what belongs to each."""
        return {"id": ids, **{k: v[ids] for k, v in given.items()}}

    def jitted(self, mesh: Mesh | None) -> Any:
        """``run`` under jit, over the mesh: each device keeps the samples that it made."""
        if mesh is None:
            return jax.jit(self.run, compiler_options=compiler.options(jax.default_backend()))

        def run(params, weak, batch, frozen=EMPTY):
            with in_force(mesh):
                return self.run(params, weak, batch, frozen)

        whole = replicated(mesh)
        return jax.jit(
            run,
            out_shardings=(batch_sharding(mesh), whole, whole),
            compiler_options=compiler.options(mesh.devices.flat[0].platform),
        )

    def run(
        self,
        params: Params,
        weak: Params | None,
        batch: dict[str, Any],
        frozen: Mapping[str, Params] = EMPTY,
    ):
        """Decoded samples, whether all are finite, and how often the denoiser was called for each.

        To be jitted. Pixels are uint8. ``batch``: ``id`` of the samples and, where they apply,
        ``start``, ``mask`` and conditions. ``frozen``: weights, as of ``beside``.
        """
        codec = frozen.get("codec", EMPTY)
        if "base" in frozen:
            params, weak = (None if p is None else join(frozen["base"], p) for p in (params, weak))
        experiment, recipe = self.experiment, self.recipe
        params, weak, low = (
            None if p is None else models.unstack(experiment.model, p)
            for p in (params, weak, frozen.get("low"))
        )
        keys = rng.per_sample(rng.stream(rng.root(recipe.seed), "sample"), batch["id"])
        text = frozen.get("text", EMPTY)
        batch = edits.with_channels(experiment, recipe, codec, batch)
        network = Guided.of(experiment, self._rules, params, weak, batch, text, low)
        known = None
        if "start" in batch:
            known = experiment.codec.encode(codec, batch["start"])
        if self.rollout is None:
            solution = self._together(keys, network, batch, known)
        else:
            solution = self.rollout.solve(keys, network, known)
        decoded = experiment.codec.decode(codec, solution.x_0)
        samples = media.to_uint8(decoded, experiment.codec) if experiment.codec.pixels else decoded
        if "mask" in batch:  # as it went in, whatever the codec makes of it
            samples = jnp.where(batch["mask"], batch["start"].astype(samples.dtype), samples)
        return samples, jnp.isfinite(solution.x_0).all(), jnp.asarray(solution.evaluations)

    def _together(
        self, keys: Key, network: Guided, batch: Mapping[str, Any], known: jax.Array | None
    ) -> Solution:
        """Whole samples at once; ``known``: what those begin with that begin with data."""
        experiment, recipe, grid, start = self.experiment, self.recipe, self._grid, 0
        path = experiment.process.path
        if known is not None and not self._anew:
            x, start = image_to_image(keys, path, grid, known, recipe.strength)
        else:
            x = initial_noise(keys, experiment.shape, path)
        mask = None
        if "mask" in batch and recipe.known != "channels":
            frames = experiment.codec.frames_of(experiment.shape)
            mask = coarse(batch["mask"], experiment.shape, frames)
        if recipe.known == "clean" and mask is not None:
            whole = experiment.level in edits.FRAMED
            clean = mask.all((2, 3, 4)) if whole else whole_patches(mask, experiment.model.cell())
            grid, x = reveal(grid, x, known, clean)
        denoise = network.denoiser(grid)
        if mask is not None:
            denoise = inpaint(denoise, known, mask)
        return solve(keys, denoise, path, self._rules.solver, grid, x, start=start)

    def _count(self, calls: int, edited: bool) -> int:
        """Network evaluations of a sample, from those of its denoiser."""
        if self.rollout is not None:
            return self.rollout.evaluations(calls)
        each = self._rules.counted.evaluations
        return calls * each if isinstance(each, int) else self.evaluations(edited)

    def evaluations(self, edited: bool = False) -> int:
        """Network evaluations of a sample, counted from the recipe. ``edited``: with a ``start``."""
        recipe, path = self.recipe, self.experiment.process.path
        start = first_step(recipe.steps, recipe.strength) if edited else 0
        solver, counted = self._rules.solver, self._rules.counted
        return nfe(solver, recipe.steps, counted, path=path, grid=self._grid, start=start)


def _under_way(mesh: Mesh | None) -> int:
    """Batches that may be under way: the collectives of simulated devices deadlock with two."""
    simulated = mesh is not None and mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
    return 1 if simulated else AHEAD


def _on_main(samples: jax.Array, mesh: Mesh | None) -> np.ndarray:
    """A batch in the memory of process 0; the others get an array of the same shape, of zeros."""
    if jax.process_count() > 1:
        samples = _everywhere(mesh)(samples)
    if not multihost.is_main():
        return np.broadcast_to(np.zeros((), samples.dtype), samples.shape)
    return np.asarray(samples)


@functools.cache
def _everywhere(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))


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
    experiment = load_experiment(workdir, step)
    return experiment, load_params(experiment, workdir, which, step, mesh)


def load_experiment(workdir: str, step: int | None = None) -> Experiment:
    """The experiment that a checkpoint was made by; the data need not be there."""
    meta = read_meta(workdir, step)
    return build(meta["config"], meta.get("example"), meta.get("frozen"))


def load_params(
    experiment: Experiment, workdir: str, which: str | None, step: int | None, mesh: str = "dp"
) -> Restored:
    """The parameters, or the average ``which`` of them, of a checkpoint of ``experiment``, on a mesh."""
    devices = make_mesh(parse_mesh(mesh))
    abstract = jax.eval_shape(experiment.init, rng.root(0))
    where = shardings(abstract, experiment.axes, devices)
    target = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, where
    )
    return restore_params(workdir, target, which=which, step=step)
