"""Schedules of row x frame: frames that go their own way, windows that slide, and what is seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_cases import PATHS, cases, solver

from dit import config
from dit.diffusion.process import Denoiser
from dit.sampling.denoisers import stateful
from dit.sampling.edit import reveal
from dit.sampling.rollout import calls, frame_noise, rows, windowed
from dit.sampling.rollouts import Clip, parse
from dit.sampling.sample import sample, sample_keys
from dit.types import UserError, match_time

PATH, STEPS = PATHS["linear"], 4
GRID = jnp.linspace(1, 0, STEPS + 1)
KEYS = sample_keys(jax.random.key(0), 2)
PIXEL = (1, 2, 3)
SPECS = ("autoregressive:block=2", "pyramid:lag=2", "pyramid:block=2")


def schedule(spec, frames, window=4, given=0, apart=True, steps=STEPS):
    clip = Clip(frames, given, window, apart)
    return rows(parse(spec).schedule.starts(clip, steps), clip, steps)


def alone(x, t):
    """An estimate of each number by itself."""
    return jnp.tanh(0.7 * x) + 0.3 * jnp.cos(2 * x + match_time(t, x))


def causal(x, t):
    """Of what a frame and the two before it are."""
    before = [jnp.pad(x, ((0, 0), (k, 0), *(((0, 0),) * 3)))[:, : x.shape[1]] for k in (0, 1, 2)]
    return jnp.tanh(0.5 * before[0] + 0.4 * before[1] - 0.3 * before[2]) + 0.2 * match_time(t, x)


def draw(denoise, plan, frames, name="dpmpp_2m", kwargs=None, **options):
    built = solver(name, kwargs or {})

    def run(keys):
        about = (PATH, built, GRID, plan, frames, PIXEL)
        return windowed(keys, Denoiser(lambda x, t: (denoise(x, t), None)), *about, **options)

    return jax.jit(run)(KEYS)


def matrix(spec, frames, **options):
    """The nodes of all frames before every row, written out."""
    plan = schedule(spec, frames, **options)
    return [
        "".join(map(str, row)) + f" {first}"
        for row, first in zip(plan.node, plan.first, strict=True)
    ]


def test_the_matrices_are_those_of_the_schedules():
    assert matrix("full", 3, steps=2) == ["000 0", "111 0"]
    assert matrix("autoregressive", 3, window=2, steps=2) == [
        *("00 0", "10 0", "20 0", "21 0"),
        *("20 1", "21 1"),
    ]
    blocks = matrix("autoregressive:block=2", 5, steps=2, given=1)
    assert blocks == ["2000 0", "2110 0", "2200 1", "2211 1"]
    assert matrix("pyramid:lag=1", 3, window=3, steps=3) == [
        *("000 0", "100 0", "210 0", "321 0", "332 0")
    ]
    # Models that know one level beside clean frames begin with a whole window of it.
    assert matrix("autoregressive:block=2", 6, steps=1, apart=False) == ["0000 0", "1100 2"]
    assert matrix("autoregressive:block=2", 6, steps=1, apart=False, given=1) == [
        "1000 0",
        "1100 2",
    ]
    assert matrix("pyramid:lag=9", 2, window=2, steps=2) == ["00 0", "10 0", "20 0", "21 0"]


def test_no_row_loses_sight_of_what_moves():
    for spec in (*SPECS, "pyramid:block=3,lag=3", "autoregressive:block=3,first=1", "pyramid"):
        for given in (0, 3):
            clip = Clip(11, given, 6)
            starts = parse(spec).schedule.starts(clip, STEPS)
            plan = rows(starts, clip, STEPS)
            at = np.arange(len(plan.first))[:, None]
            whole = np.clip(at - starts, 0, STEPS)
            moves = np.clip(at + 1 - starts, 0, STEPS) != whole
            assert moves.any(1).all()
            assert (moves.sum(1) == (plan.node != plan.after).sum(1)).all()
            assert (whole[0] == STEPS).sum() == given
            assert (moves.sum(0) == np.where(np.arange(11) < given, 0, STEPS)).all()


@pytest.mark.first
@pytest.mark.parametrize("case", cases(lambda case: solver(*case).order is not None))
def test_a_frame_that_sees_no_other_comes_out_as_by_itself(case):
    built = solver(*case)
    eps = frame_noise(KEYS, "x_T", jnp.arange(7), PIXEL)
    expected = jax.jit(lambda x: sample(KEYS, alone, PATH, built, GRID, x))(eps)
    for spec in ("autoregressive:block=2", "pyramid:lag=2"):
        got = draw(alone, schedule(spec, 7), 7, *case)
        np.testing.assert_allclose(got.x_0, expected, atol=2e-6)


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m"])
def test_blocks_are_what_a_loop_of_whole_runs_over_known_frames_gives(name):
    """Past the window too: the loop gives each block the frames before it that the window holds."""
    built, frames, window, block = solver(name, {}), 8, 5, 2
    plan = schedule("autoregressive:block=2", frames, window)
    got = draw(causal, plan, frames, name)
    x = frame_noise(KEYS, "x_T", jnp.arange(frames), PIXEL)

    @jax.jit
    def one(x, done):
        known = jnp.broadcast_to(jnp.arange(x.shape[1]) < done, x.shape[:2])
        grid, start = reveal(GRID, x, x, known)
        return sample(KEYS, causal, PATH, built, grid, start)

    for first in range(0, frames, block):
        low = max(0, first + block - window)
        made = one(x[:, low : first + block], first - low)
        x = x.at[:, low : first + block].set(made)
    np.testing.assert_allclose(got.x_0, x, atol=2e-6)
    assert got.evaluations == frames // block * built.evaluations(STEPS)
    longer = draw(causal, schedule("autoregressive:block=2", 10, window), 10, name)
    np.testing.assert_array_equal(longer.x_0[:, :frames], got.x_0)


def test_evaluations_are_counted_as_they_happen():
    for spec in SPECS:
        seen = []

        def counted(x, t, seen=seen):
            jax.debug.callback(lambda: seen.append(1))
            return alone(x, t)

        plan = schedule(spec, 7)
        got = draw(counted, plan, 7, "heun")
        jax.effects_barrier()
        assert got.evaluations == len(seen) == calls(solver("heun", {}), plan)


def test_what_is_known_stays_and_what_is_done_is_shown_with_noise():
    """The estimate of a frame is what is seen of the one before it, and of its time."""
    frames, noise = 5, 0.25
    known = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, *PIXEL)), jnp.float32)

    def before(x, t):
        shown = x + 10 * match_time(t, x)
        return jnp.concatenate([shown[:, :1], shown[:, :-1]], 1)

    plan = schedule("autoregressive", frames, 3, given=2)
    got = draw(before, plan, frames, "euler", known=known, noise=noise).x_0
    eps = frame_noise(KEYS, "context", jnp.arange(frames), PIXEL)
    np.testing.assert_array_equal(got[:, :2], known)
    for f in (2, 3, 4):
        seen = (1 - noise) * got[:, f - 1] + noise * eps[:, f - 1] + 10 * noise
        np.testing.assert_allclose(got[:, f], seen, atol=1e-5)


def test_memory_of_guidance_slides_with_the_window():
    """Each frame's memory counts the rows in which it was seen until it landed."""

    def advance(x, t, memory):
        memory = memory + 1
        return (memory, None), memory

    counting = stateful(jnp.zeros_like, advance)
    plan = schedule("autoregressive", 4, 2)
    about = (PATH, solver("euler", {}), GRID, plan, 4, PIXEL)
    got = jax.jit(lambda keys: windowed(keys, counting, *about).x_0)(KEYS)
    # the second is in the first window too; the others come into sight as they begin to move
    np.testing.assert_array_equal(got[0, :, 0, 0, 0], [4, 8, 4, 4])


