"""May this connection be opened, and what does its client see? (Diagnostor)

The first packet starts with `send` on the source's NetNode; `receive` on the next ones goes on until the whole graph is there.
Then what comes back is walked just so: the server's answer, or the error that somebody on the way sends. For TCP with a payload a
full-size segment follows each way, since a connection that stands may still stall at a smaller MTU.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol as Contract

from msgspec.structs import replace

from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.diagnosis import Diagnosis, FlowOutcome, MtuReport, ServerSees
from tasks.skoop.model.endpoint import Question
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.netnode import Action, ActionType, Link, NetNode, NetNodeType, PacketPath
from tasks.skoop.model.packet import CtState, Packet, Protocol, TcpFlags
from tasks.skoop.model.trace import Outcome, Place, Reason, Stage, View
from tasks.skoop.netnodes import EXTERNAL, NetNodeManager
from tasks.skoop.netstack import icmp
from tasks.skoop.netstack.conntrack import Flow
from tasks.skoop.netstack.skb import End
from tasks.skoop.netstack.stack import User
from tasks.skoop.walk import Course, follow

TCP_TRIES = 3
"""First packets that connect() sends within the 3.6 s a patient client waits (at 0, 1 and 3 s: tcp_syn_retries, RFC 6298)."""
_PING_BYTES = 56
_ANSWER_BYTES = 128  # a datagram's answer is taken to be short, as DNS answers are; a SYN-ACK is shorter
_HALF_OPEN_LOST = 0.05  # share of SYNs taken to be lost where connections stay half open and fill the SYN queue
_FIRST_DATA_BYTES = 200
_DEFAULT_TTL = 64


Result = tuple[FlowOutcome, Course, Course | None]
"""One possible outcome with the courses of the first packet and of what came back."""


class Composed(Contract):
    """What the Diagnostor needs of a Network."""

    @property
    def state(self) -> ClusterState:
        """The collected cluster."""


class Diagnostor:
    """Answers questions about one collected cluster."""

    def __init__(self, network: Composed, *, repeats_syn: bool = True) -> None:
        """`repeats_syn`: the client waits long enough (a second) to send its SYN again where no answer comes."""
        self.state = network.state
        self.repeats_syn = repeats_syn
        self.nodes = NetNodeManager(network.state)
        self._port = _unused_port(network.state)
        self._memo: dict[tuple[object, ...], tuple[Result, ...]] = {}

    def diagnose(self, question: Question) -> Diagnosis:
        """Return the whole answer to one question."""
        results = self._results(question)
        outcomes = tuple(_with_data(self, question, outcome, forward, reply) for outcome, forward, reply in results)
        outcomes = _settle_unknowns(outcomes)
        client_sees = _views(outcomes, question, results, TCP_TRIES if self.repeats_syn else 1)
        return Diagnosis(
            question=question,
            verdict=_verdict(client_sees, outcomes),
            client_sees=client_sees,
            outcomes=outcomes,
            path=_path(results),
            mtu=_mtu(outcomes, results),
            missing=tuple(sorted({gap for outcome in outcomes for gap in _gaps(outcome)})),
        )

    def connections(self, question: Question) -> tuple[tuple[FlowOutcome, Flow], ...]:
        """Return every possible course, each with what the namespaces' connection tracking has made of it at its end."""
        return tuple(
            (outcome, course.flow if back is None else back.flow) for outcome, course, back in self._results(question)
        )

    def _results(self, question: Question) -> tuple[Result, ...]:
        packet = self._first_packet(question)
        start = self._start(question)
        user = (question.src.uid, question.src.gid)
        slot = (start, packet, user)
        if slot not in self._memo:
            passages = self.nodes.get(start).send(packet, {}, user=user)
            self._memo[slot] = tuple(
                result
                for course in follow(self.nodes, start, passages)
                for result in self._answer(start, replace(course, user=user))
            )
        return self._memo[slot]

    def _start(self, question: Question) -> str:
        return question.src.netns or f"{EXTERNAL}/{question.src.ip}"

    def _first_packet(self, question: Question) -> Packet:
        version6 = ":" in question.dst.ip
        header = 40 if version6 else 20
        protocol = question.protocol
        if version6 and protocol == Protocol.ICMP:
            protocol = Protocol.ICMPV6
        echo = protocol in (Protocol.ICMP, Protocol.ICMPV6)
        tcp = protocol == Protocol.TCP
        payload = 0 if tcp else question.payload_bytes or (_PING_BYTES if echo else 32)
        flags = TcpFlags.SYN if tcp else TcpFlags.NONE
        return Packet(
            src=question.src.ip,
            dst=question.dst.ip,
            protocol=protocol,
            sport=question.sport or self._port,
            dport=0 if echo else question.dst.port,
            length=header + (40 if tcp else 8 + payload),
            df=tcp or question.df,
            tcp_flags=flags,
            icmp_type=(128 if version6 else 8) if echo else -1,
            tos=question.tos,
            uid=question.src.uid,
        )

    # --- what comes back -------------------------------------------------------------------------------------------

    def _answer(self, start: str, course: Course) -> list[Result]:
        """Walk what comes back to one course of the first packet."""
        end = course.end
        if end.outcome == Outcome.DELIVERED:
            return self._served(start, course)
        view = _view_of_end(end)
        if end.response is None or view is not None:
            outcome = FlowOutcome(
                probability=course.probability,
                forward=course.walk(),
                client_sees=view or View.TIMEOUT,
                detail=end.detail,
            )
            return [(outcome, course, None)]
        if course.last.startswith(EXTERNAL):
            return [(_flow(course, None, View.UNKNOWN, "what the host outside answers is not known"), course, None)]
        passages = self.nodes.get(course.last).respond(end.response, course.flow)
        results: list[Result] = []
        for arriving in self._told_on(follow(self.nodes, course.last, passages, answer=True)):
            back = _arrived(start, course.original, arriving)
            view = View.TIMEOUT
            if back.end.outcome == Outcome.DELIVERED:
                view = _view_of_answer(back.packet)
            elif back.end.outcome == Outcome.UNKNOWN:
                view = View.UNKNOWN
            results.append((_flow(course, back, view, end.detail), course, back))
        return results

    def _told_on(self, courses: list[Course]) -> Iterable[Course]:
        """Yield the courses of an error; one that a tunnel tells on to the inner packet's sender goes on as what it tells."""
        for course in courses:
            response = course.end.response
            if course.end.reason != Reason.NO_TUNNEL or response is None:
                yield course
                continue
            passages = self.nodes.get(course.last).respond(response, course.flow)
            for onward in follow(self.nodes, course.last, passages, answer=True):
                yield replace(onward, probability=onward.probability * course.probability)

    def _served(self, start: str, course: Course) -> list[Result]:
        """The first packet reached a socket: walk the server's answer."""
        node = self.nodes.get(course.last)
        packet = course.packet
        if course.end.response is not None:
            passages = node.respond(course.end.response, course.flow)
        else:
            answer = Packet(
                src=packet.dst,
                dst=packet.src,
                protocol=packet.protocol,
                sport=packet.dport,
                dport=packet.sport,
                length=min(packet.length, _ANSWER_BYTES),
                df=packet.df and packet.protocol == Protocol.TCP,
                mark=self._mark_of_answer(course),
                tcp_flags=TcpFlags.SYN_ACK if packet.protocol == Protocol.TCP else TcpFlags.NONE,
            )
            passages = node.send(answer, course.flow, bound=True, answer=True, oif=course.end.oif, user=_server(course))
        results: list[Result] = []
        for arriving in follow(self.nodes, course.last, passages, answer=True):
            back = _arrived(start, course.original, arriving)
            view = View.CONNECTED if back.end.outcome == Outcome.DELIVERED else View.TIMEOUT
            if back.end.outcome == Outcome.UNKNOWN:
                view = View.UNKNOWN
            if back.end.outcome == Outcome.DELIVERED and back.packet.inner is not None:
                view = View.TIMEOUT
            outcome = _flow(course, back, view, back.end.detail)
            if view == View.CONNECTED and packet.protocol == Protocol.TCP:
                results += self._third(outcome, course, back)
            elif view == View.TIMEOUT and packet.protocol == Protocol.TCP and self.repeats_syn:
                results.append(self._again(start, outcome, course, back))
            else:
                results.append((outcome, course, back))
        return results

    def _again(self, start: str, outcome: FlowOutcome, course: Course, back: Course) -> Result:
        """Walk the SYN that is repeated where the answer was lost: conntrack has seen that answer, so that the SYN is ESTABLISHED now.

        What refuses it then is what the client hears in the end.
        """
        if start.startswith(EXTERNAL):
            return outcome, course, back
        syn = course.original.with_(mark=0, ct_state=CtState.NONE)
        passages = self.nodes.get(start).send(syn, back.flow, bound=True, answer=True, user=course.user)
        repeated = next(iter(follow(self.nodes, start, passages, answer=True)), None)
        if repeated is None or repeated.end.response is None or repeated.end.outcome == Outcome.DELIVERED:
            return outcome, course, back
        passages = self.nodes.get(repeated.last).respond(repeated.end.response, repeated.flow)
        for told in follow(self.nodes, repeated.last, passages, answer=True):
            heard = _arrived(start, course.original, told)
            if heard.end.outcome == Outcome.DELIVERED:
                detail = f"the answer is lost ({outcome.detail}), the repeated SYN refused: {repeated.end.detail}"
                return replace(outcome, client_sees=_view_of_answer(heard.packet), detail=detail), course, back
        return outcome, course, back

    def _third(self, outcome: FlowOutcome, course: Course, back: Course) -> list[Result]:
        """Walk the handshake's third segment. If it is lost the client is connected, but to nobody that listens.

        Such connections stay half open at the server and fill its SYN queue, so that now and then a SYN is lost as well
        (tcp_conn_request, net/ipv4/tcp_input.c).
        """
        length = 52 if course.packet.version == 4 else 72  # with the time stamps that both ends agreed on
        ack = self.segment(course, back, length, backwards=False, flags=TcpFlags.ACK)
        if ack is None or ack.end.outcome == Outcome.UNKNOWN:
            return [(outcome, course, back)]
        if ack.end.outcome == Outcome.DELIVERED:
            if _same_ends(ack, course):
                return [(outcome, course, back)]
            detail = f"the client's ACK comes to {ack.last}, which knows no such connection and resets it"
            return [(replace(outcome, stalls=True, data=ack.walk(), detail=detail), course, back)]
        if ack.end.response is None:
            first = self.segment(course, back, _FIRST_DATA_BYTES, backwards=False)
            if first is not None and first.end.outcome == Outcome.DELIVERED:  # the client's data acknowledges as well
                return [(outcome, course, back)]
        detail = f"the server never hears the client's ACK: {ack.end.detail}"
        stalled = replace(
            outcome,
            probability=outcome.probability * (1 - _HALF_OPEN_LOST),
            stalls=True,
            data=ack.walk(),
            detail=detail,
            server_sees=None,
        )
        lost = replace(stalled, probability=outcome.probability * _HALF_OPEN_LOST, client_sees=View.TIMEOUT)
        return [(stalled, course, back), (lost, course, back)]

    def _mark_of_answer(self, course: Course) -> int:
        """Return the mark that a connection has from its first packet on (inet_request_mark)."""
        namespace = self.nodes.cabling.namespace(NetnsId(course.last))
        accepts = namespace is not None and namespace.sysctl("net/ipv4/tcp_fwmark_accept")
        return course.packet.mark if accepts and course.packet.protocol == Protocol.TCP else 0

    def segment(
        self,
        course: Course,
        reply: Course,
        length: int,
        *,
        backwards: bool,
        flags: TcpFlags = TcpFlags.PSH_ACK,
        flow: Flow | None = None,
    ) -> Course | None:
        """Walk a further segment of a connection that stands; None if that is not possible (its sender is outside)."""
        start = reply.last if not backwards else course.last
        if start.startswith(EXTERNAL):
            return None
        first = course.original if not backwards else _mirror(course.packet)
        mark = self._mark_of_answer(course) if backwards else 0
        packet = first.with_(tcp_flags=flags, length=length, df=True, ttl=_DEFAULT_TTL, mark=mark)
        oif = course.end.oif if backwards else ""
        known = reply.flow if flow is None else flow
        user = _server(course) if backwards else course.user
        passages = self.nodes.get(start).send(
            packet, known, bound=True, connected=not backwards, answer=True, oif=oif, user=user
        )
        return next(iter(follow(self.nodes, start, passages, answer=True)), None)


