"""Packed, bucketed and plain batches: one loss and one gradient, and no example that sees another."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit import config, models, rng
from dit.data.packing import packed_batches
from dit.data.pipeline import stacked
from dit.diffusion.paths import ddpm, linear
from dit.diffusion.predictions import eps, velocity
from dit.diffusion.process import Process
from dit.diffusion.times import logit_normal, uniform
from dit.diffusion.weights import min_snr, none
from dit.models.patchify import patchify
from dit.objectives import denoise, means, packed
from dit.text.bytes import build as text_bytes
from dit.text.network import TextConditioned
from dit.training.step import gradients, objective
from dit.types import UserError

SHAPES = ((1, 4, 4, 1), (1, 4, 6, 1), (1, 6, 4, 1), (2, 4, 4, 1), (4, 2, 6, 1))
COUNTS = (9, 6, 7, 5, 4)
KEY = rng.root(5)
PATCH = (1, 2, 2)


@dataclasses.dataclass(frozen=True, eq=False)
class Mixed:
    """Pictures and clips from a seed, with labels and texts."""

    bucket_sizes: tuple = COUNTS
    fingerprint: str = "mixed/train"
    streaming: bool = False
    transforms: tuple = ()

    def __len__(self):
        return sum(self.bucket_sizes)

    def __getitem__(self, i):
        draw = np.random.default_rng(i)
        shape = SHAPES[np.searchsorted(np.cumsum(self.bucket_sizes), i, side="right")]
        length = i % 5  # of some texts nothing is left
        return {
            "x": draw.integers(0, 256, shape, np.uint8),
            "label": i % 3,
            "tokens": draw.integers(1, 256, 4, np.int32),
            "tokens_mask": np.arange(4) < length,
        }


def stream(rows=3, tokens=20, **how):
    return packed_batches(Mixed(), SHAPES, patch=PATCH, tokens=tokens, rows=rows, seed=1, **how)


def quick(function):
    """``jax.jit`` for programs that run once: compiling is what takes the time."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=options)


def encode(params, x, key=None, ids=None):
    return x.astype(jnp.float32) / 127.5 - 1


@functools.cache
def case(text, block="adaln_zero", out_channels=1):
    """A model with labels, or with a text too, its objective and parameters that hide nothing."""
    options = {"block": block, "in_channels": 1, "out_channels": out_channels, "num_classes": 3}
    options |= {"depth": 1, "width": 24, "heads": 2, "positions": "sincos+rope", "patch": 2}
    words = text_bytes(length=4, width=8, depth=1, heads=1) if text else None
    given = {"context_dim": 8} if text else {}
    model = config.resolve("models", "dit", **options, **given)
    model = TextConditioned(words, model) if text else model
    learned = out_channels == 2  # a variance
    process = (
        Process(ddpm.build(), eps.build()) if learned else Process(linear.build(), velocity.build())
    )
    loss = denoise.build(
        times=uniform.build() if learned else logit_normal.build(),
        weight=none.build() if learned else min_snr.build(),
        condition_dropout=0.3,
        patch=PATCH,
    )
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: jnp.asarray(0.2 * draw.standard_normal(p.shape), p.dtype),
        models.abstract(model, SHAPES[0]),
    )
    return model, params, objective(loss, models.apply_fn(model), process, encode)


def kept(batch, text):
    names = {"tokens", "tokens_mask"}
    return batch if text else {k: v for k, v in batch.items() if k not in names}


def plain_batches(packed_stream, position, text):
    """The examples of a packed batch in batches of one shape each."""
    plan, parts = packed_stream.plan(position), {}
    for item in (item for row in plan.rows for item in row):
        parts.setdefault(item.bucket, []).append(item)
    for bucket, items in sorted(parts.items()):
        one = [packed_stream.unpacked.look([item.place], bucket) for item in items]
        examples = [{k: v[0] for k, v in each.items() if k != "id"} for each in one]
        yield kept(stacked(examples, [item.position for item in items]), text), len(items)


