"""What the GKE launcher adds to the pods: networks of GPUs, buckets, and the user's own part."""

import json
import shlex
import shutil
import subprocess

import jsonschema
import pytest
import yaml
from gke_tools import GPU, TPU, container_of, job_of, pod_of, rendered, script_of
from jobset_schema import JOBSET
from launch_tools import COMMAND, dry, launch


@pytest.mark.parametrize(
    ("gpu", "kind", "last"),
    [
        ("nvidia-h100-mega-80gb", "tcpxo", "eth8"),
        ("nvidia-h200-141gb", "gib", "eth9"),
        ("nvidia-b200", "gib", "eth9"),
    ],
)
def test_gpu_nodes_get_their_network(gpu, kind, last, tmp_path):
    tree = rendered(*GPU, f"--gpu={gpu}")
    pod, meta = pod_of(tree), job_of(tree)[1]["template"]["metadata"]["annotations"]
    interfaces = json.loads(meta["networking.gke.io/interfaces"])
    assert (len(interfaces), interfaces[-1]["interfaceName"]) == (9, last)
    assert ("initContainers" in pod) == (kind == "tcpxo")
    everyone = [*pod["containers"], *pod.get("initContainers", [])]
    mounted = {m["name"] for c in everyone for m in c["volumeMounts"]}
    assert mounted == {v["name"] for v in pod["volumes"]}
    # The script of the node's installer is read, and what it sets reaches the command.
    places = {m["mountPath"]: tmp_path / m["name"] for m in pod["containers"][0]["volumeMounts"]}
    files = {"nccl-env-profile.sh": "nvidia-libraries", "scripts/set_nccl_env.sh": "gib"}
    for file, volume in files.items():
        (tmp_path / volume / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / volume / file).write_text("export NCCL_TUNED=yes\n")
    script = script_of(tree).replace(shlex.join(COMMAND), "env")
    for path, place in places.items():
        script = script.replace(path, str(place))
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert "NCCL_TUNED=yes" in done.stdout
    assert f"LD_LIBRARY_PATH={tmp_path}" in done.stdout
    shutil.rmtree(tmp_path)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--network is wrong" in done.stderr


@pytest.mark.parametrize(
    "args", [["--nodes=1"], ["--network=none"], ["--gpus-per-node=4"], ["--gpu=nvidia-h100-80gb"]]
)
def test_other_pods_get_no_network(args):
    tree = rendered(*GPU, "--gpu=nvidia-b200", *args)
    assert "metadata" not in job_of(tree)[1]["template"]


def test_names_of_networks_can_be_given():
    names = ["default", *(f"gpu-nic-{i}" for i in range(8))]
    tree = rendered(*GPU, "--gpu=nvidia-b200", f"--network-names={','.join(names)}")
    meta = job_of(tree)[1]["template"]["metadata"]["annotations"]
    found = json.loads(meta["networking.gke.io/interfaces"])
    assert [entry["network"] for entry in found] == names


def test_buckets_are_mounted():
    tree = rendered(*TPU, "--mount=gs://data:/mnt/a", "--mount=gs://more/x/y/:/mnt/b")
    template = job_of(tree)[1]["template"]
    assert template["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    volumes = {v["name"]: v["csi"]["volumeAttributes"] for v in template["spec"]["volumes"][1:]}
    paths = {m["mountPath"]: m["name"] for m in container_of(tree)["volumeMounts"]}
    assert volumes[paths["/mnt/a"]] == {"bucketName": "data", "mountOptions": "implicit-dirs"}
    assert volumes[paths["/mnt/b"]]["mountOptions"] == "implicit-dirs,only-dir=x/y"


PART = {
    "metadata": {"annotations": {"a": "b"}, "labels": {"env": "test"}},
    "spec": {
        "nodeSelector": {"cloud.google.com/reservation-name": "r"},
        "tolerations": [{"key": "k", "operator": "Exists"}],
        "terminationGracePeriodSeconds": 60,
        "containers": [
            {
                "name": "dit",
                "env": [{"name": "DIT_NUM_PROCESSES", "value": "9"}, {"name": "X", "value": "y"}],
                "volumeMounts": [{"name": "nfs", "mountPath": "/nfs"}],
            }
        ],
        "volumes": [{"name": "nfs", "persistentVolumeClaim": {"claimName": "c"}}],
    },
}


@pytest.mark.parametrize("write", [json.dumps, yaml.safe_dump], ids=["json", "yaml"])
def test_a_part_of_a_pod_is_joined_with_ours(write, tmp_path):
    (tmp_path / "part").write_text(write(PART))
    args = [*GPU, "--gpu=nvidia-b200", f"--pod-spec={tmp_path}/part"]
    text = dry("gke.py", "run", *args, "--", "python", "-m", "dit.train", "--workdir=/nfs/run")
    tree = yaml.safe_load(text)
    jsonschema.validate(tree, JOBSET)
    plain, pod = pod_of(rendered(*args[:-1])), pod_of(tree)
    assert {**pod["nodeSelector"]} == {**plain["nodeSelector"], **PART["spec"]["nodeSelector"]}
    assert pod["terminationGracePeriodSeconds"] == 60
    assert pod["tolerations"] == PART["spec"]["tolerations"]
    assert pod["volumes"] == plain["volumes"] + PART["spec"]["volumes"]
    (ours,), (before,) = pod["containers"], plain["containers"]
    assert ours["resources"] == before["resources"]
    assert ours["volumeMounts"] == before["volumeMounts"] + [{"name": "nfs", "mountPath": "/nfs"}]
    assert {e["name"]: e.get("value") for e in ours["env"]} == {
        "JOBSET_NAME": None,
        "REPLICATED_JOB_NAME": None,
        "DIT_NUM_PROCESSES": "9",
        "X": "y",
    }
    assert job_of(tree)[1]["template"]["metadata"]["labels"] == {"env": "test"}
    annotations = job_of(tree)[1]["template"]["metadata"]["annotations"]
    assert annotations["a"] == "b"
    assert "networking.gke.io/interfaces" in annotations


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file"),
        ("[1]", "got list"),
        ("containers: []", "got containers"),
        ("spec: [", "neither JSON nor YAML"),
        ("spec: [1]", "are to be mappings"),
        ("spec: {containers: [{image: x}]}", "containers of"),
        ("spec: {containers: {name: dit}}", "a list of entries with a 'name'"),
        ("spec: {containers: [{name: dit, volumeMounts: [{name: x}]}]}", "with a 'mountPath'"),
        ("spec: {containers: [{name: dit, env: [a]}]}", "env of"),
    ],
)
def test_a_wrong_part_of_a_pod_is_refused(text, says, tmp_path):
    if text is not None:
        (tmp_path / "part").write_text(text)
    done = launch("gke.py", "run", *TPU, f"--pod-spec={tmp_path}/part", "--", "true")
    assert done.returncode == 2
    assert says in done.stderr
