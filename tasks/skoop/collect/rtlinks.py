"""Which interfaces a network namespace has, read by rtnetlink (RTM_GETLINK, RTM_GETADDR).

The counterpart of `parse.links`, which reads the same from `ip -j`: both give equal values for one namespace (but for the
peer of a veth, which only a live collector can resolve). Attribute names are the kernel's (include/uapi/linux/if_link.h).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tasks.skoop.model.addr import Ip, Mac, parse_ip
from tasks.skoop.model.state import Address, Bridge, BridgePort, Interface, Vxlan
from tasks.skoop.parse.links import ANY, PORT_STATES, STACKED, TUNNELS
from tasks.skoop.parse.rtnames import scope_name

IFF_UP, IFF_NOARP, IFF_PROMISC, IFF_LOWER_UP = 0x1, 0x80, 0x100, 0x10000
ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772
IFA_F_SECONDARY, IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE, IFA_F_NOPREFIXROUTE = 0x1, 0x8, 0x20, 0x40, 0x200
IFA_F_TEMPORARY, IFA_F_OPTIMISTIC = 0x1, 0x4
AF_INET, AF_INET6 = 2, 10
VXLAN_DF = ("unset", "set", "inherit")

Attributes = Mapping[str, Any]
"""Attributes of one netlink message or nest, by the kernel's names."""


def attributes(message: Any) -> dict[str, Any]:  # noqa: ANN401 -- pyroute2's messages are untyped
    """Return the attributes of a message or nest; of one that comes twice, the first. An absent nest has none."""
    found: dict[str, Any] = {}
    for item in (message or {}).get("attrs", ()):
        found.setdefault(item[0], item[1])
    return found


def read_interfaces(links: Iterable[Any], addresses: Iterable[Any]) -> tuple[Interface, ...]:
    """Return the interfaces of the messages of RTM_GETLINK and RTM_GETADDR, in the kernel's order; peers unresolved."""
    rows = [(message, attributes(message)) for message in links]
    names = {message["index"]: row["IFLA_IFNAME"] for message, row in rows}
    owned: dict[int, list[Address]] = {}
    for message in addresses:
        if message["family"] in (AF_INET, AF_INET6):
            owned.setdefault(message["index"], []).append(_address(message))
    return tuple(_interface(message, row, names, tuple(owned.get(message["index"], ()))) for message, row in rows)


def _interface(message: Any, row: Attributes, names: Mapping[int, str], addresses: tuple[Address, ...]) -> Interface:  # noqa: ANN401
    info = attributes(row.get("IFLA_LINKINFO"))
    flags, hardware = message["flags"], message["ifi_type"]
    kind = "loopback" if hardware == ARPHRD_LOOPBACK else str(info.get("IFLA_INFO_KIND") or "")
    data = attributes(info.get("IFLA_INFO_DATA"))
    link, nsid = row.get("IFLA_LINK"), row.get("IFLA_LINK_NETNSID")
    stacked = kind in STACKED
    away = stacked and nsid is not None
    paired = bool(link) and not stacked and (nsid is not None or kind == "veth")
    return Interface(
        index=message["index"],
        name=row["IFLA_IFNAME"],
        kind=kind,
        up=bool(flags & IFF_UP),
        carrier=bool(flags & IFF_LOWER_UP),
        mtu=row.get("IFLA_MTU", 0),
        mac=Mac(str(row.get("IFLA_ADDRESS", "")).lower() if hardware in (ARPHRD_ETHER, ARPHRD_LOOPBACK) else ""),
        noarp=bool(flags & IFF_NOARP),
        promisc=bool(flags & IFF_PROMISC),
        operstate=row.get("IFLA_OPERSTATE", "UNKNOWN"),
        master=names.get(row.get("IFLA_MASTER", 0)),
        lower=names.get(link or 0) if stacked and nsid is None else None,
        lower_index=link if away else None,
        lower_nsid=nsid if away else None,
        peer_index=link if paired else None,
        peer_nsid=None if stacked else nsid,
        addresses=addresses,
        vxlan=_vxlan(data, names) if kind == "vxlan" else None,
        bridge=_bridge(data) if kind == "bridge" else None,
        port=_port(attributes(info.get("IFLA_INFO_SLAVE_DATA")))
        if info.get("IFLA_INFO_SLAVE_KIND") == "bridge"
        else None,
        vlan_id=data.get("IFLA_VLAN_ID") if kind == "vlan" else None,
        tunnel_local=_end(data, "LOCAL") if kind in TUNNELS else None,
        tunnel_remote=_end(data, "REMOTE") if kind in TUNNELS else None,
        vrf_table=data.get("IFLA_VRF_TABLE") if kind == "vrf" else None,
        group=str(row.get("IFLA_GROUP") or "default"),
    )


