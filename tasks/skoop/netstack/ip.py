"""The IP layer: receive, route, deliver, forward, send; for both families.

Follows, in the kernel's order and under its names, ip_rcv, ip_route_input_slow, fib_validate_source, ip_local_deliver,
ip_forward, ip_route_output_key_hash and ip_output (net/ipv4), ip6_input/ip6_forward/ip6_output (net/ipv6). Left out: IP
options, multicast routing, IPsec, source routing, redirects (they only change later packets' way).
"""

from enum import Enum, auto
from functools import lru_cache

from msgspec.structs import replace

from tasks.skoop.model.addr import Ip, is_link_local, is_loopback, is_multicast
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.packet import CtState, Frame, Packet, Protocol, TcpFlags
from tasks.skoop.model.state import Section, Socket
from tasks.skoop.model.trace import IcmpError, Outcome, Reason, Stage
from tasks.skoop.netstack import icmp
from tasks.skoop.netstack.fib import FOR_US, FlowKey, Found, Leg, Router
from tasks.skoop.netstack.iptunnel import ip_tunnel_rcv, tell_on
from tasks.skoop.netstack.multipath import legs_for, remember_leg
from tasks.skoop.netstack.namespace import Namespace
from tasks.skoop.netstack.netfilter import traverse
from tasks.skoop.netstack.skb import At, Emit, Response, Skb
from tasks.skoop.netstack.source import objects_to_source
from tasks.skoop.netstack.tunnel import udp_tunnel_rcv
from tasks.skoop.netstack.wireguard import wg_receive
from tasks.skoop.netstack.xtables.api import Hook

_ERROR_OF = {
    "ENETUNREACH": icmp.NET_UNREACH,
    "EHOSTUNREACH": icmp.HOST_UNREACH,
    "EACCES": icmp.PKT_FILTERED,
}
_NO_UID = 0xFFFFFFFF
_UNSET_TTL = 64
"""What packets are made with before their route, and so the setting for it, is known."""
_REASON_OF = {
    "ENETUNREACH": Reason.IP_INNOROUTES,
    "EHOSTUNREACH": Reason.ROUTE_UNREACHABLE,
    "EACCES": Reason.ROUTE_PROHIBIT,
    "EINVAL": Reason.ROUTE_BLACKHOLE,
}


# --- receive ---------------------------------------------------------------------------------------------------------


def ip_rcv(ns: Namespace, skb: Skb) -> list[Skb]:
    """Take a packet from a device: is it for this host at all, and what does PREROUTING say?"""
    link = ns.links[skb.in_dev]
    packet = skb.packet
    if skb.dst_mac and link.mac and skb.dst_mac != link.mac and skb.in_dev != "lo":
        return [
            skb.finish(
                Outcome.DROPPED,
                Reason.OTHERHOST,
                ns.place(Stage.LINK, dev=skb.in_dev, key=skb.dst_mac),
                f"frame is for {skb.dst_mac}, {skb.in_dev} has {link.mac}",
            )
        ]
    if packet.version == 6 and ns.conf("disable_ipv6", skb.in_dev, family=6):
        key = f"net/ipv6/conf/{skb.in_dev}/disable_ipv6"
        return [_dropped(ns, skb, Reason.IP_INADDRERRORS, Stage.SYSCTL, key, "IPv6 is disabled on this device")]
    skb.at = At.IP_RCV_FINISH
    if skb.pre_done:
        skb.pre_done = False
        return [skb]
    return traverse(ns, skb, Hook.PREROUTING)


def _dropped(ns: Namespace, skb: Skb, reason: Reason, stage: Stage, key: str, detail: str) -> Skb:
    return skb.finish(Outcome.DROPPED, reason, ns.place(stage, dev=skb.in_dev, key=key), detail)


