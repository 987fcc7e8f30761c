"""The batch script of the Slurm launcher, and what it does with stand-ins for Slurm's programs."""

import os
import subprocess

import pytest
from launch_tools import COMMAND, dry, launch, shellcheck, stand_in

SRUN = """
while [[ $1 == --* ]]; do shift; done  # srun's own options
for task in 0 1; do SLURM_PROCID=$task "$@" & done
wait -n; first=$?; wait; exit "$first"
"""


def run(tmp_path, script):
    """Run the batch script, with two tasks that run ``script``: its output, and what was queued."""
    text = dry("slurm.py", f"--logs={tmp_path}/logs", "--", "bash", "-c", script)
    env = stand_in(tmp_path / "bin", "srun", SRUN)
    stand_in(tmp_path / "bin", "scontrol", f'echo "$*" >{tmp_path}/queued')
    env = {**os.environ, **env, "SLURM_JOB_ID": "17"}
    done = subprocess.run(
        ["bash", "-c", text], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    queued = tmp_path / "queued"
    return done, queued.read_text().strip() if queued.exists() else None


def test_the_script_asks_for_what_was_wanted_and_passes_shellcheck():
    options = ["--nodes=4", "--gpus-per-node=8", "--time=1:00:00", "--partition=p", "--account=a b"]
    text = dry("slurm.py", *options, "--", *COMMAND)
    shellcheck(text)
    asked = [line.removeprefix("#SBATCH --") for line in text.splitlines() if "#SBATCH" in line]
    assert {"nodes=4", "ntasks-per-node=8", "gpus-per-node=8", "time=1:00:00"} <= set(asked)
    assert {"requeue", "open-mode=append", "signal=TERM@120", "partition=p"} <= set(asked)
    assert not any(line.startswith("qos") for line in asked)
    assert "python -m dit.train --config=c.py '--config.x=(1, 2)' --workdir=/mnt/run &" in text


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


def test_a_job_that_fails_shows_the_first_worker_that_did(tmp_path):
    script = 'if [ "$SLURM_PROCID" = 1 ]; then echo the cause; exit 3; fi; sleep 1; exit 1'
    done, queued = run(tmp_path, script)
    assert (done.returncode, queued) == (3, None)
    assert "worker 1 on " in done.stdout
    assert "the cause" in done.stdout


def test_a_signal_to_the_script_waits_for_the_workers(tmp_path):
    script = 'if [ "$SLURM_PROCID" = 0 ]; then kill -TERM "$BATCH"; fi; sleep 1; exit 75'
    text = f"export BATCH=$$\n{dry('slurm.py', f'--logs={tmp_path}/l', '--', 'bash', '-c', script)}"
    env = stand_in(tmp_path / "bin", "srun", SRUN)
    stand_in(tmp_path / "bin", "scontrol", f'echo "$*" >{tmp_path}/queued')
    env = {**os.environ, **env, "SLURM_JOB_ID": "17"}
    done = subprocess.run(["bash", "-c", text], env=env, timeout=60, check=False)
    assert done.returncode == 0
    assert (tmp_path / "queued").read_text() == "requeue 17\n"


def test_without_a_dry_run_the_script_goes_to_sbatch(tmp_path):
    env = stand_in(tmp_path / "bin", "sbatch", f"cat >{tmp_path}/script")
    done = launch("slurm.py", "--", *COMMAND, env=env, cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "script").read_text() == dry("slurm.py", "--", *COMMAND)
    assert (tmp_path / "slurm-logs").is_dir()


@pytest.mark.parametrize("args", [[], ["--nodes=0", "--", "true"]], ids=["no-command", "no-nodes"])
def test_nonsense_is_refused(args):
    assert launch("slurm.py", *args).returncode == 2
