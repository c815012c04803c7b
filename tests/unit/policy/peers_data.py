"""Peers' suites of policy cases, read from the folder that KUBEPROBE_PEERS names; tests skip by name where it is not set."""

import gzip
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from tasks.skoop.model.addr import parse_ip
from tasks.skoop.model.cluster import ClusterObjects, ContainerPort, Namespace, NodeMeta, PodMeta
from tasks.skoop.model.ids import NodeName
from tasks.skoop.model.packet import Protocol

VARIABLE = "KUBEPROBE_PEERS"
ADMIN_KINDS = ("AdminNetworkPolicy", "BaselineAdminNetworkPolicy")


@lru_cache
def suite(name: str) -> Any:  # noqa: ANN401 -- JSON of others
    """Return a suite, or skip the test."""
    folder = os.environ.get(VARIABLE, "")
    path = Path(folder) / f"{name}.json.gz"
    if not folder or not path.is_file():
        pytest.skip(f"{VARIABLE} names no folder with {path.name}")
    return json.loads(gzip.decompress(path.read_bytes()))


def world_objects(
    namespaces: dict[str, dict[str, str]], pods: list[dict[str, Any]], policies: list[Any]
) -> ClusterObjects:
    """Return the objects of one step of the table suite."""
    return ClusterObjects(
        nodes=tuple(NodeMeta(name=NodeName(name)) for name in sorted({pod["node"] for pod in pods})),
        namespaces=tuple(Namespace(name=name, labels=labels or {}) for name, labels in namespaces.items()),
        pods=tuple(
            PodMeta(
                namespace=pod["namespace"],
                name=pod["name"],
                node_name=NodeName(pod["node"]),
                ips=(parse_ip(pod["ip"]),),
                labels=pod["labels"] or {},
                ports=tuple(
                    ContainerPort(port=port["port"], name=port["name"], protocol=Protocol(port["protocol"].lower()))
                    for port in pod["ports"]
                ),
            )
            for pod in pods
        ),
        network_policies=tuple(json.dumps(policy) for policy in policies),
    )


def manifest_objects(manifests: list[dict[str, Any]]) -> tuple[ClusterObjects, dict[str, PodMeta]]:
    """Return the objects of a folder of manifests, and one pod for each workload by the name the peer gives it."""
    pods: dict[str, PodMeta] = {}
    namespaces = {
        one["metadata"]["name"]: one["metadata"].get("labels") or {} for one in manifests if one["kind"] == "Namespace"
    }
    for one in manifests:
        if one["kind"] in ("Pod", "Deployment", "StatefulSet"):
            name, pod = _workload(one, len(pods))
            pods.setdefault(name, pod)
            namespaces.setdefault(pod.namespace, {})
    policies = {kind: tuple(json.dumps(one) for one in manifests if one["kind"] == kind) for kind in ADMIN_KINDS}
    objects = ClusterObjects(
        namespaces=tuple(Namespace(name=name, labels=labels) for name, labels in namespaces.items()),
        pods=tuple(pods.values()),
        network_policies=tuple(json.dumps(one) for one in manifests if one["kind"] == "NetworkPolicy"),
        policies={kind: texts for kind, texts in policies.items() if texts},
    )
    return objects, pods


def _workload(one: dict[str, Any], number: int) -> tuple[str, PodMeta]:
    meta = one["metadata"]
    namespace = meta.get("namespace") or "default"
    template = one if one["kind"] == "Pod" else one["spec"]["template"]
    owner = next((one for one in meta.get("ownerReferences") or () if one.get("kind") != "Node"), None)
    name, kind = (owner["name"], owner.get("kind") or "Pod") if owner else (meta["name"], one["kind"])
    spec = template.get("spec") or {}
    pod = PodMeta(
        namespace=namespace,
        name=meta["name"],
        host_network=False,
        ips=(parse_ip(f"10.{200 + number // 65536}.{number // 256 % 256}.{number % 256}"),),
        labels=(template.get("metadata") or {}).get("labels") or {},
        ports=tuple(
            ContainerPort(
                port=port["containerPort"],
                name=port.get("name") or "",
                protocol=Protocol((port.get("protocol") or "TCP").lower()),
            )
            for container in spec.get("containers") or ()
            for port in container.get("ports") or ()
            if "containerPort" in port
        ),
    )
    return f"{namespace}/{name}[{kind}]", pod
