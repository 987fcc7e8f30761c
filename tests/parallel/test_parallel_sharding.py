"""Every way to split a model gives the numbers of one device, and moves only what it must."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dit import config, models
from dit.experiment import build as build_experiment
from dit.parallel import hlo, hlo_text
from dit.parallel.mesh import batch_sharding, make_mesh
from dit.parallel.rules import in_force, shardings
from dit.training.program import program
from dit.types import Cond

DEVICES = jax.devices()[:8]
SHAPE = (2, 8, 10, 4)
TOKENS, WIDTH, BATCH = 40, 48, 8  # no weight has an axis of 40
MESHES = {
    "dp": ({"preset": "dp"}, {}),
    "fsdp": ({"preset": "fsdp"}, {}),
    "hsdp": ({"preset": "hsdp"}, {"block": "modern"}),
    "fsdp+tp": ({"preset": "fsdp+tp"}, {}),
    "tp that does not divide the heads": ({"fsdp": 2, "tensor": 4}, {"heads": 3}),
    "fsdp+context": ({"preset": "fsdp+context"}, {}),
    "hsdp+context": ({"preset": "hsdp+context"}, {}),
    "ulysses": ({"fsdp": 2, "context": 4}, {}),
    "ulysses, masked": ({"fsdp": 2, "context": 4}, {"frame_causal": True}),
    "ulysses, heads that do not divide": ({"fsdp": 2, "context": 4}, {"heads": 6}),
    "ring": ({"fsdp": 2, "context": 4}, {"attention": "ring"}),
    "ring, masked": ({"context": 8}, {"heads": 4, "frame_causal": True}),
    "ring and tensor": ({"fsdp": 2, "context": 2, "tensor": 2}, {"attention": "ring"}),
}

LONG = (
    "hsdp",
    "hsdp+context",
    "tp that does not divide the heads",
    "ulysses, masked",
    "ring, masked",
)


def build(**options):
    sizes = {"depth": 1, "width": WIDTH, "heads": 4, "patch": 2, "in_channels": 4}
    return config.resolve("models", "dit", num_classes=10, **{**sizes, **options})


def loss_of(model):
    apply = models.apply_fn(model)

    def loss(params, x, t, label):
        return jnp.square(apply(params, x, t, Cond(label)) - x).mean()

    return jax.value_and_grad(loss)


@functools.cache
def case(options):
    """Parameters that are nowhere zero, data, and the loss and gradient on one device."""
    model = build(**dict(options))
    params = models.init(model, jax.random.key(0), SHAPE)
    noise = jax.random.normal(jax.random.key(1), (10**6,))
    params = jax.tree.map(lambda p: p + 0.1 * noise[: p.size].reshape(p.shape), params)
    data = (
        jax.random.normal(jax.random.key(2), (BATCH, *SHAPE)),
        jnp.linspace(0.1, 0.9, BATCH),
        jnp.arange(BATCH),
    )
    plain = {k: v for k, v in options if k != "attention"}
    return model, params, data, jax.jit(loss_of(build(**plain)))(params, *data)


@pytest.mark.first
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in MESHES]
)
@pytest.mark.filterwarnings("ignore:.*does not divide")
def test_the_numbers_of_one_device(name):
    sizes, options = MESHES[name]
    model, params, data, (want, want_grads) = case(tuple(options.items()))
    mesh = make_mesh(sizes, DEVICES)
    where = shardings(params, models.logical_axes(model, SHAPE), mesh)

    def step(params, *data):
        with in_force(mesh):
            return loss_of(model)(params, *data)

    rows = batch_sharding(mesh)
    jitted = jax.jit(
        step,
        in_shardings=(where, rows, rows, rows),
        out_shardings=(NamedSharding(mesh, PartitionSpec()), where),
    )
    compiled = jitted.lower(params, *data).compile()
    got, grads = compiled(jax.device_put(params, where), *(jax.device_put(x, rows) for x in data))
    assert abs(float(got) - float(want)) <= 1e-5 * float(want)
    for a, b in zip(
        jax.tree.leaves(jax.device_get(grads)), jax.tree.leaves(want_grads), strict=True
    ):
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b)

    found = hlo.collectives(hlo.read(compiled.as_text()), mesh)
    gathered = [c for c in found if c.kind == "all-gather"]
    if "not divide" not in name:
        of_tokens = [c.shape for c in gathered if str(TOKENS) in re.findall(r"\d+", c.shape)]
        assert not of_tokens
    if "fsdp" in name:
        assert gathered
        assert all("other" not in c.axes for c in found)
    if name.startswith("ulysses"):
        assert any(c.kind == "all-to-all" and c.axes == ("context",) for c in found)
    if name.startswith("ring"):
        turns = [c for c in found if c.kind == "collective-permute" and "context" in c.axes]
        assert sum(c.times for c in turns) >= mesh.shape["context"]
        assert not [c for c in found if c.kind == "all-to-all" and "attention" in c.name]


@pytest.mark.parametrize("preset", ["fsdp", "hsdp", "fsdp+tp", "fsdp+context", "hsdp+context"])
def test_the_state_of_training_is_split_from_birth(preset):
    experiment = build_experiment(
        {
            "steps": 2,
            "batch_size": 8,
            "data": {"name": "noise", "shape": SHAPE, "num_classes": 10},
            "codec": {"name": "latent", "scale": 1.0},
            "model": {"name": "dit", "depth": 2, "width": WIDTH, "heads": 4, "patch": 2},
            "path": {"name": "linear"},
            "prediction": {"name": "velocity"},
            "mesh": {"preset": preset},
            "ema": {"half_lives": (10.0,)},
        }
    )
    batches = experiment.batches()
    run = program(experiment, batches, DEVICES)
    batches.close()
    create = jax.jit(run.create, out_shardings=run.shardings).lower(jax.random.key(0)).compile()
    parts = run.mesh.size // run.mesh.shape["data"]
    if preset == "fsdp+tp":  # not every parameter has heads or a hidden size
        parts = run.mesh.shape["fsdp"]
    total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(run.abstract))
    memory = create.memory_analysis()
    assert memory.output_size_in_bytes <= 1.2 * total / parts + 4096
    for where, array in zip(
        jax.tree.leaves(run.shardings), jax.tree.leaves(run.abstract), strict=True
    ):
        if array.size >= WIDTH * WIDTH:
            assert math.prod(where.shard_shape(array.shape)) <= array.size // parts, array.shape


def test_loops_count_as_often_as_they_run():
    mesh = make_mesh({"data": 8}, DEVICES)
    rows = batch_sharding(mesh)

    def loop(x):
        def body(x, _):
            total = jax.lax.with_sharding_constraint(x.sum(0), NamedSharding(mesh, PartitionSpec()))
            return x + total[None], None

        return jax.lax.scan(body, x, length=5)[0]

    x = jax.ShapeDtypeStruct((8, 256), jnp.float32)
    text = jax.jit(loop, in_shardings=rows, out_shardings=rows).lower(x).compile().as_text()
    (found,) = hlo.collectives(hlo.read(text), mesh)
    assert (found.kind, found.times, found.bytes) == ("all-reduce", 5, 1024)
    assert (found.axes, found.group, found.total) == (("data",), 8, 5120)


MERGED = """
HloModule merged

