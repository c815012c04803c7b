"""Tunnels that carry IP packets: ipip, sit, gre, ip6tnl, ip6gre; into the tunnel, and out of it again (gretap's receiving too).

Follows ip_tunnel_xmit, tnl_update_pmtu, ip_tunnel_lookup and ip_tunnel_rcv (net/ipv4/ip_tunnel.c), ipip6_tunnel_xmit and
ipip6_tunnel_lookup (net/ipv6/sit.c), ip6_tnl_xmit and ip6_tnl_lookup (net/ipv6/ip6_tunnel.c), ip6gre_tunnel_lookup
(net/ipv6/ip6_gre.c). Left out: fou and gue, collect-metadata mode (both `unknown`), 6rd and ISATAP, sequence numbers, the moment
after an error in which a tunnel tells it on (IPTUNNEL_ERR_TIMEO).
"""

from ipaddress import IPv6Address

from tasks.skoop.model.addr import Ip, is_multicast, parse_ip
from tasks.skoop.model.packet import Packet, Protocol
from tasks.skoop.model.state import Interface, Tunnel
from tasks.skoop.model.trace import Outcome, Reason, Stage
from tasks.skoop.netstack import icmp
from tasks.skoop.netstack.fib import FlowKey
from tasks.skoop.netstack.namespace import Namespace
from tasks.skoop.netstack.skb import Response, Skb
from tasks.skoop.netstack.tunnel import gre_header, gre_key, send_outer, take_out

_OUTSIDE_SIX = frozenset(("ip6tnl", "ip6gre", "ip6gretap"))
_GRE = frozenset(("gre", "gretap", "ip6gre", "ip6gretap"))
_CARRIES = {"ipip": (4,), "sit": (6, 4), "gre": (4, 6), "ip6tnl": (4, 6), "ip6gre": (4, 6)}
_ONLY = {"ipip": (4,), "ip4ip6": (4,), "ipip6": (4,), "ip6ip": (6,), "ip6ip6": (6,)}
"""What a tunnel carries whose `proto` says so."""
_ENCAP_LIMIT_BYTES = 8
_IPV6_MIN_MTU = 1280


def ip_tunnel_xmit(ns: Namespace, skb: Skb) -> list[Skb]:
    """Put the packet into an outer one to the tunnel's far end, or to the route's next hop if the tunnel has none."""
    link = ns.links[skb.out_dev]
    inner = skb.packet
    place = ns.place(Stage.TUNNEL, dev=link.name, key=link.kind)
    tunnel = link.tunnel
    if tunnel is None or tunnel.external or tunnel.encap != "none":
        skb.missing = (*skb.missing, f"{ns.id}: settings of {link.name}")
        what = "its settings were not collected" if tunnel is None else "what a program or fou adds is not simulated"
        return [skb.finish(Outcome.UNKNOWN, Reason.UNSUPPORTED, place, f"{link.name}: {what}")]
    if inner.version not in _ONLY.get(tunnel.proto, _CARRIES[link.kind]):
        detail = f"{link.name} ({link.kind} {tunnel.proto}) carries no IPv{inner.version}"
        return [skb.finish(Outcome.DROPPED, Reason.TUNNEL_TXINFO, place, detail)]
    far = link.tunnel_remote or _far_end(ns, skb, link)
    if far is None:
        return [_link_failure(ns, skb, link, f"{link.name} has no far end, and the route's next hop tells none")]
    six = link.kind in _OUTSIDE_SIX
    if six and not _ends_fit(ns, link, far):
        return [_link_failure(ns, skb, link, f"{link.name} may not send from {link.tunnel_local} to {far}")]
    overhead = _overhead(link, tunnel)
    key = FlowKey(
        dst=far, src=link.tunnel_local, oif=tunnel.link or "", mark=tunnel.fwmark, protocol=_protocol(link, inner)
    )
    found = ns.routers[6 if six else 4].lookup(key, ignore_linkdown=ns.ignore_linkdown)
    if six and (found is None or found.errno):
        return [_link_failure(ns, skb, link, f"no route to the tunnel's far end {far}")]
    df = not six and (tunnel.pmtudisc or (inner.version == 4 and inner.df and not tunnel.ignore_df))
    if found is not None and found.legs and found.legs[0].dev != link.name:
        room = _outer_mtu(ns, far, found.legs[0].dev, found.route.mtu if found.route else 0) - overhead
        if link.kind == "sit" and inner.version == 6 and room < _IPV6_MIN_MTU:
            room, df = _IPV6_MIN_MTU, False
        if not six and not df:
            room = link.mtu
        refused = _does_not_fit(inner, room, six=six)
        if refused:
            return [_too_big(ns, skb, link, max(room, 1280 if inner.version == 6 else 576) if six else room)]
    skb.step(place, "encap", f"{link.kind} to {far}")
    outer = Packet(
        src=link.tunnel_local or Ip(""),
        dst=far,
        protocol=_protocol(link, inner),
        mark=inner.mark,
        ttl=tunnel.ttl or inner.ttl,
        length=inner.length + overhead,
        df=df,
        tos=0,
        vni=gre_key(tunnel.okey) if link.kind in _GRE else 0,
    )
    return send_outer(ns, skb, link, key, outer)


