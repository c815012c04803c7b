"""Where a network namespace sends packets: routes, policy rules, neighbours and fdb, read by rtnetlink.

The counterpart of `parse.routes` and `parse.neighbours`, and equal to them in its values; a locked MTU, which no JSON of
`ip` shows, is here too. Routes through nexthop objects come with their legs written out while net.ipv4.nexthop_compat_mode is on,
its default; the object's id is an attribute that pyroute2 does not know (`name_objects`), so `details` asks `ip` for it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tasks.skoop.collect.rtlinks import AF_INET6, attributes
from tasks.skoop.model.addr import Ip, Mac, Net, parse_ip, parse_net
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import FdbEntry, Neighbour, NeighbourState, NextHop, PolicyRule, Route
from tasks.skoop.parse.rtnames import ip_protocol, route_protocol, scope_name

ROUTE_TYPES = {
    1: "unicast",
    2: "local",
    3: "broadcast",
    4: "anycast",
    5: "multicast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
    9: "throw",
}
RULE_ACTIONS = {1: "lookup", 2: "goto", 3: "nop", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
PREFERENCES = {1: "high", 3: "low"}
RTNH_F_DEAD, RTNH_F_ONLINK, RTNH_F_LINKDOWN, RTM_F_CLONED = 0x1, 0x4, 0x10, 0x200
RTAX_LOCK_MTU = 1 << 2
RTA_NH_ID = 30
FIB_RULE_INVERT = 0x2
UNSET32 = 0xFFFFFFFF
NUD_NOARP, NUD_PERMANENT = 0x40, 0x80
NUD = {
    0x01: NeighbourState.INCOMPLETE,
    0x02: NeighbourState.REACHABLE,
    0x04: NeighbourState.STALE,
    0x08: NeighbourState.DELAY,
    0x10: NeighbourState.PROBE,
    0x20: NeighbourState.FAILED,
    NUD_NOARP: NeighbourState.NOARP,
    NUD_PERMANENT: NeighbourState.PERMANENT,
}
NTF_STICKY, NTF_ROUTER = 0x40, 0x80

Names = Mapping[int, str]
"""ifindex → name."""


def read_routes(messages: Iterable[Any], names: Names) -> tuple[Route, ...]:
    """Return the routes of RTM_GETROUTE, of all tables, in the kernel's order; ids of nexthop objects are left out."""
    return tuple(_route(message, names) for message in messages if not message["flags"] & RTM_F_CLONED)


def name_objects(messages: Iterable[Any]) -> bool:
    """Say whether some route goes by a nexthop object (RTA_NH_ID)."""
    return any(
        name == "UNKNOWN" and value["header"]["type"] == RTA_NH_ID
        for message in messages
        for name, value in (item[:2] for item in message["attrs"])
    )


def _route(message: Any, names: Names) -> Route:  # noqa: ANN401
    row = attributes(message)
    kind = ROUTE_TYPES.get(message["type"], str(message["type"]))
    metrics = attributes(row.get("RTA_METRICS"))
    return Route(
        dst=_net(row.get("RTA_DST"), message["dst_len"], message["family"]),
        table=row.get("RTA_TABLE", message["table"]),
        type=kind,
        nexthops=_nexthops(message, row, names),
        prefsrc=_ip(row.get("RTA_PREFSRC")),
        src=_net(row.get("RTA_SRC"), message["src_len"], message["family"]) if message["src_len"] else None,
        scope=scope_name(str(message["scope"])),
        protocol=route_protocol(str(message["proto"])),
        metric=row.get("RTA_PRIORITY", 0),
        tos=message["tos"],
        mtu=metrics.get("RTAX_MTU", 0),
        preference=PREFERENCES.get(row.get("RTA_PREF") or 0, "medium"),
        mtu_locked=bool(metrics.get("RTAX_LOCK", 0) & RTAX_LOCK_MTU),
    )


def _nexthops(message: Any, row: Mapping[str, Any], names: Names) -> tuple[NextHop, ...]:  # noqa: ANN401
    legs = row.get("RTA_MULTIPATH")
    if legs:
        return tuple(_nexthop(attributes(leg), leg["oif"], leg["flags"], names, weight=leg["hops"] + 1) for leg in legs)
    if row.get("RTA_OIF") is None and row.get("RTA_GATEWAY") is None and row.get("RTA_VIA") is None:
        return ()
    return (_nexthop(row, row.get("RTA_OIF"), message["flags"], names),)


def _nexthop(row: Mapping[str, Any], oif: int | None, flags: int, names: Names, *, weight: int = 1) -> NextHop:
    via = row.get("RTA_VIA")
    return NextHop(
        dev=names.get(oif or 0),
        via=_ip(via["addr"] if via else row.get("RTA_GATEWAY")),
        weight=weight,
        onlink=bool(flags & RTNH_F_ONLINK),
        dead=bool(flags & RTNH_F_DEAD),
        linkdown=bool(flags & RTNH_F_LINKDOWN),
    )