ERRORS = {
    "full": "a rollout past memory: 9 frames of 9 .* window holds 4; take autoregressive or pyramid",
    "autoregressive:block=4": "a rollout past memory: 5 .* a block of 4 and the frame before it",
    "autoregressive:block=2,sinks=2,cache=true": "past memory: 5 .* window holds 4; .* 2 sinks",
    "autoregressive:first=5": "past memory: 5 .* smaller first block",
    "autoregressive:sinks=2": "sinks=2 without cache=true",
    "autoregressive:cache=true,first=2": "first=2 with cache=true",
    "pyramid:lag=0": "lag",
    "pyramid:block=5": "past memory: 5 .* smaller block",
    "pyramid:block=2,lag=1": "past memory: 8 .* lag=2 or more",
    "autoregressive:window=0": "window",
    "spiral": "spiral",
}


@pytest.mark.parametrize("spec", ERRORS)
def test_a_rollout_past_memory_is_one_line(spec):
    with pytest.raises(UserError, match=ERRORS[spec]) as error:
        schedule(spec, 9)
    assert "\n" not in str(error.value)


def test_every_schedule_is_a_file_of_the_room():
    assert {parse(name).spec for name in config.names("sampling.rollouts")} == {
        *("autoregressive", "full", "pyramid")
    }
