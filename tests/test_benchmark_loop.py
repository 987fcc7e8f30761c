"""The cost of starting and of saving: its arithmetic, its table, and (slowly) a real measurement."""

import dataclasses
import json
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from dit.benchmark import loop, report, stopwatch
from dit.types import UserError

INTERVAL, SAVES, EVERY = 8, 3, 100
STEP, STALL, SLOWER, BUSY = 0.1, 0.05, 0.02, 3  # seconds; a save is written during three steps
FIRST, LAST = loop.window(INTERVAL, SAVES)


def run(saves=True, busy=BUSY, step=STEP):
    """What the stopwatch would take of a run: a slow first step, then as planned."""
    now, taken = 7.0, {"steps": [], "saves": [], "writing": [], "device": "none"}
    left = 0
    for n in range(1, LAST + 2):
        taken["steps"].append(now)
        now += 5.0 if n == 1 else step
        if left:
            taken["writing"].append(n)
            now += SLOWER
            left -= 1
        if saves and n % INTERVAL == 0:
            stall = 9.0 if n == INTERVAL else STALL
            taken["saves"].append([n, stall])
            now += stall
            left = busy
    return taken


def test_the_cost_of_a_save_is_what_was_planned():
    found = loop.saving([(run(), run(saves=False))] * 2, INTERVAL, SAVES, EVERY)
    cost = STALL + BUSY * SLOWER
    assert found["step"]["median"] == pytest.approx(STEP)
    assert (found["first"]["median"], found["stall"]["median"]) == (9.0, STALL)
    assert found["save"]["max"] == pytest.approx(cost)
    assert found["slower"]["min"] == pytest.approx(BUSY * SLOWER)
    assert found["steps_written"] == BUSY
    assert found["share"]["median"] == pytest.approx(cost / (EVERY * STEP))


def test_the_median_pair_counts_and_each_against_its_own_steps():
    pairs = [(run(step=s), run(saves=False, step=s)) for s in (0.1, 0.2, 0.9)]
    found = loop.saving(pairs, INTERVAL, SAVES, EVERY)
    assert found["step"]["median"] == pytest.approx(0.2)
    assert found["share"]["median"] == pytest.approx(found["save"]["median"] / (EVERY * 0.2))


