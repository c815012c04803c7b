"""What does IPVS do with a packet: which real server, by which way, and whose address does the answer carry?

Follows ip_vs_in_hook, ip_vs_schedule, ip_vs_leave, ip_vs_out_hook, handle_response (net/netfilter/ipvs/ip_vs_core.c),
ip_vs_nat_xmit, ip_vs_dr_xmit, ip_vs_tunnel_xmit, __ip_vs_get_out_rt (ip_vs_xmit.c), ip_vs_update_conntrack (ip_vs_nfct.c)
of v6.1; the schedulers are in `ipvs_scheduler`. A request to a virtual service is taken at LOCAL_IN or LOCAL_OUT and sent
on through LOCAL_OUT and POSTROUTING, never through FORWARD; the answer of a real server is given the virtual address at
FORWARD, LOCAL_IN or LOCAL_OUT. IPVS's own connections travel in the walk's flow beside those of conntrack, under a key of
their own. Left out: the FTP and SIP helpers, synchronised connections, tunnels other than IPIP (`unknown`).
"""

from enum import Enum, auto

from msgspec.structs import replace

from tasks.skoop.model.addr import is_loopback
from tasks.skoop.model.packet import CtState, Packet, Protocol, TcpFlags
from tasks.skoop.model.state import IpvsDestination, IpvsService, Section, Tuple
from tasks.skoop.model.trace import IcmpError, Outcome, Place, Reason, Stage
from tasks.skoop.netstack import conntrack, icmp
from tasks.skoop.netstack.fib import FlowKey, Leg
from tasks.skoop.netstack.ipvs_connections import IpvsConn, collected, find_service, template
from tasks.skoop.netstack.ipvs_load import dropped_share, may_be_full, may_stand_aside
from tasks.skoop.netstack.ipvs_scheduler import candidates
from tasks.skoop.netstack.namespace import Namespace
from tasks.skoop.netstack.skb import At, Response, Skb
from tasks.skoop.netstack.xtables.api import Hook

KUBE_DUMMY = "kube-ipvs0"
_BALANCED = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
_IPIP_BYTES = {4: 20, 6: 40}
_VS = "net/ipv4/vs"


class Way(Enum):
    """Which of IPVS's functions stands at a hook."""

    IN = auto()
    """ip_vs_in_hook: requests."""
    OUT = auto()
    """ip_vs_out_hook: answers."""
    FORWARD_ICMP = auto()
    """ip_vs_forward_icmp: errors about answers, on their way to where they seemed to come from."""


HOOKS = {
    Hook.INPUT: ((98, Way.OUT), (99, Way.IN)),
    Hook.FORWARD: ((99, Way.FORWARD_ICMP), (100, Way.OUT)),
    Hook.OUTPUT: ((-99, Way.OUT), (-98, Way.IN)),
}
"""Hook → (priority, function): ip_vs_ops4 and ip_vs_ops6, which are alike."""


def runs(ns: Namespace) -> bool:
    """Say whether IPVS has hooks here: it has once it has a service. One that was not collected counts if kube-proxy's dummy is there."""
    return bool(ns.state.ipvs) or (ns.state.lacks(Section.IPVS) is not None and KUBE_DUMMY in ns.links)


def apply(ns: Namespace, skb: Skb, hook: Hook, way: Way) -> list[Skb]:
    """Return the ways of a packet past one of IPVS's hooks; one that was taken over there is `stolen`."""
    if skb.ipvs:
        return [skb]
    match way:
        case Way.OUT:
            return _out(ns, skb, hook)
        case Way.IN:
            return _in(ns, skb, hook)
        case Way.FORWARD_ICMP:
            return _in_icmp(ns, skb) if skb.packet.inner is not None else [skb]


def _key(ns: Namespace) -> str:
    return f"{ns.id} ipvs"


def _conns(ns: Namespace, skb: Skb) -> tuple[IpvsConn, ...]:
    return tuple(conn for conn in skb.flow.get(_key(ns), ()) if isinstance(conn, IpvsConn))


# --- requests --------------------------------------------------------------------------------------------------------