def _same_ends(one: Course, other: Course) -> bool:
    """Say whether two packets of one client came to the same server as the same connection."""
    ports = [
        (course.packet.src, course.packet.sport, course.packet.dst, course.packet.dport) for course in (one, other)
    ]
    return one.last == other.last and ports[0] == ports[1]


def _server(course: Course) -> User:
    socket = course.end.socket
    return (socket.uid if socket is not None else None, None)


def _mirror(packet: Packet) -> Packet:
    return Packet(
        src=packet.dst, dst=packet.src, protocol=packet.protocol, sport=packet.dport, dport=packet.sport, length=60
    )


def _flow(course: Course, back: Course | None, view: View, detail: str) -> FlowOutcome:
    served = course.end.outcome == Outcome.DELIVERED
    return FlowOutcome(
        probability=course.probability * (back.probability if back else 1.0),
        forward=course.walk(),
        reply=back.walk() if back else None,
        client_sees=view,
        detail=detail,
        server_sees=ServerSees(netns=course.last, src=course.packet.src, port=course.packet.dport) if served else None,
    )


def _arrived(start: str, sent: Packet, back: Course) -> Course:
    """Check that what came back is what the client's socket waits for; else it is nothing to it."""
    if back.end.outcome != Outcome.DELIVERED:
        return back
    packet = back.packet
    if packet.inner is not None:
        quoted = packet.inner
        fits = (quoted.src, quoted.dst, quoted.sport, quoted.dport) == (sent.src, sent.dst, sent.sport, sent.dport)
    elif packet.protocol in (Protocol.ICMP, Protocol.ICMPV6):
        fits = (packet.dst, packet.sport) == (sent.src, sent.sport)  # ping_lookup does not ask who answers
    else:
        fits = (packet.src, packet.sport, packet.dst, packet.dport) == (sent.dst, sent.dport, sent.src, sent.sport)
    if fits and back.last == start:
        return back
    place = Place(netns=NetnsId(back.last), stage=Stage.SOCKET, key=str(packet))
    if packet.inner is not None:
        detail = f"an error about {packet.inner} reaches {back.last}, which sent no such packet"
    else:
        detail = (
            f"an answer from {packet.src}:{packet.sport} reaches {back.last}, which waits for {sent.dst}:{sent.dport}"
        )
    end = End(outcome=Outcome.DROPPED, reason=Reason.UNEXPECTED_REPLY, place=place, detail=detail)
    return replace(back, end=end)


