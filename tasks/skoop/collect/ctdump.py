"""Which connections are tracked, read by ctnetlink: for machines without the conntrack program.

Equal in its values to `parse.conntrack`, which is faster for a full table.
"""

from collections.abc import Mapping
from typing import Any

from pyroute2 import NFCTSocket

from tasks.skoop.collect.rtlinks import attributes
from tasks.skoop.model.addr import parse_ip
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import ConntrackEntry, Tuple
from tasks.skoop.parse.rtnames import ip_protocol

IPS_SEEN_REPLY, IPS_ASSURED = 0x2, 0x4
TCP_STATES = (
    *("NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE"),
    "SYN_SENT2",
)
"""enum tcp_conntrack, include/uapi/linux/netfilter/nf_conntrack_tcp.h."""


def dump_conntrack() -> tuple[ConntrackEntry, ...]:
    """Return the entries of the namespace that this process is in. Raises NetlinkError, OSError."""
    netlink = NFCTSocket()
    try:
        return tuple(_entry(attributes(message)) for message in netlink.dump())
    finally:
        netlink.close()


def _entry(row: Mapping[str, Any]) -> ConntrackEntry:
    protocol, original = _tuple(attributes(row["CTA_TUPLE_ORIG"]))
    _, reply = _tuple(attributes(row["CTA_TUPLE_REPLY"]))
    status = row.get("CTA_STATUS", 0)
    tcp = attributes(attributes(row.get("CTA_PROTOINFO")).get("CTA_PROTOINFO_TCP"))
    state = tcp.get("CTA_PROTOINFO_TCP_STATE")
    return ConntrackEntry(
        protocol=protocol,
        original=original,
        reply=reply,
        state="" if state is None else TCP_STATES[state] if state < len(TCP_STATES) else str(state),
        replied=bool(status & IPS_SEEN_REPLY),
        assured=bool(status & IPS_ASSURED),
        mark=row.get("CTA_MARK", 0),
        zone=row.get("CTA_ZONE", 0),
        timeout_s=row.get("CTA_TIMEOUT", 0),
    )


def _tuple(row: Mapping[str, Any]) -> tuple[Protocol, Tuple]:
    ends, transport = attributes(row["CTA_TUPLE_IP"]), attributes(row["CTA_TUPLE_PROTO"])
    src = ends.get("CTA_IP_V4_SRC") or ends["CTA_IP_V6_SRC"]
    dst = ends.get("CTA_IP_V4_DST") or ends["CTA_IP_V6_DST"]
    echo = transport.get("CTA_PROTO_ICMP_ID", transport.get("CTA_PROTO_ICMPV6_ID"))
    sport = transport.get("CTA_PROTO_SRC_PORT", 0) if echo is None else echo
    dport = transport.get("CTA_PROTO_DST_PORT", 0) if echo is None else echo
    return ip_protocol(str(transport["CTA_PROTO_NUM"])), Tuple(parse_ip(src), parse_ip(dst), sport, dport)