def _in(ns: Namespace, skb: Skb, hook: Hook) -> list[Skb]:
    packet = skb.packet
    if packet.inner is not None:
        return _in_icmp(ns, skb)
    if packet.protocol not in _BALANCED:
        return [skb]
    if (why := ns.state.lacks(Section.IPVS)) is not None:
        return [_not_collected(ns, skb, why)]
    flow = conntrack.tuple_of(packet)
    known = next((c for c in _conns(ns, skb) if c.protocol == packet.protocol and c.original == flow), None)
    if known is None:
        known = collected(ns, packet)
        if known is not None and known.vanished:
            if not ns.sysctl(f"{_VS}/expire_nodest_conn"):
                return [
                    _refused(
                        ns, skb, hook, _name(known), "the real server of this old connection is gone from the service"
                    )
                ]
            known = None
    service = find_service(ns.state.ipvs, packet)
    if known is None and (service is None or not _may_begin(ns, packet)):
        return [skb]
    if gap := may_stand_aside(ns):
        return [_hangs_on(ns, skb, str(packet.dst), gap)]
    if known is not None:
        return _transmit(ns, skb, hook, known)
    assert service is not None
    return [
        one
        for way in _under_load(ns, skb, hook, service)
        for one in (_schedule(ns, way, hook, service) if way.end is None else [way])
    ]


def _under_load(ns: Namespace, skb: Skb, hook: Hook, service: IpvsService) -> list[Skb]:
    """ip_vs_todrop: the packet that would begin a connection may be dropped first; its sender then tries again."""
    share, name = dropped_share(ns), service_name(service)
    if share is None:
        return [_hangs_on(ns, skb, name, "how low on memory it is (drop_packet=2)")]
    if share == 0.0:
        return [skb]
    lost = skb.clone()
    lost.probability *= share
    skb.probability *= 1 - share
    lost.redraw = skb.redraw = True
    _refused(ns, lost, hook, name, "drop_packet: new connections are dropped under load")
    return [lost] if share >= 1.0 else [skb, lost]


def _refused(ns: Namespace, skb: Skb, hook: Hook, key: str, detail: str) -> Skb:
    """NF_DROP of the hook itself: a local datagram's sender is told, unlike of what is lost on the way on (NF_STOLEN)."""
    if hook == Hook.OUTPUT and skb.local and skb.packet.protocol != Protocol.TCP:
        error = IcmpError(type=-1, code=0, local=True, errno="EPERM")
        return skb.finish(Outcome.UNREACHABLE, Reason.IPVS_DROP, ns.place(Stage.IPVS, key=key), detail, error=error)
    return _lost(ns, skb, key, detail)


def _hangs_on(ns: Namespace, skb: Skb, key: str, what: str) -> Skb:
    return skb.unknown(f"{ns.id}: {what}", ns.place(Stage.IPVS, key=key), f"it is not known {what}")


def _not_collected(ns: Namespace, skb: Skb, why: str) -> Skb:
    dummy = ns.links.get(KUBE_DUMMY)
    virtual = dummy is not None and any(address.ip == skb.packet.dst for address in dummy.addresses)
    if not virtual and ns.listener(skb.packet, skb.in_dev) is not None:
        return skb
    skb.missing = (*skb.missing, f"{ns.id}: virtual servers ({why})")
    place = ns.place(Stage.IPVS, key=skb.packet.dst)
    return skb.finish(Outcome.UNKNOWN, Reason.MISSING_STATE, place, f"virtual servers not collected: {why}")


def _may_begin(ns: Namespace, packet: Packet) -> bool:
    """tcp_conn_schedule: only a SYN begins a connection, but for sloppy_tcp."""
    if packet.protocol != Protocol.TCP:
        return True
    if packet.tcp_flags in (TcpFlags.RST, TcpFlags.RST_ACK):
        return False
    return packet.tcp_flags in (TcpFlags.SYN, TcpFlags.SYN_ACK) or bool(ns.sysctl(f"{_VS}/sloppy_tcp"))


