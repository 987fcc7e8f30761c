"""The shell scripts, and the table of flags, as the compilers take them."""

import os
import pathlib
import shlex
import subprocess
import sys

import pytest
from launch_tools import HANGS, LAUNCH, NASTY, launch, load, shellcheck

from dit.parallel import flags as shared

flags = load("flags")


@pytest.mark.parametrize("file", sorted(LAUNCH.glob("*.sh")), ids=lambda f: f.name)
def test_scripts_pass_shellcheck(file):
    shellcheck(file.read_text())


def exported(lines, env):
    """The environment after these lines, with ``env`` before them; and the limit on open files."""
    script = "\n".join([*lines, 'env -0; echo "open files $(ulimit -n)"'])
    env = {"PATH": os.environ["PATH"], "HOME": "/h", **env}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, check=True)
    *pairs, files = done.stdout.decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs), files.strip()


@pytest.mark.parametrize("chip", flags.CHIPS)
def test_the_flags_are_shell_that_sets_them(chip):
    text = launch("flags.py", chip, "--cache=/tmp/a b").stdout
    shellcheck(text)
    found, files = exported([text], {})
    assert found.items() >= flags.environment(chip).items()
    assert found["JAX_COMPILATION_CACHE_DIR"] == "/tmp/a b"
    hard = subprocess.run(["bash", "-c", "ulimit -Hn"], capture_output=True, text=True, check=True)
    assert files == f"open files {hard.stdout.strip()}"
    usual, _ = exported(flags.shell(chip), {})
    assert usual["JAX_COMPILATION_CACHE_DIR"] == "/h/.cache/dit-compiled"


@pytest.mark.parametrize("chip", flags.CHIPS)
@pytest.mark.parametrize("name", ["XLA_FLAGS", "LIBTPU_INIT_ARGS"])
def test_flags_that_are_there_are_kept_and_come_last(chip, name):
    """Of a flag that is given twice, the compilers take the last."""
    ours = flags.environment(chip).get(name, "").split()
    found, _ = exported(flags.shell(chip, env=[(name, "--b=1 --c='2'")]), {name: "--a=1 --b=0"})
    assert found[name].split() == [*ours, "--a=1", "--b=0", "--b=1", "--c='2'"]
    found, _ = exported(flags.shell(chip, env=[(name, "--b")]), {})
    assert found[name].split() == [*ours, "--b"]
    found, _ = exported(flags.shell(chip), {name: "--a"})
    assert found[name].split() == [*ours, "--a"]


@pytest.mark.parametrize("chip", flags.CHIPS)
def test_other_variables_that_are_there_stay(chip):
    names = {*flags.environment(chip), "JAX_COMPILATION_CACHE_DIR"} - {*flags.MERGED}
    found, _ = exported(flags.shell(chip), dict.fromkeys(names, "mine"))
    changed = {name for name in names if found[name] != "mine"}
    assert changed == {"DIT_STOPPED_STATUS"}  # which the launchers rely on
    found, _ = exported(flags.shell(chip, env=[(name, "said") for name in names]), {})
    assert {found[name] for name in names} == {"said"}


def test_xla_takes_the_last_of_two_flags():
    count = "--xla_force_host_platform_device_count="
    env = {**os.environ, "XLA_FLAGS": f"{count}3 {count}2", "JAX_PLATFORMS": "cpu"}
    code = "import jax; print(jax.device_count())"
    assert subprocess.check_output([sys.executable, "-c", code], env=env, text=True).strip() == "2"


@pytest.mark.parametrize("word", NASTY.values(), ids=NASTY)
def test_a_word_is_quoted_on_one_line(word):
    common = load("common")
    assert len(common.quote(word).splitlines()) == 1
    done = subprocess.check_output(["bash", "-c", f"printf '%s\\0' {common.join([word, 'x'])}"])
    assert done.decode() == f"{word}\0x\0"


def test_xla_knows_the_gpu_flags():
    env = {**os.environ, "XLA_FLAGS": flags.environment("gpu")["XLA_FLAGS"], "JAX_PLATFORMS": "cpu"}
    code = "import jax; jax.devices()"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


