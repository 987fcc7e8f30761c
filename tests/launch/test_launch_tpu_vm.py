"""The TPU VM launcher against a stand-in for gcloud that keeps a pod's state in files."""

import shlex

import pytest
from launch_tools import COMMAND, LAUNCH, dry, launch, load, shellcheck, stand_in

POD = ["--name=dit", "--zone=us-east5-b"]
V5E = [*POD, "--type=v5litepod-256"]
GCLOUD = "gcloud compute tpus queued-resources"

# Every call is noted in $POD/calls; ssh runs its command here, in $POD/home.
FAKE = """
echo "$*" >>"$POD/calls"
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
    options = ["--poll=0.1", *options, "--", *command]
    return launch("tpu_vm.py", "run", *V5E, *options, timeout=60)


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


def test_a_dry_run_of_run_prints_one_round():
    lines = dry("tpu_vm.py", "run", *V5E, "--", *COMMAND).splitlines()
    words = [shlex.split(line) for line in lines]
    assert [" ".join(w[:5]) for w in words] == [
        f"{GCLOUD} describe",
        f"{GCLOUD} create",
        next(" ".join(w[:5]) for w in words if w[0] == "git"),
        f"{GCLOUD} scp",
        *[f"{GCLOUD} ssh"] * 3,
    ]
    for line in words[3:6]:
        assert {"--node=all", "--worker=all"} <= set(line)
    start = words[5][-1].removeprefix("--command=")
    shellcheck(start, "--exclude=SC2016")  # the workers are to expand it, not we
    inner = shlex.split(start)[shlex.split(start).index("-c") + 1]
    shellcheck(inner)
    assert shlex.split(inner)[-len(COMMAND) :] == COMMAND
    assert "LIBTPU_INIT_ARGS='--xla_tpu" in inner
    assert "async_collective_fusion" in inner  # of the v5e alone
    assert 'ulimit -n "$(ulimit -Hn)"' in inner


def test_only_the_v5e_fuses_its_collectives():
    assert "collective_fusion" not in dry("tpu_vm.py", "run", *POD, "--type=v5p-128", "--", "true")


@pytest.mark.parametrize(
    ("verb", "wanted"),
    [
        ("delete", "delete dit --zone=us-east5-b --force --quiet"),
        ("status", "describe dit --zone=us-east5-b"),
        ("logs", "ssh dit --zone=us-east5-b --node=0 --worker=0 '--command=tail -n 100 -F"),
        ("stop", "ssh dit --zone=us-east5-b --node=0 --worker=0 '--command=kill -TERM"),
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
    done = run("bash", "-c", 'exit "$DIT_STOPPED_STATUS"')
    assert done.returncode == 75
    assert len(calls(pod, "create")) == 1


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
    done = launch("tpu_vm.py", "run", *V5E, "--", "true", env=env)
    assert done.returncode == 1
    assert "this failed with status 9: gcloud compute tpus queued-resources scp" in done.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["create", *POD], "needs --type"),
        (["create", *POD, "--type=v99-8"], "unknown --type"),
        (["run", *V5E], "needs a command"),
        (["delete", *POD, "--", "true"], "nothing else takes one"),
    ],
)
def test_nonsense_is_refused(args, says):
    done = launch("tpu_vm.py", *args)
    assert done.returncode == 2
    assert says in done.stderr
