"""Random native rulesets and packets: the kernel's own counters and deliveries against the simulator's steps.

Each case is one packet sent through one ruleset; the whole walk through the router is under test: order of base chains,
conntrack and NAT among them. A difference names the seed that makes it again.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from shutil import which
from typing import NamedTuple

import pytest

from tasks.skoop.model.addr import Ip, Mac, Net
from tasks.skoop.model.ids import host_netns
from tasks.skoop.model.packet import CtState, Frame, Packet, Protocol
from tasks.skoop.model.state import Address, Interface, Neighbour, NeighbourState, NetNS, NextHop, Route, Socket
from tasks.skoop.model.trace import Outcome, Stage, Step
from tasks.skoop.netstack import stack
from tasks.skoop.netstack.namespace import Answers, Namespace
from tasks.skoop.netstack.skb import steps_of
from tasks.skoop.parse.nft import parse_nft
from tests.kernel.nftables.random_rulesets import RulesetMaker
from tests.kernel.xtables.random_rules import RuleMaker
from tests.kernel.xtables.router_lab import C_MAC, MARKER, PORTS, RC_MAC, RS_MAC, S_MAC, RouterLab

pytestmark = pytest.mark.root

RULESETS = 30
PACKETS = 8
SEED = int(os.environ.get("NFTABLES_SEED", "1"))
ROUTER = host_netns("r")
Key = tuple[str, str, int]


class Sent(NamedTuple):
    """What was sent, what arrived by position, and the tables with counters before and afterwards."""

    packets: list[Packet]
    arrived: dict[int, Packet]
    before: str
    after: str


@pytest.fixture(scope="module")
def lab() -> Iterator[RouterLab]:
    if os.geteuid():
        pytest.skip("needs root to make network namespaces")
    if not which("ip") or not which("nft"):
        pytest.skip("needs ip and nft")
    with RouterLab() as router:
        yield router


class NobodyElse:
    """The ends of the router's links: its neighbour entries are permanent, nobody is asked."""

    def resolve(self, netns: str, dev: str, target: Ip, sender: Ip | None) -> Answers:
        return Answers()

    def reaches(self, netns: str, dev: str, mac: Mac, vlan: int = 0) -> bool:
        return True

    def vteps(self, netns: str, dev: str, mac: Mac) -> tuple[Ip, ...]:
        return ()

    def l3s_above(self, netns: str, dev: str, ip: Ip) -> None:
        return None


def _link(index: int, name: str, net: int, mac: str) -> Interface:
    own = (
        Address(ip=Ip(f"10.{net}.0.1"), prefixlen=24, broadcast=Ip(f"10.{net}.0.255")),
        Address(ip=Ip(f"fd00:{net}::1"), prefixlen=64),
    )
    return Interface(index=index, name=name, kind="veth", mac=Mac(mac), addresses=own)


def _route(dst: str, dev: str, kind: str = "unicast", table: int = 254, src: str | None = None) -> Route:
    hops = (NextHop(dev=dev),)
    scope = {"unicast": "link", "local": "host", "broadcast": "link"}[kind]
    return Route(dst=Net(dst), table=table, type=kind, nexthops=hops, scope=scope, prefsrc=Ip(src) if src else None)


def router(listing: str, indices: dict[str, int]) -> NetNS:
    """Return the state of the router of `router_lab`, with the tables of a listing."""
    routes = []
    for net, dev in ((1, "rc"), (2, "rs")):
        routes += [
            _route(f"10.{net}.0.0/24", dev, src=f"10.{net}.0.1"),
            _route(f"10.{net}.0.1/32", dev, "local", 255, f"10.{net}.0.1"),
            _route(f"10.{net}.0.255/32", dev, "broadcast", 255, f"10.{net}.0.1"),
            _route(f"fd00:{net}::/64", dev),
            _route(f"fd00:{net}::1/128", dev, "local", 255),
        ]
    near = [
        Neighbour(ip=Ip(ip), dev=dev, mac=Mac(mac), state=NeighbourState.PERMANENT)
        for net, dev, mac in ((1, "rc", C_MAC), (2, "rs", S_MAC))
        for n in (2, 3, 99)
        for ip in (f"10.{net}.0.{n}", f"fd00:{net}::{n}")
    ]
    listening = [
        Socket(protocol=Protocol.UDP, ip=Ip(ip), port=port, v6only=True) for ip in ("0.0.0.0", "::") for port in PORTS
    ]
    return NetNS(
        id=ROUTER,
        interfaces=(
            Interface(index=indices["lo"], name="lo", kind="loopback"),
            _link(indices["rc"], "rc", 1, RC_MAC),
            _link(indices["rs"], "rs", 2, RS_MAC),
        ),
        routes=tuple(routes),
        neighbours=tuple(near),
        sockets=tuple(listening),
        sysctls={
            "net/ipv4/ip_forward": "1",
            **{f"net/ipv4/conf/{dev}/forwarding": "1" for dev in ("rc", "rs", "all")},
            "net/ipv6/conf/all/forwarding": "1",
        },
        nft=tuple(table for table in parse_nft(listing) if table.name != "lab"),
    )  # fmt: skip


