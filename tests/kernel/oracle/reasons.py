"""What the kernel's reasons to drop a packet are in the simulator's words: one reason of the kernel can be several of ours.

The kernel's names are those of enum skb_drop_reason; where it gives no reason (NOT_SPECIFIED) the function that dropped it
tells more. Source: the kernel's callers of kfree_skb_reason, and experiments (each row was seen).
"""

from collections.abc import Mapping

from tasks.skoop.model.trace import Reason
from tests.kernel.oracle.paths import Drop

_ROUTE = {Reason.IP_INNOROUTES, Reason.ROUTE_BLACKHOLE, Reason.ROUTE_UNREACHABLE, Reason.ROUTE_PROHIBIT}
_TUNNEL = {Reason.NO_TUNNEL, Reason.NO_TX_TARGET, Reason.TUNNEL_TXINFO, Reason.NO_PEER}
_BRIDGE = {Reason.BRIDGE_FORWARD, Reason.BRIDGE_STATE, Reason.NO_TX_TARGET, Reason.VLAN_FILTER, Reason.LINK_DOWN}

BY_REASON: Mapping[str, frozenset[Reason]] = {
    name: frozenset(reasons)
    for name, reasons in {
        # A packet that netfilter gives another destination is routed anew inside the hook: what fails there is a netfilter drop.
        "NETFILTER_DROP": {Reason.NETFILTER_DROP, Reason.NETFILTER_REJECT, Reason.MASQUERADE_NO_ADDRESS}
        | {Reason.IPVS_DROP, Reason.NO_REAL_SERVER, Reason.IP_LOCALNET, Reason.NO_SOURCE_ADDRESS}
        | _ROUTE,
        "IP_RPFILTER": {Reason.IP_RPFILTER},
        "IP_INADDRERRORS": {Reason.IP_INADDRERRORS},
        "IP_INNOROUTES": {Reason.IP_INNOROUTES, Reason.ROUTE_UNREACHABLE},
        "IP_OUTNOROUTES": _ROUTE,
        "IP_LOCALNET": {Reason.IP_LOCALNET},
        "IP_LOCAL_SOURCE": {Reason.IP_LOCAL_SOURCE, Reason.IP_RPFILTER},
        "IP_INVALID_SOURCE": {Reason.IP_INVALID_SOURCE},
        "IP_INVALID_DEST": {Reason.IP_INVALID_DEST},
        "IP_INHDR": {Reason.TTL_EXPIRED, Reason.LOOP},
        "OTHERHOST": {Reason.OTHERHOST, Reason.NO_TX_TARGET},
        "NEIGH_FAILED": {Reason.NEIGH_FAILED},
        "NEIGH_QUEUEFULL": {Reason.NEIGH_FAILED},
        "NEIGH_DEAD": {Reason.NEIGH_FAILED},
        "NO_SOCKET": {Reason.NO_SOCKET, Reason.UNEXPECTED_REPLY, Reason.NO_TUNNEL},
        "TCP_LISTEN_OVERFLOW": {Reason.LISTEN_OVERFLOW},
        "PKT_TOO_BIG": {Reason.PKT_TOO_BIG, Reason.PEER_MTU},
        "NO_TX_TARGET": _BRIDGE | _TUNNEL,
        "VXLAN_VNI_NOT_FOUND": {Reason.VXLAN_VNI_NOT_FOUND},
        "TUNNEL_TXINFO": {Reason.TUNNEL_TXINFO},
        "BRIDGE_INGRESS_STP_STATE": _BRIDGE,
        "DEV_READY": {Reason.LINK_DOWN},
    }.items()
}

BY_FUNCTION: Mapping[str, frozenset[Reason]] = {
    name: frozenset(reasons)
    for name, reasons in {
        "ip_error": _ROUTE,
        "dst_discard_out": _ROUTE,
        "dst_discard": _ROUTE,
        "ip6_pkt_drop": _ROUTE,
        "ip6_pkt_discard": _ROUTE,
        "ip6_pkt_prohibit": _ROUTE,
        "ip_fragment": {Reason.PKT_TOO_BIG},
        "ip_do_fragment": {Reason.PKT_TOO_BIG},
        "neigh_invalidate": {Reason.NEIGH_FAILED},
        "arp_error_report": {Reason.NEIGH_FAILED},
        "ndisc_error_report": {Reason.NEIGH_FAILED},
        "__dev_forward_skb2": {Reason.PEER_MTU, Reason.LINK_DOWN},
        "veth_xmit": {Reason.PEER_MTU, Reason.LINK_DOWN},
        "noop_enqueue": {Reason.LINK_DOWN},
        "br_dev_queue_push_xmit": {Reason.PEER_MTU, Reason.PKT_TOO_BIG},
        "br_nf_dev_queue_xmit": {Reason.PEER_MTU, Reason.PKT_TOO_BIG},
        "br_handle_frame": _BRIDGE,
        "br_handle_frame_finish": _BRIDGE,
        "br_forward": _BRIDGE,
        "__br_forward": _BRIDGE,
        "vxlan_xmit": _TUNNEL,
        "vxlan_xmit_one": _TUNNEL | _ROUTE,
    }.items()
}
"""For NOT_SPECIFIED."""


def meanings(drop: Drop) -> frozenset[Reason]:
    """Return what this drop may be called by us; empty: the kernel's reason says nothing."""
    if drop.reason == "NOT_SPECIFIED":
        return BY_FUNCTION.get(drop.function, frozenset())
    return BY_REASON.get(drop.reason, frozenset())
