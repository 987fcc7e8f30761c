"""The batch script of the Slurm launcher, and what it does with stand-ins for Slurm's programs."""

import os
import subprocess

import pytest
from launch_tools import COMMAND, HANGS, NASTY, directives, dry, launch, shellcheck, stand_in

SRUN = """
while [[ $1 == --* ]]; do shift; done  # srun's own options
for task in 0 1; do SLURM_PROCID=$task "$@" & done
wait -n; first=$?; wait; exit "$first"
"""


def run(tmp_path, script, *options, state="RUNNING", requeue=0, before=""):
    """Run the batch script, with two tasks that run ``script``: its output, and what was queued."""
    text = before + dry("slurm.py", f"--logs={tmp_path}/logs", *options, "--", "bash", "-c", script)
    env = stand_in(tmp_path / "bin", "srun", SRUN)
    stand_in(tmp_path / "bin", "scontrol", f'echo "$*" >{tmp_path}/queued; exit {requeue}')
    stand_in(tmp_path / "bin", "squeue", f"echo {state}")
    env = {**os.environ, **env, "SLURM_JOB_ID": "17"}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        ["bash", "-c", text], env=env, capture_output=True, text=True, timeout=HANGS, check=False
    )
    queued = tmp_path / "queued"
    return done, queued.read_text().strip() if queued.exists() else None


def test_the_script_asks_for_what_was_wanted_and_passes_shellcheck():
    options = ["--nodes=4", "--gpus-per-node=8", "--time=1:00:00", "--partition=p", "--account=a b"]
    more = ["--sbatch=--mem=0", "--sbatch=--nodes=2", "--sbatch=--exclusive", "--srun=--label"]
    text = dry("slurm.py", *options, *more, "--", *COMMAND)
    shellcheck(text)
    asked = directives(text)
    assert {"--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8", "--time=1:00:00"} <= set(asked)
    assert {"--requeue", "--open-mode=append", "--signal=TERM@120", "--account=a b"} <= set(asked)
    assert asked[-3:] == ["--mem=0", "--nodes=2", "--exclusive"]  # the last one is what counts
    assert not any(line.startswith("--qos") for line in asked)
    workdir = "--workdir=gs://b/run &"
    assert f"python -m dit.train --config=c.py '--config.x=(1, 2)' {workdir}" in text
    assert "--gpu-bind=none --label \\\n" in text


@pytest.mark.parametrize("word", NASTY.values(), ids=NASTY)
@pytest.mark.parametrize("option", ["--name", "--partition", "--account", "--qos", "--sbatch"])
def test_a_directive_holds_any_line(option, word):
    given = f"{option}=--comment={word}" if option == "--sbatch" else f"{option}={word}"
    done = launch("slurm.py", "--dry-run", given, "--", "true") if not word.isprintable() else None
    if done is not None:
        assert done.returncode == 2
        assert "is one line" in done.stderr
        return
    name = {"--name": "--job-name", "--sbatch": "--comment"}.get(option, option)
    assert f"{name}={word}" in directives(dry("slurm.py", given, "--", "true"))


@pytest.mark.parametrize("word", NASTY.values(), ids=NASTY)
def test_any_argument_reaches_the_tasks_as_it_is(word, tmp_path):
    show = 'printf \'%s\\0\' "$1" "$WORD" "$JAX_COMPILATION_CACHE_DIR"'
    options = [f"--env=WORD={word}", f"--cache={word}/x", f"--srun=--comment={word}"]
    text = dry(
        "slurm.py", f"--logs={tmp_path}/a 'b'", *options, "--", "bash", "-c", show, "x", word
    )
    env = {**os.environ, **stand_in(tmp_path / "bin", "srun", SRUN), "SLURM_JOB_ID": "17"}
    subprocess.run(["bash", "-c", text], env=env, check=True, timeout=HANGS)
    log = (tmp_path / "a 'b'" / "17" / "0.log").read_bytes().decode()
    assert log.split("\0")[:-1] == [word, word, f"{word}/x"]


def test_logs_may_have_any_name():
    text = dry("slurm.py", "--logs=100% a", "--", "true")
    assert "--output=100%% a/%j.out" in directives(text)
    assert "logs='100% a'/$SLURM_JOB_ID" in text


