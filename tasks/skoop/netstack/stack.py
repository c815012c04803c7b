"""The simulator's face: a packet goes into one namespace, every way it can take there comes out.

`send` starts at a local socket, `receive` at a device, `respond` with an answer that the kernel itself makes. The stages stand in
one table; each takes the packet one function further. The walk is bounded in functions and in ways.
"""

from collections.abc import Callable, Mapping

from msgspec.structs import replace

from tasks.skoop.model.packet import CtState, Frame, Packet, Protocol
from tasks.skoop.model.state import Interface
from tasks.skoop.model.trace import IcmpError, Outcome, Reason, Stage
from tasks.skoop.netstack import bridge, ip, iptunnel, neighbour, tunnel, wireguard
from tasks.skoop.netstack.conntrack import Flow
from tasks.skoop.netstack.namespace import Namespace
from tasks.skoop.netstack.nftables.link_hooks import EGRESS, INGRESS, on_device
from tasks.skoop.netstack.skb import At, Emit, Exit, Response, Skb, onward
from tasks.skoop.netstack.xtables.api import SentBy

User = tuple[int | None, int | None]
"""User and group of a process; None: not known."""
ANYBODY: User = (None, None)

MAX_WAYS = 4096
"""Ways of one packet through one namespace that are followed; past that the rest is `unknown`."""

DEVICES: Mapping[str, At | None] = {
    "": None,
    "veth": None,
    "bond": None,
    "team": None,
    "vlan": None,
    "macvlan": None,
    "ipvlan": None,
    "dummy": None,
    "bridge": At.BR_DEV_XMIT,
    "vxlan": At.VXLAN_XMIT,
    "geneve": At.VXLAN_XMIT,
    "gretap": At.VXLAN_XMIT,
    "ip6gretap": At.VXLAN_XMIT,
    "ipip": At.IP_TUNNEL_XMIT,
    "sit": At.IP_TUNNEL_XMIT,
    "gre": At.IP_TUNNEL_XMIT,
    "ip6tnl": At.IP_TUNNEL_XMIT,
    "ip6gre": At.IP_TUNNEL_XMIT,
    "wireguard": At.WIREGUARD_XMIT,
}
"""Kind of a device ("": a physical one) → where its frames go on in the stack.

None: they leave the namespace as they are (those who carry them find out what stands on what), or the device swallows them (dummy).
"""
_BELOW_IP = (At.DEV_XMIT, At.BR_DEV_XMIT)
_PROGRAMS = {"tun", "macvtap", "ipvtap"}  # what they carry goes to a program


def dev_xmit(ns: Namespace, skb: Skb) -> list[Skb]:
    """Hand the frame to the device (dev_queue_xmit and the drivers' ndo_start_xmit)."""
    link = ns.links[skb.out_dev]
    place = ns.place(Stage.LINK, dev=link.name)
    if not link.up:
        return [skb.finish(Outcome.DROPPED, Reason.LINK_DOWN, place, f"{link.name} is down")]
    return onward(on_device(ns, skb, link.name, EGRESS), lambda way: _xmit(ns, way, link))


def _xmit(ns: Namespace, skb: Skb, link: Interface) -> list[Skb]:
    place = ns.place(Stage.LINK, dev=link.name)
    if link.name == "lo":
        skb.in_dev, skb.out_dev, skb.dst_mac, skb.kept = "lo", "", "", True
        skb.sent_by = SentBy.NOBODY  # skb_orphan
        skb.at = At.NETIF_RECEIVE
        return [skb]
    if link.kind in _PROGRAMS:
        skb.missing = (*skb.missing, f"{ns.id}: the program behind {link.name}")
        what = f"what the program behind {link.name} does with packets is not known"
        return [skb.finish(Outcome.UNKNOWN, Reason.UNSUPPORTED, place, what)]
    if link.kind not in DEVICES:
        skb.missing = (*skb.missing, f"{ns.id}: {link.kind} device {link.name}")
        return [skb.finish(Outcome.UNKNOWN, Reason.UNSUPPORTED, place, f"{link.kind} devices are not simulated")]
    if link.kind == "dummy":
        detail = f"{link.name} is a dummy: what is sent by it is lost"
        return [skb.finish(Outcome.DROPPED, Reason.SWALLOWED, place, detail)]
    onward = DEVICES[link.kind]
    if onward is not None:
        skb.at = onward
        return [skb]
    if link.kind == "vlan" and (lower := ns.links.get(link.lower or "")) is not None and lower.kind == "bridge":
        skb.vlan, skb.out_dev = link.vlan_id or 0, lower.name
        skb.step(place, "tag", f"VLAN {link.vlan_id}")
        return [skb]
    packet = replace(skb.packet, mark=0, ct_state=CtState.NONE, uid=None)
    skb.step(place, "send", link.name)
    frame = Frame(packet, link.mac if not skb.src_mac else skb.src_mac, skb.dst_mac, skb.vlan)  # type: ignore[arg-type]  # MACs by construction
    skb.emit = Emit(dev=link.name, frame=frame, next_hop=skb.next_hop)
    return [skb]


