"""Every chip and slice is answered or refused in one line, and never by a signal."""

import json
import math
import subprocess
import sys

import pytest

from dit.parallel import chips, gpus, hlo, mesh, peak, topology
from dit.parallel.estimate import collective_seconds
from dit.types import UserError

SEND = """
ENTRY %main (x: bf16[72,8,128]) -> bf16[72,8,128] {
  %x = bf16[72,8,128]{2,1,0} parameter(0)
  %t = token[] after-all()
  %inside = bf16[72,8,128]{2,1,0} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add
  %send = (bf16[72,8,128]{2,1,0}, u32[], token[]) send(%inside, %t), channel_id=2, \
frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.43_0",_xla_megascale_transfer_type="KIND"}
  %recv = (bf16[72,8,128]{2,1,0}, u32[], token[]) recv(%t), channel_id=3, \
frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.43_0",_xla_megascale_transfer_type="KIND"}
  %done = token[] send-done(%send), channel_id=2, is_host_transfer=true
  ROOT %out = (bf16[72,8,128]{2,1,0}, token[]) recv-done(%recv), channel_id=3, is_host_transfer=true
}
"""

ALL = [(chip, shape) for chip in chips.TPUS for shape in chips.shapes(chip)]
IMPOSSIBLE = [
    *("", "0x4", "4", "17x17", "16x8", "4x4x4", "16x16", "4x4x4x4", "2x2x3", "8x4x4", "-1x4x4"),
    *("4x²", "x", "4x", "1e3x4", "24x24x24", "99999999999999999999x4x4", "4x4x4 "),
]


@pytest.mark.parametrize("chip", chips.TPUS)
@pytest.mark.parametrize("shape", IMPOSSIBLE)
def test_what_is_no_slice_is_refused_in_one_line(chip, shape):
    flat = len(chips.TPUS[chip].sides) == 2
    if shape == ("16x16" if flat else "4x4x4"):
        assert chips.slice_shape(chip, shape) in chips.shapes(chip)
        return
    with pytest.raises(UserError, match="expected") as caught:
        topology.find(f"{chip}:{shape}")
    assert "\n" not in str(caught.value)
    assert any(chips.name_of(known) in str(caught.value) for known in chips.shapes(chip))


@pytest.mark.parametrize("chip", chips.TPUS)
def test_slices_of_the_table(chip):
    made = chips.TPUS[chip]
    for shape in chips.shapes(chip):
        assert chips.slice_shape(chip, chips.name_of(shape)) == shape
        assert math.prod(shape) <= made.chips
        assert shape == tuple(sorted(shape)) or shape == (2, 2, 1)
        assert all(n <= most for n, most in zip(shape, made.sides, strict=True))
    sizes = [math.prod(shape) for shape in chips.shapes(chip)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == made.chips


@pytest.mark.parametrize(
    "name", ["v9:2x2", "v5e", "v5litepod-16", "tpu:4x4", "cpu:0", "cpu:²", "cpu:-1", "cuda", ":"]
)
def test_what_is_no_topology_is_refused_in_one_line(name):
    with pytest.raises(UserError) as caught:
        topology.find(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "slices"), [("v5e:4x4", 0), ("v5e:4x4", -2), ("v5e:4x4", 10**6), ("cpu:8", 2), ("", 2)]
)
def test_impossible_numbers_of_slices(name, slices):
    with pytest.raises(UserError, match=f"got {slices} slices"):
        topology.find(name, slices)


@pytest.mark.parametrize("card", ["", ":h100", "8", "8:h1000", "0:h100", "x:h100", "8:nowhere.txt"])
def test_impossible_gpus(card):
    with pytest.raises(UserError, match="a100, h100, h200, b200"):
        topology.find(f"cuda:{card}")


@pytest.mark.parametrize("card", gpus.CARDS)
def test_cards_are_described_and_their_peaks_known(card, monkeypatch):
    text = gpus.target_config(card)
    assert text.count("{") == text.count("}") == 3
    assert f"device_memory_size: {chips.GPUS[card]}" in text
    assert peak.datasheet(gpus.CARDS[card].kind) > 3e14
    monkeypatch.setattr(topology, "PLUGINS", ())
    with pytest.raises(UserError, match="pip install"):
        topology.find(f"cuda:8:{card}")


@pytest.mark.parametrize("kind", peak.DATASHEET)
def test_peaks_of_data_sheets(kind):
    """A name is not taken for a shorter one that it begins with, and may go on."""
    rate = peak.DATASHEET[kind]
    assert peak.datasheet(kind) == peak.datasheet(f"{kind} 80GB HBM3") == rate
    assert 1e13 < rate < 1e16


@pytest.mark.parametrize("chip", chips.TPUS)
def test_the_clock_is_that_of_the_matrix_units(chip):
    """The peak is a whole number of multiply-adds of 128 x 128 in a cycle, to a percent."""
    kinds = {"v4": "TPU v4", "v5e": "TPU v5e", "v5p": "TPU v5p", "v6e": "TPU v6e", "tpu7x": "TPU7x"}
    units = peak.datasheet(kinds[chip]) / chips.TPUS[chip].clock / (2 * 128**2)
    assert abs(units / round(units) - 1) < 0.01


@pytest.mark.slow
def test_the_tpu_compiler_knows_every_slice():
    """In a process of its own, which a signal would kill: one device a chip, but for tpu7x."""
    pytest.importorskip("libtpu")
    code = """if True:
        import json, sys
        from dit.parallel import topology
        for name in json.loads(sys.argv[1]):
            where = topology.find(name)
            assert where.platform == "tpu" and where.peak, name
            print(where.chips, len(where.devices), len({d.id for d in where.devices}))
    """
    names = [f"{chip}:{chips.name_of(shape)}" for chip, shape in ALL]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(names)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for (chip, shape), line in zip(ALL, done.stdout.splitlines(), strict=True):
        found, devices, different = map(int, line.split())
        assert found == math.prod(shape), (chip, shape)
        assert devices == different == found * chips.TPUS[chip].devices


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transfer", "kind", "share"),
    [
        ("ALL_REDUCE", "all-reduce", 1.0),
        ("ALL_GATHER", "all-gather", 1.0),
        ("REDUCE_SCATTER", "reduce-scatter", 0.5),
        ("ALL_TO_ALL", "all-to-all", 0.5),
        ("ONE_TO_ONE", "collective-permute", 1.0),
    ],
)
def test_what_hosts_carry_between_slices_is_counted_and_paid_for(transfer, kind, share):
    """Two slices, whose program is that of one: a send is one communication, a receive is none."""
    pytest.importorskip("libtpu")
    where = topology.find("v5e:2x2", 2)
    over = mesh.make_mesh({"preset": "fsdp"}, where.devices)
    found = hlo.collectives(hlo.read(SEND.replace("KIND", transfer)), over)
    assert {(c.kind, c.axes, c.group) for c in found} == {
        (kind, ("slices",), 2),
        ("all-reduce", ("fsdp",), 4),
    }
    (between,) = (c for c in found if c.axes == ("slices",))
    assert between.overlapped
    size = 72 * 8 * 128 * 2
    assert math.isclose(collective_seconds(between, where), share * size / where.chip.dcn)
