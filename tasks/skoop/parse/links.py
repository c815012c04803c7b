"""Which interfaces there are: `ip -j [-d] link`, `ip -j addr`, `bridge -j [-d] link`.

Follows iproute2 5 to 6.15. Without `-d` the kind of a device and its settings are not printed: such interfaces have kind
"" and no settings. The peer of a veth is its ifindex and netnsid as printed; who that is, the collector finds out.
"""

import re
from collections.abc import Iterable, Mapping

from msgspec import Struct, field
from msgspec.structs import replace

from tasks.skoop.model.addr import Ip, Mac, parse_ip
from tasks.skoop.model.state import Address, Bridge, BridgePort, Interface, PortVlan, Tunnel, Vxlan
from tasks.skoop.parse.errors import ParseError
from tasks.skoop.parse.jsontext import read_rows
from tasks.skoop.parse.rtnames import scope_name

TUNNELS = frozenset(
    ("ipip", "gre", "gretap", "sit", "ip6tnl", "ip6gre", "ip6gretap", "erspan", "vti", "vti6", "geneve")
)
STACKED = frozenset(("vlan", "macvlan", "macvtap", "ipvlan", "ipvtap"))
ANY = frozenset(("any", "0.0.0.0", "::", ""))
UNNAMED = re.compile(r"if(\d+)$")


class _Encap(Struct):
    type: str = "none"


class _Data(Struct):
    """`info_data`, of whatever kind."""

    id: int = 0
    local: str | None = None
    local6: str | None = None
    remote: str | None = None
    remote6: str | None = None
    group: str | None = None
    group6: str | None = None
    link: str | None = None
    port: int = 8472
    learning: bool = True
    ttl: int | str = 0
    df: str = "unset"
    external: bool = False
    udp_csum: bool = True
    stp_state: int = 0
    vlan_filtering: int = 0
    nf_call_iptables: int = 0
    nf_call_ip6tables: int = 0
    nf_call_arptables: int = 0
    table: int | str | None = None
    protocol: str = "802.1Q"
    mode: str = ""
    active_slave: str | None = None
    pmtudisc: bool | None = None
    ignore_df: bool | int = False
    proto: str = ""
    ikey: str | None = None
    okey: str | None = None
    icsum: bool = False
    ocsum: bool = False
    oseq: bool = False
    encap_limit: int | None = None
    fwmark: str | int = 0
    encap: _Encap | None = None


class _Port(Struct):
    """`info_slave_data` of a bridge port; `bridge -j -d link` has the same names."""

    ifname: str = ""
    ifindex: int = 0
    state: int | str = "forwarding"
    hairpin: bool = False
    isolated: bool = False
    learning: bool = True
    flood: bool = True
    bcast_flood: bool = True
    mcast_flood: bool = True
    locked: bool = False


class _Vlan(Struct):
    vlan: int
    vlanEnd: int | None = None
    flags: list[str] = []


class _VlanPort(Struct):
    ifname: str = ""
    vlans: list[_Vlan] = []


class _Info(Struct):
    kind: str = field(name="info_kind", default="")
    data: _Data | None = field(name="info_data", default=None)
    slave_kind: str = field(name="info_slave_kind", default="")
    slave_data: _Port | None = field(name="info_slave_data", default=None)


class _Addr(Struct):
    family: str = ""
    local: str | None = None
    address: str | None = None
    broadcast: str | None = None
    prefixlen: int = 0
    scope: int | str = "global"
    secondary: bool = False
    deprecated: bool = False
    tentative: bool = False
    dadfailed: bool = False
    noprefixroute: bool = False
    temporary: bool = False
    optimistic: bool = False


class _Link(Struct):
    ifindex: int = 0
    ifname: str = ""
    flags: list[str] = []
    mtu: int = 1500
    operstate: str = "UNKNOWN"
    master: str | None = None
    link_type: str = ""
    address: str = ""
    link: str | None = None
    link_index: int | None = None
    link_netnsid: int | None = None
    group: str = "default"
    linkinfo: _Info | None = None
    addr_info: list[_Addr] = []


MAX_VLAN = 4095
LINK_TYPES = {"[1]": "ether", "[772]": "loopback"}
"""What `ip -N` prints for those that matter (ARPHRD_*)."""

PORT_STATES = ("disabled", "listening", "learning", "forwarding", "blocking")
"""States of a bridge port by number (BR_STATE_*), as older versions print them."""