def _protocol(link: Interface, inner: Packet) -> Protocol:
    if link.kind in _GRE:
        return Protocol.GRE
    return Protocol.IPIP if inner.version == 4 else Protocol.IPV6


def _overhead(link: Interface, tunnel: Tunnel) -> int:
    """Return how many bytes the tunnel adds: outer header, GRE, and IPv6's option that limits encapsulation."""
    six = link.kind in _OUTSIDE_SIX
    limit = _ENCAP_LIMIT_BYTES if six and tunnel.encap_limit >= 0 else 0
    return (40 if six else 20) + (gre_header(tunnel) if link.kind in _GRE else 0) + limit


def _far_end(ns: Namespace, skb: Skb, link: Interface) -> Ip | None:
    """Return the far end that a tunnel without one takes from the route (rt_nexthop) or from the address itself.

    A gre one has link-layer addresses, which are IPv4 addresses (ipgre_header_ops); a hop without an entry is its own (arp_constructor).
    """
    inner = skb.packet
    hop = skb.next_hop or inner.dst
    if link.kind == "gre":
        entry = ns.neighbour(link.name, hop)
        return _address_of(entry.mac) if entry is not None and entry.mac else link.tunnel_local
    if link.kind in _OUTSIDE_SIX:
        return hop if ":" in hop and not is_multicast(hop) else None
    if ":" not in hop:
        return None if is_multicast(hop) else hop
    for address in (IPv6Address(inner.dst), IPv6Address(hop)) if link.kind == "sit" else (IPv6Address(hop),):
        if address.sixtofour is not None:
            return Ip(str(address.sixtofour))
        if 0xFFFF < int(address) <= 0xFFFFFFFF:  # ::a.b.c.d (IPV6_ADDR_COMPATv4)
            return Ip(str(IPv6Address(int(address) | 0xFFFF << 32).ipv4_mapped))
    return None


def _address_of(mac: str) -> Ip | None:
    """Return the IPv4 address that a link-layer address of four bytes is, as `ip` prints it or as bytes with colons."""
    if mac.count(".") == 3:
        return parse_ip(mac)
    parts = mac.split(":")
    return parse_ip(".".join(str(int(part, 16)) for part in parts)) if len(parts) == 4 else None


def _ends_fit(ns: Namespace, link: Interface, far: Ip) -> bool:
    """ip6_tnl_xmit_ctl: the tunnel's own address must be ours, and the far end's not."""
    return (link.tunnel_local is None or ns.is_local(link.tunnel_local)) and not ns.is_local(far)


def _outer_mtu(ns: Namespace, far: Ip, dev: str, route_mtu: int) -> int:
    link = ns.links.get(dev)
    device = link.mtu if link else 1500
    return ns.cached_mtu(far, dev) or route_mtu or device


def _does_not_fit(inner: Packet, room: int, *, six: bool) -> bool:
    """tnl_update_pmtu: IPv4 inside is refused only if it may not be split; an outer IPv6 packet is never split here."""
    if six:
        return inner.length > max(room, _IPV6_MIN_MTU if inner.version == 6 else 576)
    if inner.version == 4:
        return inner.df and inner.length > room
    return room >= _IPV6_MIN_MTU and inner.length > room


def _too_big(ns: Namespace, skb: Skb, link: Interface, mtu_bytes: int) -> Skb:
    """icmp_ndo_send: the sender is told what fits."""
    place = ns.place(Stage.MTU, dev=link.name, key=str(mtu_bytes))
    detail = f"{skb.packet.length} bytes do not fit into {mtu_bytes} that the tunnel {link.name} can carry"
    answer = icmp.error_about(ns, skb.packet, icmp.FRAG_NEEDED, to_local=False, in_dev=skb.in_dev, mtu_bytes=mtu_bytes)
    skb.narrow(mtu_bytes)
    response = Response(packet=answer, conn=skb.conn, is_reply=not skb.is_reply) if answer else None
    outcome = Outcome.UNREACHABLE if response else Outcome.DROPPED
    return skb.finish(outcome, Reason.PKT_TOO_BIG, place, detail, response=response)


def _link_failure(ns: Namespace, skb: Skb, link: Interface, detail: str) -> Skb:
    """dst_link_failure: the sender hears that the host is unreachable."""
    place = ns.place(Stage.TUNNEL, dev=link.name, key=link.kind)
    answer = icmp.error_about(ns, skb.packet, icmp.HOST_UNREACH, to_local=False, in_dev=skb.in_dev)
    if answer is None:
        return skb.finish(Outcome.DROPPED, Reason.TUNNEL_TXINFO, place, detail)
    response = Response(packet=answer, conn=skb.conn, is_reply=not skb.is_reply)
    return skb.finish(Outcome.UNREACHABLE, Reason.TUNNEL_TXINFO, place, detail, response=response)