def netif_receive(ns: Namespace, skb: Skb) -> list[Skb]:
    """A device takes the frame in (__netif_receive_skb_core): netdev chains at its ingress see it first, then its bridge or IP gets it."""
    link = ns.links[skb.in_dev]
    master = ns.links.get(link.master or "")
    ways = on_device(ns, skb, link.name, INGRESS)
    for way in ways:
        way.at = At.BR_HANDLE_FRAME if master is not None and master.kind == "bridge" else At.IP_RCV
    return ways


STAGES: Mapping[At, Callable[[Namespace, Skb], list[Skb]]] = {
    At.NETIF_RECEIVE: netif_receive,
    At.IP_RCV: ip.ip_rcv,
    At.IP_RCV_FINISH: ip.ip_rcv_finish,
    At.IP_LOCAL_DELIVER: ip.ip_local_deliver,
    At.IP_FORWARD: ip.ip_forward,
    At.IP_LOCAL_OUT: ip.ip_local_out,
    At.IP_OUTPUT: ip.ip_output,
    At.NEIGH_OUTPUT: neighbour.neigh_output,
    At.DEV_XMIT: dev_xmit,
    At.BR_HANDLE_FRAME: bridge.br_handle_frame,
    At.BR_FRAME_FINISH: bridge.br_frame_finish,
    At.BR_DEV_XMIT: bridge.br_dev_xmit,
    At.VXLAN_XMIT: tunnel.vxlan_xmit,
    At.IP_TUNNEL_XMIT: iptunnel.ip_tunnel_xmit,
    At.WIREGUARD_XMIT: wireguard.wg_xmit,
}


def run(ns: Namespace, start: list[Skb]) -> tuple[Exit, ...]:
    """Take packets through the stages until each has ended or left."""
    while len(start) == 1 and start[0].budget > 1:  # most packets have one way
        skb = start[0]
        if skb.end is not None or skb.emit is not None:
            return (_settled(skb).exit(),)
        skb.budget -= 1
        start = STAGES[skb.at](ns, skb)
    todo = list(reversed(start))
    done: list[Exit] = []
    while todo:
        skb = todo.pop()
        if skb.end is not None or skb.emit is not None:
            done.append(_settled(skb).exit())
            continue
        skb.budget -= 1
        if skb.budget <= 0:
            place = ns.place(Stage.ROUTE, key="loop")
            done.append(skb.finish(Outcome.LOOPED, Reason.LOOP, place, "goes round inside this host").exit())
            continue
        if len(todo) + len(done) > MAX_WAYS:
            skb.missing = (*skb.missing, f"{ns.id}: more than {MAX_WAYS} ways")
            place = ns.place(Stage.NETFILTER, key="ways")
            done.append(skb.finish(Outcome.UNKNOWN, Reason.BOUND, place, "too many ways to follow").exit())
            continue
        todo.extend(reversed(STAGES[skb.at](ns, skb)))
    return tuple(done)


def _settled(skb: Skb) -> Skb:
    """Add to an end what hangs on the way the packet came: whom the kernel tells of a drop."""
    end = skb.end
    if end is None:
        return skb
    # still inside the sender's own system call; what a device's queue or a bridge drops is not told there (net_xmit_errno, br_dev_xmit)
    unsent = skb.local and not skb.in_dev and not skb.packet.is_icmp_error and skb.at not in _BELOW_IP and not skb.ipvs
    if unsent and end.reason == Reason.NETFILTER_DROP and skb.packet.protocol not in (Protocol.TCP, Protocol.ICMPV6):
        error = IcmpError(type=-1, code=0, local=True, errno="EPERM")
        skb.end = replace(end, outcome=Outcome.UNREACHABLE, error=error)
    return skb


def send(
    ns: Namespace,
    packet: Packet,
    flow: Flow,
    *,
    oif: str = "",
    bound: bool = False,
    connected: bool = False,
    answer: bool = False,
    user: User = ANYBODY,
) -> tuple[Exit, ...]:
    """Send a packet from a socket of this namespace, one of `user`'s.

    Unless `bound`, the kernel chooses the source address; `connected`: it goes the way that connect() found. `answer`: it is not the first packet of its flow, so that the
    socket at the other end is already there.
    """
    skb = Skb(packet, flow, at=At.IP_LOCAL_OUT)
    skb.local = True
    skb.answer = answer
    skb.sent_by, (skb.uid, skb.gid) = SentBy.PROCESS, user
    if (gap := ns.gap()) is not None:
        return (skb.unknown(gap, ns.place(Stage.ROUTE, key=packet.dst)).exit(),)
    source = ip.Source.CONNECTED if connected else ip.Source.BOUND if bound else ip.Source.CHOSEN
    return run(ns, ip.route_output(ns, skb, oif=oif, source=source))