def parse_links(text: str, source: str = "ip-link.json") -> tuple[Interface, ...]:
    """Return the interfaces of `ip -j -d link` (or `ip -j -d addr`: with their addresses), in order. Raises ParseError."""
    rows = [row for row in read_rows(text, _Link, source) if row.ifname]
    index = {row.ifname: row.ifindex for row in rows}
    try:
        return tuple(_interface(row, index) for row in rows)
    except ValueError as error:
        raise ParseError(source, 1, 1, str(error)) from None


def parse_addresses(text: str, source: str = "ip-addr.json") -> dict[int, tuple[Address, ...]]:
    """Return the addresses of each interface of `ip -j addr`, by ifindex, in the kernel's order. Raises ParseError."""
    try:
        return {row.ifindex: _addresses(row.addr_info) for row in read_rows(text, _Link, source) if row.ifname}
    except ValueError as error:
        raise ParseError(source, 1, 1, str(error)) from None


def parse_ports(text: str, source: str = "bridge-link.json") -> dict[str, BridgePort]:
    """Return the bridge ports of `bridge -j -d link` by the name of their interface. Raises ParseError."""
    return {row.ifname: _port(row) for row in read_rows(text, _Port, source) if row.ifname}


def parse_vlans(text: str, source: str = "bridge-vlan.json") -> dict[str, tuple[PortVlan, ...]]:
    """Return the VLANs of each bridge and port of `bridge -j [-d] vlan show` by its name. Raises ParseError."""
    return {
        row.ifname: tuple(
            PortVlan(vid=vid, pvid="PVID" in one.flags, untagged="Egress Untagged" in one.flags)
            for one in row.vlans
            for vid in range(max(one.vlan, 0), min(one.vlanEnd or one.vlan, MAX_VLAN) + 1)
        )
        for row in read_rows(text, _VlanPort, source)
        if row.ifname
    }


def combine(
    links: Iterable[Interface],
    addresses: Mapping[int, tuple[Address, ...]],
    ports: Mapping[str, BridgePort],
    vlans: Mapping[str, tuple[PortVlan, ...]] | None = None,
) -> tuple[Interface, ...]:
    """Return the interfaces with their addresses, VLANs, and port settings where the links did not have them already."""
    return tuple(
        replace(
            link,
            addresses=addresses.get(link.index, link.addresses),
            port=link.port or ports.get(link.name),
            vlans=link.vlans if vlans is None else in_vlans(link, vlans),
        )
        for link in links
    )


def in_vlans(link: Interface, vlans: Mapping[str, tuple[PortVlan, ...]]) -> tuple[PortVlan, ...] | None:
    """Return the VLANs of a bridge or port, none if the dump does not name it; None for any other device."""
    return vlans.get(link.name, ()) if link.kind == "bridge" or link.port is not None else None


SETTINGS = TUNNELS | STACKED | {"bond", "team"}
"""Kinds whose settings a live collector takes from `ip -j -d link`, as decoders of netlink differ about them."""


def with_settings(links: Iterable[Interface], printed: Iterable[Interface]) -> tuple[Interface, ...]:
    """Return the interfaces with the settings of their kinds that `parse_links` has read from `ip -j -d link`."""
    by_index = {link.index: link for link in printed}
    return tuple(
        replace(
            link,
            mode=found.mode,
            vlan_protocol=found.vlan_protocol,
            tunnel=found.tunnel,
            tunnel_local=found.tunnel_local,
            tunnel_remote=found.tunnel_remote,
            active_slave=found.active_slave,
            slave_active=found.slave_active,
        )
        if (found := by_index.get(link.index)) is not None
        else link
        for link in links
    )