def _view_of_end(end: End) -> View | None:
    """Return what the client sees of an end that needs no answer walked, or None if one is on its way."""
    if end.outcome == Outcome.UNKNOWN:
        return View.UNKNOWN
    if end.error is not None:
        return View.REFUSED if end.error.errno == "ECONNREFUSED" else View.UNREACHABLE
    return View.TIMEOUT if end.response is None else None


def _view_of_answer(packet: Packet) -> View:
    if packet.inner is None:
        return View.REFUSED if packet.tcp_flags in (TcpFlags.RST, TcpFlags.RST_ACK) else View.CONNECTED
    return View.REFUSED if icmp.errno_of(packet) == "ECONNREFUSED" else View.UNREACHABLE


# --- data ------------------------------------------------------------------------------------------------------------


def _with_data(
    diagnostor: Diagnostor, question: Question, outcome: FlowOutcome, forward: Course, reply: Course | None
) -> FlowOutcome:
    """Send full-size segments both ways over a connection that stands, if the question has a payload."""
    stands = outcome.client_sees == View.CONNECTED and not outcome.stalls and question.protocol == Protocol.TCP
    if not stands or not question.payload_bytes or reply is None:
        return outcome
    size = _segment_bytes(diagnostor, forward, reply, question.payload_bytes)
    flow: Flow | None = None
    for backwards in (False, True):
        length = size
        for _ in range(4):  # a router that says how much fits is listened to (RFC 1191)
            flags = (
                TcpFlags.ACK if length < question.payload_bytes + 52 else TcpFlags.PSH_ACK
            )  # only the last one has PSH
            course = diagnostor.segment(forward, reply, length, backwards=backwards, flags=flags, flow=flow)
            if course is not None and course.end.outcome == Outcome.DELIVERED:
                if not _same_ends(course, reply if backwards else forward):
                    return replace(outcome, stalls=True, data=course.walk())
                flow = course.flow
            if course is None or course.end.outcome == Outcome.DELIVERED:
                break
            told = _told_mtu(diagnostor, course)
            if not told or told >= length:
                return replace(outcome, stalls=True, data=course.walk())
            length = told
    return outcome


