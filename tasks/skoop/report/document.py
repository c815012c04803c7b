"""Which JSON document does a diagnosis become, and which schema does it keep?

The published form: every member is always there (null or empty where there is nothing), so that a reader of it needs no
defaults. It holds the members of KubeSkoop's output (cluster, nodes, links) beside ours. `docs/diagnosis.schema.json` is made
from these classes by `make gen`. Members are only ever added within a version.
"""

from enum import StrEnum
from typing import Any

import msgspec
from msgspec import Struct

from tasks.skoop.model.diagnosis import Diagnosis, FlowOutcome, RootCause, ServerSees
from tasks.skoop.model.endpoint import Endpoint, EndpointType, Question
from tasks.skoop.model.netnode import ActionType, Link, LinkType, NetNode, NetNodeType
from tasks.skoop.model.packet import CtState, Packet, Protocol, TcpFlags
from tasks.skoop.model.suspicion import Change, Level, Remedy, Suspicion
from tasks.skoop.model.trace import IcmpError, Outcome, Place, Reason, Stage, View, Walk
from tasks.skoop.report.verdict import Judgement, headline, judge

SCHEMA_VERSION = 1


class Extent(StrEnum):
    """How much of a diagnosis goes into the document: all, or the answer alone (no steps, nodes, links)."""

    FULL = "full"
    ANSWER = "answer"


class PlaceDocument(Struct, frozen=True, kw_only=True):
    """A place as `model.trace.Place` has it, and in one line of `text` where the user's dump has one."""

    netns: str
    stage: Stage
    dev: str
    backend: str
    family: int
    hook: str
    table: str
    chain: str
    rule: int
    key: str
    text: str


class PacketDocument(Struct, frozen=True, kw_only=True):
    """A packet; `summary` is its one-line form."""

    summary: str
    src: str
    dst: str
    sport: int
    dport: int
    protocol: Protocol
    mark: int
    ttl: int
    length: int
    df: bool
    tcp_flags: TcpFlags
    ct_state: CtState
    icmp_type: int | None
    icmp_code: int | None
    encap: "PacketDocument | None"
    inner: "PacketDocument | None"


class StepDocument(Struct, frozen=True, kw_only=True):
    """One thing that happened to the packet, and the packet after it (null: unchanged)."""

    place: PlaceDocument
    action: str
    detail: str
    packet: PacketDocument | None


class ErrorDocument(Struct, frozen=True, kw_only=True):
    """The ICMP error that the sender got."""

    type: int
    code: int
    sender: str
    mtu: int
    local: bool
    errno: str


class WalkDocument(Struct, frozen=True, kw_only=True):
    """One way of one packet."""

    outcome: Outcome
    probability: float
    place: PlaceDocument | None
    reason: Reason
    detail: str
    error: ErrorDocument | None
    missing: tuple[str, ...]
    assumed: tuple[str, ...]
    steps: tuple[StepDocument, ...]


class ServerDocument(Struct, frozen=True, kw_only=True):
    """Who got the connection (`pod` is namespace/name, null where it is no pod) and the source address that it saw."""

    netns: str
    pod: str | None
    src: str
    port: int


class OutcomeDocument(Struct, frozen=True, kw_only=True):
    """One possible course of the connection."""

    probability: float
    client_sees: View
    forward: WalkDocument
    reply: WalkDocument | None
    data: WalkDocument | None
    server_sees: ServerDocument | None
    stalls: bool
    detail: str


class CommandDocument(Struct, frozen=True, kw_only=True):
    """A command that a person would type, and on which host."""

    host: str
    command: str


class RemedyDocument(Struct, frozen=True, kw_only=True):
    """What mends it."""

    advice: str
    commands: tuple[CommandDocument, ...]
    changes: tuple[Change, ...]


class EvidenceDocument(Struct, frozen=True, kw_only=True):
    """What was seen and expected, with the line of the dump and the digest of the part it is in."""

    seen: str
    expected: str
    line: str
    digest: str


class SuspicionDocument(Struct, frozen=True, kw_only=True):
    """One thing that looks wrong; `confirmed` only where mending a copy turned the verdict."""

    level: Level
    code: str
    message: str
    subject: str
    place: PlaceDocument | None
    evidence: tuple[EvidenceDocument, ...]
    remedy: RemedyDocument | None
    confirmed: bool


class CauseDocument(Struct, frozen=True, kw_only=True):
    """Suspicions that together are the cause, and what the client would see with them mended."""

    suspicions: tuple[SuspicionDocument, ...]
    turns_to: dict[View, float]


class ActionDocument(Struct, frozen=True, kw_only=True):
    """What a node did with what came in over the link `input` (null: it began here); links by id."""

    type: ActionType
    input: str | None
    outputs: tuple[str, ...]


