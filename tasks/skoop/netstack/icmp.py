"""Which errors does the stack send back, from which address, and what does the sender's program make of them?

Types and codes are ICMPv4's throughout (RFC 792, RFC 1812); for IPv6 they are mapped where the packet is built (RFC 4443).
Follows icmp_send and icmp_route_lookup (net/ipv4/icmp.c), icmp_err_convert. Rate limits are left out: they make an error late
or absent under load, not for one packet (docs/kernel.md, Errors).
"""

from tasks.skoop.model.addr import Ip, is_multicast
from tasks.skoop.model.packet import CtState, Packet, Protocol, TcpFlags
from tasks.skoop.netstack.fib import FlowKey, Leg
from tasks.skoop.netstack.namespace import Namespace

NET_UNREACH = (3, 0)
HOST_UNREACH = (3, 1)
PROT_UNREACH = (3, 2)
PORT_UNREACH = (3, 3)
FRAG_NEEDED = (3, 4)
NET_ANO = (3, 9)
HOST_ANO = (3, 10)
PKT_FILTERED = (3, 13)
TTL_EXCEEDED = (11, 0)

_INTERNETCONTROL = 0xC0
"""IPTOS_PREC_INTERNETCONTROL, which ICMPv4 errors carry (__icmp_send)."""

POLICY_FAIL, REJECT_ROUTE = (1, 5), (1, 6)
"""ICMPv6 alone has them (RFC 4443, 3.1)."""
TO_ICMPV6 = {
    NET_UNREACH: (1, 0),
    HOST_UNREACH: (1, 3),
    PROT_UNREACH: (4, 1),
    PORT_UNREACH: (1, 4),
    FRAG_NEEDED: (2, 0),
    NET_ANO: (1, 1),
    HOST_ANO: (1, 1),
    PKT_FILTERED: (1, 1),
    TTL_EXCEEDED: (3, 0),
    POLICY_FAIL: (1, 5),
    REJECT_ROUTE: (1, 6),
}

# What connect() or recv() reports (icmp_err_convert and icmpv6_err_convert; docs/kernel.md, Errors).
ERRNO = {
    NET_UNREACH: "ENETUNREACH",
    HOST_UNREACH: "EHOSTUNREACH",
    PROT_UNREACH: "ENOPROTOOPT",
    PORT_UNREACH: "ECONNREFUSED",
    FRAG_NEEDED: "EMSGSIZE",
    NET_ANO: "ENETUNREACH",
    HOST_ANO: "EHOSTUNREACH",
    PKT_FILTERED: "EHOSTUNREACH",
    TTL_EXCEEDED: "EHOSTUNREACH",
}
ERRNO6 = {
    (1, 0): "ENETUNREACH",
    (1, 1): "EACCES",
    (1, 3): "EHOSTUNREACH",
    (1, 4): "ECONNREFUSED",
    (2, 0): "EMSGSIZE",
    (3, 0): "EHOSTUNREACH",
    (4, 1): "EPROTO",
    (1, 5): "EACCES",
    (1, 6): "EACCES",
}

REJECT_WITH = {
    "icmp-net-unreachable": NET_UNREACH,
    "icmp-host-unreachable": HOST_UNREACH,
    "icmp-proto-unreachable": PROT_UNREACH,
    "icmp-port-unreachable": PORT_UNREACH,
    "icmp-net-prohibited": NET_ANO,
    "icmp-host-prohibited": HOST_ANO,
    "icmp-admin-prohibited": PKT_FILTERED,
    "icmp6-no-route": NET_UNREACH,
    "no-route": NET_UNREACH,
    "icmp6-adm-prohibited": PKT_FILTERED,
    "adm-prohibited": PKT_FILTERED,
    "icmp6-addr-unreachable": HOST_UNREACH,
    "addr-unreach": HOST_UNREACH,
    "icmp6-port-unreachable": PORT_UNREACH,
    "port-unreach": PORT_UNREACH,
    "icmp6-policy-fail": POLICY_FAIL,
    "policy-fail": POLICY_FAIL,
    "icmp6-reject-route": REJECT_ROUTE,
    "reject-route": REJECT_ROUTE,
}