def ip_rcv_finish(ns: Namespace, skb: Skb) -> list[Skb]:
    """Decide where a received packet goes: to us, onwards, or nowhere."""
    if skb.kept and skb.local_route:
        skb.at = At.IP_LOCAL_DELIVER
        return [skb]
    if skb.kept and skb.leg is not None:
        if skb.packet.version == 4 and (
            skb.local or skb.originated
        ):  # a route of output leads in only where it is local (rt_dst_alloc: dst_discard)
            place = ns.place(Stage.ROUTE, dev=skb.in_dev, key=skb.packet.dst)
            detail = f"came back by {skb.in_dev}, but {skb.packet.dst} is not an own address"
            return [skb.finish(Outcome.DROPPED, Reason.ROUTE_BLACKHOLE, place, detail)]
        skb.out_dev, skb.kept = skb.leg.dev, False
        skb.at = At.IP_FORWARD
        return [skb]
    if (why := ns.state.lacks(Section.ROUTES)) is not None:
        return [_lacking(ns, skb, Stage.ROUTE, skb.packet.dst, f"routes ({why})")]
    vrf = ns.vrf_of(skb.in_dev)
    if vrf:
        return [one for way in _vrf_rcv(ns, skb, vrf) for one in ([way] if way.end else _input(ns, way))]
    above = ns.wire.l3s_above(ns.id, skb.in_dev, skb.packet.dst)
    if above is not None:
        return _to_l3s(ns, skb, above)
    return _input(ns, skb)


def _input(ns: Namespace, skb: Skb) -> list[Skb]:
    martian = _martian(ns, skb)
    return [martian] if martian is not None else _route_input(ns, skb)


def _vrf_rcv(ns: Namespace, skb: Skb, vrf: str) -> list[Skb]:
    """vrf_ip_rcv (drivers/net/vrf.c): from here on it has come in by the VRF, and PREROUTING sees it once more."""
    skb.slave, skb.in_dev = skb.in_dev, vrf
    skb.step(ns.place(Stage.LINK, dev=vrf), "enter", f"{skb.slave} belongs to the VRF {vrf}")
    return traverse(ns, skb, Hook.PREROUTING)


def _to_l3s(ns: Namespace, skb: Skb, above: tuple[NetnsId, str]) -> list[Skb]:
    """ipvlan_l3_rcv, ipvlan_nf_input (drivers/net/ipvlan/ipvlan_l3s.c): our INPUT sees it, then the other namespace's sockets."""
    ways = traverse(ns, skb, Hook.INPUT)
    for way in ways:
        if way.end is None:
            way.emit = Emit(
                dev=way.in_dev,
                frame=Frame(way.packet.with_(mark=0, ct_state=CtState.NONE, uid=None)),
                to=above,
                entry="socket",
            )
    return ways


def _lacking(ns: Namespace, skb: Skb, stage: Stage, key: str, what: str) -> Skb:
    skb.missing = (*skb.missing, f"{ns.id}: {what}")
    return skb.finish(Outcome.UNKNOWN, Reason.MISSING_STATE, ns.place(stage, key=key), f"{what} not collected")


def _martian(ns: Namespace, skb: Skb) -> Skb | None:
    """Drop what may not be on a wire (the head of ip_route_input_slow, ip6_rcv_core)."""
    packet = skb.packet
    if _unremarkable(packet.src) and _unremarkable(packet.dst):
        return None
    if packet.version == 6:
        if is_multicast(packet.src):
            return _dropped(ns, skb, Reason.IP_INVALID_SOURCE, Stage.ROUTE, packet.src, "multicast source")
        if skb.in_dev != "lo" and (is_loopback(packet.src) or is_loopback(packet.dst)):
            return _dropped(ns, skb, Reason.IP_LOCALNET, Stage.ROUTE, packet.dst, "::1 on a wire")
        return None
    if is_multicast(packet.src) or packet.src == "255.255.255.255" or packet.src.startswith("0."):
        return _dropped(ns, skb, Reason.IP_INVALID_SOURCE, Stage.ROUTE, packet.src, f"{packet.src} as a source")
    if packet.dst.startswith("0."):
        return _dropped(ns, skb, Reason.IP_INVALID_DEST, Stage.ROUTE, packet.dst, f"{packet.dst} as a destination")
    loop = next((ip for ip in (packet.dst, packet.src) if is_loopback(ip)), None)
    if loop and skb.in_dev != "lo" and not ns.either("route_localnet", skb.in_dev):
        key = f"net/ipv4/conf/{skb.in_dev}/route_localnet"
        return _dropped(ns, skb, Reason.IP_LOCALNET, Stage.SYSCTL, key, f"{loop} on a wire (route_localnet=0)")
    return None


@lru_cache(maxsize=1 << 15)
def _unremarkable(ip: Ip) -> bool:
    """Say whether an address is none of those that `_martian` looks for."""
    return not (is_multicast(ip) or is_loopback(ip) or ip == "255.255.255.255" or ip.startswith("0."))


