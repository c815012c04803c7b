"""What header fields a packet has: `payload` expressions.

Follows nft_payload.c and the protocol dependencies that nft puts before a field (src/payload.c): a packet of another
protocol does not have it, so that the rule does not match, negated or not. Options and extension headers are not in the
model.
"""

from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address

from tasks.skoop.model.addr import Ip, ip_int
from tasks.skoop.model.packet import Packet, Protocol, TcpFlags
from tasks.skoop.netstack.nftables import datatypes as dt
from tasks.skoop.netstack.nftables.datatypes import Datatype
from tasks.skoop.netstack.nftables.jsonform import Json, compact, text, whole
from tasks.skoop.netstack.nftables.outcomes import HIDDEN, Getter, Outcome, Unsure
from tasks.skoop.netstack.nftables.view import NO_TRANSPORT, PacketView
from tasks.skoop.netstack.xtables.api import Hook
from tasks.skoop.netstack.xtables.truth import NotUnderstood

FLAG_BITS = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16}
FLAGS: Mapping[TcpFlags, int] = {flags: sum(FLAG_BITS[name] for name in flags.split(",") if name) for flags in TcpFlags}
DF = 0x4000
PORTED = frozenset((6, 17, 33, 132, 136))
"""Protocols whose header begins with the source and the destination port."""

Field = tuple[Datatype, Callable[[PacketView], Outcome]]


def _header_bytes(packet: Packet) -> int:
    return 40 if packet.version == 6 else 20


def _hidden(_: PacketView) -> Outcome:
    return HIDDEN


def _echo_id(view: PacketView) -> Outcome:
    return view.sport if view.packet.icmp_type in (0, 8, 128, 129) else None


NETWORK: Mapping[str, Field] = {
    "version": (dt.INTEGER, lambda view: view.version),
    "dscp": (dt.DSCP, lambda view: view.packet.tos >> 2),
    "ecn": (dt.ECN, lambda view: view.packet.tos & 3),
}
IPV4: Mapping[str, Field] = {
    **NETWORK,
    "hdrlength": (dt.INTEGER, lambda _: 5),
    "length": (dt.INTEGER, lambda view: view.packet.length),
    "id": (dt.INTEGER, _hidden),
    "frag-off": (dt.INTEGER, lambda view: DF if view.packet.df else 0),
    "ttl": (dt.INTEGER, lambda view: view.packet.ttl),
    "protocol": (dt.PROTO, lambda view: view.protocol),
    "checksum": (dt.INTEGER, _hidden),
    "saddr": (dt.IPV4, lambda view: view.src),
    "daddr": (dt.IPV4, lambda view: view.dst),
}
IPV6: Mapping[str, Field] = {
    **NETWORK,
    "flowlabel": (dt.INTEGER, _hidden),
    "length": (dt.INTEGER, lambda view: view.packet.length - 40),
    "nexthdr": (dt.PROTO, lambda view: view.protocol),
    "hoplimit": (dt.INTEGER, lambda view: view.packet.ttl),
    "saddr": (dt.IPV6, lambda view: view.src),
    "daddr": (dt.IPV6, lambda view: view.dst),
}
PORTS: Mapping[str, Field] = {
    "sport": (dt.SERVICE, lambda view: view.sport),
    "dport": (dt.SERVICE, lambda view: view.dport),
}
TCP: Mapping[str, Field] = {
    **PORTS,
    "flags": (dt.TCP_FLAG, lambda view: FLAGS[view.packet.tcp_flags]),
    "reserved": (dt.INTEGER, lambda _: 0),
    "urgptr": (dt.INTEGER, lambda _: 0),
    **dict.fromkeys(("sequence", "ackseq", "doff", "window", "checksum"), (dt.INTEGER, _hidden)),
}
UDP: Mapping[str, Field] = {
    **PORTS,
    "length": (dt.INTEGER, lambda view: view.packet.length - _header_bytes(view.packet)),
    "checksum": (dt.INTEGER, _hidden),
}
ICMP: Mapping[str, Field] = {
    "type": (dt.ICMP_TYPE, lambda view: view.packet.icmp_type),
    "code": (dt.ICMP_CODE, lambda view: view.packet.icmp_code),
    "id": (dt.INTEGER, _echo_id),
    "mtu": (dt.INTEGER, lambda view: view.packet.icmp_mtu),
    **dict.fromkeys(("checksum", "sequence", "gateway"), (dt.INTEGER, _hidden)),
}
ICMPV6: Mapping[str, Field] = {
    **ICMP,
    "type": (dt.ICMPV6_TYPE, lambda view: view.packet.icmp_type),
    "code": (dt.ICMPV6_CODE, lambda view: view.packet.icmp_code),
    **dict.fromkeys(("parameter-problem", "max-delay"), (dt.INTEGER, _hidden)),
    "taddr": (dt.IPV6, _hidden),
}
ARP: Mapping[str, Field] = {
    "htype": (dt.INTEGER, lambda _: 1),
    "ptype": (dt.ETHERTYPE, lambda _: 0x0800),
    "hlen": (dt.INTEGER, lambda _: 6),
    "plen": (dt.INTEGER, lambda _: 4),
    "operation": (dt.ARP_OP, lambda view: view.context.arp.operation if view.context.arp else None),
    "saddr ip": (dt.IPV4, lambda view: _arp_ip(view.context.arp.sender) if view.context.arp else None),
    "daddr ip": (dt.IPV4, lambda view: _arp_ip(view.context.arp.target) if view.context.arp else None),
    "saddr ether": (dt.ETHER, lambda view: _arp_mac(view.context.arp.sender_mac) if view.context.arp else None),
    "daddr ether": (dt.ETHER, lambda view: _arp_mac(view.context.arp.target_mac) if view.context.arp else None),
}