def _segment_bytes(diagnostor: Diagnostor, forward: Course, reply: Course, payload: int) -> int:
    """Return the size of the first full segment: the smaller of the MTUs by which both ends send, or all there is to send.

    What an end tells the other (MSS) is from the device that its own SYN leaves by (tcp_advertise_mss).
    """
    limits = [65535]
    for node_id, steps in ((forward.visited[0], forward.steps), (forward.last, reply.steps)):
        namespace = diagnostor.nodes.cabling.namespace(NetnsId(node_id))
        dev = next(
            (step.place.dev for step in steps if step.place.netns == node_id and step.place.dev not in ("", "lo")), ""
        )
        if namespace is not None and dev in namespace.links:
            limits.append(namespace.links[dev].mtu)
    return min(*limits, payload + 52)


def _told_mtu(diagnostor: Diagnostor, course: Course) -> int:
    """Return the MTU that an ICMP error tells the sender, 0 if none gets to it."""
    end = course.end
    if end.error is not None and end.error.mtu:
        return end.error.mtu
    if end.response is None or end.response.packet.icmp_mtu == 0:
        return 0
    passages = diagnostor.nodes.get(course.last).respond(end.response, course.flow)
    for back in follow(diagnostor.nodes, course.last, passages, answer=True):
        if back.end.outcome == Outcome.DELIVERED and back.last == course.visited[0]:
            return end.response.packet.icmp_mtu
    return 0


