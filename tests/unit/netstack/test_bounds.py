"""Every walk ends: loops are called so, and where there are too many ways the rest is unknown."""

import pytest

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.packet import Packet, Protocol
from tasks.skoop.model.trace import Outcome, Reason, View
from tasks.skoop.netnodes import NetNodeManager
from tasks.skoop.walk import MAX_HOPS, follow
from tests.scenarios.scenario import parse
from tests.scenarios.state import netns_of, state_of
from tests.unit.netstack.asking import ask, connects

LOOP = """
veth a:eth0 r1:eth0
veth r1:eth1 r2:eth0
netns a
  link eth0 10.1.0.2/24
  route default via 10.1.0.1
netns r1
  link eth0 10.1.0.1/24   eth1 10.2.0.1/24
  route 10.9.0.0/16 via 10.2.0.2
  sysctl net.ipv4.ip_forward=1
netns r2
  link eth0 10.2.0.2/24
  route 10.9.0.0/16 via 10.2.0.1
  sysctl net.ipv4.ip_forward=1
"""
BRIDGES = """
veth s1:p1 s2:p1
veth s1:p2 s2:p2
veth s1:p3 s2:p3
veth s1:a a:eth0
netns s1
  bridge br0
  link br0 up   p1 master br0   p2 master br0   p3 master br0   a master br0
netns s2
  bridge br0
  link br0 up   p1 master br0   p2 master br0   p3 master br0
netns a
  link eth0 10.1.0.1/24
connect a udp 10.1.0.99:53
"""
SPLITTING = """
veth a:eth0 b:eth0
netns a
  link eth0 10.1.0.1/24
netns b
  link eth0 10.1.0.2/24
  listen udp 53
{rules}
connect a udp 10.1.0.2:53
"""


def test_a_routing_loop_between_two_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The TTL would end it; here the bound of the walk comes first."""
    monkeypatch.setattr("tasks.skoop.walk.MAX_HOPS", 100)
    state = state_of(parse(LOOP, "loop"))
    nodes = NetNodeManager(state)
    start = netns_of("a")
    packet = Packet(src=Ip("10.1.0.2"), dst=Ip("10.9.0.1"), protocol=Protocol.UDP, sport=1, dport=53, ttl=255)
    (course,) = follow(nodes, start, nodes.get(start).send(packet, {}))
    assert course.end.outcome == Outcome.LOOPED
    assert course.end.reason == Reason.LOOP
    assert len(course.links) == 100


def test_a_loop_inside_one_namespace() -> None:
    """A veth with both ends in one namespace, and a route that sends the packet round."""
    text = "veth a:v1 a:v2\nnetns a\n  link v1 10.1.0.1/24   v2 noarp up\n  route 10.9.0.0/16 via 10.1.0.2\n  sysctl net.ipv4.ip_forward=1\n"
    text += (
        "  neigh 10.1.0.2 lladdr @a:v2 dev v1\n  sysctl net.ipv4.conf.v2.accept_local=1\nconnect a udp 10.9.0.1:53\n"
    )
    scenario = parse(text, "round")
    (what,) = connects(scenario)
    diagnosis = ask(state_of(scenario), what)
    assert diagnosis.verdict in (Outcome.LOOPED, Outcome.UNREACHABLE, Outcome.DROPPED)
    assert len(diagnosis.outcomes[0].forward.steps) > MAX_HOPS


def test_bridges_in_a_ring_end() -> None:
    scenario = parse(BRIDGES, "ring")
    (what,) = connects(scenario)
    diagnosis = ask(state_of(scenario), what)
    assert diagnosis.client_sees == {View.UNREACHABLE: 1.0}


@pytest.mark.parametrize(("count", "view"), [(3, View.CONNECTED), (13, View.UNKNOWN)])
def test_more_ways_than_are_followed_are_unknown(count: int, view: View) -> None:
    rules = "\n".join(
        f"  iptables -A INPUT -m statistic --mode random --probability 0.50000000000 -j MARK --or-mark 0x{1 << bit:x}"
        for bit in range(count)
    ).replace("--or-mark", "--set-xmark")
    rules = "\n".join(f"{line}/0x{1 << bit:x}" for bit, line in enumerate(rules.splitlines()))
    scenario = parse(SPLITTING.format(rules=rules), "splitting")
    (what,) = connects(scenario)
    diagnosis = ask(state_of(scenario), what)
    assert max(diagnosis.client_sees, key=lambda seen: diagnosis.client_sees[seen]) == view
    assert sum(diagnosis.client_sees.values()) == pytest.approx(1)
    if view == View.UNKNOWN:
        assert diagnosis.missing


def test_a_loop_is_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.skoop.walk.MAX_HOPS", 10)
    scenario = parse(LOOP + "connect a udp 10.9.0.1:53\n", "loop")
    (what,) = connects(scenario)
    diagnosis = ask(state_of(scenario), what)
    assert diagnosis.verdict == Outcome.LOOPED
