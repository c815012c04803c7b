"""What connection tracking remembers, and how NAT rewrites by it.

A `Conn` is one tracked connection of one namespace: its original tuple as first seen and its reply tuple as NAT has set it
up. The walk carries those that it made itself; entries that were collected are looked up as well. Follows resolve_normal_ct
and nf_conntrack_in (net/netfilter/nf_conntrack_core.c), nf_nat_packet and nf_nat_icmp_reply_translation (nf_nat_*.c). Left
out: helpers and expectations, TCP window tracking, port clashes on SNAT, the table's limit (a risk, told by an assertion).
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Self

from msgspec import Struct
from msgspec.structs import replace

from tasks.skoop.model.addr import Ip, Mac
from tasks.skoop.model.packet import CtState, Packet, Protocol, TcpFlags
from tasks.skoop.model.state import ConntrackEntry, NetNS, Tuple


class Conn(Struct, frozen=True, gc=False, kw_only=True):
    """A tracked connection. `src_done`/`dst_done`: NAT has been set up for that manipulation (a null binding counts)."""

    protocol: Protocol
    original: Tuple
    reply: Tuple
    zone: int = 0
    mark: int = 0
    snat: bool = False
    dnat: bool = False
    src_done: bool = False
    dst_done: bool = False
    seen_reply: bool = False
    confirmed: bool = False
    assured: bool = False
    syn_sent: bool = False
    """Begun by a SYN (TCP state SYN_SENT until a reply is seen)."""

    def status(self) -> frozenset[str]:
        """Return what `--ctstatus` and the virtual states DNAT and SNAT look at."""
        return _status(self.snat, self.dnat, self.seen_reply, self.confirmed, self.assured)


@lru_cache(maxsize=32)
def _status(*there: bool) -> frozenset[str]:
    names = ("SNAT", "DNAT", "SEEN_REPLY", "CONFIRMED", "ASSURED")
    return frozenset(name for name, is_there in zip(names, there, strict=True) if is_there)


def tuple_of(packet: Packet) -> Tuple:
    """Return the tuple by which conntrack knows the packet; for ICMP echo both ports are the identifier."""
    if packet.protocol in (Protocol.ICMP, Protocol.ICMPV6):
        return Tuple(packet.src, packet.dst, packet.sport, packet.sport)
    return Tuple(packet.src, packet.dst, packet.sport, packet.dport)


def inverted(flow: Tuple) -> Tuple:
    """Return the tuple of the opposite direction."""
    return Tuple(flow.dst, flow.src, flow.dport, flow.sport)


Key = tuple[Protocol, int, Tuple]
_ECHO_REPLIES = (0, 14, 16, 18, 129, 140)
"""invmap of nf_conntrack_proto_icmp.c and nf_conntrack_proto_icmpv6.c."""


class Known:
    """The entries that were in the kernel's table when the state was collected, by the tuple of either direction."""

    def __init__(self, netns: NetNS) -> None:
        self._by_tuple: dict[Key, tuple[ConntrackEntry, bool]] = {}
        self._virtual = {(service.protocol, service.ip, service.port) for service in netns.ipvs}
        for entry in netns.conntrack:
            if entry.state in (
                "TIME_WAIT",
                "CLOSE",
                "LAST_ACK",
            ):  # a new SYN takes such an entry over: it is no obstacle
                continue
            self._by_tuple[entry.protocol, entry.zone, entry.original] = (entry, False)
            self._by_tuple[entry.protocol, entry.zone, entry.reply] = (entry, True)

    def find(self, packet: Packet, zone: int = 0) -> Conn | None:
        """Return the collected connection that the packet belongs to, or None."""
        hit = self._by_tuple.get((packet.protocol, zone, tuple_of(packet))) if self._by_tuple else None
        return self._conn(hit[0]) if hit is not None else None

    def find_quoted(self, quoted: Packet, zone: int = 0) -> tuple[Conn, bool] | None:
        """Return (connection, is reply direction) for an ICMP error about `quoted`, as the function of that name does."""
        hit = self._by_tuple.get((quoted.protocol, zone, inverted(tuple_of(quoted)))) if self._by_tuple else None
        return (self._conn(hit[0]), hit[1]) if hit is not None else None

    def _conn(self, entry: ConntrackEntry) -> Conn:
        conn = conn_from_entry(entry)
        if (conn.protocol, conn.original.dst, conn.original.dport) in self._virtual:
            # IPVS wrote the real server into the reply (ip_vs_update_conntrack) and translates itself: it is no DNAT
            conn = replace(conn, dnat=False)
        return conn


def conn_from_entry(entry: ConntrackEntry) -> Conn:
    """Return a collected entry in the form that the walk uses; NAT is read off the difference of the two tuples."""
    plain = inverted(entry.original)
    return Conn(
        protocol=entry.protocol,
        original=entry.original,
        reply=entry.reply,
        zone=entry.zone,
        mark=entry.mark,
        snat=(entry.reply.dst, entry.reply.dport) != (plain.dst, plain.dport),
        dnat=(entry.reply.src, entry.reply.sport) != (plain.src, plain.sport),
        src_done=True,
        dst_done=True,
        seen_reply=entry.replied,
        assured=entry.assured,
        confirmed=True,
    )


