"""What cannot match changes nothing: a rule, a route, a policy rule, a neighbour, a namespace more, and the answer is the same."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tasks.skoop.model.addr import Ip, Mac, Net
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.ids import host_netns
from tasks.skoop.model.state import FdbEntry, Neighbour, NeighbourState, NetNS, NextHop, PolicyRule, Route
from tasks.skoop.model.xtables import Chain
from tasks.skoop.parse.iptables_rule import RuleReader
from tests.unit.netstack.asking import ask, connects, said, scenarios, state_named

CASES = tuple((scenario.name, number) for scenario in scenarios() for number, _ in enumerate(connects(scenario)))
NEVER = "203.0.113.77"
RULES = (
    f"-s {NEVER}/32 -j DROP",
    f"-d {NEVER}/32 -j REJECT --reject-with icmp-port-unreachable",
    "-i nosuchdev0 -j DROP",
    "-p sctp -m sctp --dport 4711 -j DROP",
    f"-s {NEVER}/32 -j MARK --set-xmark 0xffff/0xffffffff",
    "-m mark --mark 0xdead0000/0xffff0000 -j DROP",
    f"! -d 0.0.0.0/0 -s {NEVER}/32 -j DROP",
)


def changed(state: ClusterState, pick: int, change: object) -> ClusterState:
    netns = list(state.netns.values())[pick % len(state.netns)]
    return replace(state, netns={**state.netns, netns.id: change(netns)})  # type: ignore[operator]


def same(case: tuple[str, int], state: ClusterState) -> None:
    name, number = case
    scenario = next(one for one in scenarios() if one.name == name)
    what = list(connects(scenario))[number]
    assert said(ask(state, what)) == said(ask(state_named(name), what))


def with_rule(netns: NetNS, spec: str, place: int) -> NetNS:
    """Put a rule into one of the namespace's chains of IPv4 that a dump could have it in."""
    slots = [
        (table, chain, at)
        for table in netns.tables
        if table.family == 4
        for chain in table.chains
        for at in range(len(chain.rules) + 1)
        if not ("REJECT" in spec and table.name != "filter")
        and not ("-i " in spec and chain.name in ("OUTPUT", "POSTROUTING"))
    ]
    if not slots:
        return netns
    table, chain, at = slots[place % len(slots)]
    rules = (*chain.rules[:at], RuleReader().rule(spec), *chain.rules[at:])
    chains = tuple(Chain(one.name, one.policy, rules if one is chain else one.rules) for one in table.chains)
    return replace(netns, tables=tuple(replace(one, chains=chains) if one is table else one for one in netns.tables))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CASES), st.sampled_from(RULES), st.integers(0, 10), st.integers(0, 500))
def test_a_rule_that_cannot_match(case: tuple[str, int], spec: str, pick: int, place: int) -> None:
    same(case, changed(state_named(case[0]), pick, lambda netns: with_rule(netns, spec, place)))


def additions() -> Iterator[object]:
    def more(**fields: tuple[object, ...]) -> object:
        def add(netns: NetNS) -> NetNS:
            return replace(netns, **{name: (*getattr(netns, name), *new) for name, new in fields.items()})

        return add

    nowhere = NextHop(dev="lo")
    yield pytest.param(more(routes=(Route(dst=Net(f"{NEVER}/32"), nexthops=(nowhere,)),)), id="route elsewhere")
    yield pytest.param(more(routes=(Route(dst=Net("0.0.0.0/0"), type="blackhole", table=4711),)), id="unused table")
    yield pytest.param(
        more(
            neighbours=(Neighbour(ip=Ip(NEVER), dev="eth0", mac=Mac("02:00:00:00:77:77"), state=NeighbourState.STALE),)
        ),
        id="neighbour elsewhere",
    )
    yield pytest.param(more(fdb=(FdbEntry(mac=Mac("02:00:00:00:77:77"), dev="eth0", dst=Ip(NEVER)),)), id="fdb entry")


@pytest.mark.parametrize("addition", list(additions()))
def test_something_that_nobody_asks_for(addition: object) -> None:
    for scenario in scenarios()[::3]:
        state = state_named(scenario.name)
        for pick in range(len(state.netns)):
            same((scenario.name, 0), changed(state, pick, addition))


def test_a_policy_rule_that_never_selects() -> None:
    rule = PolicyRule(family=4, priority=5, table=4711, src=Net(f"{NEVER}/32"), iif="nosuchdev0")
    for scenario in scenarios()[::3]:
        state = state_named(scenario.name)
        for pick in range(len(state.netns)):
            same((scenario.name, 0), changed(state, pick, lambda netns: replace(netns, rules=(*netns.rules, rule))))


def test_a_namespace_that_is_connected_with_nobody() -> None:
    stranger = NetNS(id=host_netns("stranger"))
    for scenario in scenarios():
        state = state_named(scenario.name)
        same((scenario.name, 0), replace(state, netns={**state.netns, stranger.id: stranger}))
