"""The denoising loss: the weighted squared error of the network's output.

``L = E_{x_0, eps, t} w(t) |F(c_in x_t, c_noise) - (p x_0 + q eps)|^2`` over any path, prediction, time
distribution and weight. A network with ``2 c`` output channels also learns the variance of the reverse
step by the variational bound (Nichol & Dhariwal 2021, eq. 16), as the original DiT does.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dit import rng
from dit.diffusion.process import Process, corrupt, network_input
from dit.diffusion.tasks import Mix, Patch, grid_of, mix
from dit.diffusion.times import Quantile, draw
from dit.diffusion.weights import Weight
from dit.objectives import LossFn, packed
from dit.objectives.errors import errors
from dit.types import (
    ApplyFn,
    Cond,
    Count,
    Fraction,
    Key,
    Params,
    Times,
    UserError,
    Video,
    repeat_patches,
)


def build(
    *,
    times: Quantile,
    weight: Weight,
    condition_dropout: Fraction = 0.1,
    level: Literal["sample", "frame", "token"] = "sample",
    tasks: tuple[str, ...] = (),
    patch: tuple[Count, Count, Count] = (1, 1, 1),
    strata: Count | None = None,
) -> LossFn:
    """The loss for a time distribution and a weight.

    ``condition_dropout``: how often the condition is replaced by the null one (Ho & Salimans 2022).
    ``level``: what has a noise level of its own: a sample, every frame (diffusion forcing, Chen et al.
    2024) or every token.
    ``tasks``: a mix of what is given clean, with t = 0 and without a loss (``diffusion.tasks``), such as
    ``("text_to_video:weight=2", "image_to_video")``; none: nothing is. ``patch``: the frames, height and
    width of one token.
    ``strata``: set to the batch size to stratify the times over each batch.
    Metrics: ``loss`` (weighted), ``mse`` (unweighted), ``t`` (the mean over levels), and ``vb`` in
    bits a dimension with a learned variance; all of them means over what is not known.
    Packed batches (``objectives.packed``) give each example the same loss as plain ones do.
    """
    mixed = mix(tasks)

    def loss(
        key: Key, params: Params, apply_fn: ApplyFn, process: Process, batch: dict[str, Array]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, "b ..."]]]:
        if "grid" in batch:
            if level != "sample" or mixed is not None:
                raise UserError(
                    f"got objective.level={level!r} and tasks={tasks}; expected one noise level an "
                    "example, as all are packed: leave these out, or packing.tokens"
                )
            how = times, weight, condition_dropout, patch, strata
            return packed.loss(key, params, apply_fn, process, batch, *how)
        x_0, ids = batch["x"], batch["id"]
        streams = {n: rng.stream(key, n) for n in ("noise", "time", "dropout")}
        eps = rng.normal(rng.per_sample(streams["noise"], ids), x_0.shape[1:], x_0.dtype)
        levels = {"sample": (), "frame": x_0.shape[1:2], "token": grid_of(x_0.shape[1:], patch)}[
            level
        ]
        t, density = draw(streams["time"], ids, process.path, times, levels=levels, strata=strata)
        if level == "token":
            t, density = repeat_patches(t, patch), repeat_patches(density, patch)
        cond = Cond.of(
            batch, rng.uniform(rng.per_sample(streams["dropout"], ids)) < condition_dropout
        )
        x_t, told, learned = corrupt(process, x_0, eps, t), t, None
        clean = known_tokens(key, batch, mixed, patch)
        if clean is not None:
            learned = ~clean[..., None]
            x_t = jnp.where(learned, x_t, x_0)
            told = told_times(t, clean, mixed.whole)
        out = apply_fn(params, *network_input(process, x_t, told), cond).astype(x_0.dtype)
        found = errors(process, weight, x_0, eps, x_t, t, density, out)
        metrics = {name: _mean(each, learned) for name, each in found.items()}
        metrics["t"] = t if t.ndim == 1 else t.reshape(len(t), -1).mean(1)
        if "vb" in metrics:
            metrics["loss"] += metrics["vb"]
        return metrics["loss"].mean(), metrics

    return loss


def known_tokens(
    key: Key, batch: dict[str, Array], mixed: Mix | None, patch: Patch
) -> Bool[Array, "b f h w"] | None:
    """Where x is given clean, by a mix of tasks; None for nowhere.

    Raises UserError for a batch with a ``known`` of its own that no task asks for, and the reverse; and
    where no task fits samples of this shape.
    """
    of_data = mixed is not None and mixed.of_data
    if ("known" in batch) != of_data:
        specs = () if mixed is None else mixed.specs
        raise UserError(
            f"got objective.tasks={specs} and batches of {', '.join(batch)}; expected the task 'data' "
            "where the data have a key 'known', and only there"
        )
    if mixed is None:
        return None
    return mixed.known(key, batch["id"], batch["x"].shape[1:], patch, batch.get("known"))


def told_times(t: Times, clean: Bool[Array, "b f h w"], whole: bool) -> Times:
    """The times that the network is told: 0 where x is clean, ``t`` elsewhere.

    One a token or, where frames are ``whole`` and have one level, one a frame: of those a network that
    is modulated makes fewer vectors.
    """
    if whole and t.ndim < 3:
        return jnp.where(clean[:, :, 0, 0], 0, t.reshape(len(t), -1))
    return jnp.where(clean, 0, t.reshape(t.shape + (1,) * (4 - t.ndim)))


def _mean(x: Video, where: Bool[Array, "b f h w 1"] | None = None) -> Float[Array, " b"]:
    if where is None:
        return x.reshape(x.shape[0], -1).mean(1)
    numbers = where.reshape(x.shape[0], -1).sum(1) * x.shape[-1]
    return jnp.where(where, x, 0).reshape(x.shape[0], -1).sum(1) / jnp.maximum(numbers, 1)
