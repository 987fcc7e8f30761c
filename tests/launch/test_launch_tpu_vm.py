"""The TPU VM launcher against a stand-in for gcloud that keeps a pod's state in files."""

import shlex
import signal
import subprocess
import sys
import time

import pytest
from launch_tools import COMMAND, HANGS, LAUNCH, NASTY, dry, launch, load, shellcheck, stand_in

POD = ["--name=dit", "--zone=us-east5-b"]
V5E = [*POD, "--type=v5litepod-256"]
GCLOUD = "gcloud compute tpus queued-resources"

# Every call is noted in $POD/calls, and word by word in $POD/words; ssh runs its command here, in
# $POD/home.
FAKE = """
echo "$*" >>"$POD/calls"
printf '%s\\0' "$@" >>"$POD/words"; printf '\\n\\0' >>"$POD/words"
case "$4" in
  describe) cat "$POD/state" 2>/dev/null || exit 1 ;;
  create) echo ACTIVE >"$POD/state" ;;
  delete) rm -rf "$POD/state" "$POD/home"; mkdir "$POD/home" ;;
  scp) [ -s "$5" ] || exit 1 ;;
  ssh)
    cd "$POD/home" || exit 1
    all="$*"
    case "$all" in
      *pip*) mkdir -p dit-jax dit-env/bin; cp -r "$LAUNCH" dit-jax ;;
      *mount.sh*) ;;
      *) bash -c "${all##*--command=}" ;;
    esac ;;
esac
"""


@pytest.fixture
def pod(tmp_path, monkeypatch):
    folder = tmp_path / "pod"
    (folder / "home").mkdir(parents=True)
    env = stand_in(tmp_path / "bin", "gcloud", FAKE)
    for name, value in {**env, "POD": str(folder), "LAUNCH": str(LAUNCH)}.items():
        monkeypatch.setenv(name, value)
    return folder


def run(*command, options=()):
    # The files of whoever runs the tests need not be committed.
    options = ["--poll=0.1", "--uncommitted", *options, "--", *command]
    return launch("tpu_vm.py", "run", *V5E, *options, timeout=HANGS)


def calls(pod, verb):
    lines = (pod / "calls").read_text().splitlines()
    return [line for line in lines if line.startswith(f"compute tpus queued-resources {verb} ")]


def test_a_dry_run_of_create_asks_and_makes():
    out = dry(
        "tpu_vm.py", "create", *V5E, "--spot", "--project=p", "--service-account=a@b"
    ).splitlines()
    assert out == [
        f"{GCLOUD} describe dit --zone=us-east5-b --project=p '--format=value(state.state)'",
        f"{GCLOUD} create dit --zone=us-east5-b --project=p --accelerator-type=v5litepod-256 "
        "--runtime-version=v2-alpha-tpuv5-lite --node-id=dit --spot --service-account=a@b",
    ]


def test_several_slices_are_several_nodes():
    create = dry(
        "tpu_vm.py", "create", *POD, "--type=v6e-256", "--slices=2", "--reserved"
    ).splitlines()
    assert (
        "--runtime-version=v2-alpha-tpuv6e --node-count=2 --node-prefix=dit --reserved" in create[1]
    )


def parts(*args):
    """The commands of a dry run of ``run``, as words, by what they do."""
    words = [shlex.split(line) for line in dry("tpu_vm.py", "run", *args).splitlines()]
    shells = [w[-1].removeprefix("--command=") for w in words if w[4:5] == ["ssh"]]
    return words, shells


def started(shells):
    """What bash runs on the worker, of the last command but one."""
    start = shlex.split(shells[-2].removesuffix("</dev/null >/dev/null 2>&1 &"))
    return start[start.index("-c") + 1]


def test_a_dry_run_of_run_prints_one_round():
    words, shells = parts(*V5E, "--", *COMMAND)
    assert [" ".join(w[:5]) for w in words] == [
        f"{GCLOUD} describe",
        f"{GCLOUD} create",
        f"{GCLOUD} ssh",
        next(" ".join(w[:5]) for w in words if w[0] == "git"),
        f"{GCLOUD} scp",
        *[f"{GCLOUD} ssh"] * 3,
    ]
    for line in words[4:7]:
        assert {"--node=all", "--worker=all"} <= set(line)
    shellcheck(shells[-2], "--exclude=SC2016")  # the workers are to expand it, not we
    inner = started(shells)
    shellcheck(inner)
    assert shlex.split(inner)[-len(COMMAND) :] == COMMAND
    assert "LIBTPU_INIT_ARGS='--xla_tpu" in inner
    assert "async_collective_fusion" in inner  # of the v5e alone
    assert 'ulimit -n "$(ulimit -Hn)"' in inner


@pytest.mark.parametrize("word", NASTY.values(), ids=NASTY)
def test_any_argument_reaches_the_command_as_it_is(word):
    command = ["printf", "%s\\0", word, f"--x={word}", "end"]
    _, shells = parts(*V5E, f"--env=WORD={word}", "--", *command)
    assert len(shells[-2].splitlines()) == 1
    script = started(shells).replace("cd dit-jax", "cd .")
    script = script.replace("exec printf", "printf '%s\\0' \"$WORD\"; exec printf")
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == [word, word, f"--x={word}", "end"]


