"""Two networks in one sampling run: each step by the one that it should, counted exactly."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_cases import PATHS

from dit import config
from dit.diffusion.process import Denoiser
from dit.recipe import Recipe, rules
from dit.sampling.denoisers import Stateful, stateful
from dit.sampling.experts import counted, switched
from dit.sampling.nfe import nfe
from dit.sampling.sample import solve
from dit.types import UserError

PATH, SHAPE = PATHS["linear"], (3, 1, 2, 2, 4)


def guidance(scale, name="cfg", **more):
    return config.resolve("sampling.guidance", name, scale=scale, **more)


def says(value):
    """A denoiser whose estimate is one number."""
    return Denoiser(lambda x, t: (jnp.full_like(x, value), None))


@pytest.mark.parametrize("boundary", [0.05, 0.3, 0.6, 1.5])
def test_a_step_is_by_the_network_of_the_time_at_which_it_starts(boundary):
    """Euler on the linear path: each step goes the share ``1 - u / t`` of the way to the estimate."""
    grid = config.resolve("sampling.grids", "shifted", shift=3.0)(PATH, 6)
    solver = config.resolve("sampling.solvers", "euler")
    both = switched(says(2.0), says(-1.0), boundary)
    x = jnp.linspace(-1, 2, 48).reshape(SHAPE)
    found = solve(jax.random.key(0), both, PATH, solver, grid, x, trajectory=True).trajectory
    expected = np.asarray(x, np.float64)
    for n, (t, u) in enumerate(itertools.pairwise(grid)):
        expected = expected * u / t + (2.0 if t >= boundary else -1.0) * (1 - u / t)
        np.testing.assert_allclose(found[n + 1], expected, atol=1e-5)


def test_the_boundary_itself_belongs_to_the_first_and_known_parts_do_not_count():
    both = switched(says(2.0), says(-1.0), 0.875)
    x = jnp.zeros(SHAPE)
    for t, value in ((0.875, 2), (0.874, -1)):
        assert (both(x, jnp.full((3,), t)) == value).all()
        known = jnp.full((3, 1, 2), t).at[:, :, 0].set(0.0)  # part of each sample is clean
        assert (both(x, known) == value).all()


def test_each_keeps_a_memory_of_its_own():
    def counting(by):
        return stateful(lambda x: jnp.zeros(()), lambda x, t, n: ((x + n, None), n + by))

    both = switched(counting(1.0), counting(10.0), 0.5)
    assert isinstance(both, Stateful)
    x = jnp.zeros(SHAPE)
    memory, seen = both.start(x), []
    for t in (0.9, 0.8, 0.4, 0.6, 0.3):
        (estimate, _), memory = both.advance(x, jnp.full((3,), t), memory)
        seen.append(float(estimate[0, 0, 0, 0, 0]))
    assert seen == [0, 1, 0, 2, 10]
    plain = switched(counting(1.0), says(7.0), 0.5)
    (estimate, _), memory = plain.advance(x, jnp.full((3,), 0.1), plain.start(x))
    assert (estimate == 7).all()
    assert memory == (0, ())


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_evaluations_are_those_of_both_rules_each_at_its_times(solver):
    grid = config.resolve("sampling.grids", "uniform")(PATH, 10)
    solver = config.resolve("sampling.solvers", solver)
    times = np.asarray(solver.times(PATH, grid, 0))
    above = int((times >= 0.55).sum())
    cases = (
        (guidance(4.0), guidance(3.0), 2 * len(times)),
        (guidance(4.0), guidance(1.0), len(times) + above),
        (guidance(1.0), guidance(3.0), 2 * len(times) - above),
        (guidance(1.0), guidance(1.0), len(times)),
        (
            guidance(3.0, "interval", low=0.75, high=1.0, unit="time"),
            guidance(2.0),
            2 * len(times) - above + int((times > 0.75).sum()),
        ),
    )
    for high, low, expected in cases:
        both = counted(high, low, 0.55)
        assert nfe(solver, 10, both, path=PATH, grid=grid) == expected


def test_what_does_not_go_together_is_refused():
    both = {"num": 1, "low": "x", "boundary": 0.9}
    assert rules(Recipe(**both, guidance="4", low_guidance="1")).low.guided is False
    assert rules(Recipe(**both, guidance="4")).low.guided
    for fields, message in (
        ({"low": "x"}, "together: --low=WORKDIR --boundary"),
        ({"boundary": 0.9}, "together: --low=WORKDIR --boundary"),
        ({"low_guidance": "3"}, "together: --low=WORKDIR --boundary"),
        ({**both, "rollout": "full"}, "a rollout and two networks"),
        ({**both, "low_guidance": "autoguidance:scale=2"}, "autoguidance, by a weaker network"),
        ({**both, "guidance": "autoguidance:scale=2"}, "autoguidance, by a weaker network"),
    ):
        with pytest.raises(UserError, match=message):
            rules(Recipe(**fields))
