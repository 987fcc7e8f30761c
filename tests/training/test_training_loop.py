"""The loop: exact resume, one look at the device a log step, and ways of being stopped."""

import json
import os
import signal
import sys
import types

import jax
import numpy as np
import pytest
import training_fake as fake
import training_tiny as tiny

from dit.training import checkpoint as checkpoints
from dit.training import loop
from dit.training import optimizer as optimizers
from dit.training.logging import TIMING, MetricsLog, keep_until, read_metrics
from dit.training.signals import StopOnSignal
from dit.types import UserError


def train(workdir, *, batches=None, devices=1, draw=None, experiment=None, allowed=(), **changes):
    return loop.train(
        experiment or fake.Experiment(tiny, changes),
        workdir,
        batches=batches or tiny.batches(),
        devices=jax.devices()[:devices],
        draw=draw,
        flops_per_example=1e6,
        progress=False,
        allowed=allowed,
    )


def rows(workdir):
    return [{k: v for k, v in r.items() if k not in TIMING} for r in read_metrics(workdir)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Twenty steps without a stop."""
    workdir = tmp_path_factory.mktemp("straight")
    outcome = train(workdir)
    return workdir, jax.device_get(outcome.state)


def test_twenty_steps_are_ten_and_ten_bit_for_bit(straight, tmp_path):
    workdir, state = straight
    first = train(tmp_path, steps=10)
    assert (first.step, first.stopped) == (10, None)
    again = train(tmp_path)
    assert again.step == 20
    assert tiny.trees_equal(jax.device_get(again.state), state)
    split = [r for r in rows(tmp_path) if r["step"] % 4 == 0]  # without the end of the short run
    assert split == rows(workdir)
    assert [r["step"] for r in rows(workdir)] == [4, 8, 12, 16, 20]


def test_a_run_killed_after_its_checkpoint_loses_and_repeats_nothing(straight, tmp_path):
    """Stopped at step 13, between a log step and a checkpoint, and robbed of its last checkpoint."""
    workdir, state = straight
    stopping = tiny.batches()
    inner = stopping.__class__.__next__
    count = iter(range(100))

    class Stopping(stopping.__class__):
        def __next__(self):
            if next(count) == 15:
                os.kill(os.getpid(), signal.SIGTERM)
            return inner(self)

    stopping.__class__ = Stopping
    outcome = train(tmp_path, batches=stopping)
    assert outcome.stopped == "SIGTERM"
    assert 10 < outcome.step < 20
    assert checkpoints.steps(tmp_path)[-1] == outcome.step
    os.rename(tmp_path / "checkpoints" / str(outcome.step), tmp_path / "lost")
    train(tmp_path)
    assert tiny.trees_equal(jax.device_get(train(tmp_path).state), state)
    assert rows(tmp_path) == rows(workdir)


def test_a_finished_run_is_left_as_it_is(straight):
    workdir, state = straight
    before = rows(workdir)
    outcome = train(workdir)
    assert outcome.step == 20
    assert tiny.trees_equal(jax.device_get(outcome.state), state)
    assert rows(workdir) == before


def test_eight_devices_log_what_one_does(straight, tmp_path):
    workdir, _ = straight
    train(tmp_path, devices=8, steps=8, mesh={"data": 2, "fsdp": 4})
    for a, b in zip(rows(tmp_path), rows(workdir)[:2], strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-3)
        np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-2)


def test_rows_say_what_is_needed(straight):
    workdir, _ = straight
    for row in read_metrics(workdir):
        assert {"step", "loss", "mse", "grad_norm", "param_norm", "lr", "loss_t"} <= set(row)
        assert row["steps_per_s"] > 0
        assert row["images_per_s"] == pytest.approx(16 * row["steps_per_s"])
        assert row["mfu"] > 0
        assert len(row["loss_t"]) == 10
    assert list((workdir / "tensorboard").iterdir())
    assert json.loads((workdir / "config.json").read_text())["optimizer"]["lr"] == 1e-2


class NaNData(fake.Experiment):
    """The data of the seventh batch encode to NaN."""

    def __init__(self, changes=None):
        super().__init__(tiny, changes)
        clean = self.loss

        def loss(key, params, apply_fn, process, batch):
            bad = (batch["id"] == 6 * 16).any()
            return clean(key, params, apply_fn, process, {**batch, "x": batch["x"] / (1.0 - bad)})

        self.loss = loss


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path):
    with pytest.raises(loop.DivergedError, match=r"step 7 .*last checkpoint is step 5"):
        train(tmp_path, experiment=NaNData())
    assert checkpoints.steps(tmp_path) == [5]
    assert [r["step"] for r in rows(tmp_path)] == [4]
    sound = train(tmp_path)  # the same command, the fault mended
    assert sound.step == 20


def test_another_config_is_refused_and_nothing_is_touched(straight):
    workdir, _ = straight
    before = (workdir / "config.json").read_text(), rows(workdir)
    with pytest.raises(UserError, match=r"optimizer.lr: 0.01 -> 0.02.*seed: 0 -> 1"):
        train(workdir, optimizer={"lr": 2e-2}, seed=1)
    assert ((workdir / "config.json").read_text(), rows(workdir)) == before


def test_a_batch_that_does_not_split_is_refused(tmp_path):
    with pytest.raises(UserError, match="batch_size=12"):
        train(tmp_path, devices=8, batch_size=12)


def test_the_host_does_not_look_between_log_steps(tmp_path, monkeypatch):
    looks = []
    reached = []
    real = jax.device_get
    array = type(jax.numpy.zeros(()))
    value = array.__array__

    def device_get(x):
        looks.append(reached[-1] if reached else 0)
        return real(x)

    def to_numpy(self, *args, **kwargs):
        looks.append(reached[-1] if reached else 0)
        return value(self, *args, **kwargs)

    class Counted(loop.feed.Feed):
        def take(self):
            reached.append(len(reached) + 1)
            return super().take()

    monkeypatch.setattr(loop.feed, "Feed", Counted)
    monkeypatch.setattr(jax, "device_get", device_get)
    monkeypatch.setattr(array, "__array__", to_numpy)
    monkeypatch.setattr(array, "__float__", lambda self: float(to_numpy(self)))
    train(tmp_path, checkpoint={"every": 20})
    assert {n for n in looks if n} == {4, 8, 12, 16, 20}


def test_samples_are_drawn_when_they_are_due(tmp_path):
    drawn = []
    train(
        tmp_path,
        samples={"every": 6},
        draw=lambda state, step: drawn.append((int(state.step), step)),
    )
    assert drawn == [(6, 6), (12, 12), (18, 18)]


def test_signals_stop_once_and_then_act_as_before():
    with StopOnSignal() as stop:
        assert stop.number == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT
        os.kill(os.getpid(), signal.SIGTERM)  # schedulers send several
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup
    try:
        with StopOnSignal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.number == 0
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.number == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_log_forgets_what_comes_after_the_checkpoint(tmp_path):
    log = MetricsLog(tmp_path, 0, config={})
    for step in (5, 10, 15):
        log.write({"step": step, "loss": np.float32(step), "bins": np.array([1.0, np.nan])})
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "lo')  # cut short by a crash
    assert [r["step"] for r in read_metrics(tmp_path)] == [5, 10, 15]
    assert read_metrics(tmp_path)[0] == {"step": 5, "loss": 5.0, "bins": [1.0, None]}
    keep_until(tmp_path / "metrics.jsonl", 10)
    assert [r["step"] for r in read_metrics(tmp_path)] == [5, 10]


def test_boards_are_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    with pytest.raises(UserError, match="wandb is not installed"):
        train(tmp_path / "run", log={"wandb": True})
    assert not (tmp_path / "run").exists()


class WandB(types.ModuleType):
    """Runs by id, each with the steps it was sent; like the real one it wants them to grow."""

    def __init__(self):
        super().__init__("wandb")
        self.runs, self.given = {}, []

    def init(self, *, id, resume, **given):
        assert resume == "allow"
        self.given.append(given)
        rows = self.runs.setdefault(id, [])

        def log(row, step):
            if not rows or step > rows[-1]:
                rows.append(step)

        return types.SimpleNamespace(log=log, finish=lambda: None)


def test_a_resumed_run_goes_on_in_the_same_board(tmp_path, monkeypatch):
    board = WandB()
    monkeypatch.setitem(sys.modules, "wandb", board)
    log = {"every": 4, "wandb": True}
    train(tmp_path / "a", steps=10, log=log)
    train(tmp_path / "a", steps=20, log=log)
    assert [*board.runs.values()] == [[4, 8, 10, 12, 16, 20]]
    assert [given["name"] for given in board.given] == ["a", "a"]
    train(tmp_path / "b", steps=4, log=log)  # another workdir, another run
    assert len(board.runs) == 2


def test_a_run_that_starts_afresh_is_a_new_one_on_the_board(tmp_path, monkeypatch):
    board = WandB()
    monkeypatch.setitem(sys.modules, "wandb", board)
    for _ in range(2):  # the first was killed before it saved anything
        MetricsLog(tmp_path, 0, config={}, wandb=True).close()
    assert len(board.runs) == 2


def test_a_board_that_does_not_let_us_in_is_one_message(tmp_path, monkeypatch):
    board = WandB()

    def init(**_):
        raise RuntimeError("no API key")

    board.init = init
    monkeypatch.setitem(sys.modules, "wandb", board)
    with pytest.raises(UserError, match=r"no API key.*WANDB_MODE=offline"):
        MetricsLog(tmp_path, 0, config={}, wandb=True)


@pytest.mark.slow
def test_bad_batches_are_skipped_counted_and_told(straight, tmp_path, capsys):
    """One batch of twenty: the run comes to its end, and a resume before it to the same."""
    skipping = {"optimizer": {"skip": 1}}
    whole = train(tmp_path / "whole", experiment=NaNData(skipping))
    assert whole.step == 20
    assert "1 more batches were skipped" in capsys.readouterr().out
    assert [r["skipped"] for r in rows(tmp_path / "whole")] == [0, 1, 1, 1, 1]
    train(tmp_path / "half", experiment=NaNData({**skipping, "steps": 10}))
    again = train(tmp_path / "half", experiment=NaNData(skipping))
    assert tiny.trees_equal(jax.device_get(again.state), jax.device_get(whole.state))
    assert not tiny.trees_equal(jax.device_get(whole.state.params), straight[1].params)


def test_a_run_that_diverged_goes_on_as_it_is_told(tmp_path, capsys):
    """With another learning rate, or one more batch that may be skipped; and the log says so."""
    with pytest.raises(loop.DivergedError, match=r"--new-lr.*optimizer.skip"):
        train(tmp_path, experiment=NaNData())
    with pytest.raises(loop.DivergedError):  # the same again
        train(tmp_path, experiment=NaNData())
    changed = {"optimizer": {"skip": 1, "lr": 5e-3}}
    with pytest.raises(UserError, match=r"optimizer.lr: 0.01 -> 0.005.*--new-lr"):
        train(tmp_path, experiment=NaNData(changed))
    experiment = NaNData(changed)
    capsys.readouterr()
    outcome = train(tmp_path, experiment=experiment, allowed=["optimizer.lr"])
    assert outcome.step == 20
    said = capsys.readouterr().out
    assert "going on from step 5" in said
    assert "optimizer.lr: 0.01 -> 0.005" in said
    change = {"step": 5, "optimizer.lr": [0.01, 0.005], "optimizer.skip": ["(not there)", 1]}
    assert checkpoints.read_meta(tmp_path)["changes"] == [change]
    assert {r["lr"] for r in rows(tmp_path)} == {np.float32(0.01).item(), np.float32(0.005).item()}


def test_another_rate_needs_a_run_to_go_on_from(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        train(tmp_path, allowed=["optimizer.lr"])


OTHERS = {
    "mesh": {"data": 2, "fsdp": 2},
    "loader": {"prefetch": 3},
    "optimizer": {"accumulate": 2},
    "log": {"every": 5},
}


@pytest.mark.parametrize(
    "section", ["mesh", *(pytest.param(s, marks=pytest.mark.slow) for s in OTHERS if s != "mesh")]
)
def test_what_is_operational_may_change_in_the_course_of_a_run(straight, tmp_path, section):
    train(tmp_path, steps=10)
    devices = 4 if section == "mesh" else 1
    outcome = train(tmp_path, devices=devices, **{section: OTHERS[section]})
    assert outcome.step == 20
    close = jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0.05, atol=0.02),
        jax.device_get(outcome.state.params),
        straight[1].params,
    )
    assert close is not None


def test_the_optimizer_of_the_loop_is_the_one_of_the_config(straight):
    _, state = straight
    made = optimizers.build(
        {"name": "adamw", "lr": 1e-2, "weight_decay": 0.1},
        {"name": "constant"},
        steps=20,
        axes=tiny.AXES,
    )
    want = jax.tree.structure(made.transform.init(state.params))
    assert jax.tree.structure(state.opt_state) == want