def test_writes_that_run_into_each_other_are_no_measurement():
    with pytest.raises(UserError, match="larger --interval"):
        loop.saving([(run(busy=INTERVAL), run(saves=False))], INTERVAL, SAVES, EVERY)
    with pytest.raises(UserError, match="larger --interval"):
        loop.saving([(run(busy=INTERVAL // 2 + 1), run(saves=False))], INTERVAL, SAVES, EVERY)
    with pytest.raises(UserError, match="got 0 saves where 3"):
        loop.saving([(run(saves=False), run(saves=False))], INTERVAL, SAVES, EVERY)


def make_report():
    parts = dict.fromkeys(loop.PARTS, 1.5)
    return {
        "config": "configs/digits.py",
        "device": "CPU, 2 cores",
        "versions": {"jax": "0"},
        "start": {"empty": loop.startup([parts]), "filled": loop.startup([parts, parts])},
        "saving": loop.saving([(run(), run(saves=False))], INTERVAL, SAVES, EVERY),
    }


def test_the_table_says_all_of_it_and_goes_into_a_readme(tmp_path):
    made, readme = make_report(), tmp_path / "README.md"
    start = report.START.format("loop")
    readme.write_text(f"before\n{start}\nold\n{report.END}\nafter\n")
    report.publish(made, loop.table(made), str(tmp_path / "loop.json"), str(readme))
    assert json.loads((tmp_path / "loop.json").read_text()) == made
    text = readme.read_text()
    assert text == f"before\n{start}\n{loop.table(made)}\n{report.END}\nafter\n"
    total = 1.5 * len(loop.PARTS)
    cell = f"{total:.2f} s ({total:.2f} to {total:.2f})"
    assert f"| first step done | {cell} | {cell} |" in text
    assert "| by each of the others | 50 ms | 50 ms to 50 ms |" in text
    assert "| share of step time, a save every 100 steps | 1.10% | 1.10% to 1.10% |" in text


@pytest.mark.parametrize("argument", ["--pairs=0", "--interval=2", "--readme=x.md", "--steps=3"])
def test_bad_arguments_are_refused_before_anything_runs(argument):
    with pytest.raises(UserError):
        loop.main([argument])


def test_a_run_that_fails_is_named(tmp_path):
    runs = loop.Runs(tmp_path, ["--config=nowhere.py"])
    with pytest.raises(UserError, match=r"status 2: error: no config file 'nowhere\.py'"):
        runs.watched(2, "compiled")


def test_the_watch_sees_each_step_each_save_and_what_goes_on_meanwhile():
    """On a loop that is made of its parts alone: nothing of it depends on a clock."""
    busy = [False]

    class Manager:
        def is_saving_in_progress(self):
            return busy[0]

    class Checkpoints:
        _manager = Manager()

        def save(self, step):
            busy[0] = True

    def train_step(state, batch, key):
        return state, {"loss": jnp.float32(0)}

    @dataclasses.dataclass
    class Program:
        train_step: object

    watch = stopwatch.Stopwatch(stop=8)
    train_step.lower = "lowered"
    step = watch.program(lambda: Program(train_step))().train_step
    checkpoints = watch.checkpoints(Checkpoints)()
    assert step.lower == "lowered"
    stopped = signal.signal(signal.SIGTERM, lambda *_: ended.append(len(watch.steps)))
    ended = []
    try:
        for n in range(1, 10):
            step(None, None, None)
            if n in (3, 8):
                checkpoints.save(n)
            if n == 5:
                busy[0] = False
    finally:
        signal.signal(signal.SIGTERM, stopped)
    taken = json.loads(watch.as_json())
    assert list(taken["marks"]) == list(loop.PARTS[1:])
    assert len(taken["steps"]) == 9
    assert taken["steps"] == sorted(taken["steps"])
    assert [n for n, _ in taken["saves"]] == [3]  # that of the end is another matter
    assert all(seconds >= 0 for _, seconds in taken["saves"])
    assert taken["writing"] == [4, 5, 9]
    assert ended == [8]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_real_run_is_timed_in_all_its_parts(tmp_path, capsys, monkeypatch):
    """How long its parts take is nobody's business here, nor for how many steps a disk is busy."""
    watched, compiled = loop.Runs.watched, []

    def programs(cache):
        return {file.name for file in tmp_path.glob(f"*/{cache}/*-cache")}

    def seen(self, stop, cache, *options):
        before = programs(cache)
        taken, start = watched(self, stop, cache, *options)
        compiled.append(len(programs(cache) - before))
        assert taken["writing"] == sorted(set(taken["writing"]))
        return {**taken, "writing": [n + 1 for n, _ in taken["saves"]]}, start

    monkeypatch.setattr(loop.Runs, "watched", seen)
    small = ["--config.model.depth=1", "--config.model.width=24", "--config.batch_size=16"]
    sizes = ["--starts=1", "--pairs=1", "--saves=2", "--interval=4"]
    out = tmp_path / "loop.json"
    loop.main([*sizes, *small, f"--out={out}", f"--dir={tmp_path}"])
    made = json.loads(out.read_text())
    for found in made["start"].values():
        assert np.all(np.array(list(found["parts"].values())) > 0)
        assert found["seconds"]["median"] == pytest.approx(sum(found["parts"].values()))
    empty, filled, *_ = compiled
    assert empty > 0
    assert filled == 0
    cost = made["saving"]
    assert cost["stall"]["median"] > 0
    assert cost["every"] == 500
    assert cost["steps_written"] == 1
    assert "share of step time, a save every 500 steps" in capsys.readouterr().out
    assert not list(tmp_path.glob("*/run-1"))
