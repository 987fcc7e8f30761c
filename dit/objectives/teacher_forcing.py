"""Teacher forcing: every frame is denoised after a clean past, all frames of a clip in one pass.

A row of tokens is ``[clean | noisy]``, twice the clip. Frames come in blocks of ``block``, each with a
noise level of its own. A clean frame, at t = 0, sees the clean frames up to itself; a noisy one the
clean frames before its block and, of its own block, the noisy ones up to itself:

    L = mean_f E w(t_f) |F(x_t[f] | x_0[< start of f's block], x_t[start .. f]) - target_f|^2

which is what each block's loss would be in a pass of its own, after its clean past, through the same
frame-causal network; and what ``autoregressive`` rollouts with blocks of at most this size ask of it
(Gao et al. 2024, Ca2-VDM; both halves in one row: Hu et al. 2024, ACDiT). Diffusion forcing, in which
the past is noisy too, is ``denoise`` with ``level=frame``.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from dit import rng
from dit.diffusion.process import Process, corrupt, network_input
from dit.diffusion.times import Quantile, draw
from dit.diffusion.weights import Weight
from dit.objectives import LossFn
from dit.objectives.errors import errors
from dit.types import ApplyFn, Cond, Count, Fraction, Key, Params, Tokens, UserError, Video

Patch = tuple[int, int, int]


def build(
    *,
    times: Quantile,
    weight: Weight,
    model: Any,
    block: Count = 1,
    condition_dropout: Fraction = 0.1,
    patch: tuple[Count, Count, Count] = (1, 1, 1),
    strata: Count | None = None,
) -> LossFn:
    """The loss for a time distribution and a weight, of a frame-causal network.

    ``block``: how many frames of tokens are denoised together, at one level. ``condition_dropout``,
    ``strata`` and the metrics are those of ``denoise``; ``t`` is the mean over blocks.

    Raises UserError for a network that cannot tell clean frames from noisy ones.
    """
    model.check_teacher_forced()

    def loss(
        key: Key, params: Params, apply_fn: ApplyFn, process: Process, batch: dict[str, Array]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, "b ..."]]]:
        if odd := {"grid", "known"} & batch.keys():
            raise UserError(
                f"got objective.name='teacher_forcing' and batches with {sorted(odd)}; expected whole "
                "clips, which are neither packed nor known in part: take objective.name=denoise"
            )
        x_0, ids = batch["x"], batch["id"]
        streams = {n: rng.stream(key, n) for n in ("noise", "time", "dropout")}
        eps = rng.normal(rng.per_sample(streams["noise"], ids), x_0.shape[1:], x_0.dtype)
        frames = x_0.shape[1] // patch[0]
        levels = (-(-frames // block),)
        drawn = draw(streams["time"], ids, process.path, times, levels=levels, strata=strata)
        each = [jnp.repeat(a, block, axis=1)[:, :frames] for a in drawn]  # of frames of tokens
        t, density = (jnp.repeat(a, patch[0], axis=1) for a in each)
        cond = Cond.of(
            batch, rng.uniform(rng.per_sample(streams["dropout"], ids)) < condition_dropout
        )
        x_t = corrupt(process, x_0, eps, t)
        clean, still = network_input(process, x_0, jnp.zeros_like(t))
        noisy, _ = network_input(process, x_t, t)
        told = jnp.concatenate([still[:, :1], process.path.c_noise(each[0])], axis=1)
        tokens, grid = rows(clean, noisy, patch, block)
        if cond.concat is not None:
            known = patchify(cond.concat, patch)
            tokens = tokens.replace(concat=jnp.concatenate([known, known], axis=1))
            cond = cond.replace(concat=None)
        out = apply_fn(params, tokens, told, cond).astype(x_0.dtype)
        out = unpatchify(out[:, out.shape[1] // 2 :], patch, grid)
        found = errors(process, weight, x_0, eps, x_t, t, density, out)
        metrics = {name: error.mean((1, 2, 3, 4)) for name, error in found.items()}
        metrics["t"] = t.mean(1)
        if "vb" in metrics:
            metrics["loss"] += metrics["vb"]
        return metrics["loss"].mean(), metrics

    return loss


def rows(clean: Video, noisy: Video, patch: Patch, block: int) -> tuple[Tokens, Patch]:
    """``[clean | noisy]`` as tokens, and how many patches a clip has along time, y and x.

    Time 0 of ``t`` is that of all clean tokens, time 1 + f that of noisy frame f.
    """
    b, *shape = clean.shape[:4]
    f, h, w = (size // p for size, p in zip(shape, patch, strict=True))
    frame = jnp.repeat(jnp.arange(f), h * w)
    spots = [jnp.arange(size, dtype=jnp.float32) for size in (f, h, w)]
    place = jnp.stack(jnp.meshgrid(*spots, indexing="ij"), axis=-1).reshape(-1, 3)

    def twice(of_clean: Int[Array, " n"], of_noisy: Int[Array, " n"]) -> Int[Array, "b m"]:
        return jnp.broadcast_to(jnp.concatenate([of_clean, of_noisy]), (b, 2 * f * h * w))

    # In the order in which a frame may be seen: the noisy frames of a block, then its clean ones.
    start = frame // block * block
    tokens = Tokens(
        x=jnp.concatenate([patchify(clean, patch), patchify(noisy, patch)], axis=1),
        position=jnp.concatenate([place, place])[None],
        frame=twice(start + frame + block, start + frame),
        group=twice(jnp.full_like(frame, -1), frame // block),
        row=twice(jnp.zeros_like(frame), 1 + frame),
    )
    return tokens, (f, h, w)


def patchify(x: Video, patch: Patch) -> Float[Array, "b n p"]:
    """``b f h w c`` to one row a patch, as the networks cut it."""
    p, q, r = patch
    return rearrange(x, "b (f p) (h q) (w r) c -> b (f h w) (p q r c)", p=p, q=q, r=r)


def unpatchify(tokens: Float[Array, "b n p"], patch: Patch, grid: Patch) -> Video:
    """The inverse of ``patchify``, whatever the channels."""
    (p, q, r), (f, h, w) = patch, grid
    spec = "b (f h w) (p q r c) -> b (f p) (h q) (w r) c"
    return rearrange(tokens, spec, f=f, h=h, w=w, p=p, q=q, r=r)