def _route_input(ns: Namespace, skb: Skb) -> list[Skb]:
    packet = skb.packet
    version = packet.version
    router = ns.routers[version]
    found = router.lookup(FlowKey.of(packet, iif=skb.in_dev), ignore_linkdown=ns.ignore_linkdown)
    passed_on = found is not None and found.type == "broadcast" and _forwards_broadcasts(ns, skb.in_dev)
    if found is not None and found.type in FOR_US and not passed_on:
        if version == 4 and found.type == "local":
            wrong = _validate_source(ns, skb, out_dev="lo")
            if wrong is not None:
                return [wrong]
        skb.found = found
        skb.at = At.IP_LOCAL_DELIVER
        return [skb]
    refused = found is None or bool(found.errno)
    # IPv6 answers for a missing route whether it forwards or not (the null entry's input is ip6_pkt_discard)
    if not ns.forwards(skb.in_dev, version) and not passed_on and not (refused and version == 6):
        return [_not_forwarding(ns, skb)]
    if found is None or refused:
        return [_no_way(ns, skb, found)]
    if version == 6 and is_link_local(packet.src):
        return [
            _dropped(ns, skb, Reason.IP_INVALID_SOURCE, Stage.ROUTE, packet.src, "link-local source is not forwarded")
        ]
    ways = []
    legs = legs_for(ns, skb, found, src=packet.src, dst=packet.dst)
    for leg in legs:
        way = skb if len(legs) == 1 else skb.clone()
        if version == 4:
            wrong = _validate_source(ns, way, out_dev=leg.dev)
            if wrong is not None:
                ways.append(wrong)
                continue
        _take(ns, way, found, leg)
        way.at = At.IP_FORWARD
        ways.append(way)
    return ways


def _forwards_broadcasts(ns: Namespace, dev: str) -> bool:
    """IN_DEV_BFORWARD: of `all` and of the device."""
    return bool(ns.conf("bc_forwarding", "all") and ns.conf("bc_forwarding", dev))


def _not_forwarding(ns: Namespace, skb: Skb) -> Skb:
    v6 = skb.packet.version == 6
    key = "net/ipv6/conf/all/forwarding" if v6 else "net/ipv4/ip_forward"
    if not v6 and ns.sysctl(key):
        key = f"net/ipv4/conf/{skb.in_dev}/forwarding"
    if (why := ns.state.lacks(Section.SYSCTLS)) is not None:
        return _lacking(ns, skb, Stage.SYSCTL, key, f"sysctls ({why})")
    return skb.finish(
        Outcome.DROPPED,
        Reason.IP_INADDRERRORS,
        ns.place(Stage.SYSCTL, dev=skb.in_dev, key=key),
        f"{skb.packet.dst} is not ours and forwarding is off on {skb.in_dev}",
    )


def _no_way(ns: Namespace, skb: Skb, found: Found | None) -> Skb:
    """ip_error: what a router answers for a packet that it has no route for."""
    errno = found.errno if found else "ENETUNREACH"
    key = found.route.dst if found and found.route else skb.packet.dst
    what = f"{found.type} route" if found else "no route"
    reason = _REASON_OF.get(errno, Reason.ROUTE_BLACKHOLE) if found else Reason.IP_INNOROUTES
    place = ns.place(Stage.ROUTE, key=key)
    answer = None
    if errno in _ERROR_OF:
        kind = _ERROR_OF[errno]
        if skb.packet.version == 6 and errno == "EHOSTUNREACH":
            kind = icmp.NET_UNREACH  # ip6_pkt_discard answers for an unreachable route as for none
        answer = icmp.error_about(ns, skb.packet, kind, to_local=False, in_dev=skb.in_dev)
    if answer is None:
        return skb.finish(Outcome.DROPPED, reason, place, f"{what} to {skb.packet.dst}")
    return skb.finish(
        Outcome.UNREACHABLE,
        reason,
        place,
        f"{what} to {skb.packet.dst}",
        response=Response(packet=answer, conn=skb.conn, is_reply=not skb.is_reply),
    )


def _validate_source(ns: Namespace, skb: Skb, *, out_dev: str) -> Skb | None:
    """Return the packet dropped if its source may not come in on its device, or None if it may."""
    objection = objects_to_source(ns, skb.packet, skb.in_dev, out_dev=out_dev)
    if objection is None:
        return None
    return skb.finish(Outcome.DROPPED, objection.reason, objection.place, objection.detail)


