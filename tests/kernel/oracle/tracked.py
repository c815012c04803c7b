"""What does the kernel's connection tracking hold of a connection, and is it what the simulator foretold?

Entries are dumped by ctnetlink through one socket per namespace that stays open. A connection's entries are found by the
addresses that its first packet had when it came into a namespace (the oracle has seen them). Compared are both tuples, zone,
mark, and whether an answer has been seen; client's ports are free where the kernel draws them, but a port that is kept must
be kept.
"""

import errno
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from lab.netns import Netns
from lab.prober import Attempt
from lab.rtnl import NETLINK_NETFILTER, NLM_F_REQUEST, NLMSG_ERROR, NetlinkError, attr, attributes
from tasks.skoop.model.diagnosis import FlowOutcome
from tasks.skoop.model.packet import PROTOCOL_NUMBERS
from tasks.skoop.netstack.conntrack import Conn, Flow
from tests.kernel.oracle.events import ICMP, ICMPV6, RST
from tests.kernel.oracle.paths import NUMBERS, Story

_CT_GET = (1 << 8) | 1
_SEEN_REPLY, _NESTED = 2, 0x8000
_BATCH = 64
VXLAN_PORTS = (8472, 4789)


class Ends(NamedTuple):
    """One direction of a connection; an echo's identifier is both ports."""

    protocol: int
    src: str
    sport: int
    dst: str
    dport: int


class Entry(NamedTuple):
    """One tracked connection as the kernel holds it."""

    original: Ends
    reply: Ends
    zone: int
    mark: int
    replied: bool


Tables = Mapping[str, Mapping[Ends, Sequence[Entry]]]


class Tracked(NamedTuple):
    """An entry without the client's ports, as both sides are compared."""

    protocol: int
    src: str
    dst: str
    dport: int
    reply_src: str
    reply_sport: int
    reply_dst: str
    zone: int
    mark: int
    replied: bool
    port_kept: bool

    def __str__(self) -> str:
        kept = "" if self.port_kept else " (another port)"
        return (
            f"{self.protocol} {self.src} > {self.dst}:{self.dport} / {self.reply_src}:{self.reply_sport} >"
            f" {self.reply_dst}{kept} zone {self.zone} mark {self.mark:#x} {'answered' if self.replied else 'unanswered'}"
        )


