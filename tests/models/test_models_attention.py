"""Every kernel that runs here against plain NumPy sums, with gradients and masks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models_cases import inputs, params_of, quick, run, tiny

from dit import models
from dit.models import attention as module
from dit.models.attention import Visibility, attention
from dit.parallel.mesh import make_mesh, replicated
from dit.parallel.rules import in_force
from dit.types import UserError

B, Q, K, H, D = 2, 6, 6, 2, 4
MASKS = {
    "none": None,
    "empty": Visibility(),
    "segments": Visibility(
        q_segment=jnp.array([[0, 0, 0, 1, 1, 2], [0] * 6]),
        k_segment=jnp.array([[0, 0, 0, 1, 1, 2], [0] * 6]),
    ),
    "padding": Visibility(k_valid=jnp.array([[True] * 4 + [False] * 2, [True] + [False] * 5])),
    "frames": Visibility(frame_size=2),
    "frames after a prefix": Visibility(frame_size=2, prefix=2),
    "packed frames": Visibility(
        q_frame=jnp.array([[0, 1, 1, 3, 3, 0], [2, 1, 0, 0, 1, 2]]),
        k_frame=jnp.array([[0, 1, 1, 3, 3, 0], [2, 1, 0, 0, 1, 2]]),
    ),
    "all": Visibility(
        q_segment=jnp.zeros((2, 6), int),
        k_segment=jnp.zeros((2, 6), int),
        k_valid=jnp.array([[True] * 6, [True] * 3 + [False] * 3]),
        frame_size=3,
    ),
}


def sees(visible, b, q, k):
    """The predicate, one pair at a time."""
    if visible is None:
        return True
    yes = True
    if visible.q_segment is not None:
        yes &= bool(visible.q_segment[b, q] == visible.k_segment[b, k])
    if visible.k_valid is not None:
        yes &= bool(visible.k_valid[b, k])
    if visible.q_frame is not None:
        yes &= bool(visible.k_frame[b, k] <= visible.q_frame[b, q])
    if visible.frame_size is not None:
        frame = [
            -1 if i < visible.prefix else (i - visible.prefix) // visible.frame_size for i in (q, k)
        ]
        yes &= frame[1] <= frame[0]
    return yes


def reference(q, k, v, visible):
    """Softmax attention by definition, in float64."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    out = np.zeros(q.shape)
    for b in range(B):
        for h in range(H):
            for i in range(Q):
                keys = [j for j in range(K) if sees(visible, b, i, j)]
                weight = np.exp(k[b, keys, h] @ q[b, i, h] / np.sqrt(D))
                out[b, i, h] = weight @ v[b, keys, h] / weight.sum()
    return out


def arrays(dtype=jnp.float32):
    draw = np.random.default_rng(0)
    shapes = [(B, Q, H, D), (B, K, H, D), (B, K, H, D), (B, Q, H, D)]
    return [jnp.asarray(draw.standard_normal(s), dtype) for s in shapes]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kernel", ["xla", "cpu"])
def test_values_and_gradients(kernel, mask):
    q, k, v, g = arrays()
    visible = MASKS[mask]

    def value(q, k, v, visible):
        out = attention(q, k, v, visible, kernel)
        return (out * g).sum(), out

    grad = quick(jax.grad(value, argnums=(0, 1, 2), has_aux=True))
    grads, out = grad(q, k, v, visible)
    np.testing.assert_allclose(out, reference(q, k, v, visible), atol=1e-5)
    qkv = [np.asarray(a, np.float64) for a in (q, k, v)]
    way = [np.random.default_rng(i).standard_normal(a.shape) for i, a in enumerate(qkv)]

    def along(step):
        moved = [a + step * w for a, w in zip(qkv, way, strict=True)]
        return (reference(*moved, visible) * np.asarray(g, np.float64)).sum()

    slope = sum((np.asarray(a) * w).sum() for a, w in zip(grads, way, strict=True))
    np.testing.assert_allclose(slope, (along(1e-4) - along(-1e-4)) / 2e-4, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
def test_a_ring_pads_tokens_that_its_devices_do_not_divide(mask):
    """Six tokens on four devices, two of which hold nothing but padding.

    The padding was visible once, by a fault of XLA (jaxlib 0.10.2): with ``out_shardings`` over four
    devices, ``jit(lambda x: (pad(x, (0, 3)), pad(x, (0, 3), constant_values=-1)))(arange(5))`` pads
    twice with 0.
    """
    q, k, v, g = arrays()
    visible, mesh = MASKS[mask], make_mesh({"context": 4}, jax.devices()[:4])

    def value(q, k, v, name):
        out = attention(q, k, v, visible, name)
        return (out * g).sum(), out

    def split(q, k, v):
        with in_force(mesh):
            return jax.grad(value, argnums=(0, 1, 2), has_aux=True)(q, k, v, "ring")

    got = jax.jit(split, in_shardings=replicated(mesh))(q, k, v)
    expected = jax.grad(value, argnums=(0, 1, 2), has_aux=True)(q, k, v, "xla")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, expected)


