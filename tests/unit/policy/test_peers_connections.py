"""Every connection of the peers' connectivity lists, admin policies included; networks are read as outside of the cluster there."""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

import pytest

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.endpoint import Endpoint
from tasks.skoop.model.packet import Protocol
from tasks.skoop.policy.engine import PolicyEngine
from tasks.skoop.policy.parties import Party
from tasks.skoop.policy.peers import Reading
from tasks.skoop.policy.verdict import Ruling
from tests.unit.policy.peers_data import VARIABLE, manifest_objects, suite

Connections = dict[Protocol, list[tuple[int, int]]]
TRANSPORT = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
EVERYTHING: Connections = {protocol: [(1, 65535)] for protocol in TRANSPORT}
OUTSIDE = re.compile(r"(?P<first>[\d.]+)-(?P<last>[\d.]+)\[External\]")


@lru_cache
def _connections(text: str) -> Connections:
    if text == "All Connections":  # by far the most common
        return EVERYTHING
    found: Connections = {}
    current: list[tuple[int, int]] = []
    for word in text.split(","):
        name, _, ports = word.rpartition(" ")
        if name:
            current = found.setdefault(Protocol(name.lower()), [])
        first, _, last = ports.partition("-")
        current.append((int(first), int(last or first)))
    return found


def _holds(connections: Connections, protocol: Protocol, port: int) -> bool:
    return any(first <= port <= last for first, last in connections.get(protocol, ()))


def _interesting(lines: Iterable[dict[str, str]], pods: Iterable[Any]) -> list[int]:
    ports = {80} | {port.port for pod in pods for port in pod.ports}
    for line in lines:
        ports |= {port for ranges in _connections(line["connections"]).values() for pair in ranges for port in pair}
    return sorted(port for known in ports for port in {known - 1, known, known + 1} if 0 < port < 65536)


def _of_lines(lines: Iterable[dict[str, str]]) -> set[int]:
    ranges = (pair for line in lines for found in _connections(line["connections"]).values() for pair in found)
    return {port for pair in ranges for port in pair if port > 0}


def _addresses(lines: Iterable[dict[str, str]], near: tuple[int, ...]) -> list[int]:
    found = {int(ip_address("198.51.100.7"))}
    for line in lines:
        for end in (line["from"], line["to"]):
            match = OUTSIDE.fullmatch(end)
            if match:
                found |= {int(ip_address(match["first"])), int(ip_address(match["last"]))}
    asked = {one + step for one in found for step in (0, *near)}
    pods = range(int(ip_address("10.200.0.0")), int(ip_address("10.210.0.0")))
    return sorted(one for one in asked if 0 < one < 2**32 - 1 and one not in pods)


def _questions(case: dict[str, Any]) -> Iterator[tuple[str, Party, Party, int, Protocol, bool, PolicyEngine]]:
    objects, pods = manifest_objects(case["objects"])
    engine = PolicyEngine(objects, Reading.OUTSIDE_ONLY)
    lines = case["expectedConnections"]
    inside = {(line["from"], line["to"]): _connections(line["connections"]) for line in lines}
    parties = {name: engine.world.pod(pod) for name, pod in pods.items()}
    # Large cases are asked at the ends of what their lines name; small ones beside them as well.
    large, whole = len(parties) > 8, len(parties) > 40
    named = {80} if whole else {80, *_of_lines(lines)}
    ports = sorted(named) if large else _interesting(lines, pods.values())
    protocols = (Protocol.TCP,) if whole else TRANSPORT
    ranges = []
    for line in lines:
        for way, end, other in ((0, line["from"], line["to"]), (1, line["to"], line["from"])):
            match = OUTSIDE.fullmatch(end)
            if match:
                box = int(ip_address(match["first"])), int(ip_address(match["last"]))
                ranges.append((way, other, *box, _connections(line["connections"])))
    for source, src in parties.items():
        for target, dst in parties.items():
            if source != target:
                for port in ports:
                    for protocol in protocols:
                        expected = _holds(inside.get((source, target), {}), protocol, port)
                        yield f"{source} {target}", src, dst, port, protocol, expected, engine
    outside_ports = sorted(named)
    by_pod: dict[tuple[int, str], list[tuple[int, int, Connections]]] = {}
    for way, other, first, last, known in ranges:
        by_pod.setdefault((way, other), []).append((first, last, known))
    for number in _addresses(lines, near=() if large else (-1, 1)):
        ip = Ip(str(ip_address(number)))
        outside = engine.world.party(Endpoint(ip=ip))
        for name, party in parties.items():
            for way, (src, dst) in enumerate(((outside, party), (party, outside))):
                known_here = [known for first, last, known in by_pod.get((way, name), ()) if first <= number <= last]
                for port in outside_ports:
                    for protocol in protocols:
                        expected = any(_holds(known, protocol, port) for known in known_here)
                        yield f"{way} {ip} {name}", src, dst, port, protocol, expected, engine


def _numbers() -> range:
    return range(104)


@pytest.mark.parametrize("number", _numbers())
def test_every_connection_agrees(number: int) -> None:
    cases = suite("npguard_connlist")["cases"]
    case = cases[number]
    if not case["expectedConnections"] and case["independentCheck"].startswith("not checked: no"):
        pytest.skip(f"{case['id']} lists nothing to compare (folder of {VARIABLE})")
    count, wrong = 0, []
    for where, src, dst, port, protocol, expected, engine in _questions(case):
        count += 1
        found = engine.verdict(src, dst, port, protocol)
        if found.ruling is not (Ruling.ALLOWED if expected else Ruling.DENIED):
            wrong.append((where, port, protocol, expected, found.ruling, found.why))
    assert not wrong, f"{case['id']} {case['dir']}: {len(wrong)} of {count}: {wrong[:3]}"
    assert count