@pytest.mark.parametrize(
    ("args", "extras"),
    [
        (["--", "python"], "tpu"),
        (["--", "python", "--workdir=gs://b/run"], "tpu,gcs"),
        (["--", "python", "--config.data.path=gs://b/x"], "tpu,gcs"),
        (["--cache=gs://b/c", "--", "python"], "tpu,gcs"),
        (["--env=DATA=gs://b/c", "--", "python"], "tpu,gcs"),
        (["--extra=wandb", "--extra=gcs", "--", "python", "gs://b"], "tpu,gcs,wandb"),
    ],
)
def test_a_bucket_anywhere_brings_its_libraries(args, extras):
    _, shells = parts(*V5E, *args)
    assert f"-e './dit-jax[{extras}]'" in shells[1]
    setup = (LAUNCH.parent / "setup.py").read_text()
    assert all(f'"{name}":' in setup for name in extras.split(","))


def test_a_bucket_is_mounted_before_the_command_starts():
    mounts = ["--mount=gs://data/some/part:/mnt/data", "--mount=gs://more:/mnt/b"]
    words, shells = parts(*V5E, *mounts, "--", *COMMAND)
    assert [s for s in shells if "mount.sh" in s] == shells[2:4]
    assert shlex.split(shells[2]) == [
        *("bash", "dit-jax/launch/mount.sh", "data", "some/part", "/mnt/data"),
    ]
    assert all("--worker=all" in w for w in words if "mount.sh" in w[-1])


def test_more_flags_go_to_gcloud():
    flags = [
        "--gcloud-flag=--network=n",
        "--gcloud-flag=--labels=a=b c",
        "--ssh-flag=--internal-ip",
    ]
    words, _ = parts(*V5E, *flags, "--", "true")
    assert words[1][-2:] == ["--network=n", "--labels=a=b c"]
    for line in words:
        assert ("--internal-ip" in line) == (line[4] in ("ssh", "scp"))


def test_only_the_v5e_fuses_its_collectives():
    assert "collective_fusion" not in dry("tpu_vm.py", "run", *POD, "--type=v5p-128", "--", "true")


@pytest.mark.parametrize(
    ("verb", "wanted"),
    [
        ("delete", "delete dit --zone=us-east5-b --force --quiet"),
        ("status", "describe dit --zone=us-east5-b"),
        ("logs", "ssh dit --zone=us-east5-b --node=0 --worker=0 '--command=tail -n 100 -F"),
        (
            "stop",
            "ssh dit --zone=us-east5-b --node=0 --worker=0 '--command=touch dit-run/asked; kill",
        ),
    ],
)
def test_the_small_verbs(verb, wanted):
    assert dry("tpu_vm.py", verb, *POD).startswith(f"{GCLOUD} {wanted}")


def test_a_command_runs_to_its_end(pod):
    done = run("bash", "-c", 'echo "$LIBTPU_INIT_ARGS" >"$POD/flags"')
    assert done.returncode == 0, done.stderr
    assert "latency_hiding" in (pod / "flags").read_text()
    assert len(calls(pod, "create")) == 1
    assert run("true").returncode == 0
    assert len(calls(pod, "create")) == 1  # the pod was there


def test_a_dry_run_prints_what_is_run(pod):
    """The same calls with the same words, but for the folder of the archive and the waiting."""
    (pod / "state").write_text("FAILED\n")  # is deleted first, which a dry run cannot know
    options = ["--project=p", "--spot", "--mount=gs://data:/mnt/d", "--gcloud-flag=--network=n n"]
    options += ["--ssh-flag=--internal-ip", "--env=A=b 'c'"]
    command = ["bash", "-c", "true", "x y", "--workdir=gs://b/r"]
    assert run(*command, options=options).returncode == 0
    text = (pod / "words").read_text().removesuffix("\n\0")
    ran = [["gcloud", *call.rstrip("\0").split("\0")] for call in text.split("\n\0")]
    shown, _ = parts(*V5E, *options, "--uncommitted", "--", *command)

    def kinds(calls):
        found = []
        for words in calls:
            words = [
                "FILE" if word.endswith("dit-jax.tgz") and "/" in word else word for word in words
            ]
            waits = words[4] == "describe" or "--worker=0" in words
            if words[0] == "gcloud" and not waits and words[4] != "delete":
                found.append(words)
        return found

    assert kinds(ran) == kinds(shown)
    assert len(kinds(ran)) == 5  # create, scp, and set-up, mount and start by ssh


def test_a_preempted_pod_is_asked_for_again(pod):
    """The first run is stopped, and its pod goes; the second one ends well."""
    script = (
        'if [ ! -e "$POD/once" ]; then touch "$POD/once"; echo SUSPENDED >"$POD/state"; '
        'exit "$DIT_STOPPED_STATUS"; fi'
    )
    done = run("bash", "-c", script)
    assert done.returncode == 0, done.stderr
    assert "was preempted; asking for another" in done.stderr
    assert len(calls(pod, "create")) == 2
    assert len(calls(pod, "delete")) == 1


