"""Policies of the administrator, of Calico and of Cilium, and what happens where they meet NetworkPolicies."""

import json
from typing import Any

import pytest

from tasks.skoop.model.cluster import ClusterObjects
from tasks.skoop.model.packet import Protocol
from tasks.skoop.policy.calico_selector import read_selector
from tasks.skoop.policy.certainty import Answer
from tasks.skoop.policy.clauses import BadClause
from tasks.skoop.policy.engine import PolicyEngine
from tasks.skoop.policy.selectors import Labels
from tests.unit.policy.world import SCTP, TCP, UDP, end, labels, objects, policy

Flow = tuple[str, str, int, Any]


def _others(
    *pairs: tuple[str, dict[str, Any]], policies: tuple[dict[str, Any], ...] = (), missing: dict[str, str] | None = None
) -> ClusterObjects:
    found: dict[str, tuple[str, ...]] = {}
    for kind, one in pairs:
        found[kind] = (*found.get(kind, ()), json.dumps(one))
    return objects(*policies, policies=found, missing=missing or {})


def _admin(priority: int, *, name: str = "admin", subject: Any = None, **rules: Any) -> tuple[str, dict[str, Any]]:  # noqa: ANN401 -- JSON
    spec = {"priority": priority, "subject": subject or {"namespaces": {}}, **rules}
    return "AdminNetworkPolicy", {"metadata": {"name": name}, "spec": spec}


def _baseline(**rules: Any) -> tuple[str, dict[str, Any]]:  # noqa: ANN401 -- JSON
    return "BaselineAdminNetworkPolicy", {
        "metadata": {"name": "default"},
        "spec": {"subject": {"namespaces": {}}, **rules},
    }


def _cluster(tier: str, priority: int, **rules: Any) -> tuple[str, dict[str, Any]]:  # noqa: ANN401 -- JSON
    spec = {"tier": tier, "priority": priority, "subject": {"namespaces": {}}, **rules}
    return "ClusterNetworkPolicy", {"metadata": {"name": f"{tier}{priority}"}, "spec": spec}


def _from(action: str, *peers: Any, **more: Any) -> list[Any]:  # noqa: ANN401 -- JSON
    return [{"action": action, "from": list(peers), **more}]


def _to(action: str, *peers: Any, **more: Any) -> list[Any]:  # noqa: ANN401 -- JSON
    return [{"action": action, "to": list(peers), **more}]