%all-reduce-scatter.1 (a: f32[8,4]) -> f32[1,4] {
  %all-reduce.1 = f32[8,4] all-reduce(%a), channel_id=1, replica_groups=[1,8]<=[8]
}

%all-reduce-scatter.2 (b: f32[8,4]) -> f32[1,4] {
  %all-reduce.2 = f32[8,4] all-reduce(%b), channel_id=1, replica_groups=[1,8]<=[8]
}

%start.1 (c: f32[1,4]) -> f32[8,4] {
  %all-gather.1 = f32[8,4] all-gather(%c), channel_id=2, replica_groups=[1,8]<=[8], dimensions={0}
}

%done.1 (d: f32[1,4]) -> f32[8,4] {
  %all-gather.2 = f32[8,4] all-gather(%d), channel_id=2, replica_groups=[1,8]<=[8], dimensions={0}
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %fusion.1 = f32[1,4] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %fusion.2 = f32[1,4] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.2
  %fusion.3 = f32[8,4] fusion(%fusion.1), kind=kCustom, calls=%start.1
  %fusion.4 = f32[8,4] fusion(%fusion.2), kind=kCustom, calls=%done.1
}
"""


def test_merged_reductions_that_share_a_channel_count_each_and_parts_of_a_gather_once():
    found = hlo.collectives(hlo.read(MERGED), make_mesh({"data": 8}, DEVICES))
    assert [(c.kind, c.overlapped) for c in found] == [
        ("reduce-scatter", False),
        ("reduce-scatter", False),
        ("all-gather", True),
    ]
    assert all(c.total == 128 and c.axes == ("data",) for c in found)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("replica_groups={{0,2},{1,3}}, x", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", [[0, 1, 2, 3]]),
    ],
)
def test_groups_are_read_in_all_their_spellings(text, rows):
    assert hlo.replica_groups(text, 4).tolist() == rows


def test_arrays_in_a_shape():
    assert hlo.shape_bytes("(bf16[8,256]{1,0:T(8,128)(2,1)}, s32[], pred[3])") == [4096, 4, 3]


def test_the_compilers_cycles_count_loops_and_not_the_inside_of_fusions():
    text = "\n".join(
        [
            "%inner (p: f32[8]) -> f32[8] {",
            '  %a = f32[8] add(%p, %p), backend_config={"estimated_cycles":"1000"}',
            "}",
            "%body (p: f32[8]) -> f32[8] {",
            '  %f = f32[8] fusion(%p), calls=%inner, backend_config={"estimated_cycles":"10"}',
            "}",
            "%cond (p: (s32[], f32[8])) -> pred[] {",
            "  %p = (s32[], f32[8]) parameter(0)",
            "  %i = s32[] get-tuple-element(%p), index=0",
            "  %n = s32[] constant(7)",
            "  ROOT %c = pred[] compare(%i, %n), direction=LT",
            "}",
            "ENTRY %main (p: f32[8]) -> f32[8] {",
            "  %w = f32[8] while(%p), condition=%cond, body=%body",
            '  %g = f32[8] fusion(%w), calls=%inner, backend_config={"estimated_cycles":"3"}',
            "}",
        ]
    )
    assert hlo.cycles(hlo.read(text)) == 73


@pytest.mark.parametrize(
    ("shape", "opcode", "received"),
    [
        ("f32[8,4]{1,0}", "all-gather", 128),
        ("(f32[1,4]{1,0}, f32[8,4]{1,0})", "all-gather-start", 128),
        ("(f32[4]{0}, f32[4]{0}, u32[]{:S(2)}, u32[]{:S(2)})", "collective-permute-start", 16),
        ("((f32[1,4], bf16[2]), (f32[8,4], /*index=1*/bf16[16]))", "all-gather-start", 160),
        ("((f32[8,4]{1,0}, f32[8]), (f32[1,4]{1,0}, f32[1]))", "reduce-scatter-start", 20),
        ("((f32[20]{0}), f32[20]{0})", "all-reduce-start", 80),
        ("(f32[20]{0}, f32[4]{0})", "all-reduce-start", 96),
        ("f32[20]{0}", "all-reduce-start", 80),
    ],
)
def test_a_start_shows_operands_too_and_only_what_is_received_counts(shape, opcode, received):
    """As XLA prints them for TPUs and, several at once, for GPUs."""
    assert hlo_text.received_bytes(hlo_text.Instruction("x", shape, opcode, "")) == received
