"""A run that learns nothing says so, and a sound one does not."""

import json
import logging

import jax
import numpy as np
import pytest
import training_fake as fake
import training_tiny as tiny

from dit import media
from dit.data import pipeline
from dit.data.source import ArraySplit, Stream
from dit.objectives.constant import Constant
from dit.training import loop
from dit.training.learning import Learning, moments
from dit.training.logging import read_metrics

NOTHING = "has learned nothing from its input"


def split(x, **more):
    return ArraySplit(x, np.zeros(len(x), np.int32), fingerprint="tiny", **more)


def stripes(n=64):
    """Pictures that are easily told from noise: one of two patterns, and nearly the same each time."""
    kind = np.arange(n) % 2
    base = np.where((np.arange(16).reshape(1, 4, 4, 1) + kind.reshape(-1, 1, 1, 1, 1)) % 2, 240, 10)
    return base.astype(np.uint8)


def train(workdir, experiment=None, **changes):
    config = {"steps": 300, "log": {"every": 50}, "checkpoint": {"every": 1000}, **changes}
    return loop.train(
        experiment or fake.Experiment(tiny, config),
        workdir,
        batches=pipeline.batches(split(stripes()), batch_size=16, seed=0),
        devices=jax.devices()[:1],
        progress=False,
    )


def said(caplog):
    return [r.message for r in caplog.records if NOTHING in r.message]


def test_a_sound_run_says_nothing_and_keeps_the_score(tmp_path, caplog):
    train(tmp_path)
    assert not said(caplog)
    scores = {row["loss_constant"] for row in read_metrics(tmp_path)}
    assert len(scores) == 1
    want = np.square(stripes() / 127.5 - 1 - (stripes() / 127.5 - 1).mean(0)).mean() + 1
    assert scores.pop() == pytest.approx(want, rel=1e-5)
    assert read_metrics(tmp_path)[-1]["loss"] < 0.8 * want
    media.plot_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png")


class Wrong(fake.Experiment):
    """Gradients of the wrong sign, of another example's target, or of nothing at all."""

    def __init__(self, how, changes):
        super().__init__(tiny, changes)
        sound = self.loss

        def loss(key, params, apply_fn, process, batch):
            if how == "blind":
                return sound(key, params, lambda p, x, *a: apply_fn(p, 0 * x, *a), process, batch)
            total, metrics = sound(key, params, apply_fn, process, batch)
            if how == "stopped":
                return jax.lax.stop_gradient(total), metrics
            return 2 * jax.lax.stop_gradient(total) - total, metrics  # right loss, wrong way

        self.loss = loss


@pytest.mark.first
@pytest.mark.parametrize("how", ["rate", "blind", "stopped", "sign"])
def test_a_run_that_learns_nothing_says_so_early_and_at_its_end(tmp_path, caplog, how):
    config = {"steps": 300, "log": {"every": 50}, "checkpoint": {"every": 1000}}
    lr = {"rate": 1e-12, "sign": 1e-4}.get(how, 1e-2)
    config["optimizer"] = {"lr": lr, "weight_decay": 0.0}
    experiment = fake.Experiment(tiny, config) if how == "rate" else Wrong(how, config)
    assert train(tmp_path, experiment).step == 300
    early, end = said(caplog)
    assert "in 100 steps" in early
    assert "in 300 steps" in end


def test_a_resumed_run_says_it_at_its_end_only(tmp_path, caplog):
    nothing = {"lr": 1e-12, "weight_decay": 0.0}
    train(tmp_path, steps=150, optimizer=nothing)
    caplog.clear()
    train(tmp_path, steps=200, optimizer=nothing)
    assert len(said(caplog)) == 1
    caplog.clear()
    train(tmp_path, steps=200, optimizer=nothing)  # finished: nothing new to say
    assert not said(caplog)


