"""The JobSet that the GKE launcher writes, its YAML, the xpk command, and whose log is shown."""

import json
import shlex

import jsonschema
import pytest
import yaml
from jobset_schema import JOBSET
from launch_tools import COMMAND, dry, launch, load, shellcheck, stand_in

from dit.parallel import cluster

TPU = ["--name=dit", "--image=registry/dit:1", "--tpu=v5e", "--topology=16x16"]
GPU = ["--name=dit", "--image=registry/dit:1", "--gpu=nvidia-h100-80gb", "--nodes=4"]
EXTRAS = ["--spot", "--queue=tpus", "--service-account=runner", "--claim=shared", "--namespace=ml"]
CASES = {
    "tpu": TPU,
    "two-slices": [*TPU, "--slices=2", *EXTRAS],
    "gpu": GPU,
    "gpu-extras": [*GPU, *EXTRAS],
}


def rendered(*args):
    tree = yaml.safe_load(dry("gke.py", "run", *args, "--", *COMMAND))
    jsonschema.validate(tree, JOBSET)
    return tree


def job_of(tree):
    (replicated,) = tree["spec"]["replicatedJobs"]
    return replicated, replicated["template"]["spec"]


def container_of(tree):
    return job_of(tree)[1]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("args", CASES.values(), ids=CASES)
def test_the_jobset_fits_its_schema_and_runs_the_command(args):
    script = container_of(rendered(*args))["args"][0]
    shellcheck(script)
    assert shlex.split(script.splitlines()[-1]) == ["exec", *COMMAND]
    assert 'ulimit -n "$(ulimit -Hn)"' in script
    assert "JAX_COMPILATION_CACHE_DIR" in script


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


def test_what_starts_the_job_again():
    """Preemptions without end, errors so many times."""
    tree = rendered(*TPU, "--max-restarts=3")
    policy = tree["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 3
    assert policy["rules"][0]["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    job = job_of(tree)[1]
    assert job["backoffLimit"] == 0
    disrupted, stopped = job["podFailurePolicy"]["rules"]
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    script = container_of(tree)["args"][0]
    assert f"DIT_STOPPED_STATUS={stopped['onExitCodes']['values'][0]}" in script


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
        [{"nested": {"deep": [{"text": "a\nb\n"}]}}, "on", "~", "*x", "&y", "%", "@", "é"],
    ],
    ids=["scalars", "lists", "texts", "more-texts", "nested"],
)
def test_yaml_reads_back_as_it_was(tree):
    assert yaml.safe_load(load("yaml_text").yaml_text(tree)) == tree


def test_xpk_makes_the_same_job():
    args = shlex.split(dry("gke.py", "xpk", *TPU, "--cluster=c", "--spot", "--", *COMMAND))
    assert args[:3] == ["xpk", "workload", "create"]
    assert {"--workload=dit", "--cluster=c", "--tpu-type=v5litepod-256", "--spot"} <= set(args)
    assert shlex.split(args[-1].removeprefix("--command="))[-len(COMMAND) :] == COMMAND
    v5p = ["--name=dit", "--image=i", "--tpu=v5p", "--topology=4x4x4", "--cluster=c"]
    assert "--tpu-type=v5p-128" in dry("gke.py", "xpk", *v5p, "--", "true")  # counted in cores


def pod(name, code=None, when="2026-01-01T00:00:00Z"):
    state = (
        {"running": {}} if code is None else {"terminated": {"exitCode": code, "finishedAt": when}}
    )
    return {"metadata": {"name": name}, "status": {"containerStatuses": [{"state": state}]}}


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
    assert done.stdout == "ran --namespace=default logs dit-worker-0-2 --tail=100\n"


def test_run_applies_what_a_dry_run_prints(tmp_path):
    env = stand_in(tmp_path / "bin", "kubectl", f'echo "$*" >{tmp_path}/args; cat >{tmp_path}/yaml')
    assert launch("gke.py", "run", *TPU, "--", *COMMAND, env=env).returncode == 0
    assert (tmp_path / "args").read_text() == "--namespace=default apply --filename=-\n"
    assert (tmp_path / "yaml").read_text() == dry("gke.py", "run", *TPU, "--", *COMMAND)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["run", "--name=dit", "--image=i", "--", "true"], "needs --image, --tpu or --gpu"),
        (["run", "--name=dit", "--image=i", "--tpu=v5e", "--", "true"], "needs --topology"),
        (["run", *TPU], "a command after --"),
        (["xpk", *GPU, "--cluster=c", "--", "true"], "xpk needs --cluster, and --tpu"),
    ],
)
def test_nonsense_is_refused(args, says):
    done = launch("gke.py", *args)
    assert done.returncode == 2
    assert says in done.stderr
