"""On an NVIDIA GPU (``pytest -m gpu``): kernels, networks and training against float32 and the CPU."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit import config, models
from dit import train as command
from dit.models.attention import Visibility, attention, choose
from dit.types import Cond

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("optimised"),
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU"),
]
BATCH = 2


def masks(n_q, n_k):
    segment = [
        jnp.asarray(np.arange(n)[None] * 3 // n + np.zeros((BATCH, 1), int)) for n in (n_q, n_k)
    ]
    holes = jnp.asarray(np.arange(n_k)[None] % np.array([[3], [5]]) > 0)
    return {
        "none": None,
        "padding": Visibility(k_valid=jnp.arange(n_k)[None] < jnp.array([[n_k // 3], [n_k]])),
        "holes": Visibility(k_valid=holes),
        "segments": Visibility(q_segment=segment[0], k_segment=segment[1]),
        "frames": Visibility(frame_size=8, prefix=1),
        "packed frames": Visibility(q_frame=segment[0], k_frame=segment[1]),
    }


def relative(got, expected):
    got, expected = (np.asarray(x, np.float64) for x in (got, expected))
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("mask", masks(8, 8))
@pytest.mark.parametrize(("n_q", "n_k"), [(256, 256), (77, 31)])
@pytest.mark.parametrize("width", [72, 128])
def test_fused_attention_gives_the_values_and_gradients_of_float32(mask, n_q, n_k, width):
    draw = np.random.default_rng(n_q + n_k + width)
    sizes = (n_q, n_k, n_k, n_q)
    arrays = [jnp.asarray(draw.standard_normal((BATCH, n, 2, width)), jnp.bfloat16) for n in sizes]
    visible = masks(n_q, n_k)[mask]
    assert choose(*arrays[:2], visible) == "cudnn"

    def slopes(kernel, dtype, precision):
        def value(q, k, v, g):
            out = attention(q, k, v, visible, kernel)
            return (out * g).sum(dtype=jnp.float32), out

        with jax.default_matmul_precision(precision):
            function = jax.jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True))
            return jax.tree.leaves(function(*(x.astype(dtype) for x in arrays)))

    expected = slopes("xla", jnp.float32, "highest")
    for a, b in zip(slopes("cudnn", jnp.bfloat16, "default"), expected, strict=True):
        assert np.isfinite(np.asarray(a, np.float32)).all()
        assert relative(a, b) < 1e-2


def test_fused_attention_keeps_no_array_of_all_pairs():
    n = 8192
    x = jax.ShapeDtypeStruct((1, n, 8, 64), jnp.bfloat16)
    visible = Visibility(k_valid=jnp.arange(n)[None] < n - 5)
    train = jax.grad(
        lambda q, k, v: attention(q, k, v, visible).astype(jnp.float32).sum(), (0, 1, 2)
    )
    memory = jax.jit(train).lower(x, x, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 8 * n * n  # a byte for each pair of each head


@pytest.mark.parametrize("block", config.names("models.blocks"))
@pytest.mark.parametrize(
    ("dtype", "precision", "bound"),
    [("float32", "highest", 1e-4), ("float32", "default", 1e-2), ("bfloat16", "default", 5e-2)],
)
def test_a_network_gives_the_loss_and_gradients_of_a_cpu(block, dtype, precision, bound):
    """By default float32 is computed as TF32 on GPUs, with 10 bits."""
    draw = np.random.default_rng(0)
    shape = (2, 8, 8, 3)
    x, y = draw.standard_normal((2, 4, *shape)).astype(np.float32)
    t, text = draw.random(4, np.float32), draw.standard_normal((4, 5, 7)).astype(np.float32)
    sizes = {"depth": 2, "width": 64, "heads": 2, "in_channels": 3, "num_classes": 5}
    if block in ("cross_attention", "in_context"):
        sizes["context_dim"] = 7

    def slopes(device, dtype):
        model = config.resolve("models", "dit", block=block, dtype=dtype, **sizes)
        context = jnp.asarray(text) if "context_dim" in sizes else None
        cond = Cond(label=jnp.arange(4) % 5, context=context)

        def loss(p):
            return jnp.square(
                models.apply_fn(model)(p, jnp.asarray(x), jnp.asarray(t), cond) - y
            ).mean()

        with jax.default_device(device), jax.default_matmul_precision(precision):
            params = jax.eval_shape(lambda key: models.init(model, key, shape), jax.random.key(0))
            leaves, tree = jax.tree.flatten(params)
            values = np.random.default_rng(1)
            leaves = [0.1 * values.standard_normal(p.shape).astype(np.float32) for p in leaves]
            return jax.jit(jax.value_and_grad(loss))(jax.tree.unflatten(tree, leaves))

    value, slope = slopes(jax.devices("gpu")[0], dtype)
    expected_value, expected = slopes(jax.devices("cpu")[0], "float32")
    assert relative(value, expected_value) < bound
    flat = [
        np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (slope, expected)
    ]
    assert relative(*flat) < bound


def test_training_on_digits_learns(tmp_path):
    """The README's config, for a tenth of its steps, in bfloat16: far below the best constant."""
    command.main(
        [
            "--config=configs/digits.py",
            f"--workdir={tmp_path}",
            *(
                "--config.steps=300",
                "--config.samples.every=0",
                "--config.precision.compute=bfloat16",
            ),
        ]
    )
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.7  # .61 on a CPU, and 1.29 of the best constant