# --- the whole -------------------------------------------------------------------------------------------------------


def _gaps(outcome: FlowOutcome) -> Iterable[str]:
    yield from outcome.forward.missing
    if outcome.reply is not None:
        yield from outcome.reply.missing


def _settle_unknowns(outcomes: tuple[FlowOutcome, ...]) -> tuple[FlowOutcome, ...]:
    """A way that hung on something unknown is certain only if all ways agree; else its view is unknown."""
    views = {outcome.client_sees for outcome in outcomes}
    if len(views) == 1:
        return outcomes
    return tuple(replace(outcome, client_sees=View.UNKNOWN) if any(_gaps(outcome)) else outcome for outcome in outcomes)


def _views(
    outcomes: tuple[FlowOutcome, ...],
    question: Question,
    results: Sequence[Result],
    tries_made: int,
) -> dict[View, float]:
    """Add up what the client sees; a TCP client whose lots are drawn anew with each try gets several (docs/kernel.md)."""
    first: dict[View, float] = {}
    again = 0.0
    for outcome, (_, forward, reply) in zip(outcomes, results, strict=True):
        first[outcome.client_sees] = first.get(outcome.client_sees, 0.0) + outcome.probability
        lost = outcome.client_sees == View.TIMEOUT
        if lost and question.protocol == Protocol.TCP and forward.redraw and reply is None:
            again += outcome.probability
    if again and again < 1.0 - 1e-9:
        rest = dict(first)
        rest[View.TIMEOUT] = rest[View.TIMEOUT] - again
        tries = sum(again**turn for turn in range(tries_made))
        total = {view: share * tries for view, share in rest.items() if share > 1e-12}
        total[View.TIMEOUT] = total.get(View.TIMEOUT, 0.0) + again**tries_made
        first = total
    whole = sum(first.values()) or 1.0
    return {view: share / whole for view, share in sorted(first.items(), key=lambda item: -item[1])}