BLUE, EVERY = {"namespaces": labels(team="blue")}, {"namespaces": {}}
DENY_X = policy("deny", "x")
ADMIN_CASES = {
    "deny comes before NetworkPolicy": (
        _others(_admin(1, ingress=_from("Deny", BLUE)), policies=(policy(ingress=[{}]),)),
        "denied",
    ),
    "allow comes before NetworkPolicy": (
        _others(_admin(1, ingress=_from("Allow", BLUE)), policies=(DENY_X,)),
        "allowed",
    ),
    "pass leaves it to NetworkPolicy": (_others(_admin(1, ingress=_from("Pass", BLUE)), policies=(DENY_X,)), "denied"),
    "pass skips later admin policies": (
        _others(_admin(1, ingress=_from("Pass", BLUE)), _admin(2, name="b", ingress=_from("Deny", EVERY))),
        "allowed",
    ),
    "the lower number comes first": (
        _others(_admin(9, ingress=_from("Deny", BLUE)), _admin(2, name="b", ingress=_from("Allow", EVERY))),
        "allowed",
    ),
    "the first rule that matches decides": (
        _others(_admin(1, ingress=[*_from("Allow", BLUE), *_from("Deny", EVERY)])),
        "allowed",
    ),
    "one priority, one opinion": (
        _others(_admin(1, ingress=_from("Deny", BLUE)), _admin(1, name="b", ingress=_from("Deny", EVERY))),
        "denied",
    ),
    "one priority, two opinions": (
        _others(_admin(1, ingress=_from("Deny", BLUE)), _admin(1, name="b", ingress=_from("Allow", EVERY))),
        "unknown",
    ),
    "no rule matches": (_others(_admin(1, ingress=_from("Deny", {"namespaces": labels(team="red")}))), "allowed"),
    "pods as peers": (
        _others(_admin(1, ingress=_from("Deny", {"pods": {"namespaceSelector": {}, "podSelector": labels(pod="a")}}))),
        "denied",
    ),
    "pods as subject, not these": (
        _others(
            _admin(
                1,
                subject={"pods": {"namespaceSelector": {}, "podSelector": labels(pod="a")}},
                ingress=_from("Deny", EVERY),
            )
        ),
        "allowed",
    ),
    "a port number": (_others(_admin(1, ingress=_from("Deny", EVERY, ports=[{"portNumber": {"port": 80}}]))), "denied"),
    "a port of another protocol": (
        _others(_admin(1, ingress=_from("Deny", EVERY, ports=[{"portNumber": {"port": 80, "protocol": "UDP"}}]))),
        "allowed",
    ),
    "a range": (
        _others(_admin(1, ingress=_from("Deny", EVERY, ports=[{"portRange": {"start": 70, "end": 90}}]))),
        "denied",
    ),
    "a name": (_others(_admin(1, ingress=_from("Deny", EVERY, ports=[{"namedPort": "web"}]))), "denied"),
    "networks match pods": (_others(_admin(1, egress=_to("Deny", {"networks": ["10.244.0.0/16"]}))), "denied"),
    "baseline denies where nobody isolates": (_others(_baseline(ingress=_from("Deny", BLUE))), "denied"),
    "baseline is not asked where NetworkPolicy isolates": (
        _others(_baseline(ingress=_from("Deny", BLUE)), policies=(policy(ingress=[{}]),)),
        "allowed",
    ),
    "pass from the admin to the baseline": (
        _others(_admin(1, ingress=_from("Pass", BLUE)), _baseline(ingress=_from("Deny", BLUE))),
        "denied",
    ),
    "domain names cannot be decided": (
        _others(_admin(1, egress=[*_to("Allow", {"domainNames": ["a.example"]}), *_to("Deny", EVERY)])),
        "unknown",
    ),
    "a peer of a kind not known": (_others(_admin(1, ingress=_from("Deny", {"galaxies": {}}))), "unknown"),
    "a peer of a kind not known, where it changes nothing": (
        _others(_admin(1, ingress=[*_from("Deny", BLUE), *_from("Allow", {"galaxies": {}})])),
        "denied",
    ),
    "an action not known": (_others(_admin(1, ingress=_from("Shrug", BLUE))), "unknown"),
    "no priority": (
        _others(("AdminNetworkPolicy", {"metadata": {"name": "n"}, "spec": {"subject": EVERY}})),
        "unknown",
    ),
    "cluster policy accepts": (
        _others(_cluster("Admin", 1, ingress=_from("Accept", BLUE)), policies=(DENY_X,)),
        "allowed",
    ),
    "cluster policy denies by protocol": (
        _others(
            _cluster("Admin", 1, ingress=_from("Deny", BLUE, protocols=[{"tcp": {"destinationPort": {"number": 80}}}]))
        ),
        "denied",
    ),
    "cluster policy of another protocol": (
        _others(_cluster("Admin", 1, ingress=_from("Deny", BLUE, protocols=[{"udp": {}}]))),
        "allowed",
    ),
    "cluster policy in the baseline": (
        _others(_cluster("Baseline", 1, ingress=_from("Deny", BLUE)), policies=(policy(ingress=[{}]),)),
        "allowed",
    ),
    "cluster policies of two tiers": (
        _others(
            _cluster("Admin", 1, ingress=_from("Pass", BLUE)), _cluster("Baseline", 1, ingress=_from("Deny", BLUE))
        ),
        "denied",
    ),
    "the list could not be read": (objects(DENY_X, missing={"adminnetworkpolicies": "forbidden"}), "unknown"),
    "NetworkPolicies could not be read, but the admin denies": (
        _others(_admin(1, ingress=_from("Deny", BLUE)), missing={"networkpolicies": "forbidden"}),
        "denied",
    ),
}