def test_preemptions_have_an_end(pod):
    done = run("bash", "-c", 'echo SUSPENDED >"$POD/state"; exit 75', options=["--retries=1"])
    assert done.returncode == 75
    assert len(calls(pod, "create")) == 2


def test_a_run_stopped_by_hand_stays_stopped(pod):
    script = (
        'touch "$POD/up"; trap \'exit "$DIT_STOPPED_STATUS"\' TERM; while :; do sleep 0.1; done'
    )
    command = [*("bash", "-c", script)]
    args = ["run", *V5E, "--poll=0.1", "--uncommitted", "--", *command]
    process = subprocess.Popen([sys.executable, str(LAUNCH / "tpu_vm.py"), *args])
    wait_for(lambda: (pod / "up").exists(), process)
    # Another one does not start beside it.
    second = run("true")
    assert second.returncode == 1
    assert "a command runs on dit" in second.stderr
    assert launch("tpu_vm.py", "stop", *POD).returncode == 0
    assert process.wait(timeout=HANGS) == 75
    assert len(calls(pod, "create")) == 1


def test_a_run_stopped_by_another_signal_goes_on(pod):
    """As after a host's maintenance: the pod stays, and the command is started again."""
    script = 'if [ -e "$POD/once" ]; then exit 0; fi; touch "$POD/once"; exit "$DIT_STOPPED_STATUS"'
    done = run("bash", "-c", script)
    assert done.returncode == 0, done.stderr
    assert "a signal stopped the command; starting it again" in done.stderr
    assert len(calls(pod, "create")) == 1


def test_ctrl_c_says_what_goes_on(pod):
    args = ["run", *V5E, "--poll=0.1", "--uncommitted", "--", "sleep", "9999"]
    process = subprocess.Popen(
        [sys.executable, str(LAUNCH / "tpu_vm.py"), *args], stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: list((pod / "home").glob("dit-run/*.pid")), process)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=HANGS)
    assert process.returncode == 130
    assert "dit goes on, and is paid for" in text
    assert "Traceback" not in text
    assert launch("tpu_vm.py", "stop", *POD).returncode == 0


def wait_for(what, process):
    deadline = time.monotonic() + HANGS
    while not what():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_log_of_a_worker_that_failed_is_shown(pod):
    done = run("bash", "-c", "echo the cause; exit 3")
    assert done.returncode == 3
    assert "was the first to fail, with status 3" in done.stderr
    assert "  the cause" in done.stderr


def test_the_first_of_several_that_failed_is_named(monkeypatch, capsys):
    tpu_vm = load("tpu_vm")
    pod = tpu_vm.Pod(tpu_vm.arguments(["run", *V5E, "--", "true"]))
    said = [
        "DIT-STATUS 17.5 1 host-w-0",
        "DIT-LOG host-w-0 a peer is gone",
        "DIT-STATUS 16.5 75 host-w-1",
        "DIT-LOG host-w-2 the cause",
        "DIT-STATUS 17.1 2 host-w-2",
    ]
    monkeypatch.setattr(pod, "ssh", lambda *_, **__: "\n".join(said))
    pod.report()
    assert capsys.readouterr().err == (
        "host-w-2 was the first to fail, with status 2. Its log:\n  the cause\n"
    )


def test_a_command_that_is_lost_ends_the_run(pod):
    """Its worker's shell is killed, as by a reboot: no end is written."""
    done = run("bash", "-c", 'rm -f ../dit-run/*.pid; kill -9 "$PPID"')
    assert done.returncode == 1
    assert "nothing runs on the first worker" in done.stderr


def test_a_failing_gcloud_ends_the_run(pod):
    (pod / "state").write_text("ACTIVE\n")
    env = stand_in(pod / "bin", "gcloud", 'case "$4" in describe) echo ACTIVE ;; *) exit 9 ;; esac')
    done = launch("tpu_vm.py", "run", *V5E, "--uncommitted", "--", "true", env=env)
    assert done.returncode == 1
    assert "this failed with status 9: gcloud compute tpus queued-resources scp" in done.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["create", *POD], "needs --type"),
        (["create", *POD, "--type=v99-8"], "expected one of v4-N, v5litepod-N"),
        (
            ["create", *POD, "--type=v5litepod-17"],
            "expected one such as v5litepod-4 (2x2), v5litepod-8",
        ),
        (["create", *POD, "--type=tpu7x-8"], "it comes through GKE"),
        (["create", *POD, "--type=v4-8", "--slices=0"], "expected at least 1"),
        (["create", "--name=My Job", "--zone=z", "--type=v4-8"], "lower-case letters"),
        (["run", *V5E, "--mount=gs://bkt:/m", "--", "x", "--workdir=/m/r"], "--workdir=gs://bkt/r"),
        (["run", *V5E], "needs a command"),
        (["delete", *POD, "--", "true"], "nothing else takes one"),
    ],
)
def test_nonsense_is_refused(args, says):
    done = launch("tpu_vm.py", *args)
    assert done.returncode == 2
    assert says in done.stderr
