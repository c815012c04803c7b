"""Tunnels that carry frames: vxlan, geneve and gretap; into the tunnel and out of it again.

Follows vxlan_xmit, vxlan_xmit_one and vxlan_rcv (drivers/net/vxlan/vxlan_core.c), geneve_xmit and geneve_rx (drivers/net/geneve.c),
gre_tap_xmit (net/ipv4/ip_gre.c). A MAC that vxlan does not know goes to every far end of its all-zero entries; the walk follows the
copy that finds the MAC, which after the first answer is what learning makes of it too. Left out: collect-metadata mode (`unknown`),
GPE, VNI filtering, geneve's options.
"""

from tasks.skoop.model.addr import Ip, Mac, is_multicast
from tasks.skoop.model.packet import CtState, Packet, Protocol
from tasks.skoop.model.state import FdbEntry, Interface, Section, Tunnel
from tasks.skoop.model.trace import Outcome, Reason, Stage
from tasks.skoop.netstack.fib import FlowKey, Found, Leg
from tasks.skoop.netstack.multipath import legs_for, remember_leg
from tasks.skoop.netstack.namespace import Namespace
from tasks.skoop.netstack.skb import At, Skb

_ZERO = "00:00:00:00:00:00"
_ETHERNET = 14
_UDP_AND_TUNNEL = 16  # UDP 8, and 8 of vxlan or of geneve without options
_OUTER_IP = {4: 20, 6: 40}
_SOURCE_PORT = 51820  # stands for the flow hash that the kernel puts there


def vxlan_xmit(ns: Namespace, skb: Skb) -> list[Skb]:
    """Find the far end for the destination MAC, wrap the frame and send it as the host's own packet."""
    link = ns.links[skb.out_dev]
    place = ns.place(Stage.TUNNEL, dev=link.name, key=skb.dst_mac)
    external = link.vxlan.external if link.vxlan else link.tunnel is None or link.tunnel.external
    if external:
        skb.missing = (*skb.missing, f"{ns.id}: metadata of {link.name}")
        what = "collect-metadata mode: the destination is set by a program"
        return [skb.finish(Outcome.UNKNOWN, Reason.UNSUPPORTED, place, what)]
    if link.tunnel is not None:
        return _to_the_one_end(ns, skb, link, link.tunnel)
    entry = _entry(ns, skb, link)
    if entry is None:
        if (why := ns.state.lacks(Section.FDB)) is not None:
            skb.missing = (*skb.missing, f"{ns.id}: forwarding database ({why})")
            return [skb.finish(Outcome.UNKNOWN, Reason.MISSING_STATE, place, f"fdb not collected: {why}")]
        detail = f"no fdb entry for {skb.dst_mac} on {link.name}"
        return [skb.finish(Outcome.DROPPED, Reason.NO_TX_TARGET, place, detail)]
    return _wrap(ns, skb, link, entry)


def _entry(ns: Namespace, skb: Skb, link: Interface) -> FdbEntry | None:
    known = ns.own_fdb.get((link.name, skb.dst_mac))
    if known:
        return known[0]
    entries = ns.own_fdb.get((link.name, _ZERO), ())
    if len(entries) < 2 and not any(entry.dst and is_multicast(entry.dst) for entry in entries):
        return entries[0] if entries else None
    far = ns.wire.vteps(ns.id, link.name, Mac(skb.dst_mac)) if skb.dst_mac else ()
    if not far:
        return entries[0]
    return next(
        (entry for entry in entries if entry.dst == far[0]), FdbEntry(mac=Mac(_ZERO), dev=link.name, dst=far[0])
    )


def headroom(link: Interface, family: int) -> int:
    """Return how many bytes the tunnel puts round an IP packet (vxlan_headroom, GENEVE_IPV4_HLEN, tunnel->hlen)."""
    own = _UDP_AND_TUNNEL if link.kind in ("vxlan", "geneve") else gre_header(link.tunnel)
    return _ETHERNET + own + _OUTER_IP[family]


def gre_header(tunnel: Tunnel | None) -> int:
    """Return the length of the GRE header that is sent: 4 bytes, and 4 more for a key, a checksum, sequence numbers."""
    if tunnel is None:
        return 4
    return 4 + 4 * ((tunnel.okey is not None) + tunnel.ocsum + tunnel.oseq)