def _schedule(ns: Namespace, skb: Skb, hook: Hook, service: IpvsService) -> list[Skb]:
    packet = skb.packet
    name = service_name(service)
    place = ns.place(Stage.IPVS, key=name)
    if service.port == 0 and not service.fwmark and not service.persistent_s:  # only a persistent one may have port 0
        return _leave(ns, skb, hook, service, place)
    pinned = template(ns, service, packet)
    if gap := may_be_full(service.destinations):
        return [_hangs_on(ns, skb, name, gap)]
    servers = ((pinned, 1.0),) if pinned is not None else candidates(service, packet)
    if not servers:
        return _leave(ns, skb, hook, service, place)
    ways = []
    for server, share in servers:
        way = skb if len(servers) == 1 else skb.clone()
        way.probability *= share
        conn = IpvsConn(
            protocol=packet.protocol,
            original=conntrack.tuple_of(packet),
            reply=Tuple(server.ip, packet.src, server.port or packet.dport, packet.sport),
            method=server.method,
            encapsulation=server.encapsulation,
            tracked=bool(ns.sysctl(f"{_VS}/conntrack")),
        )
        how = "persistence" if pinned is not None else service.scheduler
        way.step(place, "schedule", f"{how}: {_end(server)} by {server.method}")
        if "ops" not in service.flags or packet.protocol != Protocol.UDP:
            way.flow = {**way.flow, _key(ns): (*way.flow.get(_key(ns), ()), conn)}
        ways += _transmit(ns, way, hook, conn)
    return ways


def service_name(service: IpvsService) -> str:
    """Return what the user would call the service: `TCP 10.96.0.1:443`, `FWM 7`."""
    if service.ip is None:
        return f"FWM {service.fwmark}"
    host = f"[{service.ip}]" if ":" in service.ip else service.ip
    return f"{service.protocol.upper()} {host}:{service.port}"


def _end(server: IpvsDestination) -> str:
    return f"[{server.ip}]:{server.port}" if ":" in server.ip else f"{server.ip}:{server.port}"


def _name(conn: IpvsConn) -> str:
    return f"{conn.protocol.upper()} {conn.original.dst}:{conn.original.dport}"


def _leave(ns: Namespace, skb: Skb, hook: Hook, service: IpvsService, place: Place) -> list[Skb]:
    """ip_vs_leave: no real server is to be had, and the client is told so by ICMP, whatever the protocol."""
    packet = skb.packet
    if service.fwmark and ns.sysctl(f"{_VS}/cache_bypass") and not ns.is_local(packet.dst):
        skb.missing = (*skb.missing, f"{ns.id}: bypass connections of IPVS")
        return [skb.finish(Outcome.UNKNOWN, Reason.UNSUPPORTED, place, "cache_bypass is not simulated")]
    why = "the service has no real server" if not service.destinations else "no real server takes new connections"
    if hook == Hook.OUTPUT and packet.protocol != Protocol.TCP:
        error = IcmpError(type=-1, code=0, local=True, errno="EPERM")
        return [skb.finish(Outcome.UNREACHABLE, Reason.NO_REAL_SERVER, place, why, error=error)]
    answer = icmp.error_about(ns, packet, icmp.PORT_UNREACH, to_local=ns.is_local(packet.dst), in_dev=skb.in_dev)
    if answer is None:
        return [_lost(ns, skb, place.key, why)]
    response = Response(packet=answer, conn=skb.conn, is_reply=not skb.is_reply)
    return [skb.finish(Outcome.REFUSED, Reason.NO_REAL_SERVER, place, why, action="refuse", response=response)]


def _lost(ns: Namespace, skb: Skb, key: str, detail: str, reason: Reason = Reason.IPVS_DROP) -> Skb:
    return skb.finish(Outcome.DROPPED, reason, ns.place(Stage.IPVS, key=key), detail)


# --- sending on ------------------------------------------------------------------------------------------------------


