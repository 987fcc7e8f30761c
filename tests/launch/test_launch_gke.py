"""The JobSet that the GKE launcher writes, its YAML, the xpk command, and whose log is shown."""

import json
import re
import shlex
import subprocess

import jsonschema
import pytest
import yaml
from gke_tools import GPU, TPU, container_of, job_of, rendered, script_of
from jobset_schema import JOBSET
from launch_tools import COMMAND, NASTY, dry, expanded, launch, load, shellcheck, stand_in

from dit.parallel import cluster

XPK = [*TPU, "--cluster=c"]
EXTRAS = ["--spot", "--queue=tpus", "--service-account=runner", "--claim=shared", "--namespace=ml"]
CASES = {
    "tpu": TPU,
    "two-slices": [*TPU, "--slices=2", *EXTRAS],
    "gpu": GPU,
    "gpu-extras": [*GPU, *EXTRAS],
    "a3-mega": [*GPU, "--gpu=nvidia-h100-mega-80gb"],
    "a3-ultra": [*GPU, "--gpu=nvidia-h200-141gb", "--mount=gs://data/part:/mnt/data"],
    "a4": [*GPU, "--gpu=nvidia-b200"],
    "tpu7x": ["--name=dit", "--image=i", "--tpu=tpu7x", "--topology=4x4x8", "--env=A=b"],
}


@pytest.mark.parametrize("args", CASES.values(), ids=CASES)
def test_the_jobset_fits_its_schema_and_runs_the_command(args):
    script = script_of(rendered(*args))
    shellcheck(script)
    assert shlex.split(script.splitlines()[-1]) == ["exec", *COMMAND]
    assert 'ulimit -n "$(ulimit -Hn)"' in script
    assert "JAX_COMPILATION_CACHE_DIR" in script


@pytest.mark.parametrize("word", NASTY.values(), ids=NASTY)
@pytest.mark.parametrize("way", ["run", "xpk"])
def test_any_argument_reaches_the_command_as_it_is(way, word):
    command = ["printf", "%s\\0", word, f"--x={word}", "end"]
    args = XPK if way == "xpk" else TPU
    text = dry("gke.py", way, *args, f"--env=WORD={word}", "--", *command)
    if way == "xpk":
        (command,) = [w for w in shlex.split(text) if w.startswith("--command=")]
        script = expanded(command.removeprefix("--command="))
        assert len(script.splitlines()) == 1  # of xpk's YAML
    else:
        script = script_of(yaml.safe_load(text))
    script = script.replace("exec printf", "printf '%s\\0' \"$WORD\"; exec printf")
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == [word, word, f"--x={word}", "end"]


@pytest.mark.parametrize("word", NASTY.values(), ids=NASTY)
def test_any_other_option_is_yaml_as_it_is(word):
    tree = yaml.safe_load(
        dry("gke.py", "run", *TPU, f"--image={word}x", f"--queue={word}", "--", "true")
    )
    assert container_of(tree)["image"] == f"{word}x"
    assert tree["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name", "") == word


def test_the_schema_is_strict():
    tree = rendered(*TPU)
    tree["spec"]["failurePolicy"]["maxRetries"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxRetries"):
        jsonschema.validate(tree, JOBSET)


@pytest.mark.parametrize(
    ("chip", "topology", "hosts", "chips"),
    [
        ("v5e", "16x16", 64, 4),
        ("v5e", "2x4", 1, 8),
        ("v5p", "4x4x4", 16, 4),
        ("v6e", "2x2", 1, 4),
        ("v4", "2x2x2", 2, 4),
        ("v4", "4x4x8", 32, 4),
        ("tpu7x", "2x2x1", 1, 4),
        ("tpu7x", "4x4x8", 32, 4),
    ],
)
def test_a_slice_is_a_job_with_a_pod_a_host(chip, topology, hosts, chips):
    tree = rendered(
        "--name=dit", "--image=i", f"--tpu={chip}", f"--topology={topology}", "--slices=3"
    )
    replicated, job = job_of(tree)
    assert replicated["replicas"] == 3
    assert job["completions"] == job["parallelism"] == hosts
    assert container_of(tree)["resources"]["limits"] == {"google.com/tpu": chips}


def test_the_pods_of_gpu_nodes_find_each_other():
    """What the pod's environment comes to is what ``dit.parallel.cluster`` reads."""
    env = {"JOB_COMPLETION_INDEX": "3"}  # Kubernetes sets it in an Indexed job
    tree = rendered(*GPU)
    assert job_of(tree)[1]["completionMode"] == "Indexed"
    given = {"jobset-name": tree["metadata"]["name"], "replicatedjob-name": job_of(tree)[0]["name"]}
    for entry in container_of(tree)["env"]:
        path = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "")
        label = path.removeprefix("metadata.annotations['jobset.sigs.k8s.io/").removesuffix("']")
        env[entry["name"]] = entry.get("value") or given[label]
    found = cluster.find(env)
    assert (found.kind, found.processes) == ("JobSet", 4)
    assert found.arguments["process_id"] == 3
    assert found.arguments["coordinator_address"].startswith("dit-worker-0-0.dit:")


