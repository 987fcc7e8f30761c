"""What the package carries and asks for: configs, and a JAX whose inner parts we know."""

import ast
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent
EXPERIMENTAL = {  # no public API does this; a new JAX may move it, so setup.py bounds the version
    "dit/models/kernels/splash.py",
    "dit/parallel/mesh.py",
    "dit/parallel/multihost.py",
    "dit/parallel/topology.py",
    "dit/rng.py",
}


def test_an_installed_package_carries_its_configs(tmp_path):
    commands = ["egg_info", "--egg-base", tmp_path, "build_py", "--build-lib", tmp_path / "lib"]
    setup = [sys.executable, "setup.py", "-q", *map(str, commands)]
    subprocess.run(setup, cwd=ROOT, check=True, capture_output=True, timeout=900)
    packed = {file.name for file in (tmp_path / "lib/dit/configs").glob("*.py")}
    assert packed == {file.name for file in (ROOT / "configs").glob("*.py")}
    show = "from dit import config_file as c; print(c.find('digits')); c.read('imagenet256_dit_s2')"
    done = subprocess.run(
        [sys.executable, "-c", show],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "lib")},
        check=True,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert pathlib.Path(done.stdout.strip()) == tmp_path / "lib/dit/configs/digits.py"


def modules(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", ["dit", "launch", "configs"])
def test_parts_of_jax_without_a_promise_are_used_where_it_is_known(folder):
    for file in (ROOT / folder).rglob("*.py"):
        used = [m for m in modules(file) if re.match(r"jax(lib)?\.(experimental|_src|extend)", m)]
        assert not used or str(file.relative_to(ROOT)) in EXPERIMENTAL, (file, used)


def test_every_jax_that_is_asked_for_has_the_same_bounds():
    asked = re.findall(r'f?"jax(?:\[\w+\])?([{<>=].*?)"', (ROOT / "setup.py").read_text())
    assert set(asked) == {"{JAX}"}
    low, high = re.search(r'JAX = ">=([\d.]+),<([\d.]+)"', (ROOT / "setup.py").read_text()).groups()
    here = jax.__version_info__
    assert tuple(map(int, low.split("."))) <= here < tuple(map(int, high.split(".")))