class Tracker:
    """Asks the tables of namespaces, given by name, for single entries: a dump walks the whole machine's table each time."""

    def __init__(self, spaces: Mapping[str, Netns]) -> None:
        self._sockets: dict[str, socket.socket] = {}
        for name, netns in spaces.items():
            with netns.inside():
                made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
            made.bind((0, 0))
            self._sockets[name] = made

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the sockets."""
        for one in self._sockets.values():
            one.close()

    def look_up(self, stories: Iterable[Story], attempts: Iterable[Attempt], zones: Iterable[int] = (0,)) -> Tables:
        """Return what every namespace tracks of these tries, by original direction. Raises NetlinkError.

        `zones`: the conntrack zones to look in.
        """
        wanted: dict[str, set[Ends]] = {}
        for story, attempt in zip(stories, attempts, strict=True):
            for name, known in _came_in(story, attempt).items():
                wanted.setdefault(name, set()).update(known)
        found: dict[str, dict[Ends, list[Entry]]] = {}
        for name, ends in wanted.items():
            if name in self._sockets:
                table = found[name] = {}
                for entry in self._ask(name, [(one, zone) for one in ends for zone in zones]):
                    table.setdefault(entry.original, []).append(entry)
        return found

    def _ask(self, name: str, questions: Sequence[tuple[Ends, int]]) -> Iterator[Entry]:
        one = self._sockets[name]
        for start in range(0, len(questions), _BATCH):
            part = questions[start : start + _BATCH]
            one.send(b"".join(_question(ends, zone) for ends, zone in part))
            left = len(part)
            while left:
                data = one.recv(1 << 17)
                at = 0
                while at < len(data):
                    length, kind = struct.unpack_from("=IH", data, at)
                    body = data[at + 16 : at + length]
                    at += (length + 3) & ~3
                    left -= 1
                    if kind != NLMSG_ERROR:
                        yield _entry(body)
                    elif (code := -struct.unpack_from("=i", body)[0]) not in (0, errno.ENOENT):
                        raise NetlinkError(code, f"looking for a connection in {name}")


def _question(ends: Ends, zone: int) -> bytes:
    six = ":" in ends.src
    family, source, target = (socket.AF_INET6, 3, 4) if six else (socket.AF_INET, 1, 2)
    addresses = attr(source, socket.inet_pton(family, ends.src)) + attr(target, socket.inet_pton(family, ends.dst))
    transport = attr(1, bytes([ends.protocol]))
    if ends.protocol in (ICMP, ICMPV6):
        identifier, kind, code, request = (4, 5, 6, 8) if ends.protocol == ICMP else (7, 8, 9, 128)
        transport += attr(identifier, struct.pack(">H", ends.sport)) + attr(kind, bytes([request])) + attr(code, b"\0")
    else:
        transport += attr(2, struct.pack(">H", ends.sport)) + attr(3, struct.pack(">H", ends.dport))
    body = struct.pack(">BBH", family, 0, 0) + attr(
        _NESTED | 1, attr(_NESTED | 1, addresses) + attr(_NESTED | 2, transport)
    )
    if zone:
        body += attr(18, struct.pack(">H", zone))
    return struct.pack("=IHHII", 16 + len(body), _CT_GET, NLM_F_REQUEST, 1, 0) + body


def _entry(message: bytes) -> Entry:
    found = dict(attributes(message[4:]))
    zone = struct.unpack(">H", found[18])[0] if 18 in found else 0
    (status,) = struct.unpack(">I", found[3])
    mark = struct.unpack(">I", found[8])[0] if 8 in found else 0
    return Entry(_ends(found[1]), _ends(found[2]), zone, mark, bool(status & _SEEN_REPLY))


def _ends(raw: bytes) -> Ends:
    parts = dict(attributes(raw))
    addresses, transport = dict(attributes(parts[1])), dict(attributes(parts[2]))
    family, src, dst = (socket.AF_INET, 1, 2) if 1 in addresses else (socket.AF_INET6, 3, 4)
    protocol = transport[1][0]
    source, target = (4, 4) if protocol == ICMP else (7, 7) if protocol == ICMPV6 else (2, 3)
    return Ends(
        protocol,
        socket.inet_ntop(family, addresses[src]),
        int.from_bytes(transport.get(source, b""), "big"),
        socket.inet_ntop(family, addresses[dst]),
        int.from_bytes(transport.get(target, b""), "big"),
    )


def compare_tracked(
    courses: Iterable[tuple[FlowOutcome, Flow]],
    story: Story,
    attempt: Attempt,
    tables: Tables,
) -> list[str]:
    """Return how the nearest of the simulator's courses differs from the tables ([] if one of them agrees).

    `courses` are Diagnostor.connections of the question; give only those whose way is the kernel's. `tables` is what
    Tracker.look_up has found.
    """
    if story.reply.hops and story.reply.flags & RST:
        return []  # a first answer that is a RST takes the entry away again (nf_conntrack_tcp_packet)
    real = {
        name: frozenset(_of_entry(entry) for ends in known for entry in tables[name].get(ends, ()))
        for name, known in _came_in(story, attempt).items()
        if name in tables
    }
    return min((_against(flow, real) for _, flow in courses), key=len, default=[])


def _came_in(story: Story, attempt: Attempt) -> dict[str, set[Ends]]:
    """Return the addresses under which the first packet came to every namespace."""
    ask = attempt.ask
    if not attempt.sport:
        return {}
    protocol = NUMBERS[ask.protocol, ":" in ask.dst]
    came = {ask.src: {_made(protocol, attempt.local_ip, attempt.sport, ask.dst, ask.dport)}}
    for hop in story.forward.hops:
        if hop.way == "in" and not hop.outer[0]:
            came.setdefault(hop.netns, set()).add(_made(hop.protocol, hop.src, hop.sport, hop.dst, hop.dport))
    return came


def _made(protocol: int, src: str, sport: int, dst: str, dport: int) -> Ends:
    return Ends(protocol, src, sport, dst, sport if protocol in (ICMP, ICMPV6) else dport)


def _of_entry(entry: Entry) -> Tracked:
    original, reply = entry.original, entry.reply
    echo = original.protocol in (ICMP, ICMPV6)
    return Tracked(
        original.protocol,
        original.src,
        original.dst,
        0 if echo else original.dport,
        reply.src,
        0 if echo else reply.sport,
        reply.dst,
        entry.zone,
        entry.mark,
        entry.replied,
        original.sport == reply.dport,
    )


def _of_conn(conn: Conn) -> Tracked:
    protocol = PROTOCOL_NUMBERS[conn.protocol]
    echo = protocol in (ICMP, ICMPV6)
    return Tracked(
        protocol,
        conn.original.src,
        conn.original.dst,
        0 if echo else conn.original.dport,
        conn.reply.src,
        0 if echo else conn.reply.sport,
        conn.reply.dst,
        conn.zone,
        conn.mark,
        conn.seen_reply,
        conn.original.sport == conn.reply.dport,
    )


def _against(flow: Flow, real: Mapping[str, frozenset[Tracked]]) -> list[str]:
    said = []
    for name, there in real.items():
        foretold = {_of_conn(conn) for conn in flow.get(name, ()) if conn.confirmed and not _is_tunnel(conn)}
        said += [f"{name}: kernel tracks {one}, simulator does not" for one in there if not _among(one, foretold)]
        said += [
            f"{name}: simulator tracks {one}, kernel does not"
            for one in foretold
            if not any(_among(other, {one}) for other in there)
        ]
    return sorted(said)


def _among(real: Tracked, foretold: Collection[Tracked]) -> bool:
    """Say whether the simulator has it; where that draws a port the kernel may have drawn the same again."""
    return real in foretold or real._replace(port_kept=False) in foretold


def _is_tunnel(conn: Conn) -> bool:
    return conn.protocol == "udp" and conn.original.dport in VXLAN_PORTS