def test_curve_shows_the_score(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    line = Axes.axhline
    monkeypatch.setattr(Axes, "axhline", lambda self, y, **k: drawn.append(y) or line(self, y, **k))
    rows = [{"step": i, "loss": 1.0 / i, "loss_constant": 0.7} for i in range(1, 9)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    media.plot_curve(tmp_path / "m.jsonl", tmp_path / "c.png")
    assert drawn == [0.7]


class Drawn(Stream):
    def make(self, rng, i):
        return {"x": rng.integers(0, 256, (1, 4, 4, 1)).astype(np.uint8), "label": 0}


def unit(params, x, key=None, ids=None):
    return x / 127.5 - 1.0


def test_moments_of_a_whole_set_and_of_a_sample():
    x = np.random.default_rng(0).integers(0, 256, (50, 2, 4, 4, 1)).astype(np.uint8)
    found = moments(pipeline.batches(split(x), batch_size=8, seed=0), unit)
    z = x / 127.5 - 1
    distance = np.square(z - z.mean(0)).reshape(50, -1).mean(1)
    assert (found.count, found.size, found.all) == (50, 32, True)
    assert found.variance == pytest.approx(distance.mean(), rel=1e-5)
    assert found.std == pytest.approx(distance.std(), rel=1e-5)
    endless = Drawn(seed=0, length=2**31 - 1, fingerprint="drawn/train")
    batches = pipeline.batches(endless, batch_size=8, seed=0)
    found = moments(batches, unit)
    assert (found.count, found.all) == (1024, False)
    assert found.variance == pytest.approx((256**2 - 1) / 12 / 127.5**2, rel=0.03)
    assert batches.get_state()["position"] == 0  # nothing was taken


def test_augmented_data_are_a_sample():
    flipped = split(stripes(), transforms=(lambda example, rng: example,))
    found = moments(pipeline.batches(flipped, batch_size=8, seed=0), unit)
    assert not found.all


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((1, 1, 4, 4, 1), np.uint8),
        np.full((64, 1, 4, 4, 1), 7, np.uint8),
        np.full((64, 1, 4, 4, 1), np.nan, np.float32),
        np.full((64, 1, 4, 4, 1), 1e30, np.float32),
    ],
    ids=["one", "all-alike", "nan", "huge"],
)
def test_odd_data_never_stop_a_run(tmp_path, x):
    from dit.training.learning import constant_of

    batches = pipeline.batches(split(x), batch_size=16, seed=0)
    found = constant_of(fake.Experiment(tiny), batches)
    assert found is None or 0 < found.loss < np.inf


def test_a_score_that_cannot_be_worked_out_is_no_reason_not_to_train(tmp_path, caplog):
    class Broken(fake.Experiment):
        def constant(self, batches):
            raise RuntimeError("a file is gone")

    config = {"steps": 4, "log": {"every": 4}, "checkpoint": {"every": 10}}
    assert train(tmp_path, Broken(tiny, config)).step == 4
    assert "a file is gone" in caplog.text
    assert "loss_constant" not in read_metrics(tmp_path)[-1]
    assert not said(caplog)


def test_the_variational_bound_does_not_count(caplog):
    learning = Learning(Constant(1.0, 0.0, 0.0), step=0, steps=50, batch=16, every=50)
    learning.note({"step": 50, "loss": np.float32(1.2), "vb": np.float32(0.3)})
    learning.conclude(50)
    assert not said(caplog)
    learning = Learning(Constant(1.0, 0.0, 0.0), step=0, steps=50, batch=16, every=50)
    learning.note({"step": 50, "loss": np.float32(1.2), "vb": np.float32(0.1)})
    learning.conclude(50)
    assert len(said(caplog)) == 1


def test_a_short_last_interval_is_not_judged_alone(caplog):
    caplog.set_level(logging.WARNING)
    learning = Learning(Constant(1.0, 0.0, 0.0), step=0, steps=401, batch=16, every=50)
    for step in range(50, 401, 50):
        learning.note({"step": step, "loss": np.float32(0.5)})
    learning.note({"step": 401, "loss": np.float32(1.5)})  # one batch, by chance
    learning.conclude(401)
    assert not said(caplog)
