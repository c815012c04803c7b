"""Which way did each connection take: the events of many at once sorted into the request's way, the answer's, and the data's. Pure.

A connection is known by its client's socket. Address translation is followed: a packet keeps the kernel's own address of it
while it crosses devices, so that what it turns into is learnt from the packet itself, and so is its reverse for the answer.
Copies that a bridge floods to others, who throw them away, are left out.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec import Struct

from lab.prober import Attempt
from tests.kernel.oracle.events import ACK, ICMP, ICMPV6, RST, SYN, TCP, UDP, Event, Form, Kind

NUMBERS: dict[tuple[str, bool], int] = {("tcp", False): TCP, ("udp", False): UDP, ("icmp", False): ICMP}
NUMBERS |= {("tcp", True): TCP, ("udp", True): UDP, ("icmp", True): ICMPV6}
_ECHO = (0, 8, 128, 129)
_CLOSED = {"QUEUE_PURGE", "SOCKET_CLOSE", "TCP_CLOSE"}
"""Packets that have arrived and go with their socket, no longer wanted."""
LARGE = 600
"""Bytes from which on a TCP segment is told of at all (watch.bpf.c), and is data."""

Tuple5 = tuple[int, str, int, str, int]


class Hop(Struct, frozen=True, kw_only=True, gc=False):
    """A packet on one device. `way` is in or out; `outer` the addresses of the tunnel's header ("", "" outside one)."""

    netns: str
    dev: str
    way: str
    protocol: int
    src: str
    sport: int
    dst: str
    dport: int
    ttl: int
    mark: int = 0
    outer: tuple[str, str] = ("", "")

    def __str__(self) -> str:
        tunnel = f" in {self.outer[0]} > {self.outer[1]}" if self.outer[0] else ""
        ends = f"{self.src}:{self.sport} > {self.dst}:{self.dport}"
        return f"{self.netns} {self.dev} {self.way} {self.protocol} {ends} ttl {self.ttl}{tunnel}"


class Drop(Struct, frozen=True, kw_only=True, gc=False):
    """Where the kernel threw a packet away. `reason` is the kernel's own (NETFILTER_DROP …), `function` the one that did it."""

    netns: str
    dev: str
    reason: str
    function: str
    hop: Hop
    """The packet as it was there."""

    def __str__(self) -> str:
        return f"{self.netns} {self.dev or '-'} {self.reason} in {self.function}"


class Leg(Struct, frozen=True, kw_only=True):
    """One packet's way. `drop` is None where it was not thrown away (as far as the kernel tells)."""

    hops: tuple[Hop, ...] = ()
    drop: Drop | None = None
    flags: int = 0
    """TCP: those of the first packet."""

    def __bool__(self) -> bool:
        return bool(self.hops) or self.drop is not None


class Story(Struct, frozen=True, kw_only=True):
    """One try's packets. `forward` is the request's first, `reply` what answers it (`error`: type and code, if an ICMP error).

    `data` is the way of large segments that were thrown away after a TCP connection stood.
    """

    forward: Leg = Leg()
    reply: Leg = Leg()
    error: tuple[int, int] | None = None
    data: Leg = Leg()


class _Carried(NamedTuple):
    """Whose packet was last seen at one of the kernel's addresses, and where."""

    number: int
    back: bool
    error: bool
    protocol: int
    netns: str
    kind: Kind
    in_tunnel: bool
    """A vxlan: one that is translated to another port is told of as plain UDP from there on."""


@dataclass(slots=True)
class _Heard:
    """What was heard of one try so far."""

    forward: list[Event] = field(default_factory=list)
    reply: list[Event] = field(default_factory=list)
    errors: list[Event] = field(default_factory=list)
    data: list[Event] = field(default_factory=list)

    def sort(self) -> None:
        """Bring the events in order of time."""
        for events in (self.forward, self.reply, self.errors, self.data):
            events.sort(key=lambda event: event.at_ns)


