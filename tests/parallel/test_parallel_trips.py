"""How often loops run, read from the text of programs that XLA has compiled."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from dit.parallel import hlo

X = jax.ShapeDtypeStruct((8, 8), jnp.float32)
KNOWN = re.compile(r'"known_trip_count":\{"n":"\d+"\},?')


def product(x):
    return jnp.tanh(x @ x)


def scan(x):
    return lax.scan(lambda c, _: (product(c), None), x, length=5)[0]


def from_three(x):
    return lax.fori_loop(3, 17, lambda i, c: product(c), x)


def nested(x):
    def outer(c, _):
        inner = lax.scan(lambda d, _: (product(d), None), c, length=3)[0]
        return lax.fori_loop(0, 2, lambda i, d: product(d), product(inner)), None

    return lax.scan(outer, x, length=4)[0]


def several_constants(x):
    """Sixty trips by the counter, unless the numbers grow beyond bounds on the way."""

    def going(carry):
        i, c = carry
        return (i < 60) & (c[0, 0] < 1000) & (c[0, 1] > -7)

    return lax.while_loop(going, lambda carry: (carry[0] + 1, product(carry[1])), (0, x))[1]


def by_fours(x):
    def step(carry):
        return carry[0] + 4, product(carry[1])

    return lax.while_loop(lambda carry: carry[0] <= 30, step, (2, x))[1]


def downwards(x):
    def step(carry):
        return carry[0] - 2, product(carry[1])

    return lax.while_loop(lambda carry: carry[0] > 1, step, (12, x))[1]


def limit_carried(x):
    """The limit is handed from trip to trip, as compilers leave it when they hoist constants."""

    def step(carry):
        i, limit, c = carry
        return i + 1, lax.optimization_barrier(limit), product(c)

    return lax.while_loop(lambda carry: carry[0] < carry[1], step, (0, 9, x))[2]


PROGRAMS = {
    scan: 5,
    from_three: 14,
    nested: 4 * (3 + 1 + 2),
    several_constants: 60,
    by_fours: 8,
    downwards: 6,
    limit_carried: 9,
}


def products(text):
    """How often a matrix product runs, by the loops around it."""
    return sum(times for line, times, _ in hlo.read(text) if is_product(line))


def is_product(line):
    return line.opcode in ("dot", "convolution") or "matmul" in line.rest.partition("metadata")[0]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_a_loop_counts_as_often_as_it_runs(program):
    text = jax.jit(program).lower(X).compile().as_text()
    assert " while(" in text
    bare = KNOWN.sub("", text)
    assert "known_trip_count" not in bare
    assert (products(text), products(bare)) == (PROGRAMS[program], PROGRAMS[program])


def test_what_cannot_be_told_counts_once():
    def until_small(x):
        return lax.while_loop(lambda c: c[0, 0] > 3, product, x)

    assert products(jax.jit(until_small).lower(X).compile().as_text()) == 1


def test_a_loop_that_never_runs_counts_for_nothing():
    text = "\n".join(
        [
            "%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {",
            "  %p = (s32[], f32[8]) parameter(0)",
            "  %i = s32[] get-tuple-element(%p), index=0",
            "  %x = f32[8] get-tuple-element(%p), index=1",
            "  %one = s32[] constant(1)",
            "  %j = s32[] add(%i, %one)",
            "  %d = f32[8] dot(%x, %x)",
            "  ROOT %t = (s32[], f32[8]) tuple(%j, %d)",
            "}",
            "%cond (q: (s32[], f32[8])) -> pred[] {",
            "  %q = (s32[], f32[8]) parameter(0)",
            "  %k = s32[] get-tuple-element(%q), index=0",
            "  %n = s32[] constant(7)",
            "  ROOT %c = pred[] compare(%n, %k), direction=GT",
            "}",
            "ENTRY %main (x: f32[8]) -> f32[8] {",
            "  %x = f32[8] parameter(0)",
            "  %start = s32[] constant(START)",
            "  %t = (s32[], f32[8]) tuple(%start, %x)",
            "  ROOT %w = (s32[], f32[8]) while(%t), condition=%cond, body=%body",
            "}",
        ]
    )
    assert [products(text.replace("START", n)) for n in ("0", "5", "9")] == [7, 2, 0]


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_the_tpu_compiler_writes_no_counts_and_they_are_found(program):
    pytest.importorskip("libtpu")
    from dit.parallel import topology

    (device, *_) = topology.find("v5e:2x2").devices
    where = jax.sharding.SingleDeviceSharding(device)
    with jax.default_device(device):
        traced = jax.jit(program, in_shardings=where, out_shardings=where).trace(X)
        text = traced.lower().compile().as_text()
    assert "known_trip_count" not in text
    assert products(text) == PROGRAMS[program]