def _verdict(client_sees: dict[View, float], outcomes: tuple[FlowOutcome, ...]) -> Outcome:
    """Return the worst that can happen: a problem in any branch outweighs branches that work, certainty outweighs doubt."""
    order = {
        View.TIMEOUT: Outcome.DROPPED,
        View.UNREACHABLE: Outcome.UNREACHABLE,
        View.REFUSED: Outcome.REFUSED,
        View.UNKNOWN: Outcome.UNKNOWN,
    }
    if any(outcome.forward.outcome == Outcome.LOOPED for outcome in outcomes):
        return Outcome.LOOPED
    bad = [view for view in order if client_sees.get(view, 0.0) > 1e-9]
    if not bad:
        return Outcome.DROPPED if any(outcome.stalls for outcome in outcomes) else Outcome.DELIVERED
    return order[max(bad, key=lambda view: client_sees[view])]


def _mtu(outcomes: tuple[FlowOutcome, ...], results: Sequence[Result]) -> MtuReport:
    forward = [course.path_mtu for _, course, _ in results if course.path_mtu]
    reply = [back.path_mtu for _, _, back in results if back is not None and back.path_mtu]
    return MtuReport(
        forward=min(forward, default=0),
        reply=min(reply, default=0),
        stalls=any(outcome.stalls for outcome in outcomes),
    )


def _path(results: Sequence[Result]) -> PacketPath:
    """Return the graph of all courses: every NetNode that was visited and every link that was crossed, once."""
    links: dict[tuple[str, str, str], Link] = {}
    order: dict[str, list[Action]] = {}
    for _, forward, reply in results:
        for course in (forward, reply):
            if course is None:
                continue
            for link in course.links:
                links.setdefault((link.source, link.destination, str(link.packet)), link)
            for index, node_id in enumerate(course.visited):
                action = _action(course, index)
                actions = order.setdefault(node_id, [])
                if action not in actions:
                    actions.append(action)
    nodes = tuple(
        NetNode(type=_node_type(node_id), id=node_id, netns=NetnsId(node_id), actions=tuple(actions))
        for node_id, actions in order.items()
    )
    return PacketPath(nodes=nodes, links=tuple(links.values()))


def _action(course: Course, index: int) -> Action:
    last = index == len(course.visited) - 1
    if last:
        served = course.end.outcome == Outcome.DELIVERED
        kind = ActionType.SERVE if served else ActionType.DROP
    else:
        kind = ActionType.SEND if index == 0 else ActionType.FORWARD
    return Action(
        type=kind,
        input=course.links[index - 1] if index else None,
        outputs=() if last else (course.links[index],),
    )


def _node_type(node_id: str) -> NetNodeType:
    kind = node_id.partition("/")[0]
    return {"pod": NetNodeType.POD, "node": NetNodeType.NODE}.get(kind, NetNodeType.EXTERNAL)


def _unused_port(state: ClusterState) -> int:
    """Return an ephemeral port that no collected conntrack entry carries: the port of a connection that is new everywhere."""
    taken = {
        port
        for netns in state.netns.values()
        for entry in netns.conntrack
        for port in (entry.original.sport, entry.reply.dport)
    }
    return next(port for port in range(45678, 61000) if port not in taken)
