"""The train step: one compile, the same on every mesh, and no update from what is not finite."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import training_tiny as tiny

from dit import config, rng
from dit.training import meter as meters
from dit.training import step as steps


@pytest.fixture(scope="module")
def one():
    """On one device, with what 12 steps give."""
    s = tiny.setup()
    s.final, s.losses = tiny.run(s, 12)
    s.final = jax.device_get(s.final)
    return s


@pytest.fixture(scope="module")
def sharded():
    s = tiny.setup(devices=8, sizes={"data": 2, "fsdp": 4})
    s.final, s.losses = tiny.run(s, 12)
    return s


def test_the_loss_goes_down(one):
    _, losses = tiny.run(one, 200)
    assert np.mean(losses[-40:]) < 0.9 * np.mean(losses[:40])


def test_eight_devices_give_the_loss_of_one(one, sharded):
    np.testing.assert_allclose(sharded.losses, one.losses, rtol=1e-4)
    np.testing.assert_allclose(sharded.losses[0], one.losses[0], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(sharded.final), jax.tree.leaves(one.final), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-4)


def test_tensor_parallelism_gives_the_same_first_steps(one):
    _, losses = tiny.run(tiny.setup(devices=8, sizes={"data": 2, "fsdp": 2, "tensor": 2}), 3)
    np.testing.assert_allclose(losses, one.losses[:3], rtol=1e-4)


def test_parameters_moments_and_averages_are_sharded_from_birth(sharded):
    born = sharded.init(sharded.key)
    for state in (born, sharded.final):
        trees = [state.params, *state.ema.values(), state.opt_state[0].mu, state.opt_state[0].nu]
        for tree in trees:
            for x in jax.tree.leaves(tree):  # every axis of the tiny model divides by four
                assert x.sharding.shard_shape(x.shape) != x.shape
                assert x.addressable_shards[0].data.size == x.size // 4


@pytest.mark.parametrize("name", config.names("training.optimizers"))
def test_every_optimizer_keeps_its_moments_where_the_parameters_are(name):
    s = tiny.setup(devices=8, sizes={"fsdp": 8}, optimizer={"name": name, "lr": 1e-3}, bare=True)
    shapes = [x.shape for x in jax.tree.leaves(s.abstract.params)]
    for x, sharding in zip(
        jax.tree.leaves(s.abstract.opt_state), jax.tree.leaves(s.shardings.opt_state), strict=True
    ):
        assert sharding.is_fully_replicated == (x.shape not in shapes)


def test_one_compile_serves_every_step():
    traces = []
    inner = steps.objective(tiny.LOSS, tiny.apply_fn, tiny.PROCESS, tiny.encode)

    def of(params, batch, key):
        traces.append(1)
        return inner(params, batch, key)

    s = tiny.setup(of=of)
    before = len(traces)  # describing the state traces it too
    state, _ = tiny.run(s, 6)
    copied = jax.device_put(jax.device_get(state), s.shardings)  # as a restored state arrives
    tiny.run(s, 6, start=6, state=copied)
    assert len(traces) - before == 1


def test_the_state_is_donated(one):
    state = one.init(one.key)
    text = one.train_step.lower(state, tiny.batch(0), one.key).compile().as_text()
    aliases = re.search(r"input_output_alias=\{(.*?)\}, entry", text).group(1)
    assert aliases.count("alias)") == len(jax.tree.leaves(state))
    one.train_step(state, tiny.batch(0), one.key)
    assert all(x.is_deleted() for x in jax.tree.leaves(state))


def test_accumulation_gives_the_gradient_of_one_batch(one):
    params, batch = one.init(one.key).params, tiny.batch(0)
    grad = jax.jit(steps.gradients, static_argnums=(0, 4))
    loss, whole, examples = grad(one.of, params, batch, one.key, 1)
    same, parts, others = grad(one.of, params, batch, one.key, 4)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(loss, same, rtol=1e-5)
    np.testing.assert_allclose(np.sort(examples["loss"]), np.sort(others["loss"]), rtol=1e-5)


def test_accumulation_on_a_mesh_trains_as_one_batch_does(one):
    optimizer = {"name": "adamw", "lr": 1e-2, "accumulate": 4}
    _, losses = tiny.run(tiny.setup(devices=4, optimizer=optimizer), 3)
    np.testing.assert_allclose(losses, one.losses[:3], rtol=1e-4)


def test_the_gradient_norm_is_the_root_of_the_sum_of_squares(one):
    state = one.init(one.key)
    key = rng.stream(one.key, "train", 0)
    grad = jax.jit(steps.gradients, static_argnums=0)
    _, grads, _ = grad(one.of, state.params, tiny.batch(0), key)
    want = np.sqrt(sum(np.square(np.asarray(g, np.float64)).sum() for g in jax.tree.leaves(grads)))
    _, metrics = one.train_step(state, tiny.batch(0), one.key)
    np.testing.assert_allclose(metrics["grad_norm"], want, rtol=1e-5)


def test_the_clipped_update_is_the_clipped_gradient():
    sgd = {"name": "sgd", "lr": 1.0, "momentum": 0.0, "nesterov": False}
    s = tiny.setup(optimizer={**sgd, "clip": 0.25})
    before = s.init(s.key)
    first = jax.device_get(before.params)
    after, _ = s.train_step(before, tiny.batch(0), s.key)
    change = jax.tree.map(lambda a, b: a - b, first, jax.device_get(after.params))
    np.testing.assert_allclose(optax.tree.norm(change), 0.25, rtol=1e-4)


def poisoned(kind):
    """The objective, whose loss or whose gradient alone is not finite where a label is 9."""
    inner = steps.objective(tiny.LOSS, tiny.apply_fn, tiny.PROCESS, tiny.encode)

    def of(params, batch, key):
        loss, examples = inner(params, batch, key)
        bad = (batch["id"] == 16 * 3).any()
        if kind == "loss":
            return jnp.where(bad, jnp.inf, loss), examples
        w = params["label"][0, 0]
        root = jnp.sqrt(jnp.where(bad, w - jax.lax.stop_gradient(w), 1.0))
        return loss + 0.0 * root, examples  # at 0 the root's slope is infinite, times 0 is NaN

    return of


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_update_and_for_good(kind):
    s = tiny.setup(of=poisoned(kind))
    good, losses = tiny.run(s, 3)
    kept = jax.device_get(good)
    assert np.isfinite(losses).all()
    state, metrics = s.train_step(good, tiny.batch(16 * 3), s.key)
    assert bool(metrics["bad"])
    state, metrics = s.train_step(state, tiny.batch(16 * 4), s.key)  # a good batch changes nothing
    assert bool(metrics["bad"])
    row = jax.device_get(s.report(state))
    assert bool(row["meter"].bad)
    assert int(row["step"]) == 3  # so the bad one was the fourth
    after = jax.device_get(state)
    assert tiny.trees_equal(after.replace(meter=after.meter.replace(bad=kept.meter.bad)), kept)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_so_many_bad_batches_as_are_allowed_are_passed_over(kind):
    """One is: the state is that of a run which never saw it, but for the count; the second stops."""
    s = tiny.setup(
        of=poisoned(kind), optimizer={"name": "adamw", "lr": 1e-2, "skip": 1}, log_every=4
    )
    good, losses = tiny.run(s, 3)
    kept = jax.device_get(good)
    state, metrics = s.train_step(good, tiny.batch(16 * 3), s.key)
    assert not bool(metrics["bad"])
    after = jax.device_get(state)
    assert (int(after.step), int(after.meter.skipped)) == (4, 1)
    for part in ("params", "opt_state", "ema"):
        assert tiny.trees_equal(getattr(after, part), getattr(kept, part))
    row = jax.device_get(s.report(state))
    np.testing.assert_allclose(meters.means(row["meter"])["loss"], np.mean(losses), rtol=1e-5)
    state, metrics = s.train_step(state, tiny.batch(16 * 4), s.key)  # a good one goes on
    assert not bool(metrics["bad"])
    assert int(state.meter.steps) == 1  # a new interval
    state, metrics = s.train_step(state, tiny.batch(16 * 3), s.key)
    assert bool(metrics["bad"])
    assert int(state.step) == 5


def test_an_interval_of_which_every_batch_was_skipped_has_no_mean():
    meter = meters.init(["loss"], 4)
    one = jnp.ones(4)
    meter = meters.add(meter, {"loss": one.mean()}, one, one / 2, fresh=jnp.bool_(True))
    meter = meters.skip(meter, fresh=jnp.bool_(True))  # the first of an interval empties it too
    found = meters.means(jax.device_get(meter))
    assert np.isnan(found["loss"])
    assert np.isnan(found["loss_t"]).all()
    assert int(meter.skipped) == 1


def test_the_report_is_the_mean_since_the_last_log_step(one):
    state, losses = tiny.run(one, 7)  # logged every 5: steps 6 and 7 are in
    row = jax.device_get(one.report(state))
    row = {**row, **meters.means(row["meter"])}
    np.testing.assert_allclose(row["loss"], np.mean(losses[5:]), rtol=1e-5)
    assert int(row["step"]) == 7
    squares = [np.square(x).sum() for x in jax.tree.leaves(jax.device_get(state.params))]
    np.testing.assert_allclose(row["param_norm"], np.sqrt(np.sum(squares)), rtol=1e-5)
    np.testing.assert_allclose(row["lr"], 1e-2)
    counts = np.asarray(state.meter.bin_count)
    assert counts.sum() == 2 * 16
    np.testing.assert_allclose(
        np.nansum(row["loss_t"] * counts) / 32, np.mean(losses[5:]), rtol=1e-5
    )


def test_the_meter_sorts_losses_by_time():
    meter = meters.init(["loss"], 4)
    loss, u = jnp.array([1.0, 2.0, 4.0, 8.0]), jnp.array([0.0, 0.3, 0.26, 1.0])
    meter = meters.add(meter, {"loss": loss.mean()}, loss, u, fresh=jnp.bool_(False))
    means = meters.means(meter)
    np.testing.assert_allclose(means["loss_t"], [1.0, 3.0, np.nan, 8.0])
    meter = meters.add(meter, {"loss": jnp.float32(5.0)}, loss, u, fresh=jnp.bool_(True))
    assert float(meters.means(meter)["loss"]) == 5.0
    assert float(meter.bin_count.sum()) == 4


def test_averages_follow_the_parameters(one):
    state = one.init(one.key)
    average = jax.device_get(state.ema["ema_10"])
    for i in range(3):
        state, _ = one.train_step(state, tiny.batch(16 * i), one.key)
        average = jax.tree.map(
            lambda e, p: p + 0.5**0.1 * (e - p), average, jax.device_get(state.params)
        )
    for a, b in zip(jax.tree.leaves(average), jax.tree.leaves(state.ema["ema_10"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_update_runs_in_place(one):
    """No matrix of the state is copied on the way: the update of a large model is bound by memory."""
    state = one.init(one.key)
    text = one.train_step.lower(state, tiny.batch(0), one.key).compile().as_text()
    branches = (
        re.search(r"branch_computations=\{(.*?)\}", text).group(1).replace("%", "").split(", ")
    )
    bodies = {
        name: text.split(f"\n%{name} ")[1].split("\n}")[0] for name in branches
    }  # one of them makes the update, the other none
    assert any("sqrt" in body or "calls=" in body for body in bodies.values())
    copied = r"= f32\[\d+,.* copy\("
    assert not any(re.search(copied, body) for body in bodies.values())
    assert not re.search(copied + r"%state_", text)


def test_a_step_of_a_short_run_is_the_train_step():
    s = tiny.setup(optimizer={"name": "adamw", "lr": 1e-2, "clip": 0.25, "accumulate": 2})
    batch, expected = tiny.batch(0), s.init(s.key)
    plain = jax.jit(
        lambda state: steps.unguarded_step(s.of, s.optimizer, s.ema, state, batch, s.key)
    )
    got = s.init(s.key)
    for _ in range(2):
        got, loss = plain(got)
        expected, metrics = s.train_step(expected, batch, s.key)
        np.testing.assert_allclose(loss, metrics["loss"], rtol=1e-6)
    parts = [(x.step, x.params, x.opt_state, x.ema) for x in (expected, got)]
    for a, b in zip(*map(jax.tree.leaves, parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
