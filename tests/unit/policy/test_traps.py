"""Each trap is found where it is, by its code, and not where it is not."""

import json
from typing import Any

import pytest
from msgspec.structs import replace

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.cluster import ClusterObjects, EndpointSlice, Service, ServicePort, SliceEndpoint, SlicePort
from tasks.skoop.model.ids import NodeName
from tasks.skoop.model.packet import Protocol
from tasks.skoop.policy.engine import PolicyEngine
from tasks.skoop.policy.traps import traps
from tests.unit.clusters import healthy
from tests.unit.policy.world import UDP, labels, objects, pod, policy

DNS_POD = pod("z/a", namespace="kube-system", name="dns", labels={"k8s-app": "kube-dns"}, ips=(Ip("10.244.9.9"),))
DNS = Service(
    namespace="kube-system",
    name="kube-dns",
    cluster_ips=("10.96.0.10",),
    ports=(ServicePort(port=53, name="dns", protocol=UDP, target="53"),),
    selector={"k8s-app": "kube-dns"},
)
DNS_SLICE = EndpointSlice(
    namespace="kube-system",
    name="kube-dns-1",
    service="kube-dns",
    endpoints=(SliceEndpoint(addresses=(Ip("10.244.9.9"),)),),
    ports=(SlicePort(port=53, name="dns", protocol=UDP),),
)
WEB = Service(
    namespace="x",
    name="web",
    cluster_ips=("10.96.0.11",),
    ports=(ServicePort(port=8000, target="80"),),
    selector={"pod": "a"},
)
LOCAL = pod("z/a", namespace="kube-system", name="local", labels={"k8s-app": "node-local-dns"}, host_network=True)
FLANNEL = pod("z/a", namespace="kube-flannel", name="f", labels={"app": "flannel"}, host_network=True)
ROUTER = pod("z/a", namespace="kube-system", name="r", labels={"k8s-app": "kube-router"}, host_network=True)
HOST = pod("x/a", name="host", labels={"pod": "h"}, host_network=True, node_name=NodeName("n1"))
TO_DNS = [
    {
        "to": [{"namespaceSelector": {}, "podSelector": labels(**{"k8s-app": "kube-dns"})}],
        "ports": [{"port": 53, "protocol": "UDP"}],
    }
]


def _world(*policies: Any, more: tuple[Any, ...] = (), **others: Any) -> ClusterObjects:  # noqa: ANN401 -- JSON, fields
    world = objects(*policies, **others)
    namespaces = (*world.namespaces, *(replace(world.namespaces[0], name=name, labels={}) for name in ("kube-system",)))
    services, slices = (DNS, WEB), (DNS_SLICE,)
    return replace(
        world, pods=(*world.pods, DNS_POD, *more), services=services, endpoint_slices=slices, namespaces=namespaces
    )


def _admin(name: str, namespaces: dict[str, Any]) -> str:
    rule = {"action": "Deny", "from": [{"namespaces": {}}]}
    spec = {"priority": 7, "subject": {"namespaces": namespaces}, "ingress": [rule]}
    return json.dumps({"metadata": {"name": name}, "spec": spec})


def _into(*peers: Any, **more: Any) -> dict[str, Any]:  # noqa: ANN401 -- JSON
    return policy(ingress=[{"from": list(peers), **more}])


CASES: dict[str, tuple[ClusterObjects, list[str]]] = {
    "no policies": (_world(), []),
    "an ordinary policy": (_world(_into({"podSelector": labels(pod="b")}, ports=[{"port": "web"}])), []),
    "deny-all egress": (_world(policy(types=["Egress"])), ["KP-POL-001"] * 3),
    "egress with DNS": (_world(policy(types=["Egress"], egress=TO_DNS)), []),
    "egress open": (_world(policy(types=["Egress"], egress=[{}])), []),
    "egress with DNS, but not NodeLocal DNS": (
        _world(policy(types=["Egress"], egress=TO_DNS), more=(LOCAL,)),
        ["KP-POL-001"] * 3,
    ),
    "two items where one may be meant": (
        _world(_into({"namespaceSelector": labels(team="blue")}, {"podSelector": labels(pod="a")})),
        ["KP-POL-002"],
    ),
    "one item with both": (
        _world(_into({"namespaceSelector": labels(team="blue"), "podSelector": labels(pod="a")})),
        [],
    ),
    "no namespace has the label": (_world(_into({"namespaceSelector": labels(name="y")})), ["KP-POL-003"]),
    "selects nothing": (_world(policy(pods=labels(pod="q"))), ["KP-POL-004"]),
    "a peer that is nobody": (_world(_into({"podSelector": labels(pod="q")})), ["KP-POL-005"]),
    "no pod has the port's name": (_world(policy(ingress=[{"ports": [{"port": "https"}]}])), ["KP-POL-006"]),
    "the name is of another protocol": (_world(policy(ingress=[{"ports": [{"port": "dns"}]}])), ["KP-POL-006"]),
    "egress to a name that peers lack": (
        _world(policy(egress=[{"to": [{"podSelector": {}}], "ports": [{"port": "nope"}]}, *TO_DNS])),
        ["KP-POL-006"],
    ),
    "plain flannel": (_world(policy(), more=(FLANNEL,)), ["KP-POL-007"]),
    "flannel without policies": (_world(more=(FLANNEL,)), []),
    "flannel with an enforcer": (_world(policy(), more=(FLANNEL, ROUTER)), []),
    "a bad rule": (_world(policy(ingress=[{"from": [{}]}])), ["KP-POL-008"]),
    "a bad object": (_world("{"), ["KP-POL-008"]),
    "host network": (_world(policy(pods=labels(pod="h")), more=(HOST,)), ["KP-POL-004", "KP-POL-009"]),
    "one priority twice": (_world(policies={"AdminNetworkPolicy": (_admin("a", {}), _admin("b", {}))}), ["KP-POL-010"]),
    "one priority for others": (
        _world(policies={"AdminNetworkPolicy": (_admin("a", labels(team="red")), _admin("b", labels(team="blue")))}),
        [],
    ),
    "a cluster IP": (
        _world(policy(egress=[{"to": [{"ipBlock": {"cidr": "10.96.0.11/32"}}]}, *TO_DNS])),
        ["KP-POL-011"],
    ),
    "the Service's port": (_world(policy(pods=labels(pod="a"), ingress=[{"ports": [{"port": 8000}]}])), ["KP-POL-014"]),
    "the pod's port": (_world(policy(pods=labels(pod="a"), ingress=[{"ports": [{"port": 80}]}])), []),
    "lists are missing": (_world(_into({"podSelector": labels(pod="q")}), missing={"pods": "forbidden"}), []),
}


@pytest.mark.parametrize(("world", "codes"), CASES.values(), ids=CASES)
def test_traps(world: ClusterObjects, codes: list[str]) -> None:
    assert [one.code for one in traps(PolicyEngine(world))] == codes


def test_a_recorded_cluster_has_the_one_trap_that_it_has() -> None:
    found = traps(PolicyEngine(healthy().objects))
    assert [one.code for one in found] == ["KP-POL-007"]
    assert Protocol.UDP is UDP