@pytest.mark.parametrize(("world", "ruling"), ADMIN_CASES.values(), ids=ADMIN_CASES)
def test_admin_policies(world: ClusterObjects, ruling: str) -> None:
    assert PolicyEngine(world).verdict(end("y/a"), end("x/b"), 80).ruling == ruling


@pytest.mark.parametrize(
    ("peer", "node", "ruling"),
    [
        pytest.param({"nodes": {}}, "n2", "denied", id="another node"),
        pytest.param({"nodes": labels(role="edge")}, "n2", "allowed", id="node labels"),
        pytest.param({"networks": ["172.18.0.0/16"]}, "n2", "denied", id="by address"),
        pytest.param({"namespaces": {}}, "n2", "allowed", id="nodes are in no namespace"),
    ],
)
def test_admin_egress_to_nodes(peer: dict[str, Any], node: str, ruling: str) -> None:
    world = _others(_admin(1, egress=_to("Deny", peer)))
    assert PolicyEngine(world).verdict(end("x/a"), end(node), 80).ruling == ruling


def _calico(name: str, kind: str = "GlobalNetworkPolicy", **spec: Any) -> tuple[str, dict[str, Any]]:  # noqa: ANN401 -- JSON
    meta = {"name": name, "namespace": "x"} if kind == "CalicoNetworkPolicy" else {"name": name}
    return kind, {"apiVersion": "projectcalico.org/v3", "metadata": meta, "spec": spec}


def _tier(name: str, order: float, default: str = "Deny") -> tuple[str, dict[str, Any]]:
    return "Tier", {"metadata": {"name": name}, "spec": {"order": order, "defaultAction": default}}


