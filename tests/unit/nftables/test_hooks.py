"""Native base chains among iptables tables, conntrack and NAT: order, ends, rerouting, and frames below the IP layer."""

import pytest

from tasks.skoop.model.addr import Ip, Mac, Net
from tasks.skoop.model.packet import Frame, Packet, Protocol, TcpFlags
from tasks.skoop.model.state import Neighbour, NeighbourState, NetNS, NextHop, NftTable, PolicyRule, Route
from tasks.skoop.model.trace import Outcome, Reason, Stage
from tasks.skoop.model.xtables import Backend
from tasks.skoop.netstack import stack
from tasks.skoop.netstack.namespace import Answers, Namespace
from tasks.skoop.netstack.nftables.link_hooks import on_bridge, on_device
from tasks.skoop.netstack.skb import At, Exit, Skb, steps_of
from tasks.skoop.netstack.xtables.api import Hook
from tasks.skoop.parse.iptables import parse_iptables_save
from tests.unit.nftables.scene import ACCEPT, DROP, Json, ct, jump, match, meta, netns, payload, put, table
from tests.unit.xtables.scene import Field

MAC = Mac("02:00:00:00:00:02")
NEAR = tuple(
    Neighbour(ip=Ip(ip), dev=dev, mac=MAC, state=NeighbourState.PERMANENT)
    for ip, dev in (("10.1.0.2", "rc"), ("10.2.0.2", "rs"), ("10.2.0.3", "rs"))
)
FORWARDING = {"net/ipv4/ip_forward": "1", "net/ipv4/conf/rc/forwarding": "1", "net/ipv4/conf/rs/forwarding": "1"}
FIRST = Packet(src=Ip("10.1.0.2"), dst=Ip("10.2.0.2"), sport=40000, dport=80, tcp_flags=TcpFlags.SYN)
MARK = meta("mark")


class Nobody:
    def resolve(self, *_: object) -> Answers:
        return Answers()

    def reaches(self, *_: object) -> bool:
        return False

    def vteps(self, *_: object) -> tuple[Ip, ...]:
        return ()

    def l3s_above(self, *_: object) -> None:
        return None


def host(*tables: NftTable, **more: Field) -> Namespace:
    state: NetNS = netns(*tables, neighbours=NEAR, sysctls=FORWARDING, **more)
    return Namespace(state, Nobody())


def through(ns: Namespace, packet: Packet = FIRST) -> Exit:
    (way,) = stack.receive(ns, "rc", Frame(packet, MAC, Mac("")), {})
    return way


def rules_met(way: Exit) -> list[str]:
    return [
        str(step.place).split(" ", 1)[1]
        for step in steps_of(way.trail)
        if step.place.stage == Stage.NETFILTER and step.place.rule
    ]


def chain_at(
    hook: str, priority: int, *rules: list[Json], kind: str = "filter", policy: str = "accept", name: str = "t"
) -> NftTable:
    return table({"base": list(rules)}, hooks=(("base", kind, hook, priority, policy),), name=name)  # fmt: skip


@pytest.mark.parametrize(
    ("hook", "before", "after"),
    [("prerouting", -160, -140), ("forward", -1, 1), ("postrouting", -160, -140)],
)
def test_base_chains_run_in_order_of_priority_among_iptables_tables(hook: str, before: int, after: int) -> None:
    chain = hook.upper()
    name = "filter" if hook == "forward" else "mangle"
    save = f"*{name}\n:{chain} ACCEPT [0:0]\n-A {chain} -j MARK --set-xmark 0x1/0xff\nCOMMIT\n"
    late, early = chain_at(hook, after, [{"counter": None}], name="late"), chain_at(hook, before, [{"counter": None}], name="early")  # fmt: skip
    ns = host(late, early, tables=parse_iptables_save(save, backend=Backend.LEGACY, family=4))
    assert rules_met(through(ns)) == ["inet early/base#1", f"{name}/{chain}#1", "inet late/base#1"]


def test_accept_ends_one_base_chain_only() -> None:
    ns = host(chain_at("forward", 0, [ACCEPT], name="early"), chain_at("forward", 10, [DROP], name="late"))
    way = through(ns)
    assert way.end is not None
    assert (way.end.outcome, way.end.reason) == (Outcome.DROPPED, Reason.NETFILTER_DROP)
    assert way.end.place is not None
    assert (way.end.place.table, way.end.place.chain, way.end.place.rule) == ("inet late", "base", 1)