def _arp_ip(ip: Ip | None) -> Outcome:
    return ip_int(ip) if ip else Unsure("the sender of an ARP request", "arp saddr ip")


def _arp_mac(mac: str) -> Outcome:
    return int(mac.replace(":", ""), 16) if mac else Unsure("a link-layer address in an ARP packet", "arp ether")


OTHER: Mapping[str, Mapping[str, Field]] = {
    "sctp": {**PORTS, "vtag": (dt.INTEGER, _hidden), "checksum": (dt.INTEGER, _hidden)},
    "dccp": {**PORTS, "type": (dt.INTEGER, _hidden)},
    "udplite": {**PORTS, "checksum": (dt.INTEGER, _hidden)},
}
TRANSPORTS: Mapping[str, tuple[int, Mapping[str, Field]]] = {
    "tcp": (6, TCP),
    "udp": (17, UDP),
    "icmp": (1, ICMP),
    "icmpv6": (58, ICMPV6),
    **{name: (dt.PROTO.symbols[name], found) for name, found in OTHER.items()},
    **{name: (dt.PROTO.symbols[name], {}) for name in ("igmp", "ah", "esp", "comp", "gre")},
}
"""Header → (protocol number, its fields). Of a protocol with no fields here all are unknown, but others do not have
them.
"""


def payload(content: Json) -> tuple[Getter, Datatype]:
    """Return how to take a field out of a packet, and its type. Raises NotUnderstood for headers that are not in the
    model.
    """
    if isinstance(content, dict) and "base" in content:
        return _raw(content)
    protocol, field = text(content, "protocol"), text(content, "field")
    match protocol:
        case "ip" | "ip6":
            version, fields = (4, IPV4) if protocol == "ip" else (6, IPV6)
            kind, get = _field(fields, protocol, field)
            return (lambda view: get(view) if view.version == version else None), kind
        case "th":
            kind, _ = _field(PORTS, protocol, field)
            get = _th_sport if field == "sport" else _th_dport
            return (lambda view: None if view.protocol == NO_TRANSPORT else get(view)), kind
        case "ether":
            return _ether(field)
        case "vlan":
            return (lambda _: None), dt.INTEGER
        case "arp":
            kind, take = _field(ARP, protocol, field)
            return (lambda view: take(view) if view.context.arp is not None else None), kind
    if protocol not in TRANSPORTS:
        raise NotUnderstood(f"the header {protocol}")
    wanted, found = TRANSPORTS[protocol]
    kind, get = found.get(field) or (dt.INTEGER, _unknown_of(protocol, field))
    return (lambda view: get(view) if view.protocol == wanted else None), kind


def _field(fields: Mapping[str, Field], protocol: str, field: str) -> Field:
    if field not in fields:
        raise NotUnderstood(f"the field {protocol} {field}")
    return fields[field]


