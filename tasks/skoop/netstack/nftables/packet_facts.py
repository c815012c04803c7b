"""What `meta`, `ct`, `rt` and `socket` expressions give.

Follows nft_meta.c, nft_ct.c, nft_socket.c. A packet that has no conntrack entry has none of `ct`'s values but its
state; a device that is not there has the empty name and index 0. What hangs on the clock or on counters of the moment
can be either way.
"""

from collections.abc import Callable, Mapping

from tasks.skoop.model.addr import ip_int, is_multicast
from tasks.skoop.model.packet import CtState
from tasks.skoop.model.state import Interface, Tuple
from tasks.skoop.netstack.nftables import datatypes as dt
from tasks.skoop.netstack.nftables.datatypes import Datatype, name_number
from tasks.skoop.netstack.nftables.jsonform import Json, text
from tasks.skoop.netstack.nftables.outcomes import Draw, Getter, Outcome, Unsure
from tasks.skoop.netstack.nftables.view import NO_TRANSPORT, PacketView
from tasks.skoop.netstack.xtables.api import Hook, SentBy
from tasks.skoop.netstack.xtables.truth import NotUnderstood

Links = Mapping[str, Interface]

IFTYPES = {"ipip": 768, "ip6tnl": 769, "sit": 776, "gre": 778, "tun": 65534, "wireguard": 65534}
ETHERNET = 1
LOOPBACK = 772


def _moment(what: str) -> Getter:
    answer = Unsure("", what)
    return lambda _: answer


def _unknown(what: str) -> Getter:
    answer = Unsure(what, what)
    return lambda _: answer


def _sender(gid: bool) -> Getter:
    """Who sent a packet of this host (skb->sk); one that only passes through has no socket."""
    answer = Unsure("which user sent the packet", "skgid" if gid else "skuid")

    def get(view: PacketView) -> Outcome:
        context = view.context
        if context.hook not in (Hook.OUTPUT, Hook.POSTROUTING) or context.sent_by != SentBy.PROCESS:
            return None
        found = context.local_gid if gid else context.local_uid
        return answer if found is None else found

    return get


def _pkttype(view: PacketView) -> Outcome:
    if view.context.pkttype is not None:
        return view.context.pkttype
    if view.context.hook == Hook.OUTPUT:
        return 0
    if is_multicast(view.packet.dst):
        return 2
    return 1 if view.context.facts.address_type(view.packet.dst, None) == "BROADCAST" else 0


NFPROTO = {4: 2, 6: 10}
_RANDOM = Draw("random", 0, 1 << 32, sticky=False)

META: Mapping[str, tuple[Datatype, Getter]] = {
    "length": (dt.INTEGER, lambda view: view.packet.length),
    "nfproto": (dt.NFPROTO, lambda view: view.context.nfproto or NFPROTO.get(view.version)),
    "protocol": (dt.ETHERTYPE, lambda view: dt.ETHERTYPES[view.version]),
    "l4proto": (dt.PROTO, lambda view: None if view.protocol == NO_TRANSPORT else view.protocol),
    "mark": (dt.MARK, lambda view: view.mark),
    "iifname": (dt.IFNAME, lambda view: view.in_dev),
    "oifname": (dt.IFNAME, lambda view: view.out_dev),
    "skuid": (dt.UID, _sender(gid=False)),
    "skgid": (dt.GID, _sender(gid=True)),
    "pkttype": (dt.PKTTYPE, _pkttype),
    "nftrace": (dt.INTEGER, lambda _: 0),
    "secpath": (dt.BOOLEAN, lambda _: 0),
    "ipsec": (dt.BOOLEAN, lambda _: 0),
    "ibrname": (dt.IFNAME, _unknown("meta ibrname")),
    "obrname": (dt.IFNAME, _unknown("meta obrname")),
    "cpu": (dt.INTEGER, _moment("cpu")),
    **{name: (dt.MOMENT, _moment(name)) for name in ("time", "day", "hour")},
    "random": (dt.INTEGER, lambda view: view.drawn.get("random", _RANDOM)),
    **{name: (dt.INTEGER, _unknown(f"meta {name}")) for name in ("priority", "rtclassid", "cgroup", "secmark")},
}


def meta(content: Json, links: Links) -> tuple[Getter, Datatype]:
    """Return how to take a piece of packet metadata, and its type."""
    key = text(content, "key") if isinstance(content, dict) else text(content)
    if key in META:
        kind, get = META[key]
        return get, kind
    inside = key.startswith("i")
    match key[1:]:
        case "if":
            return _of_device(inside, lambda link: link.index, links, 0), ifindex(links)
        case "iftype":
            return _of_device(inside, _iftype, links, None), dt.IFTYPE
        case "ifgroup":
            return _of_device(inside, _group, links, None), dt.DEVGROUP
        case "ifkind":
            return _of_device(inside, lambda link: name_number(link.kind), links, None), dt.STRING
    raise NotUnderstood(f"meta {key}")


