"""Fast networks between GPU nodes, where NCCL does not find them by itself.

``tcpxo``: GPUDirect-TCPXO of Google's A3 Mega; ``gib``: RDMA over Ethernet of A3 Ultra and A4, by
Google's NCCL plugin; ``efa``: AWS's Elastic Fabric Adapter. The files named here are installed on the
nodes by GKE's installers, or by the images of Cluster Toolkit, ParallelCluster and HyperPod. Without
them NCCL silently uses TCP on one interface, at a hundredth of the speed. InfiniBand needs none of this.
"""

from __future__ import annotations

import json
from typing import Any

from flags import FAILED

GKE = {  # GKE's names of GPUs -> how their nodes are connected
    "nvidia-h100-mega-80gb": "tcpxo",
    "nvidia-h200-141gb": "gib",
    "nvidia-b200": "gib",
}
NAMES = {  # of a cluster's Network objects, as created by Google's guides
    "tcpxo": ["default", *(f"vpc{i}" for i in range(1, 9))],
    "gib": ["default", *(f"rdma-{i}" for i in range(8))],
}
FIRST = {"tcpxo": 1, "gib": 2}  # the number of the first fast interface; eth1 of gib is a gVNIC
NODE_GPUS = 8  # fast interfaces of a node; a pod takes all or none
DAEMON = "us-docker.pkg.dev/gce-ai-infra/gpudirect-tcpxo/tcpgpudmarxd-dev:v1.0.21"
LIBRARIES = "/usr/local/nvidia/lib64"
GIB = "/usr/local/gib"


def gke_lines(kind: str | None) -> list[str]:
    """Lines of bash to run in the container before the command."""
    if kind == "tcpxo":
        return [
            _paths(LIBRARIES),
            f"export NCCL_LIB_DIR={LIBRARIES}",
            "export NCCL_FASTRAK_LLCM_DEVICE_DIRECTORY=/dev/aperture_devices",
            *_source(f"{LIBRARIES}/nccl-env-profile.sh"),
        ]
    if kind == "gib":
        return [
            _paths(f"{GIB}/lib64", LIBRARIES),
            "export NCCL_NET=gIB",
            *_source(f"{GIB}/scripts/set_nccl_env.sh"),
        ]
    return []


def gke_pod(kind: str | None, names: list[str]) -> dict[str, Any]:
    """The further part of the Pod; ``names``: of the networks, with the default network first."""
    if kind is None:
        return {}
    numbers = [0, *range(FIRST[kind], FIRST[kind] + len(names) - 1)]
    interfaces = [
        {"interfaceName": f"eth{i}", "network": name}
        for i, name in zip(numbers, names, strict=True)
    ]
    annotations = {
        "networking.gke.io/default-interface": "eth0",
        "networking.gke.io/interfaces": json.dumps(interfaces),
    }
    host = {"nvidia-libraries": "/home/kubernetes/bin/nvidia/lib64"}
    mounts = {"nvidia-libraries": LIBRARIES}
    spec: dict[str, Any] = {}
    if kind == "tcpxo":
        devices = [f"nvidia{i}" for i in range(NODE_GPUS)]
        devices += ["nvidiactl", "nvidia-uvm", "dmabuf_import_helper"]
        annotations["devices.gke.io/container.tcpxo-daemon"] = "".join(
            f"- path: /dev/{device}\n" for device in devices
        )
        host.update({"sys": "/sys", "proc-sys": "/proc/sys"})
        host["aperture-devices"] = mounts["aperture-devices"] = "/dev/aperture_devices"
        spec["initContainers"] = [_daemon()]
    else:
        host["gib"], mounts["gib"] = "/home/kubernetes/bin/gib", GIB
    spec["containers"] = [
        {"name": "dit", "volumeMounts": [{"name": n, "mountPath": p} for n, p in mounts.items()]}
    ]
    spec["volumes"] = [{"name": n, "hostPath": {"path": p}} for n, p in host.items()]
    return {"metadata": {"annotations": annotations}, "spec": spec}


def _daemon() -> dict[str, Any]:
    """The receiver of TCPXO, which runs beside the command and ends with it."""
    start = "/fts/entrypoint_rxdm_container.sh"
    volumes = {"nvidia-libraries": LIBRARIES, "sys": "/hostsysfs", "proc-sys": "/hostprocsysfs"}
    return {
        "name": "tcpxo-daemon",
        "image": DAEMON,
        "restartPolicy": "Always",
        "command": ["/bin/sh", "-c"],
        "args": [f"set -ex; chmod 755 {start}; {start} --num_hops=2 --num_nics=8"],
        "securityContext": {"capabilities": {"add": ["NET_ADMIN", "NET_BIND_SERVICE"]}},
        "env": [{"name": "LD_LIBRARY_PATH", "value": LIBRARIES}],
        "volumeMounts": [{"name": n, "mountPath": p} for n, p in volumes.items()],
    }


def slurm_lines(kind: str | None) -> list[str]:
    """Lines of bash for the batch script, whose environment the tasks inherit."""
    if kind == "tcpxo":
        fast = "enp6s0,enp7s0,enp13s0,enp14s0,enp134s0,enp135s0,enp141s0,enp142s0"
        return [
            "export NCCL_LIB_DIR=/var/lib/tcpxo/lib64",
            *_source("/var/lib/tcpxo/lib64/nccl-env-profile.sh"),
            f"export NCCL_FASTRAK_CTRL_DEV=enp0s12 NCCL_FASTRAK_IFNAME={fast}",
            "export NCCL_SOCKET_IFNAME=enp0s12",
            "export NCCL_FASTRAK_LLCM_DEVICE_DIRECTORY=/dev/aperture_devices",
            _paths("/var/lib/tcpxo/lib64"),
        ]
    if kind == "gib":
        return [
            f'gib={GIB}; [ -d "$gib" ] || gib=/var/lib/gib',
            *_source("$gib/scripts/set_nccl_env.sh"),
            "export NCCL_NET=gIB NCCL_SOCKET_IFNAME=enp0s19,enp192s20",
            _paths("$gib/lib64"),
        ]
    if kind == "efa":
        plugin = "/opt/amazon/ofi-nccl/lib"
        return [
            "export FI_PROVIDER=efa FI_EFA_USE_DEVICE_RDMA=1 FI_EFA_FORK_SAFE=1",
            "export NCCL_SOCKET_IFNAME=^docker,lo,veth",
            "export NCCL_BUFFSIZE=8388608 NCCL_P2P_NET_CHUNKSIZE=524288",
            _paths(plugin, f"{plugin}/x86_64-linux-gnu", "/opt/amazon/efa/lib"),
        ]
    return []


def _paths(*folders: str) -> str:
    return f'export LD_LIBRARY_PATH="{":".join(folders)}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"'


def _source(file: str) -> list[str]:
    missing = f"{file} is not on this node: its network was not set up, or --network is wrong"
    return [
        "# shellcheck source=/dev/null",
        f'if [ -r "{file}" ]; then . "{file}"; else echo "{missing}" >&2; exit {FAILED}; fi',
    ]