def visits(steps: tuple[Step, ...]) -> Iterator[Key]:
    """Yield each time that a packet met a rule: one visit may leave several steps, one behind the other."""
    last: Key | None = None
    for step in steps:
        place = step.place
        key = (place.table, place.chain, place.rule) if place.stage == Stage.NETFILTER else None
        if key is not None and key != last and key[2]:
            yield key
        last = key


def counters(listing: str) -> dict[Key, int]:
    """Return how many packets each rule has counted: (table, chain, number from 1)."""
    found: dict[Key, int] = {}
    positions: Counter[tuple[str, str]] = Counter()
    for item in json.loads(listing)["nftables"]:
        rule = item.get("rule")
        if rule is None:
            continue
        chain = (f"{rule['family']} {rule['table']}", rule["chain"])
        positions[chain] += 1
        counted = [part["counter"]["packets"] for part in rule["expr"] if isinstance(part.get("counter"), dict)]
        if counted:
            found[*chain, positions[chain]] = counted[0]
    return found


def _send(lab: RouterLab, family: int, seed: int) -> Sent:
    """Let the packets of a seed go through its ruleset."""
    maker, packets = RulesetMaker(seed, family), RuleMaker(seed, family)
    lab.on_router("nft", "-f", "-", given=maker.ruleset())
    try:
        before = lab.on_router("nft", "-j", "list", "ruleset")
        sent = [packets.packet(lab.serial + number) for number in range(PACKETS)]
        arrived = lab.send(sent, _marker(family))
        return Sent(sent, arrived, before, lab.on_router("nft", "-j", "list", "ruleset"))
    finally:
        text = "".join(f"delete table {kind} {name}\n" for kind, name in maker.tables)
        lab.on_router("nft", "-f", "-", given=text)


def _marker(family: int) -> Packet:
    dst = Ip("10.2.0.2" if family == 4 else "fd00:2::2")
    return Packet(
        src=Ip(MARKER[family]), dst=dst, protocol=Protocol.UDP, sport=9, dport=9, length=60 if family == 4 else 80
    )


def _foretold(listing: str, packets: list[Packet], indices: dict[str, int]) -> tuple[Counter[Key], dict[int, Packet]]:
    namespace = Namespace(router(listing, indices), NobodyElse())
    met: Counter[Key] = Counter()
    arrived: dict[int, Packet] = {}
    for position, packet in enumerate(packets):
        frame = Frame(packet, Mac(C_MAC), Mac(RC_MAC))
        ways = stack.receive(namespace, "rc", frame, {})
        assert len(ways) == 1, [way.missing for way in ways]
        (way,) = ways
        assert not way.missing, way.missing
        assert way.end is None or way.end.outcome != Outcome.UNKNOWN, way.end
        met.update(visits(steps_of(way.trail)))
        if way.emit is not None and way.emit.dev == "rs":
            arrived[position] = way.emit.frame.packet.with_(mark=0, ct_state=CtState.NONE)
    return met, arrived


def _differences(sent: Sent, listing: str, indices: dict[str, int]) -> list[str]:
    """Return where what was seen is not what the rules of `listing` foretell."""
    met, foretold = _foretold(listing, sent.packets, indices)
    found = [
        f"{'/'.join(key[:2])}#{key[2]}: kernel {seen}, foretold {met[key]}"
        for key, seen in counters(sent.after).items()
        if seen != met[key] and not (key[1].startswith("b") and key[2] == 1)  # the marker's own rules
    ]
    found += [
        f"{packet}: arrived {sent.arrived.get(position)!r}, foretold {foretold.get(position)!r}"
        for position, packet in enumerate(sent.packets)
        if sent.arrived.get(position) != foretold.get(position)
    ]
    return found


@pytest.fixture(scope="module")
def indices(lab: RouterLab) -> dict[str, int]:
    return {link["ifname"]: link["ifindex"] for link in json.loads(lab.on_router("ip", "-j", "link"))}


@pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
def test_rules_met_and_packets_delivered_are_those_foretold(
    lab: RouterLab, family: int, indices: dict[str, int]
) -> None:
    print(f"seeds {SEED * 1000} to {SEED * 1000 + RULESETS - 1}")  # noqa: T201 (a failure must name its seed)
    rules_met = 0
    for seed in range(SEED * 1000, SEED * 1000 + RULESETS):
        sent = _send(lab, family, seed)
        found = _differences(sent, sent.before, indices)
        assert not found, "\n".join((f"seed {seed}", *found, RulesetMaker(seed, family).ruleset()))
        rules_met += sum(count > 0 for count in counters(sent.after).values())
    assert rules_met > RULESETS * 10


ALTERED = [
    pytest.param('{"accept": null}', '{"drop": null}', id="a verdict turned round"),
    pytest.param('"return"', '"continue"', id="a return taken for nothing"),
    pytest.param('"goto"', '"jump"', id="a goto taken for a jump"),
    pytest.param('"op": "!="', '"op": "=="', id="a negation overlooked"),
    pytest.param('"new"', '"related"', id="another state"),
]


@pytest.mark.parametrize(("text", "wrong"), ALTERED)
def test_the_comparison_notices_what_is_wrong(lab: RouterLab, text: str, wrong: str, indices: dict[str, int]) -> None:
    found = []
    for seed in range(12):
        sent = _send(lab, 4, seed)
        found += _differences(sent, sent.before.replace(text, wrong), indices)
    assert found