# How a pod ends -> how its Job fails: the reason and the message of Kubernetes' Job controller.
STATUS = (
    "Container dit for pod default/dit-worker-0-0 failed with exit code {} matching FailJob rule"
)
ENDS = {
    "disrupted": ("disrupted", None),
    "stopped": ("exit", 75),
    "bad-input": ("exit", 2),
    "error": ("exit", 1),
    "killed": ("exit", 137),
    "twenty-two": ("exit", 22),
}


def outcome(tree, kind, code):
    """What the JobSet does when a pod ends so, by the rules of JobSet and of Job."""
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(job_of(tree)[1]["podFailurePolicy"]["rules"]):
        codes = rule.get("onExitCodes", {}).get("values", [])
        if code in codes or (kind == "disrupted" and "onPodConditions" in rule):
            reason, message = "PodFailurePolicy", f"{STATUS.format(code)} at index {index}"
            break
    for rule in tree["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
            return rule["action"]
    return "RestartJobSet"


def test_what_starts_the_job_again():
    """Preemptions and signals without end, errors so many times, bad input never."""
    tree = rendered(*TPU, "--max-restarts=3")
    assert tree["spec"]["failurePolicy"]["maxRestarts"] == 3
    assert job_of(tree)[1]["backoffLimit"] == 0
    assert {name: outcome(tree, *end) for name, end in ENDS.items()} == {
        "disrupted": "RestartJobSetAndIgnoreMaxRestarts",
        "stopped": "RestartJobSetAndIgnoreMaxRestarts",
        "bad-input": "FailJobSet",
        "error": "RestartJobSet",
        "killed": "RestartJobSet",
        "twenty-two": "RestartJobSet",
    }
    assert "export DIT_STOPPED_STATUS=75\n" in script_of(tree)


def test_the_extras_are_where_they_belong():
    tree = rendered(*CASES["two-slices"])
    pod = job_of(tree)[1]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert tree["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "tpus"}
    assert tree["metadata"]["namespace"] == "ml"
    assert pod["serviceAccountName"] == "runner"
    assert {"name": "shared", "mountPath": "/mnt/shared"} in pod["containers"][0]["volumeMounts"]


@pytest.mark.parametrize(
    "tree",
    [
        {
            "a": "true",
            "b": True,
            "c": 1,
            "d": "1",
            "e": "4x4",
            "f": "",
            "g": None,
            "h": "2026-01-01",
        },
        {"list": [{"a": 1, "b": [1, [2, 3], "- x"]}, [], {}, "y: z", "#", "null", "0x10", "1e3"]},
        {
            "text": "one\n\n  two: #\nthree\n",
            "other": "no end\nof line",
            "colon": "a: b",
            "q": "it's \"",
        },
        {"indented": "  a\nb", "empty lines": "a\n\n", "tab": "\ta\nb"},
        {name: [text, f"{text}\n", f"x\n{text}\ny"] for name, text in NASTY.items()},
        [{"nested": {"deep": [{"text": "a\nb\n"}]}}, "on", "~", "*x", "&y", "%", "@", "é"],
    ],
    ids=["scalars", "lists", "texts", "more-texts", "nasty", "nested"],
)
def test_yaml_reads_back_as_it_was(tree):
    assert yaml.safe_load(load("yaml_text").yaml_text(tree)) == tree


XPK_FLAGS = {  # of `xpk workload create`, from 0.11 on
    *("--workload", "--cluster", "--tpu-type", "--num-slices", "--docker-image", "--max-restarts"),
    *("--restart-on-exit-codes", "--termination-grace-period-seconds", "--spot", "--command"),
    *("--project", "--zone", "--priority", "--scheduler", "--storage", "--reservation"),
}


def test_xpk_makes_the_same_job():
    args = shlex.split(dry("gke.py", "xpk", *XPK, "--spot", "--xpk-flag=--zone=z", "--", *COMMAND))
    assert args[:3] == ["xpk", "workload", "create"]
    assert {"--workload=dit", "--tpu-type=v5litepod-16x16", "--spot", "--zone=z"} <= set(args)
    assert {word.partition("=")[0] for word in args[3:]} <= XPK_FLAGS
    assert shlex.split(args[-1].removeprefix("--command="))[-len(COMMAND) :] == COMMAND


def test_xpk_is_told_what_to_start_again():
    """By itself it takes 42 and 127 to 255."""
    args = shlex.split(dry("gke.py", "xpk", *XPK, "--", "true"))
    given = {key: value for key, _, value in (word.partition("=") for word in args)}
    again = {42, *range(127, 256), *map(int, given["--restart-on-exit-codes"].split(","))}
    tree = rendered(*TPU)
    codes = {code for kind, code in ENDS.values() if kind == "exit"}
    assert codes & again == {75, 1, 137}
    assert all(outcome(tree, "exit", code) != "FailJobSet" for code in codes & again)
    assert int(given["--max-restarts"]) >= 100  # preemptions count too


def pod(name, code=None, when="2026-01-01T00:00:00Z"):
    state = (
        {"running": {}} if code is None else {"terminated": {"exitCode": code, "finishedAt": when}}
    )
    statuses = [{"name": "dit", "state": state}]
    return {"metadata": {"name": name}, "status": {"containerStatuses": statuses}}


def test_the_log_of_the_first_pod_to_fail_is_shown(tmp_path):
    pods = [
        pod("dit-worker-0-0"),
        pod("dit-worker-0-1", 1, "2026-01-01T00:00:09Z"),
        pod("dit-worker-0-2", 137, "2026-01-01T00:00:03Z"),
        pod("dit-worker-0-3", 75, "2026-01-01T00:00:01Z"),
    ]
    (tmp_path / "pods").write_text(json.dumps({"items": pods}))
    script = f'case "$*" in *" get pods"*) cat {tmp_path}/pods ;; *) echo "ran $*" ;; esac'
    done = launch("gke.py", "logs", "--name=dit", env=stand_in(tmp_path / "bin", "kubectl", script))
    assert "dit-worker-0-2 was the first to fail" in done.stderr
    assert "status 137" in done.stderr
    assert done.stdout == "ran --namespace=default logs dit-worker-0-2 --container=dit --tail=100\n"


def test_run_applies_what_a_dry_run_prints(tmp_path):
    env = stand_in(tmp_path / "bin", "kubectl", f'echo "$*" >{tmp_path}/args; cat >{tmp_path}/yaml')
    args = [*TPU, "--kubectl-flag=--context=c"]
    assert launch("gke.py", "run", *args, "--", *COMMAND, env=env).returncode == 0
    called = (tmp_path / "args").read_text()
    assert called == "--context=c --namespace=default apply --filename=-\n"
    shown = dry("gke.py", "run", *args, "--", *COMMAND)
    assert shown == f"# kubectl {called}{(tmp_path / 'yaml').read_text()}"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["run", "--name=dit", "--image=i", "--", "true"], "needs --image, --tpu or --gpu"),
        (["run", "--name=dit", "--image=i", "--tpu=v5e", "--", "true"], "needs --topology"),
        (["run", *TPU], "a command after --"),
        (["xpk", *GPU, "--cluster=c", "--", "true"], "xpk needs --cluster, and --tpu"),
        (["xpk", *XPK, "--mount=gs://bkt:/m", "--", "true"], "xpk does not take --mount; use"),
        (["xpk", *XPK, "--claim=c", "--", "true"], "xpk does not take --claim; use"),
        (["xpk", *XPK, "--kubectl-flag=-v", "--", "true"], "xpk does not take --kubectl-flag; use"),
        (["status", "--name=My Job"], "lower-case letters"),
        (["run", *TPU, "--name=" + "a" * 41, "--", "true"], "at most 40"),
        (["run", *TPU, "--slices=0", "--", "true"], "expected positive numbers"),
        (["run", *TPU, "--nodes=2", "--", "true"], "--nodes are of GPUs"),
        (["run", *GPU, "--topology=4x4", "--", "true"], "--topology and --slices are of TPUs"),
        (["run", *GPU, "--network-names=a,b", "--", "true"], "got 2 --network-names; expected 0"),
        (["run", *TPU, "--network=gib", "--", "true"], "--network is of whole GPU nodes"),
        (["run", *TPU, "--env=1x=y", "--", "true"], "expected NAME=VALUE"),
        (["run", *TPU, "--mount=b:/m", "--", "true"], "expected gs://BUCKET:/PATH"),
        (["delete", "--name=dit", "--", "true"], "delete takes no command"),
        (["run", *TPU, "--", "x", "--workdir=/tmp/r"], "on each pod's own disk"),
        (["run", *TPU, "--claim=c", "--", "x", "--workdir", "/mnt/sharedx"], "own disk"),
        (
            ["run", *TPU, "--mount=gs://bkt/c:/m", "--", "x", "--workdir=/m/run"],
            "give --workdir=gs://bkt/c/run",
        ),
    ],
)
def test_nonsense_is_refused(args, says):
    done = launch("gke.py", *args)
    assert done.returncode == 2
    assert says in done.stderr
