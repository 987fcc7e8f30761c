"""Shipped programs equal the plain ``jax.jit`` of the same functions, on lesser CPUs too.

A compiler option may change speed, never a number beyond rounding. One that did made the main job end
in noise on every CPU without AVX-512, with all other tests passing.
"""

import os
import pathlib
import platform
import subprocess
import sys

import numpy as np
import pytest
from shrunken import distinct

from dit.parallel import compiler

WORKER = pathlib.Path(__file__).parent / "programs_worker.py"
ROOT = pathlib.Path(__file__).parents[2]
EVERYWHERE = ("digits",)  # in the quick suite
CPUINFO = pathlib.Path("/proc/cpuinfo")
# As the CPU is, and with less: AVX2 is no less where there is no AVX-512.
LESS = ("AVX2",) if CPUINFO.exists() and "avx512f" in CPUINFO.read_text() else ()
RESTRICTED = (*LESS, "SSE4_2") if platform.machine() == "x86_64" else ()
# Of each kind that is trained on CPUs.
KINDS = ("digits_unet", "emoji_autoencoder", "mixed_packed", "shapes_text", "world_forcing")
REST = 4  # parts of all other configs, which take long
TOLERANCE = 2e-4  # of the norm of an array


def run(out, isa="", configs=(), cache=None):
    """What the worker computed, as ``{config|kind|leaf: array}``."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    env["XLA_FLAGS"] = f"--xla_cpu_max_isa={isa}" if isa else ""
    env["ONEDNN_MAX_CPU_ISA"] = {"SSE4_2": "SSE41"}.get(isa, isa or "ALL")
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    env.pop("JAX_DISABLE_MOST_OPTIMIZATIONS")  # as users run them
    if cache is not None:
        env |= {"JAX_COMPILATION_CACHE_DIR": str(cache)}
        env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, str(WORKER), str(out), *configs]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(out))


def assert_close(found, expected, what):
    """Equal to rounding: in the norm of each array, relative to it."""
    assert found.keys() == expected.keys()
    for leaf, x in found.items():
        y = np.float64(expected[leaf])
        scale = max(np.linalg.norm(y), 1e-6 * np.sqrt(y.size))
        off = np.linalg.norm(np.float64(x) - y) / scale
        assert off < TOLERANCE, f"{what} {leaf}: off by {off:.2g} of its norm"


def kinds(results):
    """``(shipped, plain)`` of what a worker found."""
    return [
        {k.replace(f"|{kind}|", "|"): v for k, v in results.items() if f"|{kind}|" in k}
        for kind in ("shipped", "plain")
    ]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Of the plain programs, compiled for the CPU as it is."""
    found = run(tmp_path_factory.mktemp("native") / "all.npz", configs=EVERYWHERE)
    return kinds(found)


@pytest.mark.parametrize(
    "isa", [pytest.param(isa, marks=[pytest.mark.slow] * bool(isa)) for isa in ("", *RESTRICTED)]
)
def test_the_main_jobs_programs_are_the_plain_ones_on_every_instruction_set(
    isa, reference, tmp_path
):
    shipped, plain = (
        reference if not isa else kinds(run(tmp_path / "found.npz", isa, configs=EVERYWHERE))
    )
    assert_close(shipped, plain, f"{isa or 'native'}, shipped and plain")
    assert_close(plain, reference[1], f"{isa or 'native'} and native")


def others():
    """The configs that are neither the main job's nor one of ``KINDS``."""
    return [file.stem for file in distinct() if file.stem not in (*EVERYWHERE, *KINDS)]


PARTS = [(KINDS[0::2], 0), (KINDS[1::2], 1)]
PARTS += [pytest.param(None, i, marks=pytest.mark.exhaustive) for i in range(REST)]


@pytest.mark.slow
@pytest.mark.parametrize(("names", "part"), PARTS)
def test_every_configs_programs_are_the_plain_ones_with_the_cache_cold_and_warm(
    names, part, tmp_path
):
    """Each on one of the lesser instruction sets, in turn; the main job's are above, on all.

    One of each part is run again from the cache, which does not know what it keeps.
    """
    sets = RESTRICTED or ("",)
    isa, names = sets[part % len(sets)], names or others()[part::REST]
    cold = run(tmp_path / "cold.npz", isa, names, tmp_path / "cache")
    assert {name.split("|")[0] for name in cold} == set(names)
    assert_close(*kinds(cold), f"{isa or 'native'}, shipped and plain")
    warm = run(tmp_path / "warm.npz", isa, names[:1], tmp_path / "cache")
    assert {name.split("|")[0] for name in warm} == set(names[:1])
    for leaf, x in warm.items():
        np.testing.assert_array_equal(x, cold[leaf], err_msg=leaf)


def test_a_jaxlib_without_the_options_and_other_platforms_get_none(monkeypatch):
    assert compiler.options("tpu") is None
    assert compiler.options("cpu") == compiler.CPU
    monkeypatch.setattr(compiler, "CPU", {"xla_cpu_no_such_option": True})
    assert compiler.options("cpu") is None
