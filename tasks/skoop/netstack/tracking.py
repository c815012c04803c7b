"""Which connection does a packet belong to, and in which state is it? The hooks of conntrack itself.

Follows nf_conntrack_in and nf_confirm (net/netfilter/nf_conntrack_core.c); what a connection is stands in `conntrack`.
"""

from msgspec.structs import replace

from tasks.skoop.model.packet import CtState, Protocol, TcpFlags
from tasks.skoop.model.trace import Stage
from tasks.skoop.netstack import conntrack
from tasks.skoop.netstack.namespace import Namespace
from tasks.skoop.netstack.skb import Skb

_NEVER_TRACKED = frozenset((130, 131, 132, 133, 134, 135, 136, 143))
"""Multicast listener and neighbour discovery (noct_valid_new, net/netfilter/nf_conntrack_proto_icmpv6.c)."""


def untrack(skb: Skb) -> None:
    """Mark the packet as one that is not tracked."""
    skb.untracked = True
    skb.packet = skb.packet.with_(ct_state=CtState.UNTRACKED)


def track(ns: Namespace, skb: Skb) -> None:
    """Attach the packet to its connection (nf_conntrack_in): sets `conn`, `is_reply` and the packet's ct_state."""
    if skb.untracked or skb.conn >= 0:  # NOTRACK, or seen before (over lo, or made in answer to a tracked packet)
        return
    packet = skb.packet
    if packet.protocol == Protocol.ICMPV6 and packet.icmp_type in _NEVER_TRACKED:
        untrack(skb)
        return
    if packet.inner is not None:
        hit = conntrack.find_quoted(skb.flow, ns.id, packet.inner, skb.zone)
        if hit is None and (old := ns.known.find_quoted(packet.inner, skb.zone)) is not None:
            hit = len(skb.flow.get(ns.id, ())), old[1]
            skb.flow = conntrack.with_conn(skb.flow, ns.id, hit[0], old[0])
        if hit is None:
            skb.packet = packet.with_(ct_state=CtState.INVALID)
            return
        skb.conn, skb.is_reply = hit
        skb.packet = packet.with_(ct_state=CtState.RELATED)
        return
    hit = conntrack.find(skb.flow, ns.id, packet, skb.zone)
    if hit is None:
        conn = ns.known.find(packet, skb.zone)
        if conn is None:
            loose = bool(ns.sysctl("net/netfilter/nf_conntrack_tcp_loose", 1))
            if not conntrack.starts_connection(packet, loose=loose):
                skb.packet = packet.with_(ct_state=CtState.INVALID)
                return
            conn = conntrack.new_conn(packet, skb.zone)
        else:
            skb.step(
                ns.place(Stage.CONNTRACK, key=str(packet)), "established", "an old conntrack entry knows this flow"
            )
        skb.conn = len(skb.flow.get(ns.id, ()))
        skb.is_reply = bool(conntrack.direction(conn, packet))
        skb.flow = conntrack.with_conn(skb.flow, ns.id, skb.conn, conn)
    else:
        skb.conn, skb.is_reply = hit
        conn = skb.flow[ns.id][skb.conn]
        if conntrack.out_of_state(conn, packet, skb.is_reply):
            skb.packet = packet.with_(ct_state=CtState.INVALID)
            skb.conn = -1
            return
        seen_reply, assured = conn.seen_reply or skb.is_reply, conn.assured or _assures(conn, skb)
        if seen_reply != conn.seen_reply or assured != conn.assured:
            conn = replace(conn, seen_reply=seen_reply, assured=assured)
            skb.flow = conntrack.with_conn(skb.flow, ns.id, skb.conn, conn)
    skb.packet = packet.with_(ct_state=conntrack.state_of(conn, skb.is_reply))


def _assures(conn: conntrack.Conn, skb: Skb) -> bool:
    """nf_conntrack_tcp_packet: the client's ACK after a SYN-ACK makes a connection assured."""
    packet = skb.packet
    acks = packet.protocol == Protocol.TCP and packet.tcp_flags in (TcpFlags.ACK, TcpFlags.PSH_ACK)
    return acks and conn.seen_reply and not skb.is_reply


def confirm(ns: Namespace, skb: Skb) -> None:
    """Note that the connection's first packet got through: only now others find it (nf_confirm)."""
    conn = skb.connection(ns.id)
    if conn is not None and not conn.confirmed and not skb.is_reply:
        skb.flow = conntrack.with_conn(skb.flow, ns.id, skb.conn, replace(conn, confirmed=True))
        skb.redraw = False