def _act(action: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401 -- JSON
    return {"action": action, **more}


FROM_BLUE = {"source": {"namespaceSelector": "team == 'blue'"}}
SET = (
    "GlobalNetworkSet",
    {"metadata": {"name": "s", "labels": {"kind": "partners"}}, "spec": {"nets": ["198.51.100.0/24"]}},
)
CALICO_CASES = {
    "order within a tier": (
        _others(_calico("a", order=2, ingress=[_act("Deny")]), _calico("b", order=1, ingress=[_act("Allow")])),
        "y/a",
        "allowed",
    ),
    "one order goes by name": (
        _others(_calico("b", order=1, ingress=[_act("Allow")]), _calico("a", order=1, ingress=[_act("Deny")])),
        "y/a",
        "denied",
    ),
    "no order comes last": (
        _others(_calico("a", ingress=[_act("Deny")]), _calico("b", order=9, ingress=[_act("Allow")])),
        "y/a",
        "allowed",
    ),
    "selected, and no rule matches": (
        _others(_calico("a", order=1, ingress=[_act("Allow", source={"selector": "pod == 'c'"})])),
        "y/a",
        "denied",
    ),
    "no rules at all isolate ingress": (_others(_calico("a", order=1)), "y/a", "denied"),
    "egress rules alone do not concern ingress": (
        _others(_calico("a", order=1, egress=[_act("Deny")])),
        "y/a",
        "allowed",
    ),
    "log goes on": (_others(_calico("a", order=1, ingress=[_act("Log"), _act("Allow")])), "y/a", "allowed"),
    "a tier before the default": (
        _others(
            _tier("sec", 10),
            _calico("sec.a", tier="sec", order=1, ingress=[_act("Deny", **FROM_BLUE)]),
            policies=(policy(ingress=[{}]),),
        ),
        "y/a",
        "denied",
    ),
    "pass goes on with the next tier": (
        _others(
            _tier("sec", 10),
            _calico("sec.a", tier="sec", order=1, ingress=[_act("Pass")]),
            policies=(policy(ingress=[{}]),),
        ),
        "y/a",
        "allowed",
    ),
    "pass to a NetworkPolicy that isolates": (
        _others(_tier("sec", 10), _calico("sec.a", tier="sec", order=1, ingress=[_act("Pass")]), policies=(DENY_X,)),
        "y/a",
        "denied",
    ),
    "pass through all tiers": (
        _others(_tier("sec", 10), _calico("sec.a", tier="sec", ingress=[_act("Pass")])),
        "y/a",
        "allowed",
    ),
    "a tier whose default is pass": (
        _others(
            _tier("sec", 10, "Pass"),
            _calico("sec.a", tier="sec", ingress=[_act("Deny", source={"nets": ["1.2.3.4/32"]})]),
        ),
        "y/a",
        "allowed",
    ),
    "before NetworkPolicy by order": (
        _others(_calico("a", order=500, ingress=[_act("Allow")]), policies=(DENY_X,)),
        "y/a",
        "allowed",
    ),
    "denied before NetworkPolicy allows, by order": (
        _others(_calico("a", order=500, ingress=[_act("Deny")]), policies=(policy(ingress=[{}]),)),
        "y/a",
        "denied",
    ),
    "after NetworkPolicy that allows": (
        _others(_calico("a", order=2000, ingress=[_act("Deny")]), policies=(policy(ingress=[{}]),)),
        "y/a",
        "allowed",
    ),
    "a namespaced policy's selector means its namespace": (
        _others(_calico("a", "CalicoNetworkPolicy", ingress=[_act("Allow", source={"selector": "pod == 'a'"})])),
        "y/a",
        "denied",
    ),
    "a namespaced policy, its own pods": (
        _others(_calico("a", "CalicoNetworkPolicy", ingress=[_act("Allow", source={"selector": "pod == 'a'"})])),
        "x/a",
        "allowed",
    ),
    "a selector for other pods": (
        _others(_calico("a", selector="pod == 'a'", ingress=[_act("Deny")])),
        "y/a",
        "allowed",
    ),
    "namespaceSelector of the policy": (
        _others(_calico("a", namespaceSelector="team == 'blue'", ingress=[_act("Deny")])),
        "y/a",
        "allowed",
    ),
    "not that port": (
        _others(_calico("a", ingress=[_act("Allow", protocol="TCP", destination={"notPorts": [80]}), _act("Deny")])),
        "y/a",
        "denied",
    ),
    "a range of ports": (
        _others(_calico("a", ingress=[_act("Allow", protocol="TCP", destination={"ports": ["70:90"]})])),
        "y/a",
        "allowed",
    ),
    "notNets": (_others(_calico("a", ingress=[_act("Allow", source={"notNets": ["10.244.0.0/16"]})])), "y/a", "denied"),
    "notSelector": (
        _others(_calico("a", ingress=[_act("Deny", source={"notSelector": "pod == 'a'"}), _act("Allow")])),
        "y/a",
        "allowed",
    ),
    "the rule also asks the destination": (
        _others(_calico("a", ingress=[_act("Deny", destination={"selector": "pod == 'c'"}), _act("Allow")])),
        "y/a",
        "allowed",
    ),
    "ipVersion": (_others(_calico("a", ingress=[_act("Deny", ipVersion=6), _act("Allow")])), "y/a", "allowed"),
    "another protocol": (
        _others(_calico("a", ingress=[_act("Deny", notProtocol="TCP"), _act("Allow")])),
        "y/a",
        "allowed",
    ),
    "a network set": (
        _others(SET, _calico("a", ingress=[_act("Allow", source={"selector": "kind == 'partners'"})])),
        "198.51.100.7",
        "allowed",
    ),
    "not in the network set": (
        _others(SET, _calico("a", ingress=[_act("Allow", source={"selector": "kind == 'partners'"})])),
        "203.0.113.9",
        "denied",
    ),
    "service accounts cannot be decided": (
        _others(_calico("a", ingress=[_act("Allow", source={"serviceAccounts": {"names": ["robot"]}})])),
        "y/a",
        "unknown",
    ),
    "host endpoints only": (_others(_calico("a", preDNAT=True, ingress=[_act("Deny")])), "y/a", "allowed"),
    "a selector that cannot be read": (
        _others(_calico("a", selector="pod = 'a'", ingress=[_act("Deny")])),
        "y/a",
        "unknown",
    ),
}


@pytest.mark.parametrize(("world", "src", "ruling"), CALICO_CASES.values(), ids=CALICO_CASES)
def test_calico_policies(world: ClusterObjects, src: str, ruling: str) -> None:
    found = PolicyEngine(world).verdict(end(src), end("x/b"), 80)
    assert found.ingress.ruling == ruling, found.ingress.why


@pytest.mark.parametrize("node", ["n2", "n3"])
def test_a_pods_own_node_gets_in_whatever_the_api(node: str) -> None:
    worlds = (_others(_calico("a", ingress=[_act("Deny")])), _others(_cilium(ingress=[{}])))
    for world in worlds:
        found = PolicyEngine(world).verdict(end(node), end("x/b"), 80)
        assert found.ruling == ("allowed" if node == "n2" else "denied"), found.why


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("", True),
        ("all()", True),
        ("a == 'b'", True),
        ('a == "c"', False),
        ("a != 'b'", False),
        ("z != 'b'", True),
        ("has(a) && !has(z)", True),
        ("a in {'x', 'b'}", True),
        ("a not in {'x'}", True),
        ("z not in {'x'}", True),
        ("z in {'x'}", False),
        ("a contains 'b'", True),
        ("long starts with 'ab' && long ends with 'cd'", True),
        ("has(z) || (a == 'b' && has(long))", True),
        ("!(has(a) || has(z))", False),
        ("has(z) || has(z) && has(a)", False),
        ("kubernetes.io/name == 'k'", True),
    ],
)
def test_calico_selectors(text: str, selected: Answer) -> None:
    values = {"a": "b", "long": "abcd", "kubernetes.io/name": "k"}
    assert read_selector(text).selects(Labels(values=values)) is selected