def _take(ns: Namespace, skb: Skb, found: Found, leg: Leg) -> None:
    skb.found = found
    skb.leg = leg
    skb.out_dev = leg.dev
    skb.next_hop = leg.nexthop.via or skb.packet.dst
    skb.probability *= leg.share
    remember_leg(ns, skb, found, leg, src=skb.packet.src if skb.in_dev else "", dst=skb.packet.dst)
    via = f"via {leg.nexthop.via} " if leg.nexthop.via else ""
    prefix = found.route.dst if found.route else ""
    skb.step(ns.place(Stage.ROUTE, dev=leg.dev, key=prefix), "route", f"{prefix} {via}dev {leg.dev}")


# --- deliver ---------------------------------------------------------------------------------------------------------


def ip_local_deliver(ns: Namespace, skb: Skb) -> list[Skb]:
    """Ask INPUT, then hand the packet to its socket, tunnel or to the kernel itself."""
    ways = traverse(ns, skb, Hook.INPUT)
    return [one for way in ways for one in ([way] if way.end or way.taken_over() else _to_transport(ns, way))]


def to_socket(ns: Namespace, skb: Skb) -> list[Skb]:
    """Hand a packet straight to its socket: another namespace's stack has already let it in (ipvlan_nf_input)."""
    return _to_transport(ns, skb)


def _to_transport(ns: Namespace, skb: Skb) -> list[Skb]:
    """Deliver; several ways where sockets share a port and not all of them have room (reuseport_select_sock)."""
    packet = skb.packet
    if packet.encap is None and packet.inner is None and not skb.answer and packet.protocol == Protocol.TCP:
        sharers = ns.sharers(packet, _socket_dev(skb), skb.slave)
        if len({_is_full(socket) for socket in sharers}) > 1:
            ways = []
            for full in (False, True):
                way = skb.clone()
                group = [socket for socket in sharers if _is_full(socket) == full]
                way.probability *= len(group) / len(sharers)
                ways.append(_to_socket(ns, way, group[0]))
            return ways
    return [_to_one(ns, skb)]


def _is_full(socket: Socket) -> bool:
    """sk_acceptq_is_full."""
    return socket.recv_queue > socket.backlog


def _socket_dev(skb: Skb) -> str:
    """inet_iif: what one sends to oneself counts as coming in on the device that has the address."""
    return skb.leg.dev if skb.leg is not None and skb.local_route else skb.in_dev


def _to_one(ns: Namespace, skb: Skb) -> Skb:
    packet = skb.packet
    if packet.encap is not None:
        if packet.cipher:
            return wg_receive(ns, skb)
        return udp_tunnel_rcv(ns, skb) if packet.protocol == Protocol.UDP else ip_tunnel_rcv(ns, skb)
    if packet.inner is not None:
        place = ns.place(Stage.SOCKET, key="icmp error")
        told = tell_on(ns, packet.inner)
        if told is not None:
            detail = f"the tunnel to {packet.inner.dst} tells that it does not get through"
            return skb.finish(Outcome.UNREACHABLE, Reason.NO_TUNNEL, place, detail, response=told)
        return skb.finish(Outcome.DELIVERED, Reason.NONE, place, str(packet), action="deliver")
    if skb.answer:
        return skb.finish(
            Outcome.DELIVERED, Reason.NONE, ns.place(Stage.SOCKET, key=_end_of(packet)), str(packet), action="deliver"
        )
    if packet.protocol in (Protocol.ICMP, Protocol.ICMPV6):
        return _echo(ns, skb)
    return _to_socket(ns, skb)


def _to_many(skb: Skb) -> bool:
    """Say whether the packet is for a broadcast or multicast address (RTCF_BROADCAST, RTCF_MULTICAST)."""
    return skb.found is not None and skb.found.type in ("broadcast", "multicast")


def _end_of(packet: Packet) -> str:
    return f"{packet.protocol} {packet.dst}:{packet.dport}"


