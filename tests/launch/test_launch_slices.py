"""The table of TPU slices: each is one for every launcher, and what is not one is refused by all."""

import math

import pytest
from launch_tools import dry, launch, load

from dit.parallel.flags import TPUS

slices = load("slices")
SHAPES = {
    "v4": ["2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "8x4x4", "4x4x8", "16x16x16", "12x16x16"],
    "v5e": ["1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"],
    "v5p": ["2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "8x16x16", "16x16x24"],
    "v6e": ["1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"],
    "tpu7x": ["1x1x1", "2x2x1", "2x2x2", "4x4x4", "4x8x8", "16x16x32"],
}
IMPOSSIBLE = ["17x17", "0x4", "0x4x4", "-4x4x4", "16", "", "x", "4x4x4x4", "16x32", "3x3", "1x2x2"]
IMPOSSIBLE += ["4x4x6", "32x32x32", "a", "4x4x4 ", "04x4", "2x2x8", "\u0664x4x4"]
EACH = [(chip, shape) for chip, shapes in SHAPES.items() for shape in shapes]


def test_every_chip_is_in_the_table():
    assert set(slices.FAMILIES) == set(TPUS) == set(SHAPES)


@pytest.mark.parametrize(("chip", "shape"), EACH)
def test_a_slice_is_made_of_whole_hosts(chip, shape):
    found = slices.find(chip, shape)
    assert found.chips == math.prod(int(n) for n in shape.split("x"))
    assert found.hosts * found.per_host == found.chips
    assert found.per_host in (1, 4, 8)
    assert found.per_host == 4 or found.hosts == 1
    family = slices.FAMILIES[chip]
    if family.runtime:
        assert slices.of_type(f"{family.prefix}-{found.chips * family.cores}") == (chip, found)


@pytest.mark.parametrize("shape", IMPOSSIBLE)
@pytest.mark.parametrize("chip", SHAPES)
def test_an_impossible_slice_is_refused(chip, shape):
    with pytest.raises(ValueError, match=r"got the .* expected "):
        slices.find(chip, shape)


@pytest.mark.parametrize("chip", SHAPES)
def test_a_chip_refuses_the_shapes_of_others(chip):
    flat = {chip for chip in SHAPES if "x16" in SHAPES[chip][-1] and SHAPES[chip][0] == "1x1"}
    for other, shapes in SHAPES.items():
        if (other in flat) != (chip in flat):
            for shape in shapes:
                with pytest.raises(ValueError, match="expected"):
                    slices.find(chip, shape)


@pytest.mark.parametrize(
    ("chip", "shape", "hint"), [("v5e", "4x2", "2x4"), ("v5p", "8x4x4", "4x4x8")]
)
def test_a_turned_slice_is_named(chip, shape, hint):
    with pytest.raises(ValueError, match=f"the shorter sides first: {hint}$"):
        slices.find(chip, shape)


TYPES = ["v5litepod-17", "v5litepod-512", "v5litepod-0", "v5litepod", "v5p-4", "v5p-130", "v5p-24"]
TYPES += ["v5p--8", "v5p-128 ", "v5p-99999", "v4-x", "v6e", "v5e-16", "", "tpu7x-8"]


@pytest.mark.parametrize("name", TYPES)
def test_an_impossible_type_is_refused(name):
    with pytest.raises(ValueError, match=r"got the type|no TPU VM has"):
        slices.of_type(name)


@pytest.mark.parametrize("chip", SHAPES)
@pytest.mark.parametrize("way", ["run", "xpk"])
def test_gke_takes_the_first_and_the_last_and_nothing_else(chip, way):
    args = [way, "--name=dit", "--image=i", "--cluster=c", f"--tpu={chip}"]
    for shape in (SHAPES[chip][0], SHAPES[chip][-1]):
        assert shape in dry("gke.py", *args, f"--topology={shape}", "--", "true")
    done = launch("gke.py", *args, "--topology=17x17", "--", "true")
    assert done.returncode == 2
    assert "expected" in done.stderr.splitlines()[-1]