class NodeDocument(Struct, frozen=True, kw_only=True):
    """A place in the graph of the path."""

    id: str
    type: NetNodeType
    suspicions: tuple[SuspicionDocument, ...]
    actions: tuple[ActionDocument, ...]


class LinkDocument(Struct, frozen=True, kw_only=True):
    """One crossing from node to node; `action` is what the destination did with it (null: the walk ends on the link)."""

    id: str
    type: LinkType
    source: str
    destination: str
    source_attributes: dict[str, str]
    destination_attributes: dict[str, str]
    action: ActionType | None
    packet: PacketDocument


class EndpointDocument(Struct, frozen=True, kw_only=True):
    """One end of the question."""

    ip: str
    type: EndpointType
    port: int
    name: str
    netns: str | None


class QuestionDocument(Struct, frozen=True, kw_only=True):
    """What was asked."""

    src: EndpointDocument
    dst: EndpointDocument
    protocol: Protocol
    sport: int
    payload_bytes: int
    df: bool


class MtuDocument(Struct, frozen=True, kw_only=True):
    """Largest IP packet in bytes each way (null: not found out), and whether connections stall on it."""

    forward: int | None
    reply: int | None
    stalls: bool


class ClusterDocument(Struct, frozen=True, kw_only=True):
    """What is about the cluster as a whole."""

    suspicions: tuple[SuspicionDocument, ...]


class DiagnosisDocument(Struct, frozen=True, kw_only=True):
    """A diagnosis of Kubeprobe."""

    schema_version: int
    judgement: Judgement
    summary: str
    question: QuestionDocument
    verdict: Outcome
    client_sees: dict[View, float]
    outcomes: tuple[OutcomeDocument, ...]
    root_causes: tuple[CauseDocument, ...]
    suspicions: tuple[SuspicionDocument, ...]
    mtu: MtuDocument
    missing: tuple[str, ...]
    cluster: ClusterDocument
    nodes: tuple[NodeDocument, ...]
    links: tuple[LinkDocument, ...]


def document(diagnosis: Diagnosis, extent: Extent = Extent.FULL) -> DiagnosisDocument:
    """Return the document of a diagnosis; with Extent.ANSWER steps, nodes and links stay empty."""
    full = extent is Extent.FULL
    ids = {_link_key(link): f"link-{number}" for number, link in enumerate(diagnosis.path.links, start=1)}
    return DiagnosisDocument(
        schema_version=SCHEMA_VERSION,
        judgement=judge(diagnosis),
        summary=headline(diagnosis),
        question=_question(diagnosis.question),
        verdict=diagnosis.verdict,
        client_sees=diagnosis.client_sees,
        outcomes=tuple(_outcome(outcome, extent) for outcome in diagnosis.outcomes),
        root_causes=tuple(_cause(cause) for cause in diagnosis.root_causes),
        suspicions=_suspicions(diagnosis.suspicions),
        mtu=MtuDocument(
            forward=diagnosis.mtu.forward or None, reply=diagnosis.mtu.reply or None, stalls=diagnosis.mtu.stalls
        ),
        missing=diagnosis.missing,
        cluster=ClusterDocument(suspicions=_suspicions(diagnosis.cluster_suspicions)),
        nodes=tuple(_node(node, ids) for node in diagnosis.path.nodes) if full else (),
        links=tuple(_link(link, ids, diagnosis.path.nodes) for link in diagnosis.path.links) if full else (),
    )