def _echo(ns: Namespace, skb: Skb) -> Skb:
    packet = skb.packet
    v6 = packet.protocol == Protocol.ICMPV6
    key = "net/ipv6/icmp/echo_ignore_all" if v6 else "net/ipv4/icmp_echo_ignore_all"
    if packet.icmp_type not in (8, 128):
        return skb.finish(
            Outcome.DELIVERED, Reason.NONE, ns.place(Stage.SOCKET, key="icmp"), str(packet), action="deliver"
        )
    if ns.sysctl(key):
        return _dropped(ns, skb, Reason.ECHO_IGNORED, Stage.SYSCTL, key, "the host ignores pings")
    key = "net/ipv6/icmp/echo_ignore_multicast" if v6 else "net/ipv4/icmp_echo_ignore_broadcasts"
    if _to_many(skb) and ns.sysctl(key, 0 if v6 else 1):
        return _dropped(ns, skb, Reason.ECHO_IGNORED, Stage.SYSCTL, key, "the host ignores pings to many")
    answer = packet.with_(
        src=packet.dst,
        dst=packet.src,
        icmp_type=129 if v6 else 0,
        ttl=64,
        mark=ns.reflected_mark(packet),
        uid=None,
        ct_state=CtState.NONE,
        df=False,
    )
    return skb.finish(
        Outcome.DELIVERED,
        Reason.NONE,
        ns.place(Stage.SOCKET, key="icmp echo"),
        "the kernel answers the ping",
        action="deliver",
        # icmpv6_echo_reply looks the route up by the device that the request came in on
        response=Response(
            packet=answer, related=False, oif=skb.in_dev if v6 and skb.in_dev != "lo" else "", rather=True
        ),
    )


def _to_socket(ns: Namespace, skb: Skb, shared: Socket | None = None) -> Skb:
    packet = skb.packet
    place = ns.place(Stage.SOCKET, dev=skb.in_dev, key=_end_of(packet))
    if (why := ns.state.lacks(Section.SOCKETS)) is not None:
        return _lacking(ns, skb, Stage.SOCKET, _end_of(packet), f"sockets ({why})")
    if packet.protocol == Protocol.TCP and _to_many(skb):
        detail = f"TCP does not answer to the {skb.found.type if skb.found else ''} address {packet.dst}"
        return _dropped(ns, skb, Reason.IP_INVALID_DEST, Stage.SOCKET, _end_of(packet), detail)
    if packet.protocol == Protocol.SCTP and not ns.listens_to_sctp():
        return skb.unknown(f"{ns.id}: SCTP sockets", place)
    wanted = packet if skb.tproxy is None else ns.tproxied(packet, *skb.tproxy, skb.in_dev)
    socket = shared or ns.listener(wanted, _socket_dev(skb), skb.slave)
    if socket is None:
        return _nobody_listens(ns, skb)
    who = f" ({socket.process})" if socket.process else ""
    if packet.protocol == Protocol.TCP and _is_full(socket):
        return skb.finish(
            Outcome.DROPPED,
            Reason.LISTEN_OVERFLOW,
            place,
            f"accept queue of the listener{who} is full: {socket.recv_queue} of {socket.backlog}",
        )
    oif = socket.dev or (skb.in_dev if skb.slave and packet.protocol == Protocol.TCP else "")
    return skb.finish(
        Outcome.DELIVERED,
        Reason.NONE,
        place,
        f"to {socket.ip}:{socket.port}{who}",
        action="deliver",
        socket=socket,
        oif=oif,
    )


def _nobody_listens(ns: Namespace, skb: Skb) -> Skb:
    packet = skb.packet
    place = ns.place(Stage.SOCKET, dev=skb.in_dev, key=_end_of(packet))
    detail = f"nobody listens on {packet.protocol} {packet.dst}:{packet.dport}"
    if packet.protocol == Protocol.TCP:
        answer = icmp.reset_for(packet)
        answer = answer and answer.with_(mark=ns.reflected_mark(packet))
    else:
        answer = None
        if not _to_many(skb):  # icmp_send: never about a broadcast
            answer = icmp.error_about(ns, packet, icmp.PORT_UNREACH, to_local=True, in_dev=skb.in_dev)
    if skb.found is not None and skb.found.type not in FOR_US:
        answer = None if packet.protocol == Protocol.TCP else answer  # tcp_v4_send_reset: the route has to be local
    if answer is None or packet.tcp_flags == TcpFlags.RST:
        return skb.finish(Outcome.DROPPED, Reason.NO_SOCKET, place, detail)
    # the packet has left conntrack before (nf_reset_ct): its answer finds the connection again, after the raw table
    response = Response(packet=answer, related=False)
    return skb.finish(Outcome.REFUSED, Reason.NO_SOCKET, place, detail, action="refuse", response=response)


# --- forward ---------------------------------------------------------------------------------------------------------