def starts_connection(packet: Packet, *, loose: bool) -> bool:
    """Say whether a packet that belongs to no known connection makes one (tcp_new, icmp_new); if not it is INVALID."""
    if packet.protocol == Protocol.TCP:
        if packet.tcp_flags == TcpFlags.SYN:
            return True
        return loose and packet.tcp_flags in (TcpFlags.ACK, TcpFlags.PSH_ACK)  # FIN,ACK and RST are INVALID
    if packet.protocol == Protocol.ICMP:
        return packet.icmp_type in (8, 13, 15, 17)
    if packet.protocol == Protocol.ICMPV6:
        return packet.icmp_type in (128, 139)
    return True


def new_conn(packet: Packet, zone: int) -> Conn:
    """Return the connection that a first packet begins, not yet confirmed."""
    flow = tuple_of(packet)
    syn = packet.tcp_flags == TcpFlags.SYN
    return Conn(protocol=packet.protocol, original=flow, reply=inverted(flow), zone=zone, syn_sent=syn)


def out_of_state(conn: Conn, packet: Packet, is_reply: bool) -> bool:
    """Say whether TCP tracking calls the segment INVALID (the table tcp_conntracks, nf_conntrack_proto_tcp.c).

    An ACK from the client before any SYN-ACK was seen, and a SYN-ACK from the client's side.
    """
    if packet.protocol != Protocol.TCP or is_reply:
        return False
    if packet.tcp_flags == TcpFlags.SYN_ACK:
        return True
    return conn.syn_sent and not conn.seen_reply and packet.tcp_flags in (TcpFlags.ACK, TcpFlags.PSH_ACK)


def direction(conn: Conn, packet: Packet) -> bool | None:
    """Return True if the packet goes in the reply direction, False for the original one, None if it is another's."""
    if conn.protocol != packet.protocol:
        return None
    flow = tuple_of(packet)
    answers = (
        packet.icmp_type in _ECHO_REPLIES
    )  # its type is part of the tuple, so that a host pinging itself knows them apart
    if flow == conn.original and not answers:
        return False
    return True if flow == conn.reply else None


def state_of(conn: Conn, is_reply: bool) -> CtState:
    """Return what ctstate says of a packet of this connection (resolve_normal_ct)."""
    return CtState.ESTABLISHED if is_reply or conn.seen_reply else CtState.NEW


def translate(packet: Packet, conn: Conn, is_reply: bool, *, source: bool) -> Packet:
    """Return the packet as NAT rewrites it at a hook that manipulates the source (`source`) or the destination.

    Source: nf_nat_packet: the status bit is taken the other way round in the reply direction, and the new half comes from
    the inverse of the other direction's tuple.
    """
    active = (conn.snat if source else conn.dnat) if not is_reply else (conn.dnat if source else conn.snat)
    if not active:
        return packet
    wanted = inverted(conn.original if is_reply else conn.reply)
    icmp = packet.protocol in (Protocol.ICMP, Protocol.ICMPV6)
    if source:
        changed = packet.with_(src=wanted.src, sport=wanted.sport)
    else:
        changed = (
            packet.with_(dst=wanted.dst, sport=wanted.dport)
            if icmp
            else packet.with_(dst=wanted.dst, dport=wanted.dport)
        )
    return changed


def translate_error(packet: Packet, conn: Conn, is_reply: bool, *, source: bool) -> Packet:
    """Return an ICMP error as NAT rewrites it: the quoted packet inside and the outer address that goes with it.

    `is_reply` is the direction of the error itself. Source: nf_nat_icmp_reply_translation, net/netfilter/nf_nat_proto.c.
    """
    inner = packet.inner
    active = (conn.snat if source else conn.dnat) if not is_reply else (conn.dnat if source else conn.snat)
    if inner is None or not active:
        return packet
    quoted = conn.original if is_reply else conn.reply  # what the quoted packet looked like before this manipulation
    target = inverted(quoted)
    if inner.protocol in (Protocol.ICMP, Protocol.ICMPV6):  # both ports of the tuple are the identifier
        inner = inner.with_(sport=quoted.sport)
    elif source:
        inner = inner.with_(dport=quoted.dport)
    else:
        inner = inner.with_(sport=quoted.sport)
    if source:
        return packet.with_(src=target.src, inner=inner.with_(dst=quoted.dst))
    return packet.with_(dst=target.dst, inner=inner.with_(src=quoted.src))


Flow = Mapping[str, tuple[Conn, ...]]
"""Connections that the walked packets have made so far, by namespace id; what else they left behind if it is a `History`."""