# --- receive ---------------------------------------------------------------------------------------------------------


def ip_tunnel_rcv(ns: Namespace, skb: Skb) -> Skb:
    """Give the inner packet to the tunnel that fits both outer addresses best; nobody's is refused to the outer sender."""
    outer = skb.packet
    link = _lookup(ns, skb)
    if link is None:
        place = ns.place(Stage.TUNNEL, key=f"{outer.protocol} {outer.src}")
        detail = f"no tunnel takes {outer.protocol} from {outer.src} to {outer.dst}"
        answer = icmp.error_about(ns, outer, icmp.PORT_UNREACH, to_local=True, in_dev=skb.in_dev)
        if answer is None or outer.protocol == Protocol.GRE:  # ipgre_err, ip6gre_err: "impossible event", not told on
            return skb.finish(Outcome.DROPPED, Reason.NO_TUNNEL, place, detail)
        response = Response(packet=answer, conn=skb.conn, is_reply=not skb.is_reply)
        return skb.finish(Outcome.DROPPED, Reason.NO_TUNNEL, place, detail, response=response)
    tunnel = link.tunnel
    if tunnel is not None and tunnel.icsum and link.kind in _GRE:
        skb.missing = (*skb.missing, f"{ns.id}: checksums of {link.name}")
    inner = outer.encap
    assert inner is not None
    if tunnel is not None and inner.version not in _ONLY.get(tunnel.proto, (4, 6)):
        place = ns.place(Stage.TUNNEL, dev=link.name, key=link.kind)
        detail = f"{link.name} ({link.kind} {tunnel.proto}) takes no IPv{inner.version}"
        return skb.finish(Outcome.DROPPED, Reason.NO_TUNNEL, place, detail)
    return take_out(ns, skb, link, link.kind)


def _kinds(outer: Packet) -> tuple[str, ...]:
    """Return the kinds that may take the packet, by the order in which their handlers are asked."""
    if outer.protocol == Protocol.GRE:
        frames = bool(outer.encap_mac)
        if outer.version == 6:
            return ("ip6gretap",) if frames else ("ip6gre",)
        return ("gretap",) if frames else ("gre",)
    if outer.version == 6:
        return ("ip6tnl",)
    return ("ipip", "sit") if outer.protocol == Protocol.IPIP else ("sit",)


def _lookup(ns: Namespace, skb: Skb) -> Interface | None:
    """ip_tunnel_lookup: both ends, then the far one, then our own, then tunnels for all; of equals one bound to the device."""
    outer = skb.packet
    for kind in _kinds(outer):
        best: tuple[tuple[int, int], Interface] | None = None
        for link in ns.links.values():
            if link.kind != kind or not link.up or not _key_fits(link, outer):
                continue
            fit = _fit(link, outer)
            if fit < 0:
                continue
            score = (fit, int(link.tunnel is not None and link.tunnel.link == skb.in_dev))
            if best is None or score > best[0]:
                best = (score, link)
        if best is not None:
            return best[1]
    return None


def _fit(link: Interface, outer: Packet) -> int:
    local, remote = link.tunnel_local, link.tunnel_remote
    if remote is not None:
        if remote != outer.src:
            return -1
        return 3 if local == outer.dst else 2 if local is None else -1
    if local is not None:
        return 1 if local == outer.dst else -1
    return 0


def _key_fits(link: Interface, outer: Packet) -> bool:
    """ip_tunnel_key_match: a packet with a key wants that very key, one without a tunnel without."""
    if link.kind not in _GRE:
        return True
    return gre_key(link.tunnel.ikey if link.tunnel else None) == outer.vni


# --- errors about outer packets --------------------------------------------------------------------------------------


def tell_on(ns: Namespace, outer: Packet) -> Response | None:
    """Return what the tunnel that sent `outer` tells the sender of the inner packet, None if it keeps the error to itself.

    Only a tunnel with a fixed far end tells. Over IPv6 it does so at once (ip4ip6_err, ip6ip6_err), over IPv4 when the next packet
    comes (ipip_err, ipgre_err: err_count); that is taken to be the repetition that every patient sender makes. sit tells in vain:
    its error has an IPv4-mapped source, which nobody takes (ip6_err_gen_icmpv6_unreach).
    """
    inner = outer.encap
    if inner is None or outer.protocol not in (Protocol.IPIP, Protocol.IPV6, Protocol.GRE) or outer.encap_mac:
        return None
    if outer.version == 4 and inner.version == 6:
        return None
    mine = (
        link
        for link in ns.links.values()
        if link.kind in _kinds(outer)
        and link.up
        and link.tunnel_remote == outer.dst
        and link.tunnel_local in (None, outer.src)
    )
    if next(mine, None) is None:
        return None
    answer = icmp.error_about(ns, inner, icmp.HOST_UNREACH, to_local=False, in_dev="")
    return Response(packet=answer, conn=-1) if answer is not None else None
