"""Going on from a cache is the masked forward pass over the whole clip, past its memory too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_cases import params_of, quick, tiny

from dit import models
from dit.models import cache as caches
from dit.models import multihead
from dit.models.patchify import patchify, positions
from dit.models.positions import rotary, rotate
from dit.types import Cond, Tokens, UserError

FRAMES, SIDES = 9, (4, 4)
OPTIONS = {"frame_causal": True, "positions": "rope", "attention": "xla", "patch": (1, 2, 2)}


def model_of(block="modern", **more):
    return tiny(block, **OPTIONS | more)


def clip(frames=FRAMES, batch=2, context=None):
    draw = np.random.default_rng(1)
    x = jnp.asarray(draw.normal(size=(batch, frames, *SIDES, 3)), jnp.float32)
    t = jnp.asarray(draw.random((batch, frames)), jnp.float32)
    words = None
    if context is not None:
        words = jnp.asarray(draw.normal(size=(batch, context, 7)), jnp.float32)
    return x, t, Cond(label=jnp.arange(batch), context=words)


@functools.cache
def go_on(model):
    """Compiled once for each shape, whichever test asks."""
    return quick(functools.partial(models.continued, model))


def in_blocks(model, params, x, t, cond, block, slots, sinks):
    """The outputs of all frames, block after block, each written to the cache as it was."""
    cache = model.empty_cache(len(x), x.shape[1:], slots, sinks)
    outs = []
    for first in range(0, x.shape[1], block):
        part = slice(first, first + block)
        out, cache = go_on(model)(params, x[:, part], t[:, part], cond, cache)
        outs.append(out)
    return jnp.concatenate(outs, 1), cache


CASES = [("modern", 1, {}), ("adaln_cross", 3, {"context_dim": 7}), ("adaln", 3, {"unroll": 2})]


@pytest.mark.parametrize(("block", "size", "more"), CASES)
def test_within_its_memory_a_cache_gives_the_masked_forward_pass(block, size, more):
    model = model_of(block, **more)
    x, t, cond = clip(6, context=2 if "context_dim" in more else None)
    params = params_of(model, x.shape[1:], 0.1)
    whole = quick(models.apply_fn(model))(params, x, t, cond)
    got, _ = in_blocks(model, params, x, t, cond, size, 6, 1)
    np.testing.assert_allclose(got, whole, atol=1e-5)


def full(q, k, v, window, sinks, block, axes):
    """Attention over the whole clip: frame f sees the sinks and the last ``window - sinks`` frames.

    It counts them as the window does, whose last block ends at its end: the sinks have the first places.
    """
    size, outs = q.shape[1] // FRAMES, []
    frame = np.repeat(np.arange(FRAMES), size)
    place = np.stack(np.indices((FRAMES, 2, 2)), -1).reshape(1, -1, 3).astype(np.float32)

    def at(array, where, times):
        spot = place[:, where]
        spot[0, :, 0] = times[where]
        return rotate(array[:, where], rotary(jnp.asarray(spot), axes))

    for f in range(FRAMES):
        end = (f // block + 1) * block
        gone = max(0, end - window)
        keys = (frame <= f) & ((frame < sinks) | (frame >= gone + sinks))
        times = np.where(frame < sinks, frame, frame - gone)
        query = at(q, frame == f, frame - gone)
        score = jnp.einsum("bqhd,bkhd->bhqk", query, at(k, keys, times)) * q.shape[-1] ** -0.5
        outs.append(jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(score, -1), v[:, keys]))
    return jnp.concatenate(outs, 1)


@pytest.mark.first
@pytest.mark.parametrize(("window", "sinks", "block"), [(4, 0, 1), (5, 2, 1), (6, 1, 3)])
def test_past_its_memory_too_counting_within_the_window(monkeypatch, window, sinks, block):
    """Two layers: what is kept of a frame depends on frames that are gone."""
    model = model_of(depth=2)
    x, t, cond = clip()
    params = params_of(model, x.shape[1:], 0.1)
    got, cache = in_blocks(model, params, x, t, cond, block, window - block, sinks)
    assert cache.k.shape[2] == window - block
    monkeypatch.setattr(multihead, "rotate", lambda x, table: x)
    monkeypatch.setattr(
        multihead,
        "attention",
        lambda q, k, v, visible, kernel: full(q, k, v, window, sinks, block, model.rope_axes),
    )
    whole = quick(models.apply_fn(model))(params, x, t, cond)
    np.testing.assert_allclose(got, whole, atol=1e-5)


def test_the_ring_keeps_the_sinks_and_the_last():
    """By counting: the key of a frame is its number."""

    def run(slots, sinks, sizes):
        cache = caches.empty(1, 1, slots, 1, 1, 1, jnp.float32, sinks)
        for size in sizes:
            new = jnp.arange(size, dtype=jnp.float32).reshape(1, 1, size, 1, 1) + cache.seen
            cache = cache.written(new, -new)
        frames = np.asarray(cache.frames())
        there = frames != caches.NEVER
        np.testing.assert_array_equal(cache.k.reshape(-1)[there], frames[there])
        np.testing.assert_array_equal(cache.v, -cache.k)
        old, now = cache.places(2)
        return sorted(frames[there]), sorted(np.asarray(old)[there]), list(np.asarray(now))

    for slots in (3, 5):
        for sinks in (0, 2):
            for sizes in ([1] * 4, [1] * 9, [3] * 4, [2, 1, 2], [7], [1], [4, 4, 4]):
                seen = sum(sizes)
                ring = slots - sinks
                kept = [f for f in range(seen) if f < sinks or f >= seen - ring]
                got, places, now = run(slots, sinks, sizes)
                assert got == kept, (slots, sinks, sizes)
                assert places == list(range(len(kept)))
                assert now == [len(kept), len(kept) + 1]


def test_nothing_of_a_later_frame_of_a_block_reaches_an_earlier_one():
    model = model_of()
    x, t, cond = clip(5)
    params = params_of(model, x.shape[1:], 0.1)
    _, cache = in_blocks(model, params, x[:, :3], t[:, :3], cond, 1, 4, 2)
    later = jnp.arange(2) == 1

    @quick
    def run(x, t):
        def value(x, t):
            out, kept = models.continued(model, params, x, t, cond, cache)
            slot = jnp.argmax(kept.frames() == 3)
            early = out[:, 0], kept.k[:, :, slot], kept.v[:, :, slot]
            return sum((a * jnp.cos(jnp.arange(a.size).reshape(a.shape))).sum() for a in early), (
                *early,
                out,
            )

        return jax.grad(value, argnums=(0, 1), has_aux=True)(x, t)

    (by_x, by_t), (*early, out) = run(x[:, 3:], t[:, 3:])
    assert not np.any(by_x[:, 1])
    assert not np.any(by_t[:, 1])
    assert np.any(by_x[:, 0])
    assert np.any(by_t[:, 0])
    moved = run(x[:, 3:] + later[None, :, None, None, None], t[:, 3:] + 0.3 * later[None])[1]
    for one, other in zip(moved, early, strict=False):
        np.testing.assert_array_equal(one, other)
    assert np.abs(moved[-1] - out)[:, 1].max() > 1e-3


def test_attention_is_the_same_after_a_shift_of_positions():
    model = model_of()
    x, t, cond = clip(4)
    params = params_of(model, x.shape[1:], 0.1)

    @quick
    def run(shift):
        place = positions(x.shape[1:4], model.patch) + shift[None, None]
        frame = jnp.broadcast_to(jnp.repeat(jnp.arange(4), 4), (2, 16))
        tokens = Tokens(x=patchify(x, model.patch), position=place, frame=frame, row=frame)
        return model.apply({"params": params}, tokens, t, cond, method="transform")

    still = run(jnp.zeros(3))
    np.testing.assert_allclose(run(jnp.asarray([5.0, 0, 0])), still, atol=1e-5)
    np.testing.assert_allclose(run(jnp.asarray([3.0, 2.0, 7.0])), still, atol=1e-5)


def test_layers_apart_are_the_same():
    model = model_of()
    x, t, cond = clip(1)
    params = params_of(model, x.shape[1:], 0.1)
    cache = model.empty_cache(2, x.shape[1:], 4, 2)
    one, other = (go_on(model)(p, x, t, cond, cache) for p in (params, model.unstack(params)))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_networks_that_cannot_go_on_say_why():
    shape = (4, *SIDES, 3)
    cases = {
        "frame_causal": model_of(frame_causal=False),
        "positions": model_of(positions="sincos+rope"),
        "block": model_of("in_context", positions="rope"),
    }
    for name, model in cases.items():
        with pytest.raises(UserError, match=f"cache=true and model.{name}="):
            model.empty_cache(2, shape, 4, 1)
    with pytest.raises(
        UserError, match=r"a rollout past memory: .* 3 frames, 3 of which are sinks"
    ):
        model_of().empty_cache(2, shape, 3, 3)