@pytest.mark.parametrize("kind", ["tcpxo", "gib", "efa"])
def test_the_tasks_get_the_network(kind, tmp_path):
    text = dry("slurm.py", f"--network={kind}", "--env=NCCL_SOCKET_IFNAME=mine", "--", "env")
    shellcheck(text)
    (tmp_path / "scripts").mkdir()
    for file in ("scripts/set_nccl_env.sh", "nccl-env-profile.sh"):
        (tmp_path / file).write_text("export NCCL_TUNED=yes NCCL_NET=other\n")
    places = ("/usr/local/gib", "/var/lib/gib", "/var/lib/tcpxo/lib64")
    lines = text.split("# Steps do not")[0]
    for place in places:
        lines = lines.replace(place, str(tmp_path))
    lines += "env\n"
    done = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, check=True)
    found = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    assert found["NCCL_SOCKET_IFNAME"] == "mine"
    assert found.get("NCCL_TUNED") == (None if kind == "efa" else "yes")
    assert found.get("NCCL_NET") == {"gib": "gIB", "tcpxo": "other"}.get(kind)
    assert found.get("FI_PROVIDER") == ("efa" if kind == "efa" else None)
    assert found["LD_LIBRARY_PATH"].startswith("/opt/amazon" if kind == "efa" else str(tmp_path))


def test_a_job_that_ends_well_is_not_queued_again(tmp_path):
    done, queued = run(tmp_path, 'echo "$XLA_FLAGS in $JAX_COMPILATION_CACHE_DIR"')
    assert (done.returncode, queued) == (0, None)
    log = (tmp_path / "logs" / "17" / "1.log").read_text()
    assert "latency_hiding" in log
    assert f"in {os.environ['HOME']}/.cache" in log


def test_a_job_stopped_by_a_signal_is_queued_again(tmp_path):
    done, queued = run(tmp_path, 'exit "$DIT_STOPPED_STATUS"')
    assert (done.returncode, queued) == (0, "requeue 17")
    assert "queued again" in done.stdout


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED"])
def test_a_job_that_was_cancelled_is_not(state, tmp_path):
    done, queued = run(tmp_path, 'exit "$DIT_STOPPED_STATUS"', state=state)
    assert (done.returncode, queued) == (75, None)
    assert "not queued again" in done.stdout


def test_a_job_that_cannot_be_queued_again_says_so(tmp_path):
    done, queued = run(tmp_path, 'exit "$DIT_STOPPED_STATUS"', requeue=1)
    assert (done.returncode, queued) == (75, "requeue 17")
    assert "submit it again to go on" in done.stdout


def test_a_job_that_fails_shows_the_first_worker_that_did(tmp_path):
    script = 'if [ "$SLURM_PROCID" = 1 ]; then echo the cause; exit 3; fi; '
    script += f'until [ -e "{tmp_path}/logs/17/1.status" ]; do sleep 0.1; done; sleep 1; exit 1'
    done, queued = run(tmp_path, script)
    assert (done.returncode, queued) == (3, None)
    assert "worker 1 on " in done.stdout
    assert "the cause" in done.stdout


def test_a_signal_to_the_script_waits_for_the_workers(tmp_path):
    script = 'if [ "$SLURM_PROCID" = 0 ]; then kill -TERM "$BATCH"; fi; sleep 1; exit 75'
    done, queued = run(tmp_path, script, before="export BATCH=$$\n")
    assert (done.returncode, queued) == (0, "requeue 17")


def test_without_a_dry_run_the_script_goes_to_sbatch(tmp_path):
    env = stand_in(tmp_path / "bin", "sbatch", f"cat >{tmp_path}/script")
    done = launch("slurm.py", "--", *COMMAND, env=env, cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "script").read_text() == dry("slurm.py", "--", *COMMAND)
    assert (tmp_path / "slurm-logs").is_dir()


@pytest.mark.parametrize(
    "args",
    [[], ["--nodes=0", "--", "true"], ["--sbatch=mem=0", "--", "true"]],
    ids=["no-command", "no-nodes", "no-flag"],
)
def test_nonsense_is_refused(args):
    assert launch("slurm.py", *args).returncode == 2
