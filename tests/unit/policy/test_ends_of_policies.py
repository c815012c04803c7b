"""Nodes, pods on the host's network, pods themselves, other protocols; and what is not known, which must change no more than it must."""

import json

import pytest
from msgspec.structs import replace

from tasks.skoop.model.addr import Ip, Net
from tasks.skoop.model.cluster import ClusterObjects, NodeMeta
from tasks.skoop.model.endpoint import Endpoint, EndpointType
from tasks.skoop.model.ids import NodeName
from tasks.skoop.model.packet import Protocol
from tasks.skoop.policy.engine import PolicyEngine, verdict
from tasks.skoop.policy.peers import Reading
from tests.unit.policy.world import ADDRESSES, PODS, UDP, end, expression, labels, objects, pod, policy

DENY = policy("deny", types=["Ingress", "Egress"])
HOST = pod("y/a", name="host", host_network=True, ips=(Ip("172.18.0.2"),), node_name=NodeName("n2"))
HOST_END = Endpoint(ip=Ip("172.18.0.2"), type=EndpointType.POD, name="y/host")


def _with_host(*policies: object) -> ClusterObjects:
    world = objects(*policies)  # type: ignore[arg-type]
    return replace(world, pods=(*world.pods, HOST))


@pytest.mark.parametrize(
    ("src", "dst", "ruling"),
    [
        ("n1", "x/a", "allowed"),
        ("n2", "x/a", "denied"),
        ("x/a", "n1", "allowed"),
        ("x/a", "n2", "denied"),
        ("x/a", "x/a", "allowed"),
        ("x/a", "x/b", "denied"),
        ("n1", "n2", "allowed"),
        ("198.51.100.7", "n2", "allowed"),
        ("198.51.100.7", "x/a", "denied"),
    ],
)
def test_deny_all_and_nodes(src: str, dst: str, ruling: str) -> None:
    assert verdict(objects(DENY), end(src), end(dst), 80).ruling == ruling


def test_a_pod_on_the_hosts_network_is_its_node() -> None:
    everywhere = policy(types=["Ingress"], ingress=[{"from": [{"namespaceSelector": {}}]}])
    block = policy("block", types=["Ingress"], ingress=[{"from": [{"ipBlock": {"cidr": "172.18.0.2/32"}}]}])
    closed = policy("closed", "y", types=["Ingress", "Egress"])
    engine = PolicyEngine(_with_host(everywhere, closed))
    assert engine.verdict(HOST_END, end("x/a"), 80).ruling == "denied"  # no selector finds it
    assert engine.verdict(HOST_END, end("x/b"), 80).ruling == "allowed"  # it runs on that pod's node
    assert engine.verdict(end("z/a"), HOST_END, 80).ruling == "allowed"  # no policy selects it
    assert engine.policies_selecting(HOST) == ()
    assert PolicyEngine(_with_host(everywhere, block)).verdict(HOST_END, end("x/a"), 80).ruling == "allowed"