class History(dict[str, tuple[Conn, ...]]):
    """A Flow that also knows what the walked packets taught on their way besides connections.

    `neighbours`: who asked for an address is thereby known to who answered: (namespace, device, address) → MAC (arp_process:
    neigh_event_ns). `spoke`: the MACs of those who asked or answered, which bridges thereby know.
    `endpoints`: where a wireguard peer was last heard from: (namespace, device, its key) → address and port. `legs`: which leg of a multipath route the hash chose for a pair of addresses (fib_select_multipath).
    """

    __slots__ = ("endpoints", "legs", "neighbours", "spoke")

    def __init__(self, flow: Flow) -> None:
        super().__init__(flow)
        known = isinstance(flow, History)
        self.neighbours: Mapping[tuple[str, str, str], Mac] = flow.neighbours if known else {}  # type: ignore[attr-defined]
        self.endpoints: Mapping[tuple[str, str, str], tuple[Ip, int]] = flow.endpoints if known else {}  # type: ignore[attr-defined]
        self.spoke: frozenset[str] = flow.spoke if known else frozenset()  # type: ignore[attr-defined]
        self.legs: Mapping[tuple[str, ...], str] = flow.legs if known else {}  # type: ignore[attr-defined]

    def taught(self, where: Iterable[tuple[str, str]], ip: str, mac: Mac) -> Self:
        """Return this history, with (namespace, device) pairs that now know the address."""
        self.neighbours = {**self.neighbours, **{(netns, dev, ip): mac for netns, dev in where}}
        return self

    def heard(self, *macs: str) -> Self:
        """Return this history, in which these have spoken."""
        self.spoke |= set(macs)
        return self

    def came_from(self, slot: tuple[str, str, str], ip: Ip, port: int) -> Self:
        """Return this history with the endpoint of a peer that was heard."""
        self.endpoints = {**self.endpoints, slot: (ip, port)}
        return self

    def chose(self, slot: tuple[str, ...], leg: str) -> Self:
        """Return this history with the choice of a leg."""
        self.legs = {**self.legs, slot: leg}
        return self


def learnt_neighbour(flow: Flow, netns: str, dev: str, ip: str) -> Mac | None:
    """Return the MAC that the namespace learnt from being asked by that address, or None."""
    return flow.neighbours.get((netns, dev, ip)) if isinstance(flow, History) else None


def heard_from(flow: Flow, slot: tuple[str, str, str]) -> tuple[Ip, int] | None:
    """Return where a wireguard peer was heard from during the walk, or None."""
    return flow.endpoints.get(slot) if isinstance(flow, History) else None


def has_spoken(flow: Flow, mac: str) -> bool:
    """Say whether a device with that MAC asked for an address or answered for one during the walk."""
    return isinstance(flow, History) and mac in flow.spoke


def chosen_leg(flow: Flow, slot: tuple[str, ...]) -> str | None:
    """Return the leg that was chosen before for the same hash, or None."""
    return flow.legs.get(slot) if isinstance(flow, History) else None


def find(flow: Flow, netns: str, packet: Packet, zone: int = 0) -> tuple[int, bool] | None:
    """Return (index, is reply direction) of the walk's own connection that the packet belongs to, or None."""
    for index, conn in enumerate(flow.get(netns, ())):
        if conn.zone != zone:
            continue
        way = direction(conn, packet)
        if way is not None:
            return index, way
    return None


def find_quoted(flow: Flow, netns: str, quoted: Packet, zone: int = 0) -> tuple[int, bool] | None:
    """Return (index, is reply direction) for an ICMP error about `quoted`: what would answer that packet (icmp_error_message)."""
    wanted = inverted(tuple_of(quoted))
    for index, conn in enumerate(flow.get(netns, ())):
        if conn.zone == zone and conn.protocol == quoted.protocol:
            if wanted == conn.reply:
                return index, True
            if wanted == conn.original:
                return index, False
    return None


def with_conn(flow: Flow, netns: str, index: int, conn: Conn) -> Flow:
    """Return the flow with one connection replaced (or appended, for an index one past the end)."""
    have = flow.get(netns, ())
    after = History(flow)
    after[netns] = (*have[:index], conn, *have[index + 1 :])
    return after


def set_up_source(conn: Conn, src: str, sport: int) -> Conn:
    """Return the connection with source NAT to this address and port (the reply comes to them)."""
    there = (
        sport if conn.protocol in (Protocol.ICMP, Protocol.ICMPV6) else conn.reply.sport
    )  # one identifier, not two ports
    reply = Tuple(conn.reply.src, src, there, sport)  # type: ignore[arg-type]  # canonical text by construction
    return replace(conn, reply=reply, snat=reply != inverted_source(conn), src_done=True)


def inverted_source(conn: Conn) -> Tuple:
    """Return the reply tuple as it would be without source NAT."""
    return Tuple(conn.reply.src, conn.original.src, conn.reply.sport, conn.original.sport)


def set_up_destination(conn: Conn, dst: str, dport: int) -> Conn:
    """Return the connection with destination NAT to this address and port (the reply comes from them)."""
    reply = Tuple(dst, conn.reply.dst, dport, conn.reply.dport)  # type: ignore[arg-type]  # canonical text by construction
    return replace(conn, reply=reply, dnat=(dst, dport) != (conn.original.dst, conn.original.dport), dst_done=True)
