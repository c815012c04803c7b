"""NetworkPolicy as the Kubernetes documentation has it: every peer clause with every port clause, either way.

The truth is written here by hand, without the engine: whom a peer clause means (as names), which ports a clause means at which
destination. A rule lets through what both of its clauses mean; a pod that is selected loses everything else that way; all other
traffic is free. Sources: "Network Policies" of the Kubernetes documentation and the API's field descriptions.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tasks.skoop.model.packet import Protocol
from tasks.skoop.policy.engine import PolicyEngine
from tasks.skoop.policy.verdict import Ruling
from tests.unit.policy.world import ENDS, OUTSIDE, PODS, SCTP, TCP, UDP, WEB, end, expression, labels, objects, policy

Port = tuple[int, Protocol]
PROBES: tuple[Port, ...] = ((80, TCP), (81, TCP), (8080, TCP), (53, UDP), (80, UDP), (80, SCTP))


def _names(text: str) -> frozenset[str]:
    """Return the ends of a hand-written list: `x/*` all pods of x, `*/a` all pods called a, `out` all addresses outside."""
    found: set[str] = set()
    for word in text.split():
        space, _, name = word.partition("/")
        if word == "out":
            found |= set(OUTSIDE)
        elif name:
            found |= {one for one in PODS if space in ("*", one[0]) and name in ("*", one[2])}
        else:
            found.add(word)
    return frozenset(found)


BLOCK_ALL, BLOCK_N1 = {"cidr": "0.0.0.0/0"}, {"cidr": "10.244.1.0/24"}
PEERS: dict[str, tuple[list[Any] | None, str]] = {
    "no list of peers": (None, "*/* out"),
    "an empty list of peers": ([], "*/* out"),
    "all pods of the namespace": ([{"podSelector": {}}], "x/*"),
    "a pod by label": ([{"podSelector": labels(pod="b")}], "x/b"),
    "a pod by two labels": ([{"podSelector": labels(pod="c", tier="back")}], "x/c"),
    "two labels of which one differs": ([{"podSelector": labels(pod="b", tier="back")}], ""),
    "pods by In": ([{"podSelector": expression("pod", "In", "a", "b")}], "x/a x/b"),
    "pods by NotIn": ([{"podSelector": expression("pod", "NotIn", "a")}], "x/b x/c"),
    "pods by NotIn of an absent key": ([{"podSelector": expression("tier", "NotIn", "back")}], "x/a x/b"),
    "pods by Exists": ([{"podSelector": expression("tier", "Exists")}], "x/c"),
    "pods by DoesNotExist": ([{"podSelector": expression("tier", "DoesNotExist")}], "x/a x/b"),
    "all namespaces": ([{"namespaceSelector": {}}], "*/*"),
    "a namespace by label": ([{"namespaceSelector": labels(team="blue")}], "y/*"),
    "a namespace by its name": ([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "z"}}}], "z/*"),
    "namespaces by NotIn": ([{"namespaceSelector": expression("team", "NotIn", "red")}], "y/* z/*"),
    "namespaces by Exists of an empty value": ([{"namespaceSelector": expression("open", "Exists")}], "y/*"),
    "a namespace that is not there": ([{"namespaceSelector": labels(team="green")}], ""),
    "both selectors in one item": ([{"namespaceSelector": labels(team="blue"), "podSelector": labels(pod="a")}], "y/a"),
    "both selectors as two items": (
        [{"namespaceSelector": labels(team="blue")}, {"podSelector": labels(pod="a")}],
        "y/* x/a",
    ),
    "every namespace's pods by label": ([{"namespaceSelector": {}, "podSelector": labels(pod="c")}], "*/c"),
    "several items": ([{"podSelector": labels(pod="a")}, {"podSelector": labels(pod="c")}], "x/a x/c"),
    "a block of everything": ([{"ipBlock": BLOCK_ALL}], "*/* out"),
    "a block outside": ([{"ipBlock": {"cidr": "198.51.100.0/24"}}], "198.51.100.7"),
    "a block of one address": ([{"ipBlock": {"cidr": "203.0.113.9/32"}}], "203.0.113.9"),
    "a block but": (
        [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["198.51.100.0/24", "10.244.0.0/16"]}}],
        "203.0.113.9",
    ),
    "a block of a node's pods": ([{"ipBlock": BLOCK_N1}], "*/a"),
    "a block of the other family": ([{"ipBlock": {"cidr": "::/0"}}], ""),
    "a block or a selector": (
        [{"ipBlock": {"cidr": "203.0.113.0/24"}}, {"podSelector": labels(pod="b")}],
        "203.0.113.9 x/b",
    ),
}

Meaning = Callable[[str, Port], bool]


def _set(*ports: Port) -> Meaning:
    return lambda _, asked: asked in ports


def _web(dst: str, asked: Port) -> bool:
    return dst in PODS and asked == (WEB[dst[2]], TCP)


PORTS: dict[str, tuple[list[Any] | None, Meaning]] = {
    "no ports": (None, _set(*PROBES)),
    "an empty list of ports": ([], _set(*PROBES)),
    "a number": ([{"port": 80}], _set((80, TCP))),
    "a number of UDP": ([{"port": 80, "protocol": "UDP"}], _set((80, UDP))),
    "SCTP": ([{"port": 80, "protocol": "SCTP"}], _set((80, SCTP))),
    "a protocol alone": ([{"protocol": "UDP"}], _set((80, UDP), (53, UDP))),
    "a range": ([{"port": 80, "endPort": 100}], _set((80, TCP), (81, TCP))),
    "a range of one": ([{"port": 81, "endPort": 81, "protocol": "TCP"}], _set((81, TCP))),
    "a name": ([{"port": "web"}], _web),
    "a name of another protocol": ([{"port": "web", "protocol": "UDP"}], _set()),
    "two ports": ([{"port": 53, "protocol": "UDP"}, {"port": 8080}], _set((53, UDP), (8080, TCP))),
}


def _cases() -> Iterator[Any]:
    for peers, (clause, meant) in PEERS.items():
        for ports, (port_clause, meaning) in PORTS.items():
            for way in ("ingress", "egress"):
                rule: dict[str, Any] = {}
                if clause is not None:
                    rule["from" if way == "ingress" else "to"] = clause
                if port_clause is not None:
                    rule["ports"] = port_clause
                yield pytest.param(rule, way, _names(meant), meaning, id=f"{way}: {peers}, {ports}")


@pytest.mark.parametrize(("rule", "way", "peers", "meaning"), list(_cases()))
def test_a_rule_lets_through_what_it_says(
    rule: dict[str, Any], way: str, peers: frozenset[str], meaning: Meaning
) -> None:
    subject = "x/a"
    engine = PolicyEngine(objects(policy(pods=labels(pod="a"), types=[way.title()], **{way: [rule]})))
    others = [one for one in ENDS if one != subject]
    pairs = [*((subject, one) for one in others), *((one, subject) for one in others), ("x/b", "x/c"), ("y/a", "z/c")]
    for src, dst in pairs:
        own, other = (dst, src) if way == "ingress" else (src, dst)
        for port, protocol in PROBES:
            free = own != subject or (other in peers and meaning(dst, (port, protocol)))
            found = engine.verdict(end(src), end(dst), port, protocol)
            assert found.ruling is (Ruling.ALLOWED if free else Ruling.DENIED), (
                src,
                dst,
                port,
                protocol,
                found.why,
            )


INGRESS, EGRESS = ("Ingress",), ("Egress",)
BOTH = ("Ingress", "Egress")
ANY, NONE = [{}], list[Any]()
DIRECTIONS: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "nothing but a selector": ({}, False, True),
    "types left out, no egress": ({"ingress": ANY}, True, True),
    "types left out, an egress rule": ({"egress": ANY}, False, True),
    "types left out, an egress rule for a port": ({"egress": [{"ports": [{"port": 9}]}]}, False, False),
    "types left out, an empty list of egress": ({"egress": NONE}, False, True),
    "types left out, both": ({"ingress": ANY, "egress": ANY}, True, True),
    "ingress alone": ({"types": INGRESS}, False, True),
    "ingress alone, with egress rules that are not asked": (
        {"types": INGRESS, "egress": [{"ports": [{"port": 9}]}]},
        False,
        True,
    ),
    "egress alone": ({"types": EGRESS}, True, False),
    "egress alone, open": ({"types": EGRESS, "egress": ANY}, True, True),
    "deny everything": ({"types": BOTH}, False, False),
    "deny everything, empty lists": ({"types": BOTH, "ingress": NONE, "egress": NONE}, False, False),
    "allow everything": ({"types": BOTH, "ingress": ANY, "egress": ANY}, True, True),
    "open in, closed out": ({"types": BOTH, "ingress": ANY}, True, False),
    "closed in, open out": ({"types": BOTH, "egress": ANY}, False, True),
}


@pytest.mark.parametrize(("spec", "into", "out"), DIRECTIONS.values(), ids=DIRECTIONS)
def test_a_policy_isolates_in_the_directions_of_its_types(spec: dict[str, Any], into: bool, out: bool) -> None:
    engine = PolicyEngine(objects(policy(**spec)))
    for inside in ("x/a", "x/b", "x/c"):
        for other in (*PODS[3:], *OUTSIDE):
            assert (engine.verdict(end(other), end(inside), 80).ruling is Ruling.ALLOWED) is into
            assert (engine.verdict(end(inside), end(other), 80).ruling is Ruling.ALLOWED) is out
        assert engine.verdict(end(inside), end(inside), 80).ruling is Ruling.ALLOWED  # a pod cannot block itself
    assert engine.verdict(end("y/a"), end("z/b"), 80).ruling is Ruling.ALLOWED


def test_both_ends_must_allow() -> None:
    out = policy("out", "x", types=EGRESS, egress=[{"to": [{"namespaceSelector": labels(team="blue")}]}])
    into = policy("in", "y", types=INGRESS, ingress=[{"from": [{"podSelector": {}}]}])
    found = PolicyEngine(objects(out, into)).verdict(end("x/a"), end("y/a"), 80)
    assert (found.egress.ruling, found.ingress.ruling, found.ruling) == (Ruling.ALLOWED, Ruling.DENIED, Ruling.DENIED)
    assert [str(ref) for ref in found.egress.allowed_by] == ["NetworkPolicy x/out egress[0]"]
    assert [str(ref) for ref in found.ingress.isolated_by] == ["NetworkPolicy y/in"]


def test_policies_add_up() -> None:
    first = policy("first", types=INGRESS, ingress=[{"from": [{"podSelector": labels(pod="a")}]}])
    second = policy(
        "second",
        types=INGRESS,
        ingress=[{"ports": [{"port": 9}]}, {"from": [{"namespaceSelector": labels(team="blue")}]}],
    )
    engine = PolicyEngine(objects(first, second))
    assert [str(r) for r in engine.verdict(end("x/a"), end("x/b"), 80).ingress.allowed_by] == [
        "NetworkPolicy x/first ingress[0]"
    ]
    assert [r.index for r in engine.verdict(end("y/a"), end("x/b"), 80).ingress.allowed_by] == [1]
    assert engine.verdict(end("z/a"), end("x/b"), 80).ingress.isolated_by == tuple(
        one.policy.ref for one in engine.policies_selecting(engine.world.pods["x/b"])
    )