def ip_forward(ns: Namespace, skb: Skb) -> list[Skb]:
    """Forward a packet: TTL, size, FORWARD."""
    packet = skb.packet
    if skb.tproxy is not None:
        detail = "TPROXY gave it to a socket of this host, but its route leads on"
        return [_dropped(ns, skb, Reason.NO_SOCKET, Stage.ROUTE, packet.dst, detail)]
    if packet.ttl <= 1:
        answer = icmp.error_about(ns, packet, icmp.TTL_EXCEEDED, to_local=False, in_dev=skb.in_dev)
        place = ns.place(Stage.ROUTE, dev=skb.in_dev, key="ttl")
        response = Response(packet=answer, conn=skb.conn, is_reply=not skb.is_reply) if answer else None
        return [skb.finish(Outcome.UNREACHABLE, Reason.TTL_EXPIRED, place, "TTL expired", response=response)]
    out = ns.links.get(skb.out_dev)
    if out is None:
        return [_lacking(ns, skb, Stage.LINK, skb.out_dev, f"link {skb.out_dev}")]
    mtu_bytes = _route_mtu(skb) or out.mtu
    if packet.length > mtu_bytes and (packet.df or packet.version == 6):
        return [_too_big(ns, skb, mtu_bytes)]
    skb.packet = replace(packet, ttl=packet.ttl - 1)
    return _on_to_output(traverse(ns, skb, Hook.FORWARD))


def _on_to_output(ways: list[Skb]) -> list[Skb]:
    for way in ways:
        if not way.taken_over():
            way.at = At.IP_OUTPUT
    return ways


def _route_mtu(skb: Skb) -> int:
    return skb.found.route.mtu if skb.found and skb.found.route else 0


def _too_big(ns: Namespace, skb: Skb, mtu_bytes: int) -> Skb:
    answer = icmp.error_about(ns, skb.packet, icmp.FRAG_NEEDED, to_local=False, in_dev=skb.in_dev, mtu_bytes=mtu_bytes)
    place = ns.place(Stage.MTU, dev=skb.out_dev, key=str(mtu_bytes))
    detail = f"{skb.packet.length} bytes do not fit into {mtu_bytes} of {skb.out_dev} and may not be split"
    skb.narrow(mtu_bytes)
    response = Response(packet=answer, conn=skb.conn, is_reply=not skb.is_reply) if answer else None
    outcome = Outcome.UNREACHABLE if response else Outcome.DROPPED
    return skb.finish(outcome, Reason.PKT_TOO_BIG, place, detail, response=response)


# --- send ------------------------------------------------------------------------------------------------------------


class Source(Enum):
    """Where the source address of a locally made packet comes from."""

    CHOSEN = auto()
    """The kernel picks it for the route."""
    BOUND = auto()
    """It is the socket's own and takes part in the lookup."""
    CONNECTED = auto()
    """It is the socket's own, and the way is the one that connect() found."""
    FORGED = auto()
    """It is another's (a RST made by REJECT): kept, but not looked up with (ip_route_me_harder)."""


def route_output(
    ns: Namespace, skb: Skb, *, oif: str = "", source: Source = Source.CHOSEN, rather: bool = False
) -> list[Skb]:
    """Find the way and, where it is to be chosen, the source address of a locally made packet (ip_route_output_key_hash)."""
    bound = source == Source.BOUND
    packet = skb.packet
    if (why := ns.state.lacks(Section.ROUTES)) is not None:
        return [_lacking(ns, skb, Stage.ROUTE, packet.dst, f"routes ({why})")]
    router = ns.routers[packet.version]
    if router.by_user and packet.uid is None and not skb.originated:
        return [one for way in _of_users(ns, skb, router) for one in route_output(ns, way, oif=oif, source=source)]
    key = replace(FlowKey.of(packet, oif=oif), rather=True) if rather else FlowKey.of(packet, oif=oif)
    connects = source in (Source.CHOSEN, Source.CONNECTED) and packet.protocol == Protocol.TCP
    early = replace(key, sport=0) if connects else key  # the port is chosen only then (tcp_v4_connect, tcp_v6_connect)
    if (
        source == Source.CONNECTED
    ):  # what connect() found: IPv4 looked up again with source and port (ip_route_newports)
        found = router.lookup(
            key if packet.version == 4 else replace(early, src=None), ignore_linkdown=ns.ignore_linkdown
        )
    else:
        found = router.lookup(early if bound else replace(early, src=None), ignore_linkdown=ns.ignore_linkdown)
    chosen: Ip | None = None if source == Source.CHOSEN else packet.src
    if source == Source.CHOSEN and packet.version == 6:
        if (found is None or found.errno) and (guess := ns.source_for(oif, packet.dst)) is not None:
            # without a route: perhaps one for a source that we have (ip6_dst_lookup_tail)
            found, chosen = router.lookup(replace(early, src=guess), ignore_linkdown=ns.ignore_linkdown), guess
    elif found is not None and source == Source.CHOSEN and found.legs and (router.custom_rules or len(found.legs) > 1):
        return _connected(ns, skb, found, (early, key))
    down = bool(oif) and oif in ns.links and not ns.links[oif].up  # ENETUNREACH whatever the routes say
    return _leaving(ns, skb, None if down else found, chosen)