def _unknown_of(protocol: str, field: str) -> Getter:
    answer = Unsure(f"{protocol} {field} of the packet", f"{protocol} {field}")
    return lambda _: answer


def _th_sport(view: PacketView) -> Outcome:
    """The first two bytes behind the network header, whatever they are."""
    if view.protocol in PORTED:
        return view.sport
    packet = view.packet
    return packet.icmp_type << 8 | packet.icmp_code if packet.protocol in _ICMP else HIDDEN


def _th_dport(view: PacketView) -> Outcome:
    return view.dport if view.protocol in PORTED else HIDDEN


_ICMP = (Protocol.ICMP, Protocol.ICMPV6)


def _ether(field: str) -> tuple[Getter, Datatype]:
    if field == "type":
        return (lambda view: dt.ETHERTYPES[view.version] if view.context.mac else None), dt.ETHERTYPE
    if field == "saddr":
        return (lambda view: int(view.context.mac.replace(":", ""), 16) if view.context.mac else None), dt.ETHER
    if field != "daddr":
        raise NotUnderstood(f"the field ether {field}")
    return _ether_daddr, dt.ETHER


_DADDR = Unsure("the destination MAC of the frame", "ether daddr")


def _ether_daddr(view: PacketView) -> Outcome:
    context = view.context
    if context.dst_mac:
        return int(context.dst_mac.replace(":", ""), 16)
    return None if context.hook == Hook.OUTPUT or not context.mac else _DADDR


_UNREAD = Unsure("raw bytes of the header", "raw")

RAW: Mapping[tuple[str, int, int], tuple[Datatype, Getter]] = {
    ("th", 0, 16): (dt.SERVICE, _th_sport),
    ("th", 16, 16): (dt.SERVICE, _th_dport),
    ("nh", 64, 8): (dt.INTEGER, lambda view: view.packet.ttl if view.version == 4 else _UNREAD),
    ("nh", 72, 8): (dt.PROTO, lambda view: view.protocol if view.version == 4 else _UNREAD),
    ("nh", 96, 32): (dt.IPV4, lambda view: view.src if view.version == 4 else _UNREAD),
    ("nh", 128, 32): (dt.IPV4, lambda view: view.dst if view.version == 4 else _UNREAD),
    ("nh", 64, 128): (dt.IPV6, lambda view: view.src if view.version == 6 else _UNREAD),
    ("nh", 192, 128): (dt.IPV6, lambda view: view.dst if view.version == 6 else _UNREAD),
}
"""(base, offset in bits, length in bits) of the raw bytes that are a field of the model."""


def _raw(content: dict[str, Json]) -> tuple[Getter, Datatype]:
    where = (text(content, "base"), whole(content, "offset"), whole(content, "len"))
    if where not in RAW:
        raise NotUnderstood(f"the raw bytes {compact(content)}")
    kind, get = RAW[where]
    return get, kind


WRITABLE: Mapping[tuple[str, str], Callable[[PacketView, int], None]] = {
    ("ip", "saddr"): lambda view, value: view.change(src=_ip(value, 4)),
    ("ip", "daddr"): lambda view, value: view.change(dst=_ip(value, 4)),
    ("ip6", "saddr"): lambda view, value: view.change(src=_ip(value, 6)),
    ("ip6", "daddr"): lambda view, value: view.change(dst=_ip(value, 6)),
    ("ip", "ttl"): lambda view, value: view.change(ttl=value),
    ("ip6", "hoplimit"): lambda view, value: view.change(ttl=value),
    **{
        (header, field): change
        for header in ("ip", "ip6")
        for field, change in (
            ("dscp", lambda view, value: view.change(tos=view.packet.tos & 3 | value << 2)),
            ("ecn", lambda view, value: view.change(tos=view.packet.tos & 0xFC | value)),
        )
    },
    **{
        (header, field): change
        for header in ("tcp", "udp", "th", "sctp", "udplite", "dccp")
        for field, change in (
            ("sport", lambda view, value: view.change(sport=value)),
            ("dport", lambda view, value: view.change(dport=value)),
        )
    },
}
"""(header, field) that a `set` may write → how."""

UNSEEN = frozenset(("checksum", "id", "flowlabel", "window", "sequence", "ackseq", "urgptr"))
"""Fields that may be written without any difference to what the model carries."""


def _ip(value: int, version: int) -> str:
    return str(IPv4Address(value) if version == 4 else IPv6Address(value))