def render(diagnosis: Diagnosis, extent: Extent = Extent.FULL) -> bytes:
    """Return the document as one line of JSON, without the line's end."""
    return msgspec.json.encode(document(diagnosis, extent))


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the document."""
    made = msgspec.json.schema(DiagnosisDocument)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Diagnosis of Kubeprobe", **made}


def _question(question: Question) -> QuestionDocument:
    return QuestionDocument(
        src=_endpoint(question.src),
        dst=_endpoint(question.dst),
        protocol=question.protocol,
        sport=question.sport,
        payload_bytes=question.payload_bytes,
        df=question.df,
    )


def _endpoint(endpoint: Endpoint) -> EndpointDocument:
    return EndpointDocument(
        ip=endpoint.ip, type=endpoint.type, port=endpoint.port, name=endpoint.name, netns=endpoint.netns
    )


def _outcome(outcome: FlowOutcome, extent: Extent) -> OutcomeDocument:
    return OutcomeDocument(
        probability=outcome.probability,
        client_sees=outcome.client_sees,
        forward=_walk(outcome.forward, extent),
        reply=_walk(outcome.reply, extent) if outcome.reply is not None else None,
        data=_walk(outcome.data, extent) if outcome.data is not None else None,
        server_sees=_server(outcome.server_sees) if outcome.server_sees is not None else None,
        stalls=outcome.stalls,
        detail=outcome.detail,
    )


def _server(server: ServerSees) -> ServerDocument:
    kind, _, name = server.netns.partition("/")
    return ServerDocument(netns=server.netns, pod=name if kind == "pod" else None, src=server.src, port=server.port)


def _walk(walk: Walk, extent: Extent) -> WalkDocument:
    steps = walk.steps if extent is Extent.FULL else ()
    return WalkDocument(
        outcome=walk.outcome,
        probability=walk.probability,
        place=_place(walk.place),
        reason=walk.reason,
        detail=walk.detail,
        error=_error(walk.error) if walk.error is not None else None,
        missing=walk.missing,
        assumed=walk.assumed,
        steps=tuple(
            StepDocument(
                place=_known_place(step.place), action=step.action, detail=step.detail, packet=_packet(step.packet)
            )
            for step in steps
        ),
    )


def _error(error: IcmpError) -> ErrorDocument:
    return ErrorDocument(
        type=error.type, code=error.code, sender=error.sender, mtu=error.mtu, local=error.local, errno=error.errno
    )


def _place(place: Place | None) -> PlaceDocument | None:
    return None if place is None else _known_place(place)


def _known_place(place: Place) -> PlaceDocument:
    return PlaceDocument(
        netns=place.netns,
        stage=place.stage,
        dev=place.dev,
        backend=place.backend,
        family=place.family,
        hook=place.hook,
        table=place.table,
        chain=place.chain,
        rule=place.rule,
        key=place.key,
        text=place.text,
    )


def _packet(packet: Packet | None) -> PacketDocument | None:
    return None if packet is None else _known_packet(packet)


def _known_packet(packet: Packet) -> PacketDocument:
    is_icmp = packet.protocol in (Protocol.ICMP, Protocol.ICMPV6)
    return PacketDocument(
        summary=str(packet),
        src=packet.src,
        dst=packet.dst,
        sport=packet.sport,
        dport=packet.dport,
        protocol=packet.protocol,
        mark=packet.mark,
        ttl=packet.ttl,
        length=packet.length,
        df=packet.df,
        tcp_flags=packet.tcp_flags,
        ct_state=packet.ct_state,
        icmp_type=packet.icmp_type if is_icmp and packet.icmp_type >= 0 else None,
        icmp_code=packet.icmp_code if is_icmp and packet.icmp_type >= 0 else None,
        encap=_packet(packet.encap),
        inner=_packet(packet.inner),
    )


def _suspicions(suspicions: tuple[Suspicion, ...]) -> tuple[SuspicionDocument, ...]:
    return tuple(_suspicion(suspicion) for suspicion in suspicions)


def _suspicion(suspicion: Suspicion) -> SuspicionDocument:
    return SuspicionDocument(
        level=suspicion.level,
        code=suspicion.code,
        message=suspicion.message,
        subject=suspicion.subject,
        place=_place(suspicion.place),
        evidence=tuple(
            EvidenceDocument(seen=one.seen, expected=one.expected, line=one.line, digest=one.digest)
            for one in suspicion.evidence
        ),
        remedy=_remedy(suspicion.remedy) if suspicion.remedy is not None else None,
        confirmed=suspicion.confirmed,
    )


def _remedy(remedy: Remedy) -> RemedyDocument:
    return RemedyDocument(
        advice=remedy.advice,
        commands=tuple(CommandDocument(host=host, command=command) for host, command in remedy.commands),
        changes=remedy.changes,
    )


def _cause(cause: RootCause) -> CauseDocument:
    return CauseDocument(suspicions=_suspicions(cause.suspicions), turns_to=cause.turns_to)


def _link_key(link: Link) -> bytes:
    return msgspec.msgpack.encode(link)


def _node(node: NetNode, ids: dict[bytes, str]) -> NodeDocument:
    actions = tuple(
        ActionDocument(
            type=action.type,
            input=ids.get(_link_key(action.input)) if action.input is not None else None,
            outputs=tuple(ids[key] for key in map(_link_key, action.outputs) if key in ids),
        )
        for action in node.actions
    )
    return NodeDocument(id=node.id, type=node.type, suspicions=_suspicions(node.suspicions), actions=actions)


def _link(link: Link, ids: dict[bytes, str], nodes: tuple[NetNode, ...]) -> LinkDocument:
    taken_by = (
        action.type for node in nodes if node.id == link.destination for action in node.actions if action.input == link
    )
    return LinkDocument(
        id=ids[_link_key(link)],
        type=link.type,
        source=link.source,
        destination=link.destination,
        source_attributes=link.source_attributes,
        destination_attributes=link.destination_attributes,
        action=next(taken_by, None),
        packet=_known_packet(link.packet),
    )
