"""vxlan: into the tunnel and out of it again (vxlan_xmit, vxlan_rcv: drivers/net/vxlan/vxlan_core.c).

Left out: collect-metadata mode (`unknown`), multicast groups as default destination, GPE, learning from what comes in.
"""

from tasks.skoop.model.addr import Ip, Mac
from tasks.skoop.model.packet import CtState, Packet, Protocol
from tasks.skoop.model.state import FdbEntry, Interface, Section
from tasks.skoop.model.trace import Outcome, Reason, Stage
from tasks.skoop.netstack.fib import FlowKey, select_source
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
    return [_wrap(ns, skb, link, entries[0])]


def _wrap(ns: Namespace, skb: Skb, link: Interface, entry: FdbEntry) -> Skb:
    vxlan = link.vxlan
    assert vxlan is not None
    assert entry.dst is not None
    inner = skb.packet
    family = 6 if ":" in entry.dst else 4
    skb.step(ns.place(Stage.TUNNEL, dev=link.name, key=entry.mac), "encap", f"vxlan {vxlan.vni} to {entry.dst}")
    key = FlowKey(
        dst=entry.dst, src=vxlan.local, oif=vxlan.link or "", mark=inner.mark, protocol=Protocol.UDP, dport=vxlan.port
    )
    found = ns.routers[family].lookup(key, ignore_linkdown=ns.ignore_linkdown)
    if found is None or found.errno or not found.legs or found.legs[0].dev == link.name:
        place = ns.place(Stage.ROUTE, key=entry.dst)
        return skb.finish(Outcome.DROPPED, Reason.IP_INNOROUTES, place, f"no route to the tunnel's far end {entry.dst}")
    leg = found.legs[0]
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
    skb.translatable = True
    skb.in_dev = skb.phys_in = skb.phys_out = skb.bridge = ""
    skb.found, skb.leg, skb.next_hop = found, leg, leg.nexthop.via or entry.dst
    skb.local_route = found.type == "local"
    skb.out_dev = "lo" if skb.local_route else leg.dev
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
    skb.in_dev = link.name
    skb.dst_mac = outer.encap_mac
    skb.conn, skb.is_reply, skb.untracked, skb.zone = -1, False, False, 0
    skb.local_route = skb.originated = skb.pre_done = False
    skb.out_dev = skb.phys_in = skb.phys_out = skb.bridge = ""
    skb.step(ns.place(Stage.TUNNEL, dev=link.name, key=str(outer.vni)), "decap", f"from {outer.src}")
    skb.at = At.BR_HANDLE_FRAME if link.master and ns.links.get(link.master, link).kind == "bridge" else At.IP_RCV
    return skb
