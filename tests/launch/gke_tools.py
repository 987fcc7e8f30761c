"""For the tests of the GKE launcher: the JobSet that it prints, and its parts."""

import jsonschema
import yaml
from jobset_schema import JOBSET
from launch_tools import COMMAND, dry, expanded

TPU = ["--name=dit", "--image=registry/dit:1", "--tpu=v5e", "--topology=16x16"]
GPU = ["--name=dit", "--image=registry/dit:1", "--gpu=nvidia-h100-80gb", "--nodes=4"]


def rendered(*args):
    tree = yaml.safe_load(dry("gke.py", "run", *args, "--", *COMMAND))
    jsonschema.validate(tree, JOBSET)
    return tree


def job_of(tree):
    (replicated,) = tree["spec"]["replicatedJobs"]
    return replicated, replicated["template"]["spec"]


def container_of(tree):
    return job_of(tree)[1]["template"]["spec"]["containers"][0]


def pod_of(tree):
    return job_of(tree)[1]["template"]["spec"]


def script_of(tree):
    """What bash gets to read, after Kubernetes."""
    return expanded(container_of(tree)["args"][0])
