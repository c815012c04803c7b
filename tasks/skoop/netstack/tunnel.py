"""vxlan: into the tunnel and out of it again (vxlan_xmit, vxlan_rcv: drivers/net/vxlan/vxlan_core.c).

Left out: collect-metadata mode (`unknown`), multicast groups as default destination, GPE, learning from what comes in.
"""

from tasks.skoop.model.addr import Ip, Mac
from tasks.skoop.model.packet import CtState, Packet, Protocol
from tasks.skoop.model.state import FdbEntry, Interface, Section, Vxlan
from tasks.skoop.model.trace import Outcome, Reason, Stage
from tasks.skoop.netstack.fib import FlowKey, Leg, select_source
from tasks.skoop.netstack.multipath import legs_for, remember_leg
from tasks.skoop.netstack.namespace import Namespace
from tasks.skoop.netstack.skb import At, Skb

_ZERO = "00:00:00:00:00:00"
# Outer headers: Ethernet of the inner frame 14, vxlan 8, UDP 8, IP 20 or 40 (vxlan_headroom).
_HEADROOM = {4: 50, 6: 70}
_SOURCE_PORT = 51820  # stands for the flow hash that the kernel puts there


def vxlan_xmit(ns: Namespace, skb: Skb) -> list[Skb]:
    """Look the destination MAC up in the device's own table, wrap the frame and send it as the host's own packet."""
    link = ns.links[skb.out_dev]
    vxlan = link.vxlan
    place = ns.place(Stage.TUNNEL, dev=link.name, key=skb.dst_mac)
    if vxlan is None or vxlan.external:
        skb.missing = (*skb.missing, f"{ns.id}: metadata of {link.name}")
        what = "collect-metadata mode: the destination is set by a program"
        return [skb.finish(Outcome.UNKNOWN, Reason.UNSUPPORTED, place, what)]
    entries = ns.own_fdb.get((link.name, skb.dst_mac)) or ns.own_fdb.get((link.name, _ZERO))
    if not entries:
        if (why := ns.state.lacks(Section.FDB)) is not None:
            skb.missing = (*skb.missing, f"{ns.id}: forwarding database ({why})")
            return [skb.finish(Outcome.UNKNOWN, Reason.MISSING_STATE, place, f"fdb not collected: {why}")]
        detail = f"no fdb entry for {skb.dst_mac} on {link.name}"
        return [skb.finish(Outcome.DROPPED, Reason.NO_TX_TARGET, place, detail)]
    return _wrap(ns, skb, link, entries[0])


def _wrap(ns: Namespace, skb: Skb, link: Interface, entry: FdbEntry) -> list[Skb]:
    """vxlan_xmit_one: find the way to the far end. Only the device's own default destination is bound to its lower device."""
    vxlan = link.vxlan
    assert vxlan is not None
    assert entry.dst is not None
    family = 6 if ":" in entry.dst else 4
    skb.step(ns.place(Stage.TUNNEL, dev=link.name, key=entry.mac), "encap", f"vxlan {vxlan.vni} to {entry.dst}")
    key = FlowKey(
        dst=entry.dst,
        src=vxlan.local,
        oif=(vxlan.link or "") if entry.dst == vxlan.group else "",
        mark=skb.packet.mark,
        protocol=Protocol.UDP,
        sport=_SOURCE_PORT,
        dport=vxlan.port,
    )
    found = ns.routers[family].lookup(key, ignore_linkdown=ns.ignore_linkdown)
    if found is not None and (found.type == "local" or any(leg.dev == "lo" for leg in found.legs)):
        return [_bypass(ns, skb, link, entry)]
    ways = []
    legs: tuple[Leg, ...] = ()
    if found is not None and not found.errno:
        legs = legs_for(ns, skb, found, src="", dst=entry.dst)
    for leg in legs:
        way = skb if len(legs) == 1 else skb.clone()
        way.probability *= leg.share
        if found is not None:
            remember_leg(ns, way, found, leg, src="", dst=entry.dst)
        if leg.dev == link.name:
            place = ns.place(Stage.ROUTE, key=entry.dst)
            ways.append(
                way.finish(Outcome.DROPPED, Reason.IP_INNOROUTES, place, f"{entry.dst} lies behind the tunnel itself")
            )
            continue
        way.found, way.leg, way.next_hop, way.out_dev = found, leg, leg.nexthop.via or entry.dst, leg.dev
        ways.append(_encapsulated(ns, way, vxlan, entry, leg))
    if ways:
        return ways
    place = ns.place(Stage.ROUTE, key=entry.dst)
    detail = f"no route to the tunnel's far end {entry.dst}"
    return [skb.finish(Outcome.DROPPED, Reason.IP_INNOROUTES, place, detail)]


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
    skb.at = At.IP_RCV
    return skb