def _wrap(ns: Namespace, skb: Skb, link: Interface, entry: FdbEntry) -> list[Skb]:
    """vxlan_xmit_one. Only the device's own default destination is bound to its lower device."""
    vxlan = link.vxlan
    assert vxlan is not None
    assert entry.dst is not None
    inner = skb.packet
    family = 6 if ":" in entry.dst else 4
    skb.step(ns.place(Stage.TUNNEL, dev=link.name, key=entry.mac), "encap", f"vxlan {vxlan.vni} to {entry.dst}")
    key = FlowKey(
        dst=entry.dst,
        src=vxlan.local,
        oif=(vxlan.link or "") if entry.dst == vxlan.group else "",
        mark=inner.mark,
        protocol=Protocol.UDP,
        sport=_SOURCE_PORT,
        dport=vxlan.port,
    )
    found = ns.routers[family].lookup(key, ignore_linkdown=ns.ignore_linkdown)
    if found is not None and (found.type == "local" or any(leg.dev == "lo" for leg in found.legs)):
        return [_bypass(ns, skb, link, entry)]
    outer = Packet(
        src=vxlan.local or Ip(""),
        dst=entry.dst,
        protocol=Protocol.UDP,
        sport=_SOURCE_PORT,
        dport=entry.port or vxlan.port,
        mark=inner.mark,
        length=inner.length + headroom(link, family),
        df=vxlan.df == "set" or (vxlan.df == "inherit" and inner.df),
        vni=entry.vni or vxlan.vni,
        encap_mac=Mac(skb.dst_mac),
    )
    return send_outer(ns, skb, link, key, outer)


def _bypass(ns: Namespace, skb: Skb, link: Interface, entry: FdbEntry) -> Skb:
    """encap_bypass_if_local: the far end is this host itself; its device takes the frame in as if it were for it.

    The frame keeps its route and connection (vxlan_encap_bypass, netif_keep_dst), so that it is sent again until its TTL ends.
    """
    vxlan = link.vxlan
    assert vxlan is not None
    vni = entry.vni or vxlan.vni
    devices = ns.vxlans_on(entry.port or vxlan.port, 6 if entry.dst and ":" in entry.dst else 4)
    there = next((one for one in devices if one.vxlan and one.vxlan.vni == vni), None)
    place = ns.place(Stage.TUNNEL, dev=link.name, key=str(entry.dst))
    if there is None:
        return skb.finish(Outcome.DROPPED, Reason.VXLAN_VNI_NOT_FOUND, place, f"no tunnel here with VNI {vni}")
    skb.step(place, "decap", f"{entry.dst} is an address of this host")
    skb.in_dev, skb.out_dev, skb.dst_mac, skb.kept = there.name, "", "", True  # PACKET_HOST, whatever the frame says
    skb.phys_in = skb.phys_out = skb.bridge = ""
    skb.at = At.NETIF_RECEIVE
    return skb


def _to_the_one_end(ns: Namespace, skb: Skb, link: Interface, tunnel: Tunnel) -> list[Skb]:
    """geneve, gretap: everything goes to the one far end that the device has."""
    place = ns.place(Stage.TUNNEL, dev=link.name, key=link.kind)
    if link.tunnel_remote is None:
        return [skb.finish(Outcome.DROPPED, Reason.NO_TX_TARGET, place, f"{link.name} has no far end")]
    inner, far = skb.packet, link.tunnel_remote
    family = 6 if ":" in far else 4
    geneve = link.kind == "geneve"
    skb.step(place, "encap", f"{link.kind} to {far}")
    protocol = Protocol.UDP if geneve else Protocol.GRE
    mark = inner.mark if geneve else tunnel.fwmark
    key = FlowKey(
        dst=far, src=link.tunnel_local, oif=tunnel.link or "", mark=mark, protocol=protocol, dport=tunnel.port
    )
    gre_df = family == 4 and (tunnel.pmtudisc or (inner.df and not tunnel.ignore_df))
    outer = Packet(
        src=link.tunnel_local or Ip(""),
        dst=far,
        protocol=protocol,
        sport=_SOURCE_PORT if geneve else 0,
        dport=tunnel.port,
        mark=inner.mark,
        length=inner.length + headroom(link, family),
        df=tunnel.df == "set" or (tunnel.df == "inherit" and inner.df) if geneve else gre_df,
        vni=tunnel.vni if geneve else gre_key(tunnel.okey),
        encap_mac=Mac(skb.dst_mac or _ZERO),
    )
    return send_outer(ns, skb, link, key, outer)


def gre_key(key: int | None) -> int:
    """Return the key as a packet has it: -1 for none."""
    return -1 if key is None else key