def _connected(ns: Namespace, skb: Skb, found: Found, keys: tuple[FlowKey, FlowKey]) -> list[Skb]:
    """Look up again with the source that the first lookup gave, and for TCP with the port too (ip_route_connect, ip_route_newports).

    A route of several legs may give the source of one and then go by another.
    """
    router, packet = ns.routers[4], skb.packet
    ways = []
    legs = legs_for(ns, skb, found, src="", dst=packet.dst)
    sources: dict[Ip | None, float] = {}
    for leg in legs:
        src = _source(ns, found, leg, packet.dst)
        sources[src] = sources.get(src, 0.0) + leg.share
    for src, share in sources.items():
        way = skb if len(sources) == 1 else skb.clone()
        way.probability *= share / sum(sources.values())
        again: Found | None = found
        for key in dict.fromkeys(replace(one, src=src) for one in keys):
            if again is not None and not again.errno:
                again = router.lookup(key, ignore_linkdown=ns.ignore_linkdown)
        ways += _leaving(ns, way, again, src)
    return ways


def _leaving(ns: Namespace, skb: Skb, found: Found | None, chosen: Ip | None) -> list[Skb]:
    """Send the packet by each leg of the route that was found."""
    packet = skb.packet
    if found is None or found.errno or not found.legs:
        return [_local_failure(ns, skb, found)]
    if found.type == "broadcast" and not skb.originated:  # tcp_v4_connect, ip4_datagram_connect without SO_BROADCAST
        refusal = "ENETUNREACH" if packet.protocol == Protocol.TCP else "EACCES"
        return [_local_failure(ns, skb, replace(found, errno=refusal))]
    ways = []
    legs = legs_for(ns, skb, found, src="", dst=packet.dst)
    for leg in legs:
        way = skb if len(legs) == 1 else skb.clone()
        src = chosen or _source(ns, found, leg, packet.dst)
        if src is None:
            error = IcmpError(type=-1, code=0, local=True, errno="EADDRNOTAVAIL")
            place = ns.place(Stage.ROUTE, dev=leg.dev, key=packet.dst)
            way.finish(Outcome.UNREACHABLE, Reason.NO_SOURCE_ADDRESS, place, "no source address fits", error=error)
        else:
            ttl = ns.first_ttl(packet.version, leg.dev) if packet.ttl == _UNSET_TTL else packet.ttl
            way.packet = packet if src == packet.src and ttl == packet.ttl else replace(packet, src=src, ttl=ttl)
            _take(ns, way, found, leg)
            if found.type == "local" or leg.dev == "lo":  # __mkroute_output: by lo is RTCF_LOCAL, whatever the type
                way.local_route, way.out_dev = True, "lo"
            _check_size(ns, way)
        way.at = At.IP_LOCAL_OUT
        ways.append(way)
    return ways


def _of_users(ns: Namespace, skb: Skb, router: Router) -> list[Skb]:
    """Return the packet once for each user whose packets the rules may treat in their own way: whose it is, is not known."""
    edges = {edge for rule in router.rules if rule.uids for edge in (rule.uids[0], rule.uids[1] + 1)}
    users = sorted({0, *(edge for edge in edges if edge < _NO_UID)})
    ways = []
    for uid in users:
        way = skb.clone()
        way.packet = skb.packet.with_(uid=uid)
        way.probability /= len(users)
        way.missing = (*way.missing, f"{ns.id}: which user sends {skb.packet}")
        ways.append(way)
    return ways


def _source(ns: Namespace, found: Found, leg: Leg, dst: Ip) -> Ip | None:
    route = found.route
    if found.type == "local":
        return route.prefsrc if route and route.prefsrc else dst
    if route is not None and route.prefsrc is not None:
        return route.prefsrc
    scope = route.scope if route else "global"
    return ns.source_for(leg.dev, icmp.seen_from(leg, dst), scope)