@pytest.mark.parametrize(
    "text", ["a = 'b'", "has(a", "a ==", "a == b", "(a == 'b'", "a in {'b'", "nonsense()", "a == 'b' c"]
)
def test_calico_selectors_that_are_none(text: str) -> None:
    with pytest.raises(BadClause, match="selector"):
        read_selector(text)


def _cilium(name: str = "c", kind: str = "CiliumNetworkPolicy", **spec: Any) -> tuple[str, dict[str, Any]]:  # noqa: ANN401 -- JSON
    meta = {"name": name, "namespace": "x"} if kind == "CiliumNetworkPolicy" else {"name": name}
    return kind, {"metadata": meta, "spec": {"endpointSelector": {}, **spec}}


WIDE = "CiliumClusterwideNetworkPolicy"
IN_Y = {"fromEndpoints": [{"matchLabels": {"k8s:io.kubernetes.pod.namespace": "y"}}]}
CILIUM_CASES = {
    "an empty rule isolates": (_others(_cilium(ingress=[{}])), "y/a", TCP, "denied"),
    "an empty list does nothing": (_others(_cilium(ingress=[])), "y/a", TCP, "allowed"),
    "an empty selector means the namespace": (
        _others(_cilium(ingress=[{"fromEndpoints": [{}]}])),
        "y/a",
        TCP,
        "denied",
    ),
    "and its pods": (_others(_cilium(ingress=[{"fromEndpoints": [{}]}])), "x/a", TCP, "allowed"),
    "clusterwide it means all": (_others(_cilium(kind=WIDE, ingress=[{"fromEndpoints": [{}]}])), "y/a", TCP, "allowed"),
    "another namespace": (_others(_cilium(ingress=[IN_Y])), "y/a", TCP, "allowed"),
    "an empty list of endpoints is nobody": (_others(_cilium(ingress=[{"fromEndpoints": []}])), "x/a", TCP, "denied"),
    "ports alone mean everybody": (
        _others(_cilium(ingress=[{"toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}]}])),
        "198.51.100.7",
        TCP,
        "allowed",
    ),
    "another port": (_others(_cilium(ingress=[{"toPorts": [{"ports": [{"port": "81"}]}]}])), "y/a", TCP, "denied"),
    "any protocol": (
        _others(_cilium(ingress=[{"toPorts": [{"ports": [{"port": "80", "protocol": "ANY"}]}]}])),
        "y/a",
        SCTP,
        "allowed",
    ),
    "a range": (
        _others(_cilium(ingress=[{"toPorts": [{"ports": [{"port": "70", "endPort": 90}]}]}])),
        "y/a",
        UDP,
        "allowed",
    ),
    "deny beats allow": (
        _others(_cilium(ingress=[{"fromEntities": ["all"]}], ingressDeny=[IN_Y])),
        "y/a",
        TCP,
        "denied",
    ),
    "deny of somebody else": (
        _others(_cilium(ingress=[{"fromEntities": ["all"]}], ingressDeny=[IN_Y])),
        "z/a",
        TCP,
        "allowed",
    ),
    "deny beats NetworkPolicy": (
        _others(_cilium(ingressDeny=[IN_Y]), policies=(policy(ingress=[{}]),)),
        "y/a",
        TCP,
        "denied",
    ),
    "adds up with NetworkPolicy": (_others(_cilium(ingress=[IN_Y]), policies=(DENY_X,)), "y/a", TCP, "allowed"),
    "no default deny": (_others(_cilium(ingress=[IN_Y], enableDefaultDeny={"ingress": False})), "z/a", TCP, "allowed"),
    "world": (_others(_cilium(ingress=[{"fromEntities": ["world"]}])), "198.51.100.7", TCP, "allowed"),
    "world is not the cluster": (_others(_cilium(ingress=[{"fromEntities": ["world"]}])), "y/a", TCP, "denied"),
    "cluster": (_others(_cilium(ingress=[{"fromEntities": ["cluster"]}])), "y/a", TCP, "allowed"),
    "the other nodes": (_others(_cilium(ingress=[{"fromEntities": ["remote-node"]}])), "n3", TCP, "allowed"),
    "its node, while the other is asked": (_others(_cilium(ingress=[{"fromEntities": ["host"]}])), "n3", TCP, "denied"),
    "a CIDR outside": (_others(_cilium(ingress=[{"fromCIDR": ["198.51.100.0/24"]}])), "198.51.100.7", TCP, "allowed"),
    "a CIDR does not match pods": (_others(_cilium(ingress=[{"fromCIDR": ["0.0.0.0/0"]}])), "y/a", TCP, "denied"),
    "a CIDR but": (
        _others(_cilium(ingress=[{"fromCIDRSet": [{"cidr": "0.0.0.0/0", "except": ["198.51.100.0/24"]}]}])),
        "198.51.100.7",
        TCP,
        "denied",
    ),
    "the API server may be a node": (
        _others(_cilium(ingress=[{"fromEntities": ["kube-apiserver"]}])),
        "n3",
        TCP,
        "unknown",
    ),
    "a member not known": (_others(_cilium(ingress=[{"fromStars": []}])), "y/a", TCP, "unknown"),
    "ipBlock of a NetworkPolicy does not match pods": (
        _others(_cilium(egress=[{}]), policies=(policy(ingress=[{"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]),)),
        "y/a",
        TCP,
        "denied",
    ),
}


@pytest.mark.parametrize(("world", "src", "protocol", "ruling"), CILIUM_CASES.values(), ids=CILIUM_CASES)
def test_cilium_policies(world: ClusterObjects, src: str, protocol: Protocol, ruling: str) -> None:
    found = PolicyEngine(world).verdict(end(src), end("x/b"), 80, protocol)
    assert found.ingress.ruling == ruling, found.ingress.why
