"""In which words, and in which of the user's own tools, are a place and a reason told?

Follows the names that iproute2, iptables, sysctl and ss print, so that a reader finds the same line on the machine itself.
"""

from collections.abc import Mapping
from typing import NamedTuple

from tasks.skoop.model.trace import Outcome, Place, Reason, Stage, Walk

REASON_WORDS: Mapping[Reason, str] = {
    Reason.NONE: "",
    Reason.NETFILTER_DROP: "a packet filter rule drops it",
    Reason.NETFILTER_REJECT: "a packet filter rule rejects it",
    Reason.IP_RPFILTER: "the reverse-path filter drops it: the way back to its source leads over another interface",
    Reason.IP_INADDRERRORS: "it is not addressed to this host, which does not forward",
    Reason.IP_INNOROUTES: "there is no route to its destination",
    Reason.IP_LOCALNET: "a loopback address has no business on this interface",
    Reason.IP_LOCAL_SOURCE: "its source is one of this host's own addresses",
    Reason.IP_INVALID_SOURCE: "its source address is not valid here",
    Reason.IP_INVALID_DEST: "its destination address is not valid here",
    Reason.ROUTE_BLACKHOLE: "a blackhole route swallows it",
    Reason.ROUTE_UNREACHABLE: "a route says that the destination is unreachable",
    Reason.ROUTE_PROHIBIT: "a route prohibits it",
    Reason.NEIGH_FAILED: "nobody answers for the next hop's address on this link",
    Reason.OTHERHOST: "the frame is addressed to another host's MAC",
    Reason.NO_SOCKET: "nobody listens there",
    Reason.NO_REAL_SERVER: "the virtual server has no real server that takes new connections",
    Reason.IPVS_DROP: "IPVS drops it",
    Reason.LISTEN_OVERFLOW: "the listener's queue is full",
    Reason.TTL_EXPIRED: "its time to live ran out",
    Reason.PKT_TOO_BIG: "it is larger than the next link takes, and must not be fragmented",
    Reason.PEER_MTU: "it is larger than what the other end of the link takes",
    Reason.LINK_DOWN: "the link is down",
    Reason.NO_TX_TARGET: "the tunnel device knows no peer to send it to",
    Reason.VXLAN_VNI_NOT_FOUND: "no tunnel device takes it on the other side",
    Reason.BRIDGE_STATE: "the bridge port is not in forwarding state",
    Reason.BRIDGE_FORWARD: "the bridge forwards it to no port",
    Reason.VLAN_FILTER: "the bridge or its port is not in that VLAN",
    Reason.SWALLOWED: "the device swallows what it is given",
    Reason.TUNNEL_TXINFO: "the tunnel cannot send it",
    Reason.NO_TUNNEL: "no tunnel takes it or gets it through",
    Reason.NO_PEER: "no WireGuard peer may have that address",
    Reason.MASQUERADE_NO_ADDRESS: "there is no address to masquerade with on the way out",
    Reason.NO_SOURCE_ADDRESS: "there is no address to send from",
    Reason.UNEXPECTED_REPLY: "the client does not know the address that this answer comes from",
    Reason.ECHO_IGNORED: "the host is told to ignore pings",
    Reason.LOOP: "it comes round again",
    Reason.BOUND: "the walk was given up: too many steps or branches",
    Reason.MISSING_STATE: "what decides here was not collected",
    Reason.UNSUPPORTED: "what decides here cannot be simulated yet",
}

OUTCOME_WORDS: Mapping[Outcome, str] = {
    Outcome.DELIVERED: "delivered",
    Outcome.REFUSED: "refused",
    Outcome.UNREACHABLE: "answered with an error",
    Outcome.DROPPED: "dropped",
    Outcome.LOOPED: "sent round in circles",
    Outcome.UNKNOWN: "lost from sight",
}


class Seen(NamedTuple):
    """How to see a place on the machine: the command, and what to look for in its output."""

    command: str
    what: str