def _local_failure(ns: Namespace, skb: Skb, found: Found | None) -> Skb:
    errno = found.errno if found and found.errno else "ENETUNREACH"
    key = found.route.dst if found and found.route else skb.packet.dst
    reason = _REASON_OF.get(errno, Reason.ROUTE_BLACKHOLE) if found else Reason.IP_INNOROUTES
    what = f"{found.type} route" if found and found.errno else "no route"
    place = ns.place(Stage.ROUTE, key=key)
    detail = f"{what} to {skb.packet.dst}"
    if skb.originated:
        return skb.finish(Outcome.DROPPED, reason, place, detail)
    error = IcmpError(type=-1, code=0, local=True, errno=errno)
    return skb.finish(Outcome.UNREACHABLE, reason, place, detail, error=error)


def _check_size(ns: Namespace, skb: Skb) -> None:
    """A local datagram with DF that exceeds the known path MTU is refused at once (ip_append_data: EMSGSIZE)."""
    packet = skb.packet
    link = ns.links.get(skb.out_dev)
    if link is None or not packet.df or packet.protocol == Protocol.TCP or skb.originated:
        return
    limits = [mtu for mtu in (link.mtu, _route_mtu(skb), ns.cached_mtu(packet.dst, skb.out_dev)) if mtu]
    mtu_bytes = min(limits)
    if packet.length > mtu_bytes:
        error = IcmpError(type=-1, code=0, local=True, errno="EMSGSIZE", mtu=mtu_bytes)
        place = ns.place(Stage.MTU, dev=skb.out_dev, key=str(mtu_bytes))
        detail = f"{packet.length} bytes do not fit into the path's {mtu_bytes}"
        skb.finish(Outcome.UNREACHABLE, Reason.PKT_TOO_BIG, place, detail, error=error)


def ip_local_out(ns: Namespace, skb: Skb) -> list[Skb]:
    """Pass OUTPUT."""
    vrf = ns.vrf_of(skb.out_dev)
    if not vrf and skb.end is None:
        return _on_to_output(traverse(ns, skb, Hook.OUTPUT))
    before = _vrf_out(ns, skb, vrf) if vrf else [skb]
    return _on_to_output(
        [one for way in before for one in (traverse(ns, way, Hook.OUTPUT) if way.end is None else [way])]
    )


def _vrf_out(ns: Namespace, skb: Skb, vrf: str) -> list[Skb]:
    """vrf_ip_out_direct (drivers/net/vrf.c): OUTPUT and POSTROUTING see it a first time, untracked and leaving by the VRF."""
    dev, conn, reply, untracked = skb.out_dev, skb.conn, skb.is_reply, skb.untracked
    state = skb.packet.ct_state
    skb.out_dev, skb.conn, skb.untracked = vrf, -1, True
    skb.packet = skb.packet.with_(ct_state=CtState.UNTRACKED)
    ways = [skb]
    for hook in (Hook.OUTPUT, Hook.POSTROUTING):
        ways = [one for way in ways for one in (traverse(ns, way, hook) if way.end is None else [way])]
    for way in ways:
        if way.end is None:
            way.out_dev, way.conn, way.is_reply, way.untracked = dev, conn, reply, untracked
            way.packet = way.packet.with_(ct_state=state)
    return ways


def ip_output(ns: Namespace, skb: Skb) -> list[Skb]:
    """Pass POSTROUTING, split what is too big, and hand over to the neighbour layer."""
    done = []
    for way in traverse(ns, skb, Hook.POSTROUTING):
        if way.end is None:
            link = ns.links.get(way.out_dev)
            if link is None:
                _lacking(ns, way, Stage.LINK, way.out_dev, f"link {way.out_dev}")
            else:
                if way.out_dev != "lo":
                    way.narrow(link.mtu)
                if way.packet.length > link.mtu and way.out_dev != "lo":
                    _fragment(ns, way, link.mtu)
                way.at = At.NEIGH_OUTPUT
        done.append(way)
    return done


def _fragment(ns: Namespace, skb: Skb, mtu_bytes: int) -> None:
    """ip_fragment: what carries DF and is too big here is lost without a word to anybody who could act on it."""
    place = ns.place(Stage.MTU, dev=skb.out_dev, key=str(mtu_bytes))
    if skb.packet.df:
        skb.finish(Outcome.DROPPED, Reason.PKT_TOO_BIG, place, f"{skb.packet.length} bytes with DF into {mtu_bytes}")
        return
    skb.step(place, "fragment", f"{skb.packet.length} bytes into pieces of {mtu_bytes}")
    skb.packet = skb.packet.with_(length=mtu_bytes)
