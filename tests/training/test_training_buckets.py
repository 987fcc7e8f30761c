"""Training on examples of five shapes: one program for each, and a stream that goes on exactly."""

import dataclasses
import threading

import jax
import numpy as np
import pytest
import training_fake as fake
import training_mixed as mixed
import training_tiny as tiny

from dit.data import pipeline
from dit.diffusion.times import uniform
from dit.diffusion.weights import none
from dit.objectives.constant import best_constant
from dit.training import checkpoint as checkpoints
from dit.training import loop
from dit.training.feed import Feed
from dit.training.learning import moments
from dit.training.logging import read_metrics
from dit.training.program import program
from dit.training.step import Step
from dit.types import UserError

STEPS = 24


@pytest.fixture(scope="module")
def data():
    return mixed.source()


def experiment(**changes):
    return fake.Experiment(mixed.MODEL, {"batch_size": 4, **changes})


@pytest.fixture(scope="module")
def compiled():
    """The program that the runs on one device share."""
    return program(experiment(), mixed.batches(), jax.devices()[:1])


def run(workdir, steps=STEPS, compiled=None, devices=1, **changes):
    out = loop.train(
        experiment(steps=steps, **changes),
        workdir,
        batches=mixed.batches(),
        compiled=compiled,
        devices=jax.devices()[:devices],
        progress=False,
    )
    return out, [(row["step"], row["loss"]) for row in read_metrics(workdir)]


@pytest.fixture(scope="module")
def straight(compiled, tmp_path_factory):
    """A run without a stop, and what was traced and compiled in it."""
    seen = []

    def listen(event, seconds, fun_name="", **_):
        seen.append((event.rsplit("/", 1)[-1], fun_name))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        workdir = tmp_path_factory.mktemp("straight")
        out = run(workdir, compiled=compiled)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return *out, [event for event, name in seen if "train_step" in name], workdir


def test_there_are_as_many_programs_as_shapes(straight):
    events = straight[2]
    assert events.count("jaxpr_trace_duration") == len(mixed.SHAPES)
    assert events.count("backend_compile_duration") == len(mixed.SHAPES), events


def test_the_log_has_the_loss_of_each_shape(straight):
    """Weighted by their batches, they are the loss of all."""
    every = fake.DEFAULTS["log"]["every"]
    order = [mixed.batches().plan(4 * g).bucket for g in range(STEPS)]
    names = ["loss/" + "x".join(map(str, mixed.SHAPES[i])) for i in order]
    assert len(set(names)) == len(mixed.SHAPES)
    for i, row in enumerate(read_metrics(straight[3])):
        found = {name: value for name, value in row.items() if name.startswith("loss/")}
        here = names[i * every : (i + 1) * every]
        assert set(found) == set(here)
        assert sum(found[name] for name in here) / every == pytest.approx(row["loss"], rel=1e-5)


@pytest.mark.parametrize("stop", [7, 13])
def test_a_run_that_stopped_goes_on_bit_for_bit(compiled, straight, tmp_path, stop):
    run(tmp_path, stop, compiled, checkpoint={"every": stop, "keep": 3})
    out, rows = run(tmp_path, STEPS, compiled)
    assert tiny.trees_equal(out.state.params, straight[0].state.params)
    assert tiny.trees_equal(out.state.opt_state, straight[0].state.opt_state)
    assert rows[-1] == straight[1][-1]


@pytest.mark.slow
def test_a_run_goes_on_on_another_number_of_devices(compiled, straight, tmp_path):
    run(tmp_path, 13, compiled)
    out, rows = run(tmp_path, devices=4)
    found, wanted = (jax.tree.leaves(o.state.params) for o in (out, straight[0]))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(rows[-1][1], straight[1][-1][1], rtol=1e-4)


def test_a_program_that_cannot_be_compiled_ends_the_run_where_it_is_saved(compiled, tmp_path):
    """It is the second, compiled in a thread while steps of the first go on."""
    names, order = [], mixed.batches().coming(STEPS)
    first = [mixed.batches().plan(4 * g).bucket == order[0] for g in range(STEPS)].index(False)

    class Lowered:
        def __init__(self, lowered, good):
            self.lowered, self.good, self.as_text = lowered, good, lowered.as_text

        def compile(self):
            names.append(threading.current_thread().name)
            if not self.good:
                raise RuntimeError("out of memory")
            return self.lowered.compile()

    class Broken(Step):
        lowered = 0

        def __init__(self):
            vars(self).update(vars(compiled.train_step))

        def lower(self, *args):
            self.lowered += 1
            return Lowered(super().lower(*args), self.lowered == 1)

    broken = dataclasses.replace(compiled, train_step=Broken())
    with pytest.raises(RuntimeError, match="out of memory"):
        run(tmp_path, compiled=broken, checkpoint={"every": 1, "keep": 1})
    assert checkpoints.steps(tmp_path) == [first]
    assert not {thread.name for thread in threading.enumerate()} & set(names)
    out, _ = run(tmp_path, first + 1, compiled)
    assert out.step == first + 1


def test_moments_of_several_shapes_give_the_mean_of_their_constants(data):
    def constant(found):
        return best_constant(tiny.PROCESS, uniform.build(), none.build(), found)

    stream = mixed.batches()
    parts = [
        moments(pipeline.batches(data.bucket(i).train, batch_size=4, seed=0), tiny.encode)
        for i in range(len(mixed.SHAPES))
    ]
    found, shares = moments(stream, tiny.encode), stream.plan.shares
    assert found.all
    assert found.count == sum(m.count for m in parts) == 40
    wanted = sum(n * constant(m).loss for n, m in zip(shares, parts, strict=True))
    assert constant(found).loss == pytest.approx(wanted)
    squares = sum(n * (m.std**2 + m.variance**2) for n, m in zip(shares, parts, strict=True))
    assert found.std**2 + found.variance**2 == pytest.approx(squares)


def test_a_batch_of_another_shape_is_refused_and_not_compiled_for(compiled):
    fed = Feed(mixed.batches(), compiled.batch_sharding)
    fed._shapes = {i: fed._shapes[(i + 1) % 5] for i in range(5)}
    with pytest.raises(UserError, match=r"got a batch of x uint8 .* expected x uint8"):
        fed.take()
