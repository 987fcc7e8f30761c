"""Networks trained beside the model: the same step, state, checkpoint and safeguards as the model's."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_tiny as tiny

from dit import rng
from dit.training import checkpoint as checkpoints
from dit.training import step as steps
from dit.training.ahead import placed
from dit.training.state import Companion
from dit.types import Weights

START = 2
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False}
FROZEN = {"fixed": {"scale": np.full((1,), 0.5, np.float32)}}
WEIGHTS = {name: Weights.of(params, "what is fixed") for name, params in FROZEN.items()}
INNER = steps.objective(tiny.LOSS, tiny.apply_fn, tiny.PROCESS, tiny.encode)
CONFIG = {"seed": 0}


def scores(params, own, batch):
    x = tiny.encode({}, batch["x"]).reshape(len(batch["x"]), -1)
    return x @ params["in"]["kernel"] @ own["w"]


def main_loss(params, batch, key, *, networks, step):
    loss, examples = INNER(params, batch, key)
    score = networks["fixed"]["scale"] * scores(params, networks["critic"], batch)
    return loss - score.mean(), {**examples, "score": score}


def critic_loss(own, batch, key, *, params, networks, step):
    each = jnp.square(networks["fixed"]["scale"] + scores(params, own, batch))
    return each.mean(), {"critic": each}


def setup(loss=critic_loss, start=START, **how):
    def companions(make):
        return {
            "critic": Companion(
                init=lambda key: {"w": 0.1 * jnp.sin(jnp.arange(tiny.WIDTH, dtype=jnp.float32))},
                axes={"w": ("embed",)},
                optimizer=make({"w": ("embed",)}, start),
                loss_fn=loss,
                start=start,
            )
        }

    return tiny.setup(of=main_loss, companions=companions, frozen=WEIGHTS, **how)


@pytest.fixture(scope="module")
def one():
    s = setup()
    s.end, s.losses = tiny.run(s, 6)
    return s


def test_all_gradients_are_taken_at_the_state_before_the_step():
    s = setup(start=0, optimizer=SGD)
    state = s.init(s.key)
    params, own = jax.device_get((state.params, state.networks["critic"].params))
    key, networks = rng.stream(s.key, "train", 0), {"critic": own, **FROZEN}

    @jax.jit
    def gradients(params, own, batch):
        beside = {"networks": networks, "step": 0}
        of_model = jax.grad(lambda p: main_loss(p, batch, key, **beside)[0])
        of_critic = jax.grad(lambda w: critic_loss(w, batch, key, params=params, **beside)[0])
        return of_model(params), of_critic(own)

    wanted = gradients(params, own, tiny.batch(0))
    after, _ = s.train_step(state, tiny.batch(0), s.key)
    found = jax.device_get((after.params, after.networks["critic"].params))
    for a, b, g in zip(*map(jax.tree.leaves, (found, (params, own), wanted)), strict=True):
        np.testing.assert_allclose(a, b - 0.1 * g, rtol=1e-5, atol=1e-6)


def test_before_its_start_it_is_as_it_was_made(one):
    state = one.init(one.key)
    made = jax.device_get(state.networks)
    state, _ = tiny.run(one, START, state=state)
    assert tiny.trees_equal(jax.device_get(state.networks), made)
    sums = jax.device_get(state.meter.sums)
    assert sums["critic"] == sums["critic_grad_norm"] == 0
    assert sums["score"] != 0  # the model's loss knows it from the first step
    state, _ = tiny.run(one, 1, start=START, state=state)
    assert not tiny.trees_equal(jax.device_get(state.networks), made)
    assert float(state.meter.sums["critic_grad_norm"]) > 0


def test_averages_are_of_the_model_alone(one):
    trees = [jax.tree.structure(tree) for tree in (one.end.params, *one.end.ema.values())]
    assert len(set(trees)) == 1


def test_a_run_that_was_interrupted_ends_bit_for_bit_the_same(one, tmp_path):
    for at in (1, 4):  # before and after its start
        workdir = tmp_path / str(at)
        writer = checkpoints.Checkpoints(workdir, CONFIG)
        writer.save(at, tiny.run(one, at)[0], {})
        writer.close()
        reader = checkpoints.Checkpoints(workdir, CONFIG)
        state, _ = reader.restore(placed(one.abstract, one.shardings))
        reader.close()
        end, losses = tiny.run(one, 6 - at, start=at, state=state)
        assert losses == one.losses[at:]
        assert tiny.trees_equal(jax.device_get(end), jax.device_get(one.end))


@pytest.mark.parametrize(
    "how",
    [
        {"devices": 8, "sizes": {"data": 2, "fsdp": 4}},
        {"optimizer": {"name": "adamw", "lr": 1e-2, "accumulate": 4}},
    ],
    ids=["eight devices", "micro-batches"],
)
def test_it_trains_as_on_one_device_with_whole_batches(one, how):
    s = setup(**how)
    end, losses = tiny.run(s, 6)
    np.testing.assert_allclose(losses, one.losses, rtol=1e-4)
    for a, b in zip(*(jax.tree.leaves(x.networks) for x in (end, one.end)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5)
    if "devices" in how:
        critic = s.shardings.networks["critic"]
        moments = [x for x in jax.tree.leaves(critic) if not x.is_fully_replicated]
        assert len(moments) == 3  # w and both of its moments


def test_the_whole_state_is_donated_and_frozen_weights_are_arguments(one):
    state = one.init(one.key)
    lowered = one.train_step.lower(state, tiny.batch(0), one.key)
    (aliases,) = re.findall(r"input_output_alias=\{(.*?)\}, entry", lowered.compile().as_text())
    assert aliases.count("alias)") == len(jax.tree.leaves(state))
    given, _ = lowered.in_tree.unflatten(range(lowered.in_tree.num_leaves))
    assert given[3] == {"fixed": {"scale": lowered.in_tree.num_leaves - 1}}
    one.train_step(state, tiny.batch(0), one.key)
    assert all(x.is_deleted() for x in jax.tree.leaves(state))


def test_what_is_not_finite_in_its_gradient_withholds_every_update():
    def poisoned(own, batch, key, **beside):
        loss, examples = critic_loss(own, batch, key, **beside)
        return jnp.where((batch["id"] == 16 * 3).any(), jnp.nan, 1.0) * loss, examples

    s = setup(loss=poisoned, optimizer={"name": "adamw", "lr": 1e-2, "skip": 1})
    state, _ = tiny.run(s, 3)
    kept = jax.device_get(state)
    state, metrics = s.train_step(state, tiny.batch(16 * 3), s.key)
    assert np.isfinite(float(metrics["loss"]))
    after = jax.device_get(state)
    for part in ("params", "opt_state", "ema", "networks"):
        assert tiny.trees_equal(getattr(after, part), getattr(kept, part))
    assert int(after.meter.skipped) == 1
    state, metrics = s.train_step(state, tiny.batch(16 * 3), s.key)
    assert bool(metrics["bad"])


def test_its_rate_is_that_of_the_model_at_the_same_step():
    s = setup(
        start=3, optimizer={**SGD, "lr": 1.0}, schedule={"name": "warmup_cosine", "warmup": 5}
    )
    state, _ = tiny.run(s, 3)
    own, params = jax.device_get((state.networks["critic"].params, state.params))
    after, _ = tiny.run(s, 1, start=3, state=state)
    rate = float(s.report(after)["lr"])
    assert rate > 0
    key, beside = rng.stream(s.key, "train", 3), {"networks": FROZEN, "step": 3}
    of_critic = jax.grad(lambda w, batch: critic_loss(w, batch, key, params=params, **beside)[0])
    grad = jax.jit(of_critic)(own, tiny.batch(48))
    change = jax.device_get(after.networks["critic"].params)["w"] - own["w"]
    np.testing.assert_allclose(change, -rate * grad["w"], rtol=1e-3, atol=1e-6)