class Sorter:
    """Takes events as they come and says to which try, and which way of it, each belongs."""

    def __init__(self) -> None:
        self._starts: dict[tuple[str, int, int], int] = {}
        self._known: dict[Tuple5, tuple[int, bool]] = {}
        self._packets: dict[int, _Carried] = {}
        self.heard: dict[int, _Heard] = {}

    def expect(self, number: int, attempt: Attempt) -> None:
        """Let events of this try be known by `number` from now on. Its socket must be bound already."""
        if not attempt.sport:
            return
        ask = attempt.ask
        protocol = NUMBERS[ask.protocol, ":" in ask.dst]
        self._starts[ask.src, protocol, attempt.sport] = number
        self._learn((protocol, attempt.local_ip, attempt.sport, ask.dst, ask.dport), number, back=False)

    def add(self, events: Iterable[Event]) -> set[int]:
        """Sort events; return the numbers of the tries that were thrown a packet away of."""
        dropped: set[int] = set()
        packets, known = self._packets, self._known
        strange: list[Event] = []
        for event in events:
            if event.reason in _CLOSED:
                continue
            here = _tuple(event)
            owner = None if _is_error(event) else known.get(here)
            if owner is not None:
                number, back = owner
                error = False
            else:
                found = self._owner(event, here)
                if found is None:
                    strange.append(event)
                    continue
                number, back, error = found
            if event.kind is Kind.DROP:
                packets.pop(event.skb, None)
                dropped.add(number)
            else:
                packets[event.skb] = _Carried(
                    number, back, error, event.protocol, event.netns, event.kind, event.form is Form.VXLAN
                )
            self._keep(number, event, back=back, error=error)
        self._look_again(strange)
        return dropped

    def _look_again(self, strange: Iterable[Event]) -> None:
        """Sort in what was sent under addresses that only a later event has explained (a RST that a rule makes)."""
        for event in strange:
            owner = None if _is_error(event) else self._known.get(_tuple(event))
            told = self._known.get(_about(event)) if owner is None and event.form is Form.ERROR else None
            if owner is not None:
                self._keep(owner[0], event, back=owner[1], error=False)
                self.heard[owner[0]].sort()
            elif told is not None:
                self._keep(told[0], event, back=not told[1], error=True)
                self.heard[told[0]].sort()

    def _owner(self, event: Event, here: Tuple5) -> tuple[int, bool, bool] | None:
        """Return (number, is an answer, is an error) for a packet whose addresses are new."""
        if event.form is Form.ERROR:
            about = _about(event)
            told = self._known.get(about)
            if told is not None:
                return told[0], not told[1], True
        elif event.kind is not Kind.RX and event.sock_netns == event.netns:
            started = self._starts.get((event.netns, event.protocol, event.sock_port))
            if started is not None:
                self._learn(here, started, back=False)
                return started, False, False
        carried = self._packets.get(event.skb)
        if carried is None or (
            carried.protocol != event.protocol and not (carried.in_tunnel and event.protocol == UDP)
        ):
            return None
        if event.kind is not Kind.RX and (
            carried.netns != event.netns or (carried.kind is Kind.RX and event.sock_netns == event.netns)
        ):
            del self._packets[event.skb]  # made here: the address is another packet's by now
            return None
        if not carried.error and carried.protocol == event.protocol and not _is_error(event):
            self._learn(here, carried.number, back=carried.back)
        return carried.number, carried.back, carried.error

    def _learn(self, here: Tuple5, number: int, *, back: bool) -> None:
        self._known[here] = (number, back)
        self._known.setdefault(_reverse(here), (number, not back))

    def _keep(self, number: int, event: Event, *, back: bool, error: bool) -> None:
        heard = self.heard.get(number)
        if heard is None:
            heard = self.heard[number] = _Heard()
        if error:
            if back:
                heard.errors.append(event)
        elif event.protocol != TCP:
            (heard.reply if back else heard.forward).append(event)
        elif event.length >= LARGE:
            heard.data.append(event)
        elif event.flags & (SYN | ACK | RST) == SYN:
            heard.forward.append(event)
        elif back and event.flags & (SYN | RST):
            heard.reply.append(event)

    def is_silent(self, number: int) -> bool:
        """Say whether every packet of the try's last way so far was thrown away, so that nothing more will come."""
        heard = self.heard.get(number)
        if heard is None:
            return False
        last = heard.reply or heard.errors or heard.forward
        ends = {event.skb: event.kind for event in last}
        return all(kind is Kind.DROP for kind in ends.values())

    def is_stalled(self, number: int) -> bool:
        """Say whether a standing connection lost the same large segment twice, and nobody was told."""
        heard = self.heard.get(number)
        if heard is None or not heard.data or heard.data[-1].kind is not Kind.DROP:
            return False
        lost = Counter((event.src, event.sport, event.seq) for event in heard.data if event.kind is Kind.DROP)
        told = any(error.at_ns > heard.data[0].at_ns for error in heard.errors)
        return max(lost.values()) > 1 and not told

    def story(self, number: int) -> Story:
        """Return what happened to a try."""
        heard = self.heard.get(number)
        if heard is None:
            return Story()
        answer = _first_answer(heard.reply)
        answers = answer or heard.errors
        error = (answers[0].icmp_type, answers[0].icmp_code) if answers and not answer else None
        return Story(
            forward=_leg(heard.forward),
            reply=_leg(answers),
            error=error,
            data=_lost(heard.data),
        )


