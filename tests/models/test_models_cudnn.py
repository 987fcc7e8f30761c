"""cuDNN's kernel where no GPU is: what it is handed, and the program that is lowered for one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_cases import abstract, inputs, tiny

from dit import models
from dit.models.attention import Visibility, attention
from dit.models.kernels import cudnn

B, N, H, D = 2, 23, 2, 8  # odd, and found in no other dimension of a program
SEGMENT = jnp.asarray(np.arange(N)[None] // np.array([[7], [12]]))
HOLES = jnp.asarray((np.arange(N)[None] % np.array([[3], [5]])) > 0)
MASKS = {
    "none": None,
    "empty": Visibility(),
    "prefix": Visibility(k_valid=jnp.arange(N)[None] < jnp.array([[4], [N]])),
    "holes": Visibility(k_valid=HOLES),
    "segments": Visibility(q_segment=SEGMENT, k_segment=SEGMENT),
    "frames": Visibility(frame_size=5, prefix=3),
    "packed frames": Visibility(q_frame=SEGMENT, k_frame=SEGMENT),
    "all": Visibility(
        q_segment=SEGMENT, k_segment=SEGMENT, frame_size=6, k_valid=HOLES.at[:, ::6].set(True)
    ),
}
DENSE = ("segments", "frames", "packed frames", "all")


def arrays(n_k=N, dtype=jnp.bfloat16):
    draw = np.random.default_rng(0)
    sizes = [N, n_k, n_k, N]
    return [jnp.asarray(draw.standard_normal((B, n, H, D)), dtype) for n in sizes]


def slopes(attend, q, k, v, g):
    def value(q, k, v):
        out = attend(q, k, v)
        return (out * g).sum().astype(jnp.float32), out

    return jax.jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True))(q, k, v)


@pytest.mark.parametrize("mask", MASKS)
def test_what_the_kernel_is_handed_says_the_same_as_the_mask(monkeypatch, mask):
    """With JAX's plain attention in its place: lengths, reordered keys and padding, and gradients."""
    real = jax.nn.dot_product_attention

    def plain(q, k, v, mask=None, key_value_seq_lengths=None, implementation=None):
        assert implementation == "cudnn"
        assert (q.shape[1] % 2, k.shape[1] % 2) == (0, 0)  # what it can train on
        return real(q, k, v, mask=mask, key_value_seq_lengths=key_value_seq_lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", plain)
    visible, all_arrays = MASKS[mask], arrays()
    got = slopes(lambda *a: cudnn.attend(*a, visible), *all_arrays)
    expected = slopes(lambda *a: attention(*a, visible, "xla"), *all_arrays)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, atol=0.03 * np.abs(b).max())


def lowered(monkeypatch, function, *args):
    """The program for an NVIDIA GPU: nothing is compiled."""
    attention_module = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(attention_module, "check_cudnn_version", lambda: 91000)
    return jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("mask", MASKS)
def test_no_array_of_all_pairs_where_the_kernel_takes_lengths(monkeypatch, mask):
    visible, (*qkv, g) = MASKS[mask], arrays()

    def train(q, k, v, g):
        return jax.grad(lambda *a: (cudnn.attend(*a, visible) * g).sum(), argnums=(0, 1, 2))(
            q, k, v
        )

    program = lowered(monkeypatch, train, *qkv, g)
    assert len(re.findall(r"__cudnn\$fmha\w*Softmax\(", program)) == 1
    assert len(re.findall(r"__cudnn\$fmha\w*SoftmaxBackward\(", program)) == 1
    even = N + N % 2
    pairs = re.search(rf"tensor<(\d+x)*({N}x{N}|{even}x{even})x\w+>", program)
    assert bool(pairs) == (mask in DENSE), pairs
    assert ("PADDING" in program) == (mask not in DENSE)


def test_a_model_with_masked_text_trains_on_any_length(monkeypatch):
    """Cross-attention from 6 tokens to 3 + 2: odd, masked, and no array of pairs."""
    model = tiny("cross_attention", context_dim=7, width=32, dtype="bfloat16", attention="cudnn")
    x, t, cond = inputs(context=3)
    cond = cond.replace(context_mask=jnp.array([[True, True, False], [True, False, False]]))
    params = abstract(model, (2, 4, 6, 3))

    def loss(p):
        return jnp.square(models.apply_fn(model)(p, x, t, cond)).mean()

    program = lowered(monkeypatch, jax.grad(loss), params)
    assert "PADDING" in program
    assert "fmhaScaleBias" not in program