def test_the_reading_of_blocks_is_a_choice() -> None:
    world = objects(policy(ingress=[{"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]))
    for reading, ruling in ((Reading.EVERY_ADDRESS, "allowed"), (Reading.OUTSIDE_ONLY, "denied")):
        engine = PolicyEngine(world, reading)
        assert engine.verdict(end("y/a"), end("x/a"), 80).ruling == ruling
        assert engine.verdict(end("198.51.100.7"), end("x/a"), 80).ruling == "allowed"
    agent = pod("z/a", name="cilium-x", host_network=True, labels={"k8s-app": "cilium"})
    assert PolicyEngine(world).reading is Reading.EVERY_ADDRESS
    assert PolicyEngine(replace(world, pods=(*world.pods, agent))).reading is Reading.OUTSIDE_ONLY


def test_blocks_of_ipv6_and_pods_with_two_addresses() -> None:
    rule = {"from": [{"ipBlock": {"cidr": "fd00::/8", "except": ["fd00:2::/32"]}}]}
    world = objects(policy(ingress=[rule]))
    pods = tuple(replace(one, ips=(*one.ips, Ip(f"fd00:{n}::1"))) for n, one in enumerate(world.pods, 1))
    engine = PolicyEngine(replace(world, pods=pods))

    def asked(src: str) -> str:
        here = Endpoint(ip=Ip("fd00:9::9"), type=EndpointType.POD, name="x/c")
        return engine.verdict(Endpoint(ip=Ip(src)), here, 80).ruling

    assert (asked("fd00:4::1"), asked("fd00:2::1"), asked("2001:db8::1")) == ("allowed", "denied", "denied")


@pytest.mark.parametrize(
    ("spec", "ruling"),
    [
        pytest.param({}, "unknown", id="isolated"),
        pytest.param({"ingress": [{}]}, "unknown", id="allowed by a rule without ports"),
        pytest.param({"ingress": [{"ports": [{"port": 80}]}]}, "unknown", id="allowed on a port"),
        pytest.param({"pods": labels(pod="z")}, "allowed", id="not selected"),
    ],
)
def test_other_protocols_are_up_to_the_plugin(spec: dict[str, object], ruling: str) -> None:
    found = verdict(objects(policy(**spec)), end("y/a"), end("x/a"), 0, Protocol.ICMP)  # type: ignore[arg-type]
    assert found.ruling == ruling


BAD = {
    "not JSON": "{",
    "no object": "[]",
    "no name": json.dumps({"metadata": {"namespace": "x"}, "spec": {}}),
    "a type of policy that is not known": json.dumps(policy(types=["Sideways"])),
    "an operator that is not known": json.dumps(policy(pods=expression("pod", "Like", "a"))),
    "a selector of the wrong type": json.dumps(policy(pods={"matchLabels": []})),
    "a peer that is empty": json.dumps(policy(ingress=[{"from": [{}]}])),
    "a peer with a field not known": json.dumps(policy(ingress=[{"from": [{"planet": {}}]}])),
    "a block that is none": json.dumps(policy(ingress=[{"from": [{"ipBlock": {"cidr": "300.0.0.0/8"}}]}])),
    "a protocol that is not known": json.dumps(policy(ingress=[{"ports": [{"protocol": "QUIC", "port": 1}]}])),
    "a port out of range": json.dumps(policy(ingress=[{"ports": [{"port": 70000}]}])),
    "endPort without port": json.dumps(policy(ingress=[{"ports": [{"endPort": 9}]}])),
    "endPort below port": json.dumps(policy(ingress=[{"ports": [{"port": 9, "endPort": 8}]}])),
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_a_bad_object_is_unknown_and_named_and_stops_nothing(text: str) -> None:
    good = policy("good", "y", types=["Ingress"])
    engine = PolicyEngine(objects(text, good))
    found = engine.verdict(end("z/a"), end("x/b"), 80)
    assert found.ruling == "unknown"
    assert found.ingress.missing
    assert engine.verdict(end("z/a"), end("y/b"), 80).ruling in ("denied", "unknown")
    named = json.loads(text).get("metadata", {}).get("namespace") if text.startswith('{"') else None
    if named:  # it can only concern its own namespace
        assert engine.verdict(end("z/a"), end("y/b"), 80).ruling == "denied"
        assert engine.verdict(end("y/a"), end("z/b"), 80).ruling == "allowed"


def test_a_bad_rule_does_not_matter_where_a_good_one_allows() -> None:
    world = objects(
        policy(ingress=[{"from": [{"planet": {}}]}, {"from": [{"namespaceSelector": labels(team="blue")}]}])
    )
    assert verdict(world, end("y/a"), end("x/a"), 80).ruling == "allowed"
    assert verdict(world, end("z/a"), end("x/a"), 80).ruling == "unknown"


def test_what_was_not_listed_is_unknown_only_where_it_counts() -> None:
    blue = policy(ingress=[{"from": [{"namespaceSelector": labels(team="blue")}]}, {"from": [{"podSelector": {}}]}])
    engine = PolicyEngine(objects(blue, namespaces=(), missing={"namespaces": "forbidden"}))
    assert engine.verdict(end("x/b"), end("x/a"), 80).ruling == "allowed"
    found = engine.verdict(end("y/b"), end("x/a"), 80)
    assert (found.ruling, found.ingress.missing) == (
        "unknown",
        ("label team: namespaces could not be read (forbidden)",),
    )
    by_name = policy(ingress=[{"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "y"}}}]}])
    engine = PolicyEngine(objects(by_name, namespaces=(), missing={"namespaces": "forbidden"}))
    assert [engine.verdict(end(src), end("x/a"), 80).ruling for src in ("y/b", "z/b")] == ["allowed", "denied"]
    none = PolicyEngine(objects(missing={"networkpolicies": "forbidden"})).verdict(end("y/b"), end("x/a"), 80)
    assert none.ruling == "unknown"
    assert "networkpolicies could not be read (forbidden)" in none.why


def test_an_address_of_the_pod_network_that_no_pod_has_may_be_a_pod() -> None:
    world = objects(policy(ingress=[{"from": [{"podSelector": {}}]}]))
    nodes = tuple(replace(node, pod_cidrs=(Net("10.244.0.0/16"),)) for node in world.nodes)
    engine = PolicyEngine(replace(world, nodes=nodes))
    assert engine.verdict(Endpoint(ip=Ip("10.244.7.7")), end("x/a"), 80).ruling == "unknown"
    assert engine.verdict(Endpoint(ip=Ip("192.0.2.1")), end("x/a"), 80).ruling == "denied"
    assert engine.verdict(Endpoint(ip=Ip(ADDRESSES["x/b"])), end("x/a"), 80).ruling == "allowed"


def test_no_port_asked_for() -> None:
    world = objects(policy(ingress=[{"ports": [{"port": 80}]}]))
    assert verdict(world, end("y/a"), end("x/a"), 0).ruling == "unknown"
    assert verdict(objects(policy(ingress=[{}])), end("y/a"), end("x/a"), 0).ruling == "allowed"


def test_policies_selecting_a_pod_with_their_directions() -> None:
    first = policy("first", pods=labels(pod="a"), types=["Egress"])
    second = policy("second", egress=[{}])
    engine = PolicyEngine(objects(first, second, policy("third", "y")))
    found = [(one.policy.ref.name, one.directions) for one in engine.policies_selecting(engine.world.pods["x/a"])]
    assert sorted(found) == [("first", ("egress",)), ("second", ("ingress", "egress"))]


def test_a_node_that_was_not_listed_is_still_a_node() -> None:
    world = objects(DENY, nodes=(NodeMeta(name=NodeName("n1")),))
    found = verdict(world, Endpoint(ip=Ip("172.18.0.1"), type=EndpointType.NODE, name="n1"), end("x/a"), 80, UDP)
    assert found.ruling == "allowed"
    assert len(PODS) == 9