def _interface(row: _Link, index: Mapping[str, int]) -> Interface:
    info = row.linkinfo or _Info()
    data = info.data or _Data()
    link_type = LINK_TYPES.get(row.link_type, row.link_type)
    kind = "loopback" if link_type == "loopback" else info.kind
    stacked = kind in STACKED
    other_index = row.link_index
    if other_index is None and row.link and (kind == "veth" or stacked):
        unnamed = UNNAMED.match(row.link)
        other_index = index.get(row.link) or (int(unnamed.group(1)) if unnamed else None)
    away = stacked and row.link_netnsid is not None
    return Interface(
        index=row.ifindex,
        name=row.ifname,
        kind=kind,
        up="UP" in row.flags,
        carrier="LOWER_UP" in row.flags,
        mtu=row.mtu,
        mac=Mac(row.address.lower()) if link_type in ("ether", "loopback") else Mac(""),
        noarp="NOARP" in row.flags,
        promisc="PROMISC" in row.flags,
        operstate=row.operstate,
        master=row.master,
        lower=row.link if stacked and row.link_netnsid is None else None,
        lower_index=other_index if away else None,
        lower_nsid=row.link_netnsid if away else None,
        peer_index=None if stacked else other_index,
        peer_nsid=None if stacked else row.link_netnsid,
        addresses=_addresses(row.addr_info),
        vxlan=_vxlan(data) if kind == "vxlan" else None,
        bridge=_bridge(data) if kind == "bridge" else None,
        port=_port(info.slave_data) if info.slave_kind == "bridge" and info.slave_data else None,
        vlan_id=data.id if kind == "vlan" else None,
        tunnel_local=_address(data.local or data.local6) if kind in TUNNELS else None,
        tunnel_remote=_address(data.remote or data.remote6) if kind in TUNNELS else None,
        vrf_table=int(data.table) if kind == "vrf" and str(data.table).isdigit() and data.table is not None else None,
        group="default" if row.group == "0" else row.group,
        mode=data.mode,
        vlan_protocol=data.protocol if kind == "vlan" else "802.1Q",
        tunnel=_tunnel(kind, data) if kind in TUNNELS else None,
        active_slave=data.active_slave,
        slave_active=info.slave_kind != "bond" or info.slave_data is None or info.slave_data.state != "BACKUP",
    )


def _tunnel(kind: str, data: _Data) -> Tunnel:
    six = kind.startswith("ip6") or kind == "vti6"
    return Tunnel(
        ttl=data.ttl if isinstance(data.ttl, int) else 0,
        pmtudisc=not six if data.pmtudisc is None else data.pmtudisc,
        ignore_df=bool(data.ignore_df),
        proto=data.proto,
        link=data.link,
        ikey=_key(data.ikey),
        okey=_key(data.okey),
        icsum=data.icsum,
        ocsum=data.ocsum,
        oseq=data.oseq,
        encap_limit=data.encap_limit if data.encap_limit is not None else -1,
        fwmark=int(str(data.fwmark), 0),
        external=data.external,
        encap=data.encap.type if data.encap else "none",
        vni=data.id if kind == "geneve" else 0,
        port=data.port if kind == "geneve" else 0,
        df=data.df,
    )


def _key(text: str | None) -> int | None:
    """Return a GRE key, which `ip` prints like an address or as a number."""
    if not text:
        return None
    if text.count(".") == 3:
        return int.from_bytes(bytes(int(part) for part in text.split(".")), "big")
    return int(text, 0)


def _vxlan(data: _Data) -> Vxlan:
    return Vxlan(
        vni=data.id,
        local=_address(data.local or data.local6),
        group=_address(data.group or data.group6 or data.remote or data.remote6),
        link=data.link,
        port=data.port,
        learning=data.learning,
        ttl=data.ttl if isinstance(data.ttl, int) else 0,
        df=data.df,
        external=data.external,
        udp_csum=data.udp_csum,
    )


def _bridge(data: _Data) -> Bridge:
    return Bridge(
        stp=bool(data.stp_state),
        vlan_filtering=bool(data.vlan_filtering),
        nf_call_iptables=bool(data.nf_call_iptables),
        nf_call_ip6tables=bool(data.nf_call_ip6tables),
        nf_call_arptables=bool(data.nf_call_arptables),
    )


def _port(row: _Port) -> BridgePort:
    state = row.state
    if isinstance(state, int):
        state = PORT_STATES[state] if 0 <= state < len(PORT_STATES) else str(state)
    return BridgePort(
        state=state,
        hairpin=row.hairpin,
        isolated=row.isolated,
        learning=row.learning,
        flood=row.flood,
        bcast_flood=row.bcast_flood,
        mcast_flood=row.mcast_flood,
        locked=row.locked,
    )


def _address(text: str | None) -> Ip | None:
    return None if text is None or text in ANY else parse_ip(text)


def _addresses(rows: Iterable[_Addr]) -> tuple[Address, ...]:
    return tuple(
        Address(
            ip=parse_ip(row.local),
            prefixlen=row.prefixlen,
            scope=scope_name(str(row.scope)),
            peer=parse_ip(row.address) if row.address else None,
            broadcast=parse_ip(row.broadcast) if row.broadcast else None,
            secondary=row.secondary,
            deprecated=row.deprecated,
            tentative=row.tentative,
            dadfailed=row.dadfailed,
            noprefixroute=row.noprefixroute,
            temporary=row.temporary,
            optimistic=row.optimistic,
        )
        for row in rows
        if row.local and row.family in ("inet", "inet6")
    )