def _vxlan(data: Attributes, names: Mapping[int, str]) -> Vxlan:
    df = data.get("IFLA_VXLAN_DF", 0)
    return Vxlan(
        vni=data.get("IFLA_VXLAN_ID", 0),
        local=_ip(data.get("IFLA_VXLAN_LOCAL") or data.get("IFLA_VXLAN_LOCAL6")),
        group=_ip(data.get("IFLA_VXLAN_GROUP") or data.get("IFLA_VXLAN_GROUP6")),
        link=names.get(data.get("IFLA_VXLAN_LINK") or 0),
        port=data.get("IFLA_VXLAN_PORT", 0),  # in network order on the wire; pyroute2 has turned it round
        learning=bool(data.get("IFLA_VXLAN_LEARNING", 1)),
        ttl=data.get("IFLA_VXLAN_TTL", 0),
        df=VXLAN_DF[df] if df < len(VXLAN_DF) else str(df),
        external=bool(data.get("IFLA_VXLAN_COLLECT_METADATA", 0)),
        udp_csum=bool(data.get("IFLA_VXLAN_UDP_CSUM", 1)),
    )


def _bridge(data: Attributes) -> Bridge:
    return Bridge(
        stp=bool(data.get("IFLA_BR_STP_STATE", 0)),
        vlan_filtering=bool(data.get("IFLA_BR_VLAN_FILTERING", 0)),
        nf_call_iptables=bool(data.get("IFLA_BR_NF_CALL_IPTABLES", 0)),
        nf_call_ip6tables=bool(data.get("IFLA_BR_NF_CALL_IP6TABLES", 0)),
        nf_call_arptables=bool(data.get("IFLA_BR_NF_CALL_ARPTABLES", 0)),
    )


def _port(data: Attributes) -> BridgePort:
    state = data.get("IFLA_BRPORT_STATE", 3)
    return BridgePort(
        state=PORT_STATES[state] if state < len(PORT_STATES) else str(state),
        hairpin=bool(data.get("IFLA_BRPORT_MODE", 0)),
        isolated=bool(data.get("IFLA_BRPORT_ISOLATED", 0)),
        learning=bool(data.get("IFLA_BRPORT_LEARNING", 1)),
        flood=bool(data.get("IFLA_BRPORT_UNICAST_FLOOD", 1)),
        bcast_flood=bool(data.get("IFLA_BRPORT_BCAST_FLOOD", 1)),
        mcast_flood=bool(data.get("IFLA_BRPORT_MCAST_FLOOD", 1)),
        locked=bool(data.get("IFLA_BRPORT_LOCKED", 0)),
    )


def _end(data: Attributes, which: str) -> Ip | None:
    """Return an end of a tunnel: the attribute's prefix differs by kind (IPTUN, GRE, VTI, GENEVE)."""
    found = next((value for name, value in data.items() if name.endswith((f"_{which}", f"_{which}6"))), None)
    return _ip(found)


def _ip(text: str | None) -> Ip | None:
    return None if text is None or text in ANY else parse_ip(text)


def _address(message: Any) -> Address:  # noqa: ANN401
    row = attributes(message)
    local, far = row.get("IFA_LOCAL"), row.get("IFA_ADDRESS")
    flags = row.get("IFA_FLAGS", message["flags"])
    return Address(
        ip=parse_ip(local or far),
        prefixlen=message["prefixlen"],
        scope=scope_name(str(message["scope"])),
        peer=parse_ip(far) if local and far and far != local else None,
        broadcast=_ip(row.get("IFA_BROADCAST")),
        # The same bit means "temporary" (privacy extensions) in IPv6.
        secondary=bool(flags & IFA_F_SECONDARY) and message["family"] == AF_INET,
        deprecated=bool(flags & IFA_F_DEPRECATED),
        tentative=bool(flags & IFA_F_TENTATIVE),
        dadfailed=bool(flags & IFA_F_DADFAILED),
        noprefixroute=bool(flags & IFA_F_NOPREFIXROUTE),
        temporary=bool(flags & IFA_F_TEMPORARY) and message["family"] == AF_INET6,
        optimistic=bool(flags & IFA_F_OPTIMISTIC),
    )