def paths(events: Iterable[Event], attempts: Sequence[Attempt]) -> list[Story]:
    """Return the story of every try, in order. The tries may have run at the same moment."""
    sorter = Sorter()
    for number, attempt in enumerate(attempts):
        sorter.expect(number, attempt)
    sorter.add(events)
    return [sorter.story(number) for number in range(len(attempts))]


def _is_error(event: Event) -> bool:
    """Say whether it is an ICMP error (in a tunnel too): its addresses belong to no connection."""
    return event.protocol in (ICMP, ICMPV6) and event.icmp_type not in _ECHO


def _tuple(event: Event) -> Tuple5:
    return (event.protocol, event.src, event.sport, event.dst, event.dport)


def _about(event: Event) -> Tuple5:
    return (event.other_protocol, event.other_src, event.other_sport, event.other_dst, event.other_dport)


def _reverse(here: Tuple5) -> Tuple5:
    protocol, src, sport, dst, dport = here
    if protocol in (ICMP, ICMPV6):  # an echo's answer has its identifier
        return (protocol, dst, sport, src, dport)
    return (protocol, dst, dport, src, sport)


def _first_answer(reply: list[Event]) -> list[Event]:
    """Only packets like the first one: after a SYN-ACK a RST is no answer to the request."""
    if not reply or reply[0].protocol != TCP:
        return reply
    kind = reply[0].flags & (SYN | RST)
    return [event for event in reply if event.flags & (SYN | RST) == kind or event.protocol != TCP]


def _leg(events: Sequence[Event]) -> Leg:
    kept = _without_copies(events)
    hops: dict[tuple[str, str, Kind, int], Hop] = {}
    drop = None
    for event in kept:
        if event.kind is Kind.DROP:
            if drop is None:
                drop = _drop(event)
        else:
            hops.setdefault((event.netns, event.dev, event.kind, event.ttl), _hop(event))
    return Leg(hops=tuple(hops.values()), drop=drop, flags=kept[0].flags if kept else 0)


def _without_copies(events: Sequence[Event]) -> Sequence[Event]:
    """Leave out what a bridge flooded to those for whom it was not, if another copy went on."""
    packets = {event.skb for event in events}
    if len(packets) == 1:
        return events
    lost = {event.skb for event in events if event.kind is Kind.DROP and event.reason == "OTHERHOST"}
    if not lost or lost == packets:
        return events
    fork = next(at for at, event in enumerate(events) if event.skb != events[0].skb)
    return [
        event for at, event in enumerate(events) if event.skb not in lost or (at < fork and event.skb == events[0].skb)
    ]


def _lost(data: Sequence[Event]) -> Leg:
    """The way of the first large segment that was thrown away."""
    first = next((event for event in data if event.kind is Kind.DROP), None)
    if first is None:
        return Leg()
    same = [event for event in data if (event.seq, event.length) == (first.seq, first.length)]
    return _leg([event for event in same if event.skb == first.skb] or same)


def _hop(event: Event) -> Hop:
    return Hop(
        netns=event.netns,
        dev=event.dev,
        way="out" if event.kind is Kind.TX else "in",
        protocol=event.protocol,
        src=event.src,
        sport=event.sport,
        dst=event.dst,
        dport=event.dport,
        ttl=event.ttl,
        mark=event.mark,
        outer=(event.other_src, event.other_dst) if event.form is Form.VXLAN else ("", ""),
    )


def _drop(event: Event) -> Drop:
    return Drop(netns=event.netns, dev=event.dev, reason=event.reason, function=event.function, hop=_hop(event))