COMPILE = """
import sys, jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
devices = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1]).devices
mesh = Mesh(devices, "x")
split, whole = (NamedSharding(mesh, PartitionSpec(axis)) for axis in ("x", None))
x = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16)
jax.jit(jnp.matmul, in_shardings=(split, split), out_shardings=split).lower(x, x).compile()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chip", "topology"),
    [
        ("v4", "v4:2x2x4"),
        ("v5e", "v5e:4x4"),
        ("v5p", "v5p:2x2x4"),
        ("v6e", "v6e:4x4"),
        ("tpu7x", "tpu7x:2x2x2"),
    ],
)
def test_the_tpu_compiler_takes_the_flags(chip, topology):
    pytest.importorskip("libtpu")
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "LIBTPU_INIT_ARGS": flags.environment(chip)["LIBTPU_INIT_ARGS"],
    }
    command = [sys.executable, "-c", COMPILE, topology]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def worker(folder, number, script):
    command = ["bash", str(LAUNCH / "worker.sh"), str(folder), "bash", "-c", script]
    env = {**os.environ, "SLURM_PROCID": str(number)}
    return subprocess.Popen(command, env=env)


def first_failure(folder):
    command = ["bash", str(LAUNCH / "first_failure.sh"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_worker_leaves_its_log_and_its_end(tmp_path):
    assert worker(tmp_path, 3, "echo out; echo err >&2; exit 5").wait() == 5
    assert (tmp_path / "3.log").read_text() == "out\nerr\n"
    when, status, host = (tmp_path / "3.status").read_text().split()
    assert float(when) > 1e9
    assert (status, host) == ("5", os.uname().nodename)
    assert not (tmp_path / "3.pid").exists()


def test_a_worker_waits_for_its_command_to_save(tmp_path):
    script = f"trap 'sleep 1; echo saved; exit 75' TERM; touch {tmp_path}/up; while :; do :; done"
    process = worker(tmp_path, 0, script)
    while not (tmp_path / "up").exists():
        assert process.poll() is None
    inner = int((tmp_path / "0.pid").read_text())
    process.terminate()  # as a scheduler does, to both
    os.kill(inner, 15)
    assert process.wait(timeout=HANGS) == 75
    assert "saved" in (tmp_path / "0.log").read_text()


def test_the_first_to_fail_is_found_among_those_that_followed(tmp_path):
    assert "no worker" in first_failure(tmp_path)
    for number, status in ((4, 0), (2, 75), (9, 3), (1, 1)):
        worker(tmp_path, number, f"echo this is {number}; exit {status}").wait()
    text = first_failure(tmp_path)
    assert text.startswith("worker 9 on ")
    assert "with status 3" in text
    assert text.endswith("this is 9\n")


def test_launchers_need_nothing_but_the_standard_library():
    done = subprocess.run(
        [sys.executable, "-S", "-m", "flags", "v5e"],
        capture_output=True,
        text=True,
        check=False,
        cwd=LAUNCH,
    )
    assert "latency_hiding" in done.stdout, done.stderr
    for file in pathlib.Path(LAUNCH).glob("*.py"):
        code = f"import runpy; runpy.run_path({str(file)!r})"
        done = subprocess.run([sys.executable, "-S", "-c", code], cwd=LAUNCH, capture_output=True)
        assert done.returncode == 0, done.stderr
    assert shlex.split(launch("flags.py", "cpu").stdout)


def test_preflight_compiles_with_what_is_launched():
    for chip in shared.TPUS:
        args = flags.environment(chip)["LIBTPU_INIT_ARGS"]
        assert args == shared.variables(chip)["LIBTPU_INIT_ARGS"]
        assert ("collective_fusion" in args) == (chip == "v5e")


LAUNCHERS = {
    "local.py": ["--", "true"],
    "slurm.py": ["--", "true"],
    "tpu_vm.py": ["create", "--name=dit", "--zone=z", "--type=v4-8"],
    "gke.py": ["run", "--name=dit", "--image=i", "--tpu=v5e", "--topology=4x4", "--", "true"],
}


@pytest.mark.parametrize(("script", "args"), LAUNCHERS.items(), ids=LAUNCHERS)
@pytest.mark.parametrize("name", load("common").OURS)
def test_what_a_launcher_relies_on_cannot_be_set(script, args, name):
    verb = [word for word in args[:1] if word != "--"]
    done = launch(script, *verb, f"--env={name}=1", *args[len(verb) :])
    assert done.returncode == 2
    assert f"{name} is set by the launcher" in done.stderr


@pytest.mark.parametrize("script", ["slurm.py", "tpu_vm.py", "gke.py"])
def test_a_program_that_is_not_there_is_one_line(script, tmp_path):
    done = launch(script, *LAUNCHERS[script], env={"PATH": str(tmp_path)}, cwd=tmp_path)
    assert done.returncode == 1
    assert "was not found: install it, or put it on the PATH" in done.stderr
    assert len(done.stderr.splitlines()) == 1