def _encapsulated(ns: Namespace, skb: Skb, vxlan: Vxlan, entry: FdbEntry, leg: Leg) -> Skb:
    """Wrap the frame; what comes of it is a packet of the host's own."""
    inner = skb.packet
    family = 6 if entry.dst and ":" in entry.dst else 4
    assert entry.dst is not None
    src = vxlan.local or _own(ns, leg.dev, entry.dst if family == 6 else leg.nexthop.via or entry.dst)
    skb.overhead += _HEADROOM[family]
    skb.packet = Packet(
        src=src or entry.dst,
        dst=entry.dst,
        protocol=Protocol.UDP,
        sport=_SOURCE_PORT,
        dport=entry.port or vxlan.port,
        mark=inner.mark,
        length=inner.length + _HEADROOM[family],
        df=vxlan.df == "set" or (vxlan.df == "inherit" and inner.df),
        encap=inner.with_(mark=0, ct_state=CtState.NONE),
        vni=entry.vni or vxlan.vni,
        encap_mac=Mac(skb.dst_mac),
    )
    skb.local = False
    skb.originated = True
    skb.conn, skb.is_reply, skb.untracked, skb.zone = -1, False, False, 0
    skb.in_dev = skb.phys_in = skb.phys_out = skb.bridge = ""
    skb.local_route = False
    skb.at = At.IP_LOCAL_OUT
    return skb


def _own(ns: Namespace, dev: str, towards: Ip) -> Ip | None:
    return select_source(ns.state.interfaces, dev, towards)


def vxlan_rcv(ns: Namespace, skb: Skb) -> Skb:
    """Take the inner frame out of a packet for one of our tunnel ends and receive it there."""
    outer = skb.packet
    inner = outer.encap
    assert inner is not None
    devices = list(ns.vxlans_on(outer.dport, outer.version)) if outer.protocol == Protocol.UDP else []
    if outer.protocol != Protocol.UDP:
        skb.missing = (*skb.missing, f"{ns.id}: {outer.protocol} tunnels")
        place = ns.place(Stage.TUNNEL, key=str(outer.protocol))
        return skb.finish(Outcome.UNKNOWN, Reason.UNSUPPORTED, place, f"{outer.protocol} tunnels are not simulated")
    if not devices:
        place = ns.place(Stage.SOCKET, key=f"udp {outer.dst}:{outer.dport}")
        return skb.finish(Outcome.DROPPED, Reason.NO_SOCKET, place, f"no tunnel listens on udp {outer.dport}")
    link = next((device for device in devices if device.vxlan and device.vxlan.vni == outer.vni), None)
    if link is None:
        place = ns.place(Stage.TUNNEL, dev=devices[0].name, key=f"vni {outer.vni}")
        return skb.finish(Outcome.DROPPED, Reason.VXLAN_VNI_NOT_FOUND, place, f"no tunnel with VNI {outer.vni}")
    skb.packet = inner
    skb.overhead -= _HEADROOM[outer.version]
    skb.dst_mac = outer.encap_mac
    skb.step(ns.place(Stage.TUNNEL, dev=link.name, key=str(outer.vni)), "decap", f"from {outer.src}")
    _received(ns, skb, link)
    return skb


def _received(ns: Namespace, skb: Skb, link: Interface) -> None:
    """Let the inner frame come in on the tunnel device, scrubbed of what the outer one was (skb_scrub_packet)."""
    skb.packet = skb.packet.with_(mark=0, ct_state=CtState.NONE)
    skb.in_dev = link.name
    skb.conn, skb.is_reply, skb.untracked, skb.zone = -1, False, False, 0
    skb.local = skb.local_route = skb.originated = skb.pre_done = False
    skb.found = skb.leg = None
    skb.kept = False
    skb.out_dev = skb.phys_in = skb.phys_out = skb.bridge = ""
    skb.at = At.BR_HANDLE_FRAME if link.master and ns.links.get(link.master, link).kind == "bridge" else At.IP_RCV