def respond(ns: Namespace, response: Response, flow: Flow) -> tuple[Exit, ...]:
    """Send what the kernel itself answers: it belongs to the connection of the packet that it answers (nf_ct_attach)."""
    skb = Skb(response.packet, flow, at=At.IP_LOCAL_OUT)
    skb.originated = True
    skb.answer = True
    skb.sent_by = SentBy.KERNEL if response.by_socket else SentBy.NOBODY
    if (gap := ns.gap()) is not None:
        return (skb.unknown(gap, ns.place(Stage.ROUTE, key=response.packet.dst)).exit(),)
    if response.port and response.macs is not None:
        skb.out_dev, (skb.src_mac, skb.dst_mac) = response.port, response.macs
        skb.at = At.DEV_XMIT
        return run(ns, [skb])
    if response.related and response.conn >= 0:
        skb.conn, skb.is_reply = response.conn, response.is_reply
        skb.packet = skb.packet.with_(ct_state=CtState.RELATED)
    bound = response.oif or (ns.is_local(response.packet.src) and not _chooses_source(response.packet))
    source = ip.Source.BOUND if bound else ip.Source.FORGED
    return run(ns, ip.route_output(ns, skb, oif=response.oif, source=source, rather=response.rather))


def _chooses_source(packet: Packet) -> bool:
    """Say whether an error's source came from its route, which is then not looked up again (icmp_route_lookup, icmp6_send)."""
    return packet.inner is not None and packet.src != packet.inner.dst


def pass_on(
    ns: Namespace, dev: str, frame: Frame, flow: Flow, *, answer: bool, path_mtu: int, overhead: int
) -> tuple[Exit, ...]:
    """Send a packet that an ipvlan of mode l3 hands to the stack of its lower device (ipvlan_process_outbound)."""
    skb = Skb(frame.packet, flow, at=At.IP_LOCAL_OUT)
    skb.path_mtu, skb.overhead, skb.answer = path_mtu, overhead, answer
    skb.originated = True
    link = ns.links.get(dev)
    if (
        link is not None and not link.up
    ):  # ip_route_output_key_hash: ENETUNREACH; the sender's datagram socket hears ENOBUFS
        error = IcmpError(type=-1, code=0, local=True, errno="ENOBUFS")
        lost = Outcome.DROPPED if frame.packet.protocol == Protocol.TCP else Outcome.UNREACHABLE
        place = ns.place(Stage.LINK, dev=dev)
        told = None if lost == Outcome.DROPPED else error
        return (skb.finish(lost, Reason.LINK_DOWN, place, f"{dev} is down", error=told).exit(),)
    return run(ns, ip.route_output(ns, skb, oif=dev, source=ip.Source.BOUND))


def receive(
    ns: Namespace,
    dev: str,
    frame: Frame,
    flow: Flow,
    *,
    answer: bool = False,
    path_mtu: int = 0,
    overhead: int = 0,
    entry: str = "",
) -> tuple[Exit, ...]:
    """Receive a frame on a device; `path_mtu` and `overhead` are what its way so far has left of it (Exit).

    `entry` is that of a Transmission.
    """
    if entry == "output":
        return pass_on(ns, dev, frame, flow, answer=answer, path_mtu=path_mtu, overhead=overhead)
    skb = Skb(frame.packet, flow, at=At.NETIF_RECEIVE)
    skb.path_mtu, skb.overhead = path_mtu, overhead
    skb.in_dev = dev
    skb.src_mac, skb.dst_mac = frame.src_mac, frame.dst_mac
    skb.vlan = frame.vlan
    skb.answer = answer
    if entry == "socket":
        return run(ns, ip.to_socket(ns, skb))
    link = ns.links.get(dev)
    place = ns.place(Stage.LINK, dev=dev)
    if (gap := ns.gap()) is not None:
        return (skb.unknown(gap, place).exit(),)
    if link is None:
        return (skb.unknown(f"{ns.id}: link {dev}", place, f"no such link: {dev}").exit(),)
    skb.step(place, "recv", dev)
    if not link.up:
        return (skb.finish(Outcome.DROPPED, Reason.LINK_DOWN, place, f"{dev} is down").exit(),)
    if frame.packet.length > link.mtu + 4 and dev != "lo":  # is_skb_forwardable: MTU + header + one VLAN tag
        place = ns.place(Stage.MTU, dev=dev, key=str(link.mtu))
        detail = f"{frame.packet.length} bytes arrive, {dev} takes {link.mtu}"
        return (skb.finish(Outcome.DROPPED, Reason.PEER_MTU, place, detail).exit(),)
    if dev != "lo":
        skb.narrow(link.mtu)
    return run(ns, [skb])
