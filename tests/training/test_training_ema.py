"""Averages against their closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit.training import ema as averages
from dit.types import UserError


def run(ema, steps, start=1.0, value=0.0, dtype=jnp.float32):
    params = {"w": jnp.full(3, value, dtype)}
    average = {name: {"w": jnp.full(3, start)} for name in ema.names}
    update = jax.jit(lambda a, s: averages.update(ema, a, params, s))
    for step in range(steps):
        average = update(average, jnp.int32(step))
    return {name: float(tree["w"][0]) for name, tree in average.items()}


def test_after_a_half_life_half_is_left():
    ema = averages.build(half_lives=(10.0, 20.0, 6931.0))
    assert ema.names == ("ema_10", "ema_20", "ema_6931")
    left = run(ema, 20)
    np.testing.assert_allclose(list(left.values()), [0.25, 0.5, 0.5 ** (20 / 6931)], rtol=1e-5)


def test_a_decay_of_four_nines_is_a_half_life_of_6931_steps():
    rate = averages.rate(6931.0, None, jnp.int32(0))
    np.testing.assert_allclose(float(rate), 1e-4, rtol=1e-3)
    np.testing.assert_allclose(float(rate), -np.expm1(-np.log(2) / 6931), rtol=1e-6)


def test_the_ramp_forgets_the_start_at_once():
    ema = averages.build(half_lives=(1000.0,), rampup=0.05)
    assert run(ema, 1)["ema_1000"] == 0.0  # the first update is taken whole
    at = [float(averages.rate(1000.0, 0.05, jnp.int32(s))) for s in (100, 10**6)]
    np.testing.assert_allclose(at, [1 - 0.5 ** (1 / 5), 1 - 0.5 ** (1 / 1000)], rtol=1e-4)


def test_averages_are_wide():
    ema = averages.build(half_lives=(10.0,))
    start = averages.init(ema, {"w": jnp.ones(3, jnp.bfloat16)})
    assert start["ema_10"]["w"].dtype == jnp.float32
    assert run(ema, 1, dtype=jnp.bfloat16)["ema_10"] == pytest.approx(0.5**0.1, rel=1e-6)


@pytest.mark.parametrize(
    "kwargs", [{"half_lives": (0.0,)}, {"half_lives": (5.0, 5.0)}, {"rampup": -1.0}]
)
def test_bad_half_lives_are_refused(kwargs):
    with pytest.raises(UserError, match="EMA"):
        averages.build(**kwargs)
