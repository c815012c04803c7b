"""wireguard: which peer does a packet go to, and is one that comes from a peer let in?

Follows wg_xmit (drivers/net/wireguard/device.c), wg_socket_send_skb_to_peer (socket.c) and wg_packet_consume_data_done (receive.c).
The handshake is taken to succeed if each end knows the other's key; that its own packets arrive is what the walk of the data shows.
Where a peer was last heard from is where it is sent to (wg_socket_set_peer_endpoint), whatever was set; one that is neither set nor
was heard is not asked: the kernel refuses with EDESTADDRREQ, here ICMP's.
"""

from collections.abc import Iterable

from msgspec.structs import replace

from tasks.skoop.model.addr import Ip, bounds, contains
from tasks.skoop.model.packet import Packet, Protocol
from tasks.skoop.model.state import Interface, WireGuardPeer
from tasks.skoop.model.trace import Outcome, Reason, Stage
from tasks.skoop.netstack import icmp
from tasks.skoop.netstack.conntrack import History, heard_from
from tasks.skoop.netstack.fib import FlowKey
from tasks.skoop.netstack.namespace import Namespace
from tasks.skoop.netstack.skb import Response, Skb
from tasks.skoop.netstack.tunnel import send_outer, take_out

_DATA_BYTES = 32  # message header 16, authentication tag 16
_UDP_BYTES = 8
_PADDING_BYTES = 16


def wg_xmit(ns: Namespace, skb: Skb) -> list[Skb]:
    """Encrypt for the peer whose allowed addresses hold the destination, and send to its endpoint."""
    link = ns.links[skb.out_dev]
    place = ns.place(Stage.TUNNEL, dev=link.name, key="wireguard")
    device = link.wireguard
    if device is None:
        skb.missing = (*skb.missing, f"{ns.id}: peers of {link.name} (`wg show`)")
        what = f"the peers of {link.name} were not collected"
        return [skb.finish(Outcome.UNKNOWN, Reason.MISSING_STATE, place, what)]
    inner = skb.packet
    peer = _peer_for(device.peers, inner.dst)
    if peer is None:
        return [_refused(ns, skb, link, f"no peer of {link.name} is allowed {inner.dst}")]
    heard = heard_from(skb.flow, (ns.id, link.name, peer.public_key))
    if heard is not None:
        peer = replace(peer, endpoint=heard[0], endpoint_port=heard[1])
    if peer.endpoint is None:
        return [_refused(ns, skb, link, f"where peer {peer.public_key} is, {link.name} does not know yet")]
    size = (40 if ":" in peer.endpoint else 20) + _UDP_BYTES + _DATA_BYTES + _encrypted(inner.length, link.mtu)
    outer = Packet(
        src=Ip(""),
        dst=peer.endpoint,
        protocol=Protocol.UDP,
        sport=device.port,
        dport=peer.endpoint_port,
        mark=device.fwmark,
        length=size,
        cipher=device.public_key,
    )
    key = FlowKey(
        dst=peer.endpoint, mark=device.fwmark, protocol=Protocol.UDP, sport=device.port, dport=peer.endpoint_port
    )
    skb.step(place, "encap", f"wireguard to {peer.endpoint}:{peer.endpoint_port}")
    return send_outer(ns, skb, link, key, outer)


def _encrypted(length: int, mtu_bytes: int) -> int:
    """Return the padded length (calculate_skb_padding): to a multiple of 16, but not past the device's MTU."""
    padded = -(-length // _PADDING_BYTES) * _PADDING_BYTES
    return min(padded, mtu_bytes) if length <= mtu_bytes else padded


def _peer_for(peers: Iterable[WireGuardPeer], ip: Ip) -> WireGuardPeer | None:
    """wg_allowedips_lookup: the peer with the longest of the prefixes that hold the address."""
    best: tuple[int, WireGuardPeer] | None = None
    for peer in peers:
        for net in peer.allowed_ips:
            if (":" in net) == (":" in ip) and contains(net, ip) and (best is None or bounds(net).length > best[0]):
                best = (bounds(net).length, peer)
    return best[1] if best else None


def _refused(ns: Namespace, skb: Skb, link: Interface, detail: str) -> Skb:
    place = ns.place(Stage.TUNNEL, dev=link.name, key="wireguard")
    answer = icmp.error_about(ns, skb.packet, icmp.HOST_UNREACH, to_local=False, in_dev=skb.in_dev)
    if answer is None:
        return skb.finish(Outcome.DROPPED, Reason.NO_PEER, place, detail)
    response = Response(packet=answer, conn=skb.conn, is_reply=not skb.is_reply)
    return skb.finish(Outcome.UNREACHABLE, Reason.NO_PEER, place, detail, response=response)


def wg_receive(ns: Namespace, skb: Skb) -> Skb:
    """Decrypt, and take in what its peer may send."""
    outer = skb.packet
    inner = outer.encap
    assert inner is not None
    links = [link for link in ns.links.values() if link.kind == "wireguard" and link.up]
    lacking = next((link for link in links if link.wireguard is None), None)
    link = next((one for one in links if one.wireguard and one.wireguard.port == outer.dport), None)
    if link is None or link.wireguard is None:
        if lacking is not None:
            skb.missing = (*skb.missing, f"{ns.id}: peers of {lacking.name} (`wg show`)")
            place = ns.place(Stage.TUNNEL, dev=lacking.name, key="wireguard")
            return skb.finish(Outcome.UNKNOWN, Reason.MISSING_STATE, place, "its peers were not collected")
        place = ns.place(Stage.SOCKET, key=f"udp {outer.dst}:{outer.dport}")
        return skb.finish(Outcome.DROPPED, Reason.NO_SOCKET, place, f"no wireguard device listens on {outer.dport}")
    place = ns.place(Stage.TUNNEL, dev=link.name, key="wireguard")
    peer = next((one for one in link.wireguard.peers if one.public_key == outer.cipher), None)
    if peer is None:
        return skb.finish(Outcome.DROPPED, Reason.NO_PEER, place, f"{link.name} does not know the sender's key")
    if _peer_for(link.wireguard.peers, inner.src) is not peer:
        detail = f"{inner.src} is not among the addresses that peer {peer.public_key} may send from"
        return skb.finish(Outcome.DROPPED, Reason.NO_PEER, place, detail)
    skb.flow = History(skb.flow).came_from((ns.id, link.name, peer.public_key), outer.src, outer.sport)
    return take_out(ns, skb, link, "wireguard")
