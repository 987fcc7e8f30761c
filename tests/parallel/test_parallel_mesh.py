"""The mesh, the table of axes and the peak rates."""

import logging
import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from dit import config, models
from dit.parallel import mesh as meshes
from dit.parallel import peak
from dit.parallel.rules import RULES, partition, shardings
from dit.types import UserError

DEVICES = jax.devices()[:8]


def make(**sizes):
    return meshes.make_mesh(sizes, DEVICES)


def test_minus_one_takes_the_devices_that_are_left():
    mesh = make(data=-1, fsdp=4)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "context": 1, "tensor": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert sorted(d.id for d in mesh.devices.flat) == sorted(d.id for d in DEVICES)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, "takes 3 devices; there are 8"),
        ({"data": -1, "fsdp": 3}, "a multiple of 3"),
        ({"dta": 8}, "did you mean 'data'"),
        ({"data": -1, "fsdp": -1}, "at most one"),
        ({"data": 0}, "positive"),
        ({"data": 4}, "takes 4 devices; there are 8"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        make(**sizes)


def test_a_batch_is_split_over_data_and_fsdp():
    mesh = make(data=2, fsdp=2, tensor=2)
    x = jax.device_put(np.arange(8.0), meshes.batch_sharding(mesh))
    assert {s.data.shape for s in x.addressable_shards} == {(2,)}
    meshes.check_batch(mesh, 8, accumulate=2)
    with pytest.raises(UserError, match="multiple of 8"):
        meshes.check_batch(mesh, 12, accumulate=2)


def spec(shape, names, **sizes):
    return partition("x", shape, names, make(**sizes), RULES)


def test_each_axis_goes_where_the_table_says():
    names = ("layers", "embed", "mlp")
    assert spec((2, 8, 32), names, fsdp=8) == PartitionSpec(None, "fsdp", None)
    assert spec((2, 8, 32), names, fsdp=2, tensor=4) == PartitionSpec(None, "fsdp", "tensor")
    assert spec((2, 8, 32), names, data=8) == PartitionSpec(None, None, None)


def test_an_axis_that_does_not_divide_passes_the_mesh_axis_on():
    assert spec((2, 12, 32), ("layers", "embed", "mlp"), fsdp=8) == PartitionSpec(
        None, None, "fsdp"
    )


def test_no_mesh_axis_is_used_twice():
    assert spec((8, 8), ("embed", "embed"), fsdp=8) == PartitionSpec("fsdp", None)


def test_what_does_not_divide_is_whole_and_said_once(caplog):
    axes = {"a": ("embed",), "b": ("embed",), "c": ("embed",)}
    abstract = {
        k: jax.ShapeDtypeStruct((n,), np.float32) for k, n in zip("abc", (7, 16, 9), strict=True)
    }
    with caplog.at_level(logging.WARNING):
        tree = shardings(abstract, axes, make(fsdp=8))
    assert [t.is_fully_replicated for t in tree.values()] == [True, False, True]
    assert len(caplog.records) == 1
    assert "2 arrays" in caplog.text


def test_unknown_and_missing_names_are_refused():
    with pytest.raises(UserError, match="did you mean 'embed'"):
        spec((8,), ("embd",), fsdp=8)
    with pytest.raises(UserError, match="one a dimension"):
        spec((8, 8), ("embed",), fsdp=8)


@pytest.mark.parametrize("block", config.names("models.blocks"))
def test_the_table_knows_every_axis_of_every_model(block):
    context = 8 if block == "cross_attention" else None
    model = config.resolve(
        "models", "dit", block=block, depth=2, width=32, heads=4, patch=2, in_channels=1,
        num_classes=10, context_dim=context,
    )  # fmt: skip
    shape = (1, 8, 8, 1)
    abstract = jax.eval_shape(lambda key: models.init(model, key, shape), jax.random.key(0))
    tree = shardings(abstract, models.logical_axes(model, shape), make(fsdp=4, tensor=2))
    big = [
        s.is_fully_replicated
        for s, x in zip(jax.tree.leaves(tree), jax.tree.leaves(abstract), strict=True)
        if x.size >= 1024
    ]
    assert big
    assert not any(big)


@pytest.mark.parametrize(
    ("kind", "peak_flops"),
    [("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("NVIDIA H100 80GB HBM3", 989e12), ("cpu", None)],
)
def test_the_data_sheet_is_read_by_the_device_kind(kind, peak_flops):
    assert peak.datasheet(kind) == peak_flops


def test_a_cpu_is_measured():
    start = time.perf_counter()
    measured = peak.measure_matmul(jax.devices()[0], size=256)
    assert measured >= 2 * 256**3 / (time.perf_counter() - start)
    assert measured < 1e14
