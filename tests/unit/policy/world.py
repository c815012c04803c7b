"""Three namespaces with three pods each, three nodes, and two addresses outside: the world of the policy tests."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.cluster import ClusterObjects, ContainerPort, Namespace, NodeMeta, PodMeta
from tasks.skoop.model.endpoint import Endpoint, EndpointType
from tasks.skoop.model.ids import NodeName
from tasks.skoop.model.packet import Protocol

TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP
NAMESPACES: Mapping[str, Mapping[str, str]] = {"x": {"team": "red"}, "y": {"team": "blue", "open": ""}, "z": {}}
PODS = tuple(f"{namespace}/{name}" for namespace in NAMESPACES for name in "abc")
OUTSIDE = ("198.51.100.7", "203.0.113.9")
ENDS = (*PODS, *OUTSIDE)
WEB = {"a": 80, "b": 80, "c": 8080}
"""What the port named `web` is in a pod of that name; `dns` is 53/UDP in every pod."""
NODES = {"a": "n1", "b": "n2", "c": "n3"}
ADDRESSES = {
    f"{space}/{name}": f"10.244.{n}.{m}" for m, space in enumerate("xyz", 1) for n, name in enumerate("abc", 1)
}
NODE_ADDRESSES = {"n1": "172.18.0.1", "n2": "172.18.0.2", "n3": "172.18.0.3"}


def pod(key: str, **changes: Any) -> PodMeta:  # noqa: ANN401 -- fields of PodMeta
    """Return a pod of the world."""
    namespace, name = key.split("/")
    labels = {"pod": name, **({"tier": "back"} if name == "c" else {})}
    ports = (ContainerPort(port=WEB[name], name="web"), ContainerPort(port=53, name="dns", protocol=UDP))
    fields = {"labels": labels, "ports": ports, "ips": (Ip(ADDRESSES[key]),), "node_name": NodeName(NODES[name])}
    return PodMeta(**{"namespace": namespace, "name": name, **fields, **changes})


def objects(*policies: Mapping[str, Any] | str, **others: Any) -> ClusterObjects:  # noqa: ANN401 -- fields
    """Return the world with policies; `others` are further fields of ClusterObjects."""
    texts = tuple(one if isinstance(one, str) else json.dumps(one) for one in policies)
    fields: dict[str, Any] = {
        "namespaces": tuple(Namespace(name=name, labels=dict(labels)) for name, labels in NAMESPACES.items()),
        "pods": tuple(map(pod, PODS)),
        "nodes": tuple(
            NodeMeta(name=NodeName(name), addresses=(("InternalIP", ip),)) for name, ip in NODE_ADDRESSES.items()
        ),
        "network_policies": texts,
    }
    return ClusterObjects(**{**fields, **others})


def policy(
    name: str = "p",
    namespace: str = "x",
    *,
    pods: Mapping[str, Any] | None = None,
    types: Sequence[str] | None = None,
    **rules: Any,  # noqa: ANN401 -- JSON
) -> dict[str, Any]:
    """Return a NetworkPolicy; `rules` are `ingress` and `egress`."""
    spec: dict[str, Any] = {"podSelector": pods or {}, **rules}
    if types is not None:
        spec["policyTypes"] = list(types)
    meta = {"name": name, "namespace": namespace}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": spec}


def labels(**wanted: str) -> dict[str, Any]:
    """Return a selector by labels."""
    return {"matchLabels": wanted}


def expression(key: str, operator: str, *values: str) -> dict[str, Any]:
    """Return a selector of one expression."""
    return {"matchExpressions": [{"key": key, "operator": operator, **({"values": values} if values else {})}]}


def end(name: str) -> Endpoint:
    """Return an end by its name in the world: a pod, a node, or an address."""
    if name in ADDRESSES:
        return Endpoint(ip=Ip(ADDRESSES[name]), type=EndpointType.POD, name=name)
    if name in NODE_ADDRESSES:
        return Endpoint(ip=Ip(NODE_ADDRESSES[name]), type=EndpointType.NODE, name=name)
    return Endpoint(ip=Ip(name))