def send_outer(ns: Namespace, skb: Skb, link: Interface, key: FlowKey, outer: Packet) -> list[Skb]:
    """Route the outer packet and send it as the host's own (iptunnel_xmit, udp_tunnel_xmit_skb); "" as source: to be chosen.

    Without a way the packet is lost silently, as the drivers do (tx_carrier_errors, collisions).
    """
    found = ns.routers[outer.version].lookup(key, ignore_linkdown=ns.ignore_linkdown)
    place = ns.place(Stage.ROUTE, key=outer.dst)
    if found is None or found.errno or not found.legs:
        detail = f"no route to the tunnel's far end {outer.dst}"
        return [skb.finish(Outcome.DROPPED, Reason.IP_INNOROUTES, place, detail)]
    ways = []
    legs = legs_for(ns, skb, found, src="", dst=outer.dst)
    for leg in legs:
        way = skb if len(legs) == 1 else skb.clone()
        way.probability *= leg.share
        remember_leg(ns, way, found, leg, src="", dst=outer.dst)
        if leg.dev == link.name:
            detail = f"{outer.dst} lies behind the tunnel itself"
            ways.append(way.finish(Outcome.DROPPED, Reason.IP_INNOROUTES, place, detail))
        else:
            ways.append(_encapsulated(ns, way, link.name, found, leg, outer))
    return ways


def _encapsulated(ns: Namespace, skb: Skb, by: str, found: Found, leg: Leg, outer: Packet) -> Skb:
    """Put the packet into the outer one, which is the host's own from here on."""
    inner = skb.packet
    towards = outer.dst if outer.version == 6 else leg.nexthop.via or outer.dst
    src = outer.src or ns.source_for(leg.dev, towards)
    skb.overhead += outer.length - inner.length
    skb.packet = outer.with_(src=src or outer.dst, encap=inner.with_(mark=0, ct_state=CtState.NONE, uid=None))
    skb.originated, skb.local, skb.kept = True, False, False
    _forget(skb)
    skb.in_dev, skb.wrapped_by = "", by
    skb.found, skb.leg, skb.next_hop = found, leg, leg.nexthop.via or outer.dst
    skb.local_route = found.type == "local"
    skb.out_dev = "lo" if skb.local_route else leg.dev
    skb.at = At.IP_LOCAL_OUT
    return skb


def _forget(skb: Skb) -> None:
    """What belonged to the packet before it was wrapped or unwrapped (skb_scrub_packet)."""
    skb.conn, skb.is_reply, skb.untracked, skb.zone = -1, False, False, 0
    skb.phys_in = skb.phys_out = skb.bridge = skb.slave = skb.wrapped_by = ""
    skb.vlan = 0
    skb.tproxy = None


def take_out(ns: Namespace, skb: Skb, link: Interface, key: str) -> Skb:
    """Go on with the inner packet as if it had come in by the tunnel's device; the mark stays (skb_scrub_packet)."""
    outer = skb.packet
    assert outer.encap is not None
    skb.packet = outer.encap.with_(mark=outer.mark)
    skb.overhead -= outer.length - outer.encap.length
    skb.in_dev = link.name
    skb.dst_mac = outer.encap_mac if outer.encap_mac != _ZERO else ""
    skb.local = skb.local_route = skb.originated = skb.pre_done = skb.kept = False
    skb.found = skb.leg = None
    skb.out_dev = ""
    _forget(skb)
    skb.step(ns.place(Stage.TUNNEL, dev=link.name, key=key), "decap", f"from {outer.src}")
    skb.at = At.NETIF_RECEIVE
    return skb


def udp_tunnel_rcv(ns: Namespace, skb: Skb) -> Skb:
    """Take the inner frame out of a UDP packet for one of our tunnel ends and receive it there."""
    outer = skb.packet
    devices = [*ns.vxlans_on(outer.dport, outer.version), *_geneves(ns, outer)]
    if not devices:
        place = ns.place(Stage.SOCKET, key=f"udp {outer.dst}:{outer.dport}")
        return skb.finish(Outcome.DROPPED, Reason.NO_SOCKET, place, f"no tunnel listens on udp {outer.dport}")
    link = next((device for device in devices if _identifier(device) == outer.vni and _expects(device, outer)), None)
    if link is None:
        place = ns.place(Stage.TUNNEL, dev=devices[0].name, key=f"vni {outer.vni}")
        return skb.finish(Outcome.DROPPED, Reason.VXLAN_VNI_NOT_FOUND, place, f"no tunnel with VNI {outer.vni}")
    return take_out(ns, skb, link, str(outer.vni))


def _geneves(ns: Namespace, outer: Packet) -> list[Interface]:
    return [
        link
        for link in ns.links.values()
        if link.kind == "geneve" and link.up and link.tunnel and link.tunnel.port == outer.dport
    ]


def _identifier(link: Interface) -> int:
    if link.vxlan is not None:
        return link.vxlan.vni
    return link.tunnel.vni if link.tunnel is not None else -1


def _expects(link: Interface, outer: Packet) -> bool:
    """geneve_lookup_skb: by network identifier and the far end's address; vxlan asks only for the former."""
    return link.kind != "geneve" or link.tunnel_remote == outer.src