@pytest.mark.parametrize("kernel", ["xla", "cpu", "ring"])
def test_a_query_that_sees_nothing_spoils_nothing(kernel):
    """Its own output means nothing, but is finite; the others' and all gradients are as without it."""
    q, k, v, g = arrays()
    visible = Visibility(k_valid=jnp.array([[False] * 6, [True] * 3 + [False] * 3]))

    def value(q, k, v):
        out = attention(q, k, v, visible, kernel)
        return (out * g).sum(), out

    grads, out = quick(jax.grad(value, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    assert all(np.isfinite(a).all() for a in (out, *grads))
    seen = visible.replace(k_valid=visible.k_valid.at[0].set(True))
    np.testing.assert_allclose(out[1], reference(q, k, v, seen)[1], atol=1e-5)


@pytest.mark.first
@pytest.mark.parametrize("mask", [m for m in MASKS if m not in ("empty", "packed frames")])
def test_splash_where_no_tpu_is(mask):
    """The TPU's kernel, interpreted: padding of lengths and heads, masks and gradients."""
    from dit.models.kernels import splash

    q, k, v, g = arrays()
    visible = MASKS[mask]

    def grads(attend):
        def value(q, k, v):
            out = attend(q, k, v)
            return (out * g).sum(), out

        return jax.jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    got = grads(lambda *a: splash.attend(*a, visible, interpret=True))
    expected = grads(lambda *a: attention(*a, visible, "xla"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, expected)


def test_the_hand_made_derivative_is_the_automatic_one():
    *qkv, g = arrays()

    def grads(name):
        return quick(lambda *a: jax.vjp(lambda *b: attention(*b, None, name), *a)[1](g))(*qkv)

    for a, b in zip(grads("cpu"), grads("xla"), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("kernel", ["xla", "cpu"])
def test_softmax_is_float32_when_inputs_are_not(kernel):
    q, k, v, _ = arrays(jnp.bfloat16)
    out = quick(lambda *a: attention(*a, None, kernel))(q * 8, k * 8, v)
    assert out.dtype == jnp.bfloat16
    expected = reference(q * 8, k * 8, v, None)
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=0.02)


def test_large_logits_do_not_overflow():
    q, k, v, g = arrays()

    def loss(q, kernel):
        return (attention(q * 1e4, k, v, None, kernel) * g).sum()

    for kernel in ("xla", "cpu"):
        value, grad = quick(jax.value_and_grad(partial(loss, kernel=kernel)))(q)
        assert np.isfinite(value)
        assert np.isfinite(grad).all()


def test_no_ids_no_mask():
    assert Visibility().dense(4, 4) is None


def test_forward_mode_works_with_xla_and_is_refused_elsewhere():
    model = tiny(attention="xla")
    params, (x, t, cond) = params_of(model, noise=0.15), inputs()

    def f(model, t):
        return models.apply_fn(model)(params, x, t, cond)

    step = 3e-3
    _, slope = quick(lambda t: jax.jvp(lambda t: f(model, t), (t,), (jnp.ones_like(t),)))(t)
    ends = run(model, params, x, t + step, cond), run(model, params, x, t - step, cond)
    np.testing.assert_allclose(
        slope, (ends[0] - ends[1]) / (2 * step), atol=0.02 * np.abs(slope).max()
    )
    for unroll in (1, True):
        fused = model.clone(attention="cpu", unroll=unroll)
        with pytest.raises(UserError, match="attention='xla'"):
            jax.jvp(lambda t, fused=fused: f(fused, t), (t,), (jnp.ones_like(t),))
    q, k, v, _ = arrays()
    with pytest.raises(UserError, match="attention='xla'"):
        jax.jvp(lambda q: attention(q, k, v, None, "cpu"), (q,), (q,))


def test_choice_of_kernel(monkeypatch):
    short, long = (jnp.zeros((1, n, 1, 64), jnp.bfloat16) for n in (16, 4096))
    for where, dtype, x, expected in [
        ("cpu", jnp.bfloat16, long, "cpu"),
        ("gpu", jnp.bfloat16, short, "cudnn"),
        ("gpu", jnp.float32, short, "xla"),
        ("tpu", jnp.bfloat16, short, "xla"),
        ("tpu", jnp.bfloat16, long, "splash"),
    ]:
        monkeypatch.setattr(module, "platform", lambda where=where: where)
        assert module.choose(x.astype(dtype), x.astype(dtype)) == expected
    frame = jnp.zeros((1, 4096), int)  # in any order: no mask that the TPU's kernel takes
    monkeypatch.setattr(module, "platform", lambda: "tpu")
    assert module.choose(long, long, Visibility(q_frame=frame, k_frame=frame)) == "ring"


def test_platform_follows_the_default_device():
    assert module.platform() == "cpu"
    with jax.default_device(jax.devices("cpu")[1]):
        assert module.platform() == "cpu"


def test_kernels_that_cannot_run_here_say_so():
    q, k, v, _ = arrays()
    with pytest.raises(UserError, match="bfloat16"):
        attention(q, k, v, None, "cudnn")
    with pytest.raises(UserError, match="expected one of"):
        attention(q, k, v, None, "flash")