def _transmit(ns: Namespace, skb: Skb, hook: Hook, conn: IpvsConn) -> list[Skb]:
    """The packet_xmit of the connection's forwarding method: find the way to the real server and take it."""
    name = _name(conn)
    server = conn.reply.src
    if conn.method == "local":
        return [_goes_on(ns, skb, conn)]
    if conn.method not in ("masq", "route", "tunnel") or (conn.method == "tunnel" and conn.encapsulation != "ipip"):
        skb.missing = (*skb.missing, f"{ns.id}: IPVS forwarding {conn.method} {conn.encapsulation}")
        place = ns.place(Stage.IPVS, key=name)
        return [skb.finish(Outcome.UNKNOWN, Reason.UNSUPPORTED, place, f"{conn.method} is not simulated")]
    found = ns.routers[6 if ":" in server else 4].lookup(FlowKey(dst=server), ignore_linkdown=ns.ignore_linkdown)
    if found is None or found.errno or not found.legs:
        # dst_link_failure: whatever the route lacks or says, the client is told that the host is unreachable
        what = f"no route to the real server {server}"
        return [_told(ns, skb, name, icmp.HOST_UNREACH, Reason.IP_INNOROUTES, what)]
    if found.type == "local":
        return [_to_local(ns, skb, hook, conn)]
    if is_loopback(skb.packet.src):
        return [_lost(ns, skb, name, "a loopback source may not leave this host", Reason.IP_LOCALNET)]
    if skb.packet.ttl <= 1:
        return [_told(ns, skb, name, icmp.TTL_EXCEEDED, Reason.TTL_EXPIRED, "TTL expired")]
    ways = []
    for leg in found.legs:
        way = skb if len(found.legs) == 1 else skb.clone()
        way.probability *= leg.share
        mtu_bytes = (found.route.mtu if found.route else 0) or ns.links[leg.dev].mtu
        ways.append(_through(ns, way, conn, leg, mtu_bytes))
        way.found = found
    return ways


def _through(ns: Namespace, skb: Skb, conn: IpvsConn, leg: Leg, mtu_bytes: int) -> Skb:
    packet = skb.packet.with_(ttl=skb.packet.ttl - 1)
    name = _name(conn)
    server = conn.reply.src
    room = mtu_bytes - (_IPIP_BYTES[packet.version] if conn.method == "tunnel" else 0)
    if packet.length > room and (packet.df or packet.version == 6):
        what = f"{packet.length} bytes do not fit into {room} on the way to the real server"
        return _told(ns, skb, name, icmp.FRAG_NEEDED, Reason.PKT_TOO_BIG, what, mtu_bytes=room)
    skb.leg = leg
    skb.out_dev, skb.next_hop = leg.dev, leg.nexthop.via or server
    skb.ipvs = skb.stolen = True
    skb.local_route = False
    skb.at = At.IP_LOCAL_OUT
    match conn.method:
        case "masq":
            _translate_request(ns, skb, conn, packet)
            _leave_to_conntrack(ns, skb, conn, request=True)
        case "route":
            skb.packet = packet
            skb.step(ns.place(Stage.IPVS, key=name), "route", f"to the real server {server} dev {leg.dev}")
            _leave_to_conntrack(ns, skb, conn, request=True)
        case _:
            _wrap(ns, skb, conn, packet)
    return skb


def _translate_request(ns: Namespace, skb: Skb, conn: IpvsConn, packet: Packet) -> None:
    skb.packet = packet.with_(dst=conn.reply.src, dport=conn.reply.sport)
    skb.step(ns.place(Stage.IPVS, key=_name(conn)), "dnat", f"{packet} -> {skb.packet}")


def _wrap(ns: Namespace, skb: Skb, conn: IpvsConn, packet: Packet) -> None:
    """ip_vs_tunnel_xmit: an IPIP packet of this host's own, which conntrack sees anew."""
    server = conn.reply.src
    src = icmp.own_source(ns, server) or server
    inner = packet.with_(mark=0, ct_state=CtState.NONE, uid=None)
    extra = _IPIP_BYTES[6 if ":" in server else 4]
    skb.step(ns.place(Stage.IPVS, key=_name(conn)), "encap", f"IPIP to the real server {server}")
    skb.packet = Packet(
        src=src,
        dst=server,
        protocol=Protocol.IPIP,
        length=packet.length + extra,
        df=packet.df,
        mark=packet.mark,
        encap=inner,
    )
    skb.overhead += extra
    skb.conn, skb.is_reply, skb.untracked = -1, False, False
    skb.local = False
    skb.originated = True