@pytest.mark.parametrize(
    ("text", "block", "out_channels"),
    [
        pytest.param(False, "adaln_zero", 2, marks=pytest.mark.slow, id="labels, learned variance"),
        pytest.param(True, "adaln_cross", 1, id="text"),
    ],
)
def test_packed_bucketed_and_plain_batches_have_one_loss_and_one_gradient(
    text, block, out_channels
):
    """To 1e-5; with labels also in micro-batches of single rows, whose numbers of examples differ."""
    _, params, loss_fn = case(text, block, out_channels)
    run, micro = (quick(functools.partial(gradients, loss_fn, accumulate=k)) for k in (1, 3))
    batches = stream()
    batch, position = kept(next(batches), text), 0
    batches.close()
    found = run(params, batch, KEY)
    total, wanted, losses = 0.0, jax.tree.map(jnp.zeros_like, params), {}
    count = sum(n for _, n in plain_batches(batches, position, text))
    for plain, n in plain_batches(batches, position, text):
        loss, grads, metrics = run(params, plain, KEY)
        total += n / count * loss
        wanted = jax.tree.map(lambda a, b, n=n: a + n / count * b, wanted, grads)
        losses |= dict(zip(map(tuple, plain["id"].tolist()), metrics["loss"].tolist(), strict=True))
    assert {len(set(batch["grid"].prod(-1).ravel())), count} == {
        5,
        9,
    }  # sizes, or none, and examples
    for loss, grads, metrics in (found, *([] if text else [micro(params, batch, KEY)])):
        np.testing.assert_allclose(loss, total, rtol=1e-5)
        np.testing.assert_allclose(means(metrics)["loss"], total, rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), grads, wanted
        )
    each = {
        tuple(i.tolist()): loss
        for i, loss, w in zip(
            batch["id"].reshape(-1, 2),
            found[2]["loss"].ravel(),
            batch["weight"].ravel(),
            strict=True,
        )
        if w
    }
    assert each.keys() == losses.keys()
    for i, loss in losses.items():
        np.testing.assert_allclose(each[i], loss, rtol=1e-5)


def test_nothing_passes_from_one_example_to_another():
    """The gradient of one example's loss by all pixels, labels and tokens of its row."""
    model, params, _ = case(True, "adaln_cross")
    batch = next(stream())
    grid = jnp.asarray(batch["grid"])
    where = packed.layout(grid, 20)
    s = grid.shape[1]
    draw = np.random.default_rng(0)
    x, context = (
        jnp.asarray(draw.standard_normal(shape), jnp.float32) for shape in ((3, 20, 4), (15, 4, 8))
    )

    def out(x, context, keep):
        tokens = packed.Tokens(
            x=x,
            position=where.position.astype(jnp.float32),
            segment=where.segment,
            row=where.row,
        )
        cond = packed.Cond(label=jnp.arange(15) % 3, context=context)
        t = jnp.linspace(0.1, 0.9, 15).reshape(3, 5)
        found = model.model.apply({"params": params["model"]}, tokens, t, cond, method="transform")
        return (jnp.square(found).sum(-1) * keep).sum()

    slopes = quick(jax.grad(out, argnums=(0, 1)))
    for segment in range(int((grid[0].prod(-1) > 0).sum())):
        mine = where.segment == segment
        by_x, by_context = slopes(x, context, mine * (jnp.arange(3) == 0)[:, None])
        hit = np.abs(by_x).max(-1) > 0
        np.testing.assert_array_equal(hit[0], mine[0])
        assert not hit[1:].any()
        told = np.abs(by_context.reshape(3, s, -1)).max(-1) > 0
        np.testing.assert_array_equal(told[0], np.arange(s) == segment)
        assert not told[1:].any()


@pytest.mark.parametrize("shape", SHAPES[1::3])
def test_tokens_lie_where_patchify_puts_them(shape):
    """Positions and flat indices of a lone example, and noise that is that of the whole example."""
    grid = tuple(a // b for a, b in zip(shape, PATCH, strict=False))
    n = int(np.prod(grid))
    where = packed.layout(jnp.asarray([[grid, (0, 0, 0)]]), n + 1)
    index = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    np.testing.assert_array_equal(
        packed.pixels(where, PATCH, 1)[:, :n], patchify(jnp.asarray(index), PATCH)
    )
    assert where.segment[0].tolist() == [0] * n + [2]
    keys = rng.per_sample(KEY, jnp.asarray([7]))
    pixels = packed.pixels(where, PATCH, 1)
    noise = rng.normal_at(jnp.broadcast_to(keys[:, None], (1, n + 1)), pixels)
    np.testing.assert_array_equal(noise[:, :n], patchify(rng.normal(keys, shape), PATCH))


@pytest.mark.parametrize("more", [{"level": "frame"}, {"tasks": ("text_to_video",)}])
def test_levels_and_tasks_are_refused(more):
    loss = denoise.build(times=uniform.build(), weight=none.build(), patch=PATCH, **more)
    process = Process(linear.build(), velocity.build())
    batch = jax.tree.map(jnp.asarray, next(stream()))
    with pytest.raises(UserError, match="expected one noise level an example"):
        loss(KEY, None, max, process, batch)
