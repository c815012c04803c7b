"""The same connection tried in a lab and asked of the simulator: what to ask, and how to compare."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

from lab.cluster import Lab
from lab.prober import Ask, Attempt
from lab.truth import Truth
from tasks.skoop.collect.topology import collect_topology
from tasks.skoop.diagnostor import Diagnostor
from tasks.skoop.model.addr import Ip
from tasks.skoop.model.diagnosis import Diagnosis
from tasks.skoop.model.endpoint import Endpoint, Question
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.trace import Place, Reason, Stage, View, Walk

BATCH = 60
TIMEOUT_S = 0.4


def asks(lab: Lab, *, sources: tuple[str, ...] = ()) -> Iterator[Ask]:
    """Yield every connection worth trying: pods, nodes and the outside, to pods, Services, NodePorts, nodes and the outside."""
    plan = lab.plan
    clients = [thing.netns for thing in (*plan.pods, *plan.nodes)] + ["host/ext"]
    for src in clients:
        if sources and src not in sources:
            continue
        for dst, dport, protocol in targets(lab):
            yield Ask(src=src, dst=dst, dport=dport, protocol=protocol, timeout_s=TIMEOUT_S)


def targets(lab: Lab) -> Iterator[tuple[str, int, str]]:
    """Yield every (address, port, protocol) of the lab, in both families."""
    plan = lab.plan
    for pod in plan.pods:
        for ip in pod.ips:
            yield ip, 0, "icmp"
            yield ip, 4, "tcp"
            for listener in pod.listeners:
                yield ip, listener.port, listener.protocol
    for service in plan.services:
        addresses = service.cluster_ips(plan.families) if service.number else ()
        for port in service.ports:
            for ip in addresses:
                yield ip, port.port, port.protocol.lower()
            if port.node_port:
                for node in plan.nodes:
                    for ip in node.ips:
                        yield ip, port.node_port, port.protocol.lower()
    for node in plan.nodes:
        for ip in (*node.ips, *node.gateways):
            yield ip, 0, "icmp"
            yield ip, 9, "udp"
    ext = next(host for host in plan.hosts if host.name == "ext")
    for ip in ext.ips:
        yield ip, 8080, "tcp"
        yield ip, 0, "icmp"


def tried(lab: Lab, questions: list[Ask]) -> list[Attempt]:
    """Try every connection for real; one that times out is tried once more, in case the machine was busy."""
    attempts: list[Attempt] = []
    for start in range(0, len(questions), BATCH):
        attempts += lab.attempt(*questions[start : start + BATCH])
    lost = [index for index, attempt in enumerate(attempts) if attempt.view == View.TIMEOUT]
    for start in range(0, len(lost), BATCH):
        part = lost[start : start + BATCH]
        again = lab.attempt(*(replace(questions[index], timeout_s=TIMEOUT_S * 2) for index in part))
        for index, attempt in zip(part, again, strict=True):
            attempts[index] = attempt
    return attempts


def diagnostor_of(lab: Lab) -> Diagnostor:
    """Collect the lab as it is now."""
    return Diagnostor(SimpleNamespace(state=collect_topology(lab.topology)), repeats_syn=False)


def question_of(ask: Ask) -> Question:
    """Return the question that a try answers."""
    return Question(
        src=Endpoint(ip=Ip("::" if ":" in ask.dst else "0.0.0.0"), netns=NetnsId(ask.src), uid=0, gid=0),
        dst=Endpoint(ip=Ip(ask.dst), port=ask.dport),
        protocol=Protocol(ask.protocol),
        sport=ask.sport,
        payload_bytes=ask.payload,
        df=ask.df,
    )


def difference(attempt: Attempt, diagnosis: Diagnosis) -> str:
    """Return how the kernel and the simulator disagree about one connection, or ""."""
    foretold = {view: share for view, share in diagnosis.client_sees.items() if share > 1e-9}
    ask = attempt.ask
    label = f"{ask.src} -> {ask.dst}:{ask.dport} {ask.protocol}: kernel {attempt.view} {attempt.errno}"
    ends = "; ".join(
        f"{outcome.probability:.2f} {outcome.client_sees}: {outcome.forward.place} {outcome.forward.detail}"
        f" | {outcome.reply.place if outcome.reply else ''} {outcome.reply.detail if outcome.reply else ''}"
        for outcome in diagnosis.outcomes[:4]
    )
    if View.UNKNOWN in foretold:
        return f"{label}, simulator unknown: {diagnosis.missing}"
    if attempt.view not in foretold:
        return f"{label}, simulator {foretold} ({ends})"
    if attempt.server:
        seen = {
            (outcome.server_sees.netns, outcome.server_sees.src)
            for outcome in diagnosis.outcomes
            if outcome.server_sees is not None
        }
        if (attempt.server, attempt.seen_src) not in seen:
            return f"{label}, {attempt.server} saw {attempt.seen_src}, foretold {sorted(seen)}"
    return ""


def stopped_at(diagnosis: Diagnosis, truth: Truth) -> Iterator[tuple[Place | None, Reason]]:
    """Yield the places where the simulator's branches with the measured view end."""
    for outcome in diagnosis.outcomes:
        if outcome.client_sees != truth.view:
            continue
        walks: tuple[Walk | None, ...] = (outcome.data, outcome.reply, outcome.forward)
        for walk in walks:
            if walk is not None and walk.reason != Reason.NONE:
                yield walk.place, walk.reason


def agrees(told: Place | None, reason: Reason, truth: Truth) -> bool:
    """Say whether a simulated end is the one that the kernel's own traces show, as far as they show one."""
    seen = truth.place
    if seen is None or told is None:
        return seen is None
    if reason == truth.reason == Reason.PEER_MTU:  # the kernel counts it at both ends of the link
        return any(line.startswith(f"{told.netns}: dev.{told.dev}.") for line in truth.evidence)
    if (reason, truth.reason) == (Reason.NO_TX_TARGET, Reason.OTHERHOST):  # flooded, and thrown away by everybody else
        return True
    if told.netns != seen.netns:
        return False
    if seen.stage == Stage.NETFILTER and seen.rule:
        return (told.table, told.chain, told.rule) == (seen.table, seen.chain, seen.rule)
    return not truth.reason or reason == truth.reason


def same_place(diagnosis: Diagnosis, truth: Truth) -> bool:
    """Say whether some branch ends where the kernel's traces say, if they say a place."""
    if truth.place is None:
        return True
    return any(agrees(place, reason, truth) for place, reason in stopped_at(diagnosis, truth))