def ifindex(links: Links) -> Datatype:
    """Return the type of interface indices: names of this namespace's devices are its words."""
    return Datatype("iface_index", 32, {link.name: link.index for link in links.values()})


def _of_device(inside: bool, what: Callable[[Interface], int], links: Links, without: int | None) -> Getter:
    answer = Unsure("a device that was not collected", f"device {inside}")

    def get(view: PacketView) -> Outcome:
        name = view.context.in_dev if inside else view.context.out_dev
        if not name:
            return without
        link = links.get(name)
        return answer if link is None else what(link)

    return get


def _iftype(link: Interface) -> int:
    return LOOPBACK if link.name == "lo" else IFTYPES.get(link.kind, ETHERNET)


def _group(link: Interface) -> int:
    return dt.number(link.group, dt.DEVGROUP)


STATES = {
    CtState.NEW: 8,
    CtState.ESTABLISHED: 2,
    CtState.RELATED: 4,
    CtState.UNTRACKED: 64,
    CtState.INVALID: 1,
    CtState.NONE: 1,
}
STATUSES = {"EXPECTED": 1, "SEEN_REPLY": 2, "ASSURED": 4, "CONFIRMED": 8, "SNAT": 16, "DNAT": 32}


def _status(view: PacketView) -> Outcome:
    return sum(STATUSES.get(name, 0) for name in view.context.connection.status)


CT: Mapping[str, tuple[Datatype, Getter]] = {
    "direction": (dt.CT_DIR, lambda view: int(view.context.connection.is_reply)),
    "status": (dt.CT_STATUS, _status),
    "mark": (dt.MARK, lambda view: view.connmark),
    "zone": (dt.INTEGER, lambda view: view.context.connection.zone),
    "l3proto": (dt.NFPROTO, lambda view: 10 if view.version == 6 else 2),
    "protocol": (dt.PROTO, lambda view: view.protocol),
    "expiration": (dt.INTEGER, _moment("ct expiration")),
    **{name: (dt.INTEGER, _moment(f"ct {name}")) for name in ("bytes", "packets", "avgpkt", "count")},
    "helper": (dt.STRING, _unknown("the conntrack helper")),
    **{name: (dt.INTEGER, _unknown(f"ct {name}")) for name in ("label", "secmark", "event", "id")},
}
ENDS: Mapping[str, Callable[[Tuple], int]] = {
    "saddr": lambda flow: ip_int(flow.src),
    "daddr": lambda flow: ip_int(flow.dst),
    "proto-src": lambda flow: flow.sport,
    "proto-dst": lambda flow: flow.dport,
}


def ct(content: Json) -> tuple[Getter, Datatype]:
    """Return how to ask the packet's connection, and the answer's type."""
    key = text(content, "key")
    if key == "state":
        return (lambda view: STATES[CtState.NEW if view.template else view.packet.ct_state]), dt.CT_STATE
    if key in CT:
        kind, get = CT[key]
        return (lambda view: get(view) if view.tracked else None), kind
    family, _, end = key.rpartition(" ")
    family = family or text(content, "family", "")
    if end not in ENDS:
        raise NotUnderstood(f"ct {key}")
    take, reply = ENDS[end], text(content, "dir", "original") == "reply"
    kind = dt.SERVICE if end.startswith("proto") else dt.IPV6 if family == "ip6" else dt.IPV4
    version = {"ip": 4, "ip6": 6}.get(family, 0)

    def end_of(view: PacketView) -> Outcome:
        if not view.tracked or (version and version != view.version):
            return None
        connection = view.context.connection
        flow = connection.reply if reply else connection.original
        return _NO_CONNECTION if flow is None else take(flow)

    return end_of, kind


_NO_CONNECTION = Unsure("the packet's connection", "connection")


def rt(content: Json) -> tuple[Getter, Datatype]:
    """Return how to ask the packet's route: only whether IPsec applies is known (taken as not)."""
    key = text(content, "key")
    if key == "ipsec":
        return (lambda _: 0), dt.BOOLEAN
    return _unknown(f"rt {key}"), dt.IPV6 if text(content, "family", "") == "ip6" else dt.IPV4


def socket(content: Json) -> tuple[Getter, Datatype]:
    """Return how to ask the socket that would take the packet; without one the rule does not match."""
    key = text(content, "key")
    if key not in ("transparent", "wildcard"):
        return _unknown(f"socket {key}"), dt.INTEGER
    unknown = Unsure("the sockets of the namespace", "socket")

    def get(view: PacketView) -> Outcome:
        facts = view.context.facts
        found = facts.has_socket(view.packet, transparent=key == "transparent", wildcard=True)
        if found is None:
            return unknown
        if not found:
            return None
        if key == "transparent":
            return 1
        return int(not facts.has_socket(view.packet, transparent=False, wildcard=False))

    return get, dt.INTEGER