def _to_local(ns: Namespace, skb: Skb, hook: Hook, conn: IpvsConn) -> Skb:
    """The real server is this host: the packet goes on where it is (ip_vs_nat_xmit and others with `local`)."""
    name = _name(conn)
    arrived_local = hook == Hook.INPUT or skb.local_route
    if conn.method == "masq":
        if hook == Hook.INPUT and is_loopback(conn.reply.src):
            return _lost(ns, skb, name, f"{conn.reply.src} is not for packets from outside", Reason.IP_LOCALNET)
        if not arrived_local:
            skb.missing = (*skb.missing, f"{ns.id}: a real server here behind a virtual address elsewhere")
            place = ns.place(Stage.IPVS, key=name)
            return skb.finish(Outcome.UNKNOWN, Reason.UNSUPPORTED, place, "the virtual address is not one of this host")
        _translate_request(ns, skb, conn, skb.packet)
    elif not arrived_local:
        return _lost(ns, skb, name, "the real server is this host, the virtual address is not")
    return _goes_on(ns, skb, conn)


def _goes_on(ns: Namespace, skb: Skb, conn: IpvsConn) -> Skb:
    skb.ipvs = True
    _leave_to_conntrack(ns, skb, conn, request=True)
    return skb


def _told(
    ns: Namespace, skb: Skb, key: str, kind: tuple[int, int], reason: Reason, detail: str, *, mtu_bytes: int = 0
) -> Skb:
    local = ns.is_local(skb.packet.dst)
    answer = icmp.error_about(ns, skb.packet, kind, to_local=local, in_dev=skb.in_dev, mtu_bytes=mtu_bytes)
    response = Response(packet=answer, conn=skb.conn, is_reply=not skb.is_reply) if answer else None
    if mtu_bytes:
        skb.narrow(mtu_bytes)
    outcome = Outcome.UNREACHABLE if response else Outcome.DROPPED
    return skb.finish(outcome, reason, ns.place(Stage.IPVS, key=key), detail, response=response)


def _leave_to_conntrack(ns: Namespace, skb: Skb, conn: IpvsConn, *, request: bool) -> None:
    """ip_vs_notrack, or with net.ipv4.vs.conntrack=1 ip_vs_update_conntrack: the entry's reply comes from the real server.

    The entry is not marked as translated: `--ctstate DNAT` does not know IPVS's connections.
    """
    tracked = skb.connection(ns.id)
    if tracked is None:
        return
    if not conn.tracked:
        if not tracked.confirmed:
            skb.flow = conntrack.with_conn(skb.flow, ns.id, skb.conn, replace(tracked, zone=-1))
        skb.conn, skb.is_reply, skb.untracked = -1, False, True
        skb.packet = skb.packet.with_(ct_state=CtState.UNTRACKED)
        return
    if tracked.confirmed or skb.is_reply or conn.method != "masq" or skb.packet.inner is not None:
        return
    reply = tracked.reply
    if request:
        reply = Tuple(conn.reply.src, reply.dst, conn.reply.sport, reply.dport)
    else:
        reply = Tuple(reply.src, conn.original.dst, reply.sport, conn.original.dport)
    skb.flow = conntrack.with_conn(skb.flow, ns.id, skb.conn, replace(tracked, reply=reply))


# --- answers ---------------------------------------------------------------------------------------------------------


def _out(ns: Namespace, skb: Skb, hook: Hook) -> list[Skb]:
    """Give an answer of a real server, or an error about a request to it, the virtual address."""
    packet = skb.packet
    if packet.inner is not None:
        return [_out_icmp(ns, skb, hook)]
    flow = conntrack.tuple_of(packet)
    conn = next((c for c in _conns(ns, skb) if c.protocol == packet.protocol and c.answer == flow), None)
    if conn is None:
        return [skb]
    place = ns.place(Stage.IPVS, key=_name(conn))
    skb.packet = packet.with_(src=conn.original.dst, sport=conn.original.dport)
    if skb.packet != packet:
        skb.step(place, "un-dnat", f"{packet} -> {skb.packet}")
    _answered(ns, skb, hook, conn)
    return [skb]


