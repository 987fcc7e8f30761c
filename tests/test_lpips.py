"""LPIPS against an implementation in torch, from the same weights; and what its files may do."""

import importlib.util
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit import lpips
from dit.types import UserError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec(lpips.PACKAGE) is None, reason="the weights are not installed"
)


def in_torch(weights, net, x, y):
    """Zhang et al. 2018 with torchvision's layers: (pictures and gradient) of their mean distance."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    def tensor(a):
        return torch.tensor(np.asarray(a, np.float32))

    def features(x):
        h = (x - tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)) / tensor(
            [0.458, 0.448, 0.450]
        ).view(1, 3, 1, 1)
        found = []
        taps, pools = {
            "alex": ((0, 1, 2, 3, 4), {1: 3, 2: 3}),
            "vgg": ((1, 3, 6, 9, 12), {2: 2, 4: 2, 7: 2, 10: 2}),
        }[net]
        for i, conv in enumerate(weights["convs"]):
            if i in pools:
                h = functional.max_pool2d(h, pools[i], 2)
            kernel = tensor(conv["kernel"].transpose(3, 2, 0, 1))
            first = net == "alex" and i == 0
            pad = 2 if first else kernel.shape[-1] // 2
            h = functional.conv2d(h, kernel, tensor(conv["bias"]), 4 if first else 1, pad).relu()
            if i in taps:
                found.append(h)
        return found

    def unit(f):
        return f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10)

    x, y = (tensor(a[:, 0].transpose(0, 3, 1, 2)).requires_grad_() for a in (x, y))
    total = 0
    for a, b, head in zip(features(x), features(y), weights["heads"], strict=True):
        apart = (unit(a) - unit(b)).square() * tensor(head).view(1, -1, 1, 1)
        total = total + apart.sum(1).mean((1, 2))
    total.mean().backward()
    return total.detach().numpy(), y.grad.numpy().transpose(0, 2, 3, 1)[:, None]


@pytest.mark.first
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_distance_and_gradient_equal_those_in_torch(net):
    weights = lpips.weights(net)
    x, y = np.random.default_rng(0).uniform(-1, 1, (2, 2, 1, 32, 48, 3)).astype(np.float32)

    def mean(y, x, weights):
        found = lpips.distance(weights, net, x, y)
        return found.mean(), found

    (_, found), gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))(y, x, weights)
    wanted, wanted_gradient = in_torch(weights, net, x, y)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    scale = np.abs(wanted_gradient).max()
    np.testing.assert_allclose(gradient / scale, wanted_gradient / scale, atol=1e-3)


def test_equal_pictures_are_no_distance_apart_and_the_slope_is_finite():
    x = np.ones((1, 2, 32, 32, 3), np.float32)  # most channels are dead
    weights = lpips.weights("alex")
    run = jax.value_and_grad(lambda y, x: lpips.distance(weights, "alex", x, y).sum())
    found, gradient = jax.jit(run)(x, x)
    assert float(found) == 0
    assert np.isfinite(gradient).all()


def test_what_does_not_fit_is_refused():
    weights = lpips.weights("alex")
    for shape in ((1, 1, 16, 32, 3), (1, 1, 32, 32, 1)):
        x = jnp.zeros(shape)
        with pytest.raises((UserError, TypeError)):
            lpips.distance(weights, "alex", x, x)


def test_a_file_that_calls_anything_is_not_run(tmp_path, monkeypatch):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    folder = tmp_path / "bomb" / "weights"
    folder.mkdir(parents=True)
    (tmp_path / "bomb" / "__init__.py").write_text("raise SystemExit")  # nor is its code
    (folder / "alexnet.ckpt").write_bytes(pickle.dumps({"AlexNet_0": Bomb()}))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(lpips, "PACKAGE", "bomb")
    lpips.weights.cache_clear()
    with pytest.raises(UserError, match=r"it calls .*open, which no arrays need: not run"):
        lpips.weights("alex")
    assert not (tmp_path / "ran").exists()
    lpips.weights.cache_clear()
