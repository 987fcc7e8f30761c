"""TPU slices: each of the table is one for every launcher, and what is not one is refused by all."""

import pytest
from launch_tools import dry, launch, load

from dit.parallel.chips import TPUS, name_of, shapes

slices = load("slices")
SHAPES = {chip: [name_of(shape) for shape in shapes(chip)] for chip in TPUS}
IMPOSSIBLE = ["17x17", "0x4", "0x4x4", "-4x4x4", "16", "", "x", "4x4x4x4", "16x32", "3x3", "1x2x2"]
IMPOSSIBLE += ["4x4x6", "32x32x32", "a", "4x4x4 ", "04x4", "2x2x8", "\u0664x4x4"]


def test_every_chip_is_known():
    assert set(slices.FAMILIES) == set(TPUS)


@pytest.mark.parametrize("chip", SHAPES)
def test_a_slice_is_made_of_whole_hosts(chip):
    family = slices.FAMILIES[chip]
    for shape in shapes(chip):
        found = slices.find(chip, name_of(shape))
        assert found.hosts * found.per_host == found.chips
        assert found.per_host == 4 or (found.hosts == 1 and found.per_host in (1, 8))
        if family.runtime:
            assert slices.of_type(f"{family.prefix}-{found.chips * family.cores}") == (chip, found)


@pytest.mark.parametrize("shape", IMPOSSIBLE)
@pytest.mark.parametrize("chip", SHAPES)
def test_an_impossible_slice_is_refused(chip, shape):
    with pytest.raises(ValueError, match=r"has no slice .*; expected "):
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
    assert "has no slice '17x17'; expected" in done.stderr.splitlines()[-1]
