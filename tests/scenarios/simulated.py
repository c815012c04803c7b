"""Carries out a scenario in the simulator: what can come of each trial, and the trace that a scenario file shows."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace

from msgspec import structs
from msgspec.json import decode

from tasks.skoop.diagnostor import Diagnostor, Result
from tasks.skoop.model.addr import Mac
from tasks.skoop.model.diagnosis import FlowOutcome
from tasks.skoop.model.endpoint import Endpoint, Question
from tasks.skoop.model.netnode import Hop, Link, LinkType, NetNodeType, Transmission
from tasks.skoop.model.packet import Frame, Packet, Protocol
from tasks.skoop.model.trace import Outcome, Stage, Step, View
from tasks.skoop.model.xtables import Backend
from tasks.skoop.netstack import icmp
from tasks.skoop.netstack.conntrack import Flow, History
from tasks.skoop.parse.nft import FAMILIES
from tasks.skoop.walk import Course, follow
from tests.scenarios.results import ICMP, Rule, Seen, connect_text, leaving_text
from tests.scenarios.scenario import BENCH, Connect, Inject, Scenario
from tests.scenarios.state import netns_of, state_of
from tests.scenarios.trace import minimal

BENCH_ID = netns_of(BENCH)


class Simulated:
    """The simulator as a runner."""

    def run(self, scenario: Scenario) -> Sequence[Seen]:
        """Return what can come of each trial."""
        return [seen for seen, _ in tell(scenario)]


def tell(scenario: Scenario) -> list[tuple[Seen, tuple[str, ...]]]:
    """Return what can come of each trial, and its minimal trace."""
    diagnostor = Diagnostor(SimpleNamespace(state=state_of(scenario)), repeats_syn=False)
    flow: Flow = {}
    told = []
    silent = frozenset(_silent(scenario))
    for trial in scenario.trials:
        if isinstance(trial.what, Connect):
            seen, lines = _connect(diagnostor, trial.what, frames=_frames(scenario))
        else:
            seen, lines, flow = _inject(diagnostor, trial.what, flow)
        told.append((replace(seen, rules=seen.rules - silent), lines))
    return told


def _silent(scenario: Scenario) -> Iterator[Rule]:
    """Yield the native rules that have no counter: whether they were hit, the kernel does not tell."""
    for space in scenario.spaces.values():
        for table in space.nft_listed:
            positions: Counter[str] = Counter()
            for rule in (decode(text)["rule"] for text in table.objects if text.startswith('{"rule"')):
                positions[rule["chain"]] += 1
                if not any("counter" in part for part in rule["expr"]):
                    chain = (f"{table.family} {table.name}", rule["chain"])
                    yield space.name, FAMILIES.get(table.family, 0), Backend.NFT, *chain, positions[rule["chain"]]


def _short(netns: str) -> str:
    return netns.partition("/")[2]


# --- connect ---------------------------------------------------------------------------------------------------------


def _frames(scenario: Scenario) -> bool:
    """Say whether there are chains that see frames: ARP, too, hits them, which no trace of a packet shows."""
    return any(table.family not in ("ip", "ip6") for space in scenario.spaces.values() for table in space.nft_listed)


def _connect(diagnostor: Diagnostor, what: Connect, *, frames: bool) -> tuple[Seen, tuple[str, ...]]:
    any_address = "::" if ":" in what.dst else "0.0.0.0"
    question = Question(
        src=Endpoint(ip=any_address, netns=netns_of(what.netns), uid=what.uid, gid=0),  # type: ignore[arg-type]  # canonical
        dst=Endpoint(ip=what.dst, port=what.dport),
        protocol=what.protocol,
        sport=what.sport,
        payload_bytes=what.payload,
        df=what.df,
        tos=what.tos,
    )
    diagnosis = diagnostor.diagnose(question)
    results: dict[str, float] = {}
    lines: list[str] = []
    rules: list[set[Rule]] = []
    outcomes = diagnosis.outcomes
    for outcome in outcomes:
        text = _connect_result(outcome, what.protocol)
        results[text] = results.get(text, 0.0) + outcome.probability
        walks = [walk for walk in (outcome.forward, outcome.reply, outcome.data) if walk is not None]
        lines += minimal(outcome.probability, walks, text, alone=len(outcomes) == 1)
        rules.append({rule for walk in walks for rule in _rules(walk.steps)})
    lasting = what.protocol == Protocol.TCP and any(one.client_sees == View.CONNECTED for one in outcomes)
    return _seen(results, rules, all_told=not lasting and not frames and ":" not in what.dst), tuple(lines)


def _seen(results: dict[str, float], rules: list[set[Rule]], *, all_told: bool) -> Seen:
    """Put the ways of one trial together; neighbour discovery hits rules of ip6tables besides, so there not `all_told`."""
    return Seen(
        results=results,
        rules=frozenset(set.intersection(*rules)),
        at_most=frozenset(set.union(*rules)) if all_told else None,
    )


def _connect_result(outcome: FlowOutcome, protocol: Protocol) -> str:
    view, server = outcome.client_sees, outcome.server_sees
    first = next((step.packet for step in outcome.forward.steps if step.packet is not None), None)
    local = first.src if first is not None and outcome.forward.steps[0].place.stage != Stage.SOCKET else ""
    errno = about = ""
    error = outcome.forward.error
    if view in (View.REFUSED, View.UNREACHABLE):
        back = outcome.reply.packet if outcome.reply is not None else None
        if error is not None:
            errno = error.errno
            about = f"{error.type}/{error.code} by {error.sender}" if error.type >= 0 else ""
        elif back is not None and back.inner is not None:
            errno, about = icmp.errno_of(back), f"{back.icmp_type}/{back.icmp_code} by {back.src}"
        else:
            errno = "ECONNREFUSED"
    if error is not None and outcome.forward.place is not None and outcome.forward.place.stage == Stage.ROUTE:
        local = ""  # refused before there was anything to send
    answered = view == View.CONNECTED and protocol not in ICMP and server is not None and not outcome.stalls
    return connect_text(
        view,
        errno=errno,
        icmp=about,
        local=local if local not in ("0.0.0.0", "::") else "",
        server=_short(server.netns) if answered and server else "",
        saw=server.src if answered and server else "",
        after="stalls" if outcome.stalls and view == View.CONNECTED else "",
    )


def _rules(steps: Sequence[Step]) -> Iterator[Rule]:
    for step in steps:
        place = step.place
        if place.stage == Stage.NETFILTER and place.rule:
            yield _short(place.netns), place.family, place.backend, place.table, place.chain, place.rule


# --- packet ----------------------------------------------------------------------------------------------------------


def _inject(diagnostor: Diagnostor, what: Inject, flow: Flow) -> tuple[Seen, tuple[str, ...], Flow]:
    """Put a packet in; connections that it makes are there for the next one if there is but one way."""
    nodes = diagnostor.nodes
    target = netns_of(what.netns)
    namespace = nodes.cabling.namespace(target)
    assert namespace is not None
    link = namespace.links[what.dev]
    bench = diagnostor.state.netns[BENCH_ID].interface(link.peer[1]) if link.peer is not None else None
    frame = Frame(what.packet, src_mac=bench.mac if bench else Mac(""), dst_mac=link.mac)
    crossed = Link(type=LinkType.VETH, source=BENCH_ID, destination=target, packet=what.packet)
    arriving = Transmission(next_hop=Hop(NetNodeType.NODE, target), link=crossed, frame=frame, device=what.dev)
    results: dict[str, float] = {}
    lines: list[str] = []
    rules: list[set[Rule]] = []
    ways = [
        result
        for course in follow(nodes, target, nodes.get(target).receive(arriving, flow))
        for result in _answered(diagnostor, course)
    ]
    for outcome, course, back in ways:
        text = leaving_text(list(_leaving(course, back)))
        if any(one.end.outcome == Outcome.UNKNOWN for one in (course, back) if one is not None):
            text = Outcome.UNKNOWN.value
        results[text] = results.get(text, 0.0) + outcome.probability
        walks = [outcome.forward, *([outcome.reply] if outcome.reply else [])]
        lines += minimal(outcome.probability, walks, text, alone=len(ways) == 1)
        rules.append({rule for walk in walks for rule in _rules(walk.steps)})
    if len(ways) == 1:
        _, course, back = ways[0]
        flow = _confirmed(back.flow if back is not None else course.flow)
    return _seen(results, rules, all_told=":" not in what.packet.dst), tuple(lines), flow


def _confirmed(flow: Flow) -> Flow:
    """Return what is left for the next packet: a connection whose first packet was dropped was never there."""
    after = History(flow)
    for netns, connections in flow.items():
        after[netns] = tuple(one for one in connections if one.confirmed)
    return after


def _answered(diagnostor: Diagnostor, course: Course) -> list[Result]:
    """Walk what comes back, but not the rest of a handshake: nobody at the bench goes on with it."""
    if course.last == BENCH_ID or course.end.outcome == Outcome.LOOPED:
        return diagnostor._answer(BENCH_ID, _ended(course))
    return diagnostor._answer(BENCH_ID, course)


def _ended(course: Course) -> Course:
    return structs.replace(course, end=structs.replace(course.end, response=None, error=None, outcome=Outcome.DROPPED))


def _leaving(course: Course, back: Course | None) -> Iterator[tuple[str, str, Packet]]:
    for one in (course, back):
        if one is not None and one.last == BENCH_ID and one.links:
            link = one.links[-1]
            yield _short(link.source), link.source_attributes["device"], link.packet