def _net(text: str | None, length: int, family: int) -> Net:
    return parse_net(f"{text or ('::' if family == AF_INET6 else '0.0.0.0')}/{length}")


def _ip(text: str | None) -> Ip | None:
    return parse_ip(text) if text else None


def read_rules(messages: Iterable[Any]) -> tuple[PolicyRule, ...]:
    """Return the policy rules of RTM_GETRULE, in the kernel's order."""
    return tuple(_rule(message) for message in messages)


def _rule(message: Any) -> PolicyRule:  # noqa: ANN401
    row = attributes(message)
    family = message["family"]
    protocol = row.get("FRA_IP_PROTO")
    goto = row.get("FRA_GOTO", 0)
    return PolicyRule(
        family=6 if family == AF_INET6 else 4,
        priority=row.get("FRA_PRIORITY", 0),
        table=row.get("FRA_TABLE", message["table"]),
        action=RULE_ACTIONS.get(message["action"], str(message["action"])),
        goto=goto,
        invert=bool(message["flags"] & FIB_RULE_INVERT),
        src=_net(row.get("FRA_SRC"), message["src_len"], family) if message["src_len"] else None,
        dst=_net(row.get("FRA_DST"), message["dst_len"], family) if message["dst_len"] else None,
        iif=row.get("FRA_IIFNAME"),
        oif=row.get("FRA_OIFNAME"),
        fwmark=row.get("FRA_FWMARK", 0),
        fwmask=row.get("FRA_FWMASK", 0),
        tos=message["tos"],
        protocol=_transport(protocol),
        sports=_range(row.get("FRA_SPORT_RANGE")),
        dports=_range(row.get("FRA_DPORT_RANGE")),
        uids=_range(row.get("FRA_UID_RANGE")),
        l3mdev=bool(row.get("FRA_L3MDEV", 0)),
        suppress_prefixlength=_signed(row.get("FRA_SUPPRESS_PREFIXLEN", UNSET32)),
        suppress_ifgroup=_signed(row.get("FRA_SUPPRESS_IFGROUP", UNSET32)),
    )


def _transport(number: int | None) -> Protocol | None:
    return None if number is None else ip_protocol(str(number))


def _range(text: str | None) -> tuple[int, int] | None:
    if not text:
        return None
    first, _, last = text.partition(":")
    return int(first), int(last or first)


def _signed(value: int) -> int:
    return -1 if value == UNSET32 else value


def read_neighbours(messages: Iterable[Any], names: Names) -> tuple[Neighbour, ...]:
    """Return the ARP and ND entries of RTM_GETNEIGH, by interface and address, without the kernel's own for multicast."""
    found = (_neighbour(message, names) for message in messages if message["state"])
    return tuple(sorted((entry for entry in found if not _is_made_up(entry)), key=lambda entry: (entry.dev, entry.ip)))


def _neighbour(message: Any, names: Names) -> Neighbour:  # noqa: ANN401
    row = attributes(message)
    return Neighbour(
        ip=parse_ip(row["NDA_DST"]),
        dev=names.get(message["ifindex"], ""),
        mac=Mac(row["NDA_LLADDR"].lower()) if row.get("NDA_LLADDR") else None,
        state=NUD.get(message["state"], NeighbourState.NONE),
        router=bool(message["flags"] & NTF_ROUTER),
    )


def _is_made_up(entry: Neighbour) -> bool:
    """Say whether the kernel made the entry up for a group, a broadcast or a device without addresses, as it does anew."""
    if entry.state != NeighbourState.NOARP or not entry.mac:
        return entry.state == NeighbourState.NOARP
    return bool(int(entry.mac[:2], 16) & 1) or not entry.mac.strip("0:")


def read_fdb(messages: Iterable[Any], names: Names) -> tuple[FdbEntry, ...]:
    """Return the forwarding entries of bridges and devices of RTM_GETNEIGH (AF_BRIDGE), by interface and address."""
    found = (_fdb_entry(message, names) for message in messages)
    return tuple(
        sorted(found, key=lambda entry: (entry.dev, entry.mac, entry.dst or "", entry.master or "", entry.vlan or 0))
    )


def _fdb_entry(message: Any, names: Names) -> FdbEntry:  # noqa: ANN401
    row = attributes(message)
    state = message["state"]
    return FdbEntry(
        mac=Mac(str(row.get("NDA_LLADDR", "")).lower()),
        dev=names.get(message["ifindex"], ""),
        master=names.get(row.get("NDA_MASTER") or 0),
        dst=_ip(row.get("NDA_DST")),
        port=row.get("NDA_PORT"),
        vni=row.get("NDA_VNI"),
        vlan=row.get("NDA_VLAN"),
        permanent=bool(state & NUD_PERMANENT),
        static=bool(state & NUD_NOARP) and not state & NUD_PERMANENT,
        sticky=bool(message["flags"] & NTF_STICKY),
        nhid=row.get("NDA_NH_ID") or 0,
    )