def errno_of(packet: Packet) -> str:
    """Return the errno that an ICMP error gives to the program whose packet it quotes."""
    kind = (packet.icmp_type, packet.icmp_code)
    return (ERRNO6 if packet.protocol == Protocol.ICMPV6 else ERRNO).get(kind, "EHOSTUNREACH")


def own_source(ns: Namespace, dst: Ip, dev: str = "", vrf: str = "", protocol: Protocol | None = None) -> Ip | None:
    """Return the address that this namespace would use towards `dst` (in a VRF), or None if it has no route or no address."""
    router = ns.routers[6 if ":" in dst else 4]
    found = router.lookup(FlowKey(dst=dst, oif=vrf, protocol=protocol), ignore_linkdown=ns.ignore_linkdown)
    if found is None or found.errno or not found.legs:
        return None
    if found.route is not None and found.route.prefsrc is not None:
        return found.route.prefsrc
    if found.type == "local":
        return dst
    leg = found.legs[0]
    scope = found.route.scope if found.route else "global"
    return ns.source_for(dev or leg.dev, seen_from(leg, dst), scope)


def seen_from(leg: Leg, dst: Ip) -> Ip:
    """Return what a source address should suit: IPv4's next hop (fib_result_prefsrc), IPv6's destination (RFC 6724)."""
    return dst if ":" in dst else leg.nexthop.via or dst


def error_about(
    ns: Namespace, packet: Packet, kind: tuple[int, int], *, to_local: bool, in_dev: str = "", mtu_bytes: int = 0
) -> Packet | None:
    """Return the ICMP error about a packet, or None where the kernel sends none (RFC 1122 3.2.2, icmp_send).

    `to_local`: the packet was not to be forwarded; if its destination is ours that is the error's source. Else the source is
    the address towards the sender (or of `in_dev` if icmp_errors_use_inbound_ifaddr).
    """
    if packet.is_icmp_error or is_multicast(packet.dst) or packet.src in ("0.0.0.0", "::"):
        return None
    if packet.protocol in (Protocol.ICMP, Protocol.ICMPV6) and packet.icmp_type in (0, 5, 129, 137):
        return None
    inbound = in_dev if ns.sysctl("net/ipv4/icmp_errors_use_inbound_ifaddr") else ""
    # RTCF_LOCAL: a local packet that OUTPUT refuses may be for another host
    ours = to_local and (ns.is_local(packet.dst) or ns.is_vrf(in_dev))
    version6 = packet.version == 6
    own = Protocol.ICMPV6 if version6 else Protocol.ICMP
    vrf = in_dev if ns.is_vrf(in_dev) else ""
    src = packet.dst if ours else own_source(ns, packet.src, inbound, vrf, own)
    if src is None:
        return None
    icmp_type, icmp_code = TO_ICMPV6[kind] if version6 else kind
    quoted = packet.with_(ct_state=CtState.NONE, mark=0, uid=None)
    return Packet(
        src=src,
        dst=packet.src,
        protocol=own,
        icmp_type=icmp_type,
        icmp_code=icmp_code,
        icmp_mtu=mtu_bytes,
        length=min(packet.length + (48 if version6 else 28), 1280 if version6 else 576),
        tos=0 if version6 else (packet.tos & 0x1E) | _INTERNETCONTROL,
        inner=quoted,
        mark=ns.reflected_mark(packet),
    )


def reset_for(packet: Packet) -> Packet | None:
    """Return the RST that answers a segment, or None for a RST (tcp_v4_send_reset, nf_send_reset)."""
    if packet.protocol != Protocol.TCP or packet.tcp_flags in (TcpFlags.RST, TcpFlags.RST_ACK):
        return None
    return Packet(
        src=packet.dst,
        dst=packet.src,
        sport=packet.dport,
        dport=packet.sport,
        protocol=Protocol.TCP,
        tcp_flags=TcpFlags.RST_ACK if packet.tcp_flags == TcpFlags.SYN else TcpFlags.RST,
        length=60 if packet.version == 6 else 40,
    )