def place_words(place: Place) -> str:
    """Return a place without its namespace: `nat KUBE-SVC-X rule 2`, `route 10.0.0.0/8`, `sysctl net.ipv4.ip_forward`."""
    match place.stage:
        case Stage.NETFILTER:
            where = f"{place.table} {place.chain}".strip()
            return f"{where} rule {place.rule}" if place.rule else f"{where} policy"
        case Stage.SYSCTL:
            return f"sysctl {sysctl_name(place.key)}"
        case Stage.LINK | Stage.BRIDGE | Stage.TUNNEL | Stage.MTU:
            return " ".join(filter(None, (place.stage.value, place.dev, place.key if place.key != place.dev else "")))
        case _:
            return " ".join(filter(None, (place.stage.value, place.key or place.dev)))


def sysctl_name(key: str) -> str:
    """Return a path below /proc/sys as sysctl(8) writes it; dots inside an interface's name become slashes there."""
    return key.replace(".", "\0").replace("/", ".").replace("\0", "/")


def netns_words(netns: str) -> str:
    """Return `pod shop/web-1`, `node n1`, `host ext` for a namespace's id; anything else as it is."""
    kind, _, name = netns.partition("/")
    return f"{kind} {name}" if kind in ("pod", "node", "host") and name else netns


def how_to_see(place: Place) -> Seen:
    """Return the command with which a person sees this place on the machine, to be run in its network namespace."""
    six = place.family == 6
    ip = "ip -6" if six else "ip"
    match place.stage:
        case Stage.NETFILTER if place.backend not in ("", "legacy", "nft") or not place.table:
            return Seen("nft -a list ruleset", place.chain)
        case Stage.NETFILTER if " " in place.table:  # a native table is named with its family: `inet filter`
            return Seen(f"nft -a list table {place.table}", f"chain {place.chain}")
        case Stage.NETFILTER:
            tool = "ip6tables" if six else "iptables"
            backend = f"-{place.backend}" if place.backend else ""
            return Seen(f"{tool}{backend}-save -t {place.table}", f"chain {place.chain}")
        case Stage.ROUTE:
            return Seen(f"{ip} route show table all", place.key)
        case Stage.NEIGHBOUR:
            return Seen(f"{ip} neigh show" + (f" dev {place.dev}" if place.dev else ""), place.key)
        case Stage.TUNNEL:
            return Seen("bridge fdb show" + (f" dev {place.dev}" if place.dev else ""), place.key)
        case Stage.BRIDGE:
            return Seen("bridge -d link show" + (f" dev {place.dev}" if place.dev else ""), place.key)
        case Stage.LINK | Stage.MTU:
            return Seen("ip -d link show" + (f" dev {place.dev}" if place.dev else ""), place.key)
        case Stage.SOCKET:
            return Seen("ss -lntup", place.key)
        case Stage.SYSCTL:
            return Seen(f"sysctl {sysctl_name(place.key)}", "")
        case Stage.CONNTRACK:
            return Seen("conntrack -L", place.key)
        case Stage.IPVS:
            return Seen("ipvsadm -Sn", place.key)
        case Stage.INFRA:
            return Seen("", place.key)


def end_words(walk: Walk) -> str:
    """Return how and why a walk ended, as one clause: `dropped: the link is down`."""
    why = walk.detail or REASON_WORDS[walk.reason]
    if walk.outcome is Outcome.UNREACHABLE and walk.error is not None:
        error = walk.error
        told = error.errno or f"ICMP type {error.type} code {error.code}"
        by = "by its own kernel" if error.local else f"by {error.sender}" if error.sender else ""
        why = "; ".join(filter(None, (why, " ".join(filter(None, ("the sender is told", told, by))))))
    return f"{OUTCOME_WORDS[walk.outcome]}: {why}" if why else OUTCOME_WORDS[walk.outcome]