def test_an_empty_base_chain_drops_by_its_policy() -> None:
    way = through(host(chain_at("forward", 0, policy="drop")))
    assert way.end is not None
    assert way.end.detail == "dropped by the chain's policy"


def test_a_table_of_the_other_family_is_not_asked() -> None:
    source = table({"base": [[DROP]]}, family="ip6", hooks=(("base", "filter", "forward", 0, "accept"),))
    assert through(host(source)).emit is not None


def test_conntrack_runs_between_chains_only_if_a_rule_needs_it() -> None:
    new = match(ct("state"), "new", "in")
    invalid = match(ct("state"), "invalid", "in")
    early = chain_at("prerouting", -300, [new, DROP], [invalid, put(MARK, 1)], name="early")
    late = chain_at("prerouting", -150, [invalid, DROP], [new, match(MARK, 1), {"counter": None}], name="late")
    assert rules_met(through(host(early, late))) == ["inet early/base#2", "inet late/base#2"]


@pytest.mark.parametrize(("first", "winner"), [(-101, "10.2.0.3"), (-99, "10.2.0.2")])
def test_the_nat_chain_that_runs_first_wins(first: int, winner: str) -> None:
    save = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -j DNAT --to-destination 10.2.0.2:8080\nCOMMIT\n"
    native = chain_at("prerouting", first, [{"dnat": {"family": "ip", "addr": "10.2.0.3"}}], kind="nat")
    way = through(host(native, tables=parse_iptables_save(save, backend=Backend.LEGACY, family=4)))
    assert way.packet.dst == winner


def test_of_nat_chains_with_equal_priority_either_may_be_first() -> None:
    one = chain_at("prerouting", -100, [{"dnat": {"family": "ip", "addr": "10.2.0.3"}}], kind="nat", name="one")
    two = chain_at(
        "prerouting", -100, [{"dnat": {"family": "ip", "addr": "10.2.0.2", "port": 8080}}], kind="nat", name="two"
    )
    silent = chain_at(
        "prerouting", -100, [match(payload("tcp dport"), 22), {"redirect": None}], kind="nat", name="silent"
    )
    ways = stack.receive(host(silent, one, two), "rc", Frame(FIRST, MAC, Mac("")), {})
    assert {(way.packet.dst, way.packet.dport): way.probability for way in ways} == {
        ("10.2.0.3", 80): 0.5,
        ("10.2.0.2", 8080): 0.5,
    }
    same = chain_at("prerouting", -100, [{"dnat": {"family": "ip", "addr": "10.2.0.3"}}], kind="nat", name="same")
    assert through(host(one, same)).packet.dst == "10.2.0.3"


def test_a_nat_chain_sees_the_mark_of_the_chains_before_and_may_drop() -> None:
    mark = chain_at("prerouting", -110, [put(MARK, 5)], name="mark")
    nat = chain_at("prerouting", -100, [match(MARK, 5), DROP], [{"redirect": None}], kind="nat")
    way = through(host(mark, nat))
    assert way.end is not None
    assert way.end.outcome == Outcome.DROPPED


def test_postrouting_is_told_where_a_forwarded_packet_came_in() -> None:
    source = chain_at("postrouting", 0, [match(meta("iifname"), "rc"), match(meta("oifname"), "rs"), DROP])
    assert through(host(source)).end is not None
    (sent,) = stack.send(host(source), FIRST.with_(src=Ip("10.2.0.1")), {})
    assert sent.emit is not None


@pytest.mark.parametrize(("kind", "dev"), [("route", "rs"), ("filter", "rc")])
def test_a_mark_reroutes_in_a_route_chain_only(kind: str, dev: str) -> None:
    elsewhere = Route(dst=Net("10.1.0.0/24"), table=100, nexthops=(NextHop(dev="rs", via=Ip("10.2.0.2")),))
    rules = (
        PolicyRule(family=4, priority=0, table=255),
        PolicyRule(family=4, priority=10, table=100, fwmark=1, fwmask=0xFFFFFFFF),
        PolicyRule(family=4, priority=32766, table=254),
    )
    source = chain_at("output", -150, [put(MARK, 1)], kind=kind)
    state = netns(source, neighbours=NEAR, sysctls=FORWARDING, rules=rules)
    state = NetNS(
        id=state.id,
        interfaces=state.interfaces,
        routes=(*state.routes, elsewhere),
        rules=rules,
        nft=state.nft,
        neighbours=NEAR,
    )
    (way,) = stack.send(
        Namespace(state, Nobody()), Packet(src=Ip("0.0.0.0"), dst=Ip("10.1.0.2"), protocol=Protocol.UDP, dport=9), {}
    )
    assert way.emit is not None
    assert way.emit.dev == dev