def _answered(ns: Namespace, skb: Skb, hook: Hook, conn: IpvsConn) -> None:
    skb.ipvs = True
    _leave_to_conntrack(ns, skb, conn, request=False)
    local = hook == Hook.INPUT or skb.local_route or bool(skb.bridge and skb.phys_out)
    if local or not ns.sysctl(f"{_VS}/snat_reroute", 1):
        return
    _route_me_harder(ns, skb)


def _route_me_harder(ns: Namespace, skb: Skb) -> None:
    """ip_vs_route_me_harder: the answer is routed as if this host had sent it from the virtual address."""
    packet = skb.packet
    src = packet.src if ns.is_local(packet.src) else None
    key = replace(FlowKey.of(packet), src=src)
    found = ns.routers[packet.version].lookup(key, ignore_linkdown=ns.ignore_linkdown)
    if found is None or found.errno or not found.legs:
        detail = f"no route to {packet.dst} for an answer from {packet.src}"
        skb.finish(Outcome.DROPPED, Reason.IP_INNOROUTES, ns.place(Stage.ROUTE, key=packet.dst), detail)
        return
    skb.found, skb.leg = found, found.legs[0]
    skb.local_route = found.type == "local"
    skb.out_dev = "lo" if skb.local_route else skb.leg.dev
    skb.next_hop = skb.leg.nexthop.via or packet.dst


def _out_icmp(ns: Namespace, skb: Skb, hook: Hook) -> Skb:
    """ip_vs_out_icmp: an error about a request on its way to a real server is one about the virtual service."""
    error, quoted = skb.packet, skb.packet.inner
    assert quoted is not None
    wanted = conntrack.inverted(conntrack.tuple_of(quoted))
    conn = next((c for c in _conns(ns, skb) if c.protocol == quoted.protocol and c.reply == wanted), None)
    if conn is None or conn.method != "masq":
        return skb
    inner = quoted.with_(dst=conn.original.dst, dport=conn.original.dport)
    skb.packet = error.with_(src=conn.original.dst, inner=inner)
    skb.step(ns.place(Stage.IPVS, key=_name(conn)), "un-dnat", f"error about {quoted} -> {inner}")
    _answered(ns, skb, hook, conn)
    return skb


def _in_icmp(ns: Namespace, skb: Skb) -> list[Skb]:
    """ip_vs_in_icmp: an error about an answer goes to the real server that made it."""
    error, quoted = skb.packet, skb.packet.inner
    assert quoted is not None
    wanted = conntrack.inverted(conntrack.tuple_of(quoted))
    conn = next((c for c in _conns(ns, skb) if c.protocol == quoted.protocol and c.original == wanted), None)
    if conn is None:
        return [skb]
    server = conn.reply.src
    found = ns.routers[error.version].lookup(FlowKey(dst=server), ignore_linkdown=ns.ignore_linkdown)
    if conn.method != "masq" or found is None or found.errno or not found.legs:
        skb.missing = (*skb.missing, f"{ns.id}: ICMP errors to real servers by {conn.method}")
        place = ns.place(Stage.IPVS, key=_name(conn))
        return [
            skb.finish(Outcome.UNKNOWN, Reason.UNSUPPORTED, place, "an error to a real server that is not masqueraded")
        ]
    inner = quoted.with_(src=server, sport=conn.reply.sport)
    skb.packet = error.with_(dst=server, inner=inner)
    skb.step(ns.place(Stage.IPVS, key=_name(conn)), "dnat", f"error about {quoted} -> {inner}")
    skb.ipvs = True
    if found.type == "local":
        return [skb]
    leg = found.legs[0]
    skb.stolen = True
    skb.found, skb.leg, skb.local_route = found, leg, False
    skb.out_dev, skb.next_hop = leg.dev, leg.nexthop.via or server
    skb.at = At.IP_LOCAL_OUT
    _leave_to_conntrack(ns, skb, conn, request=True)
    return [skb]
