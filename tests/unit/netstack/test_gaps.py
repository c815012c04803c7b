"""What was not collected is never taken for something: the answer is the same without it, or it is "unknown" and says why."""

import pytest
from msgspec.structs import replace

from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.ids import NetnsId, node_netns
from tasks.skoop.model.state import Missing, NetNS, Section
from tasks.skoop.model.trace import Stage, View
from tests.scenarios.scenario import BENCH, Scenario, parse
from tests.scenarios.state import state_of
from tests.unit.netstack.asking import ask, connects, scenarios, state_named

PARTS = {
    Section.LINKS: "interfaces",
    Section.ROUTES: "routes",
    Section.RULES: "rules",
    Section.NEIGHBOURS: "neighbours",
    Section.FDB: "fdb",
    Section.SOCKETS: "sockets",
    Section.IPTABLES: "tables",
    Section.NFT: "nft",
}
ALWAYS = (Section.LINKS, Section.ROUTES, Section.RULES, Section.SYSCTLS, Section.NFT)
"""Sections that decide about every packet: without them nothing is known where a packet comes."""
COMES = (Stage.LINK, Stage.ROUTE)
REASON = "permission denied"


def without(netns: NetNS, section: Section) -> NetNS:
    """The namespace as a collector leaves it that could not read a section."""
    empty = {"sysctls": {}} if section == Section.SYSCTLS else {PARTS[section]: ()}
    return replace(netns, missing=(Missing(section=section, reason=REASON),), **empty)


def with_gap(state: ClusterState, netns: NetnsId, section: Section) -> ClusterState:
    return replace(state, netns={**state.netns, netns: without(state.netns[netns], section)})


@pytest.mark.parametrize("section", [*PARTS, Section.SYSCTLS])
def test_without_a_section_the_answer_is_the_same_or_unknown(section: Section) -> None:
    unknown = 0
    for scenario in scenarios():
        what = next(connects(scenario))
        state = state_named(scenario.name)
        whole = ask(state, what)
        steps = [step for outcome in whole.outcomes for step in outcome.forward.steps]
        visited = {step.place.netns for step in steps if step.place.stage in COMES}
        for name in state.netns:
            if name == node_netns(BENCH):
                continue
            partly = ask(with_gap(state, name, section), what)
            label = f"{scenario.name}: {what} without {section} of {name}"
            if View.UNKNOWN in partly.client_sees:
                unknown += 1
                assert any(str(name) in gap and REASON in gap for gap in partly.missing), label
                continue
            assert partly.client_sees == pytest.approx(whole.client_sees), label
            assert section not in ALWAYS or name not in visited, label
    assert unknown > 5


def scenario_of(text: str) -> Scenario:
    return parse(text, "made-up")


PAIR = """
veth a:eth0 b:eth0
netns a
  link eth0 10.1.0.1/24
netns b
  link eth0 10.1.0.2/24
  listen tcp 80
connect a tcp 10.1.0.2:80
"""


@pytest.mark.parametrize("section", [*ALWAYS, Section.IPTABLES, Section.NEIGHBOURS, Section.SOCKETS])
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_connection_that_would_work_is_not_called_fine(section: Section, name: str) -> None:
    if (section, name) == (Section.SOCKETS, "a"):
        return
    scenario = scenario_of(PAIR)
    (what,) = connects(scenario)
    state = state_of(scenario)
    assert ask(state, what).client_sees == {View.CONNECTED: 1.0}
    partly = ask(with_gap(state, node_netns(name), section), what)
    assert partly.client_sees == {View.UNKNOWN: 1.0}
    assert any(section in gap and REASON in gap for gap in partly.missing)


def test_a_namespace_that_was_not_collected_is_not_called_silent() -> None:
    scenario = scenario_of(PAIR)
    (what,) = connects(scenario)
    state = state_of(scenario)
    alone = replace(state, netns={name: netns for name, netns in state.netns.items() if name != node_netns("b")})
    diagnosis = ask(alone, what)
    assert diagnosis.client_sees == {View.UNKNOWN: 1.0}
    assert any("node/b" in gap for gap in diagnosis.missing)