def test_a_local_datagram_that_a_native_chain_drops_is_refused_at_once() -> None:
    source = chain_at("output", 0, [jump("a")])
    source = table({"base": [[jump("a")]], "a": [[DROP]]}, hooks=source.hooks)
    (way,) = stack.send(host(source), Packet(src=Ip("0.0.0.0"), dst=Ip("10.1.0.2"), protocol=Protocol.UDP, dport=9), {})
    assert way.end is not None
    assert way.end.error is not None
    assert way.end.error.errno == "EPERM"


def test_what_is_not_understood_is_unknown_and_says_what_is_missing() -> None:
    way = through(host(chain_at("forward", 0, [{"queue": {"num": 5}}])))
    assert way.end is not None
    assert way.end.outcome == Outcome.UNKNOWN
    assert "queue" in way.missing[0]


# --- below the IP layer ---------------------------------------------------------------------------------------------------


def frame(packet: Packet = FIRST) -> Skb:
    skb = Skb(packet, {}, at=At.IP_RCV)
    skb.src_mac = MAC
    return skb


def ingress(*rules: list[Json], dev: Json = None, family: str = "netdev", policy: str = "accept") -> NftTable:
    chain = {"chain": {"family": family, "table": "t", "name": "base", "handle": 1, **({"dev": dev} if dev else {})}}
    return table(
        {"base": list(rules)}, objects=(chain,), family=family, hooks=(("base", "filter", "ingress", 0, policy),)
    )


FROM = match(payload("ip saddr"), "10.1.0.2")


@pytest.mark.parametrize(
    ("source", "outcome"),
    [
        pytest.param(ingress([FROM, DROP], dev="rc"), Outcome.DROPPED, id="dropped at its device"),
        pytest.param(ingress([FROM, DROP], dev=["rs", "rc"]), Outcome.DROPPED, id="one of several devices"),
        pytest.param(ingress([FROM, DROP], dev="rs"), None, id="of another device"),
        pytest.param(ingress([match(payload("ip saddr"), "10.1.0.9"), DROP]), None, id="passes whatever the device"),
        pytest.param(ingress([FROM, DROP]), Outcome.UNKNOWN, id="devices not listed"),
        pytest.param(ingress([FROM, DROP], dev="rc", family="inet"), Outcome.DROPPED, id="inet's ingress"),
        pytest.param(ingress(policy="drop", dev="rc"), Outcome.DROPPED, id="the policy"),
        pytest.param(ingress([FROM, {"fwd": {"dev": "rs"}}], dev="rc"), Outcome.UNKNOWN, id="forwarded to a device"),
    ],
)
def test_ingress(source: NftTable, outcome: Outcome | None) -> None:
    (way,) = on_device(host(source), frame(), "rc")
    assert (way.end.outcome if way.end else None) == outcome


@pytest.mark.parametrize(
    ("rule", "outcome"),
    [
        ([match(meta("iifname"), "p1"), match(meta("oifname"), "p2"), DROP], Outcome.DROPPED),
        ([match(payload("ether saddr"), "02:00:00:00:00:02"), FROM, DROP], Outcome.DROPPED),
        ([match(payload("ether type"), "arp"), DROP], None),
        ([match(meta("iifname"), "br0"), DROP], None),
        ([FROM, {"reject": None}], Outcome.UNKNOWN),
    ],
)
def test_a_bridge_filter_sees_ports(rule: list[Json], outcome: Outcome | None) -> None:
    source = table({"base": [rule]}, family="bridge", hooks=(("base", "filter", "forward", 0, "accept"),))
    (way,) = on_bridge(host(source), frame(), Hook.FORWARD, in_port="p1", out_port="p2")
    assert (way.end.outcome if way.end else None) == outcome
    assert not way.missing or outcome == Outcome.UNKNOWN
