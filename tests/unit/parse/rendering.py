"""What the tools print for a state, written from the values that the readers make of it: the other half of parse(render(x)) = x.

Only as much is written as the readers take. The forms are those of iproute2 6, conntrack-tools 1.4, ipset 7, ipvsadm 1.31.
"""

import json
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import Any

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.packet import PROTOCOL_NUMBERS, Protocol
from tasks.skoop.model.state import (
    Address,
    BridgePort,
    ConntrackEntry,
    FdbEntry,
    Interface,
    IpSet,
    IpvsConnection,
    IpvsService,
    Neighbour,
    NextHop,
    NextHopObject,
    NftTable,
    PolicyRule,
    PortVlan,
    Route,
    RouteException,
    Socket,
    Tuple,
    WireGuard,
)

Json = dict[str, Any]
TABLES = {253: "default", 254: "main", 255: "local"}


def _flags(**given: bool) -> list[str]:
    return [name for name, there in given.items() if there]


def _without(row: Json, *usual: object) -> str:
    """Drop what is None; an empty list stays."""
    return json.dumps({key: value for key, value in row.items() if value is not None and value not in usual})


def _array(rows: Iterable[str]) -> str:
    return f"[{','.join(rows)}]"


# --- iproute2: routes, rules, nexthops ---------------------------------------------------------------------------------


def _gateway(hop: NextHop, six: bool) -> Json:
    if hop.via is None:
        return {}
    if (":" in hop.via) != six:
        return {"via": {"family": "inet6" if ":" in hop.via else "inet", "host": hop.via}}
    return {"gateway": hop.via}


def _hop(hop: NextHop, six: bool) -> Json:
    flags = _flags(onlink=hop.onlink, dead=hop.dead, linkdown=hop.linkdown)
    return {**_gateway(hop, six), "dev": hop.dev, "flags": flags}


def routes(values: Iterable[Route]) -> str:
    """`ip -j route show table all` (and -6)."""
    return _array(_route(one) for one in values)


def _route(one: Route) -> str:
    six = ":" in one.dst
    row: Json = {
        "type": one.type if one.type != "unicast" else None,
        "dst": "default" if one.dst.endswith("/0") else one.dst.removesuffix("/128" if six else "/32"),
        "from": one.src,
        "table": TABLES.get(one.table, str(one.table)) if one.table != 254 else None,
        "protocol": one.protocol if one.protocol != "boot" else None,
        "scope": one.scope if one.scope != "global" else None,
        "prefsrc": one.prefsrc,
        "metric": one.metric or None,
        "tos": f"0x{one.tos:02x}" if one.tos else None,
        "metrics": [{"mtu": one.mtu}] if one.mtu else None,
        "nhid": one.nhid or None,
        "pref": "medium" if six else None,
        "flags": [],
    }
    if len(one.nexthops) == 1 and one.nexthops[0].weight == 1:
        row |= _hop(one.nexthops[0], six)
    elif one.nexthops:
        row["nexthops"] = [
            {key: value for key, value in {**_hop(hop, six), "weight": hop.weight}.items() if value is not None}
            for hop in one.nexthops
        ]
    return _without(row)


def exceptions(values: Iterable[RouteException]) -> str:
    """`ip -j route show cache`."""
    return _array(
        _without(
            {
                "dst": one.dst,
                "gateway": one.via,
                "dev": one.dev,
                "metrics": [{"mtu": one.mtu}] if one.mtu else None,
                "expires": one.expires_s or None,
                "flags": [] if one.mtu else ["redirected"],
            }
        )
        for one in values
    )


def _split(name: str, net: str | None) -> Json:
    if net is None:
        return {name: "all"}
    address, _, length = net.partition("/")
    return {name: address, f"{name}len": int(length)}


def _range(name: str, ports: tuple[int, int] | None) -> Json:
    if ports is None:
        return {}
    return {name: ports[0]} if ports[0] == ports[1] else {f"{name}_start": ports[0], f"{name}_end": ports[1]}


def rules(values: Iterable[PolicyRule]) -> str:
    """`ip -j rule`, of one family."""
    return _array(_rule(one) for one in values)


def _rule(one: PolicyRule) -> str:
    row: Json = {"priority": one.priority, **_split("src", one.src), **_split("dst", one.dst)}
    row |= {"iif": one.iif, "oif": one.oif, "tos": f"0x{one.tos:x}" if one.tos else None}
    if one.fwmask:
        row |= {"fwmark": f"0x{one.fwmark:x}"}
        row |= {"fwmask": f"0x{one.fwmask:x}"} if one.fwmask != 0xFFFFFFFF else {}
    if one.protocol is not None:
        row["ipproto"] = str(PROTOCOL_NUMBERS.get(one.protocol, 253))
    row |= {**_range("sport", one.sports), **_range("dport", one.dports)}
    if one.uids is not None:
        row |= {"uid_start": one.uids[0], "uid_end": one.uids[1]}
    row |= {"suppress_prefixlen": one.suppress_prefixlength if one.suppress_prefixlength >= 0 else None}
    row |= {"suppress_ifgroup": one.suppress_ifgroup if one.suppress_ifgroup >= 0 else None}
    if one.action == "goto":
        row["goto"] = one.goto
    elif one.action != "nop":
        row |= {"table": TABLES.get(one.table, str(one.table)) if one.table else None}
        row |= {"action": one.action if one.action != "lookup" else None}
    text = json.loads(_without(row))
    text |= {"not": None} if one.invert else {}
    text |= {"l3mdev": None} if one.l3mdev else {}
    text |= {"nop": None} if one.action == "nop" else {}
    return json.dumps(text)


def nexthops(values: Iterable[NextHopObject]) -> str:
    """`ip -j nexthop show`."""
    return _array(_nexthop(one) for one in values)


def _nexthop(one: NextHopObject) -> str:
    row: Json = {"id": one.id, "group": [{"id": number, "weight": weight} for number, weight in one.group] or None}
    if one.nexthop is not None:
        row |= {**_gateway(one.nexthop, ":" in (one.nexthop.via or "")), "dev": one.nexthop.dev}
        row["flags"] = _flags(onlink=one.nexthop.onlink, dead=one.nexthop.dead, linkdown=one.nexthop.linkdown)
    text = json.loads(_without(row))
    return json.dumps(text | _nulls(blackhole=one.blackhole, fdb=one.fdb))


def _nulls(**given: bool) -> Json:
    return {name: None for name, there in given.items() if there}


# --- iproute2: neighbours, links -----------------------------------------------------------------------------------------


def neighbours(values: Iterable[Neighbour]) -> str:
    """`ip -j neigh`."""
    return _array(
        json.dumps(
            json.loads(_without({"dst": one.ip, "dev": one.dev, "lladdr": one.mac, "state": [str(one.state)]}))
            | _nulls(proxy=one.proxy, router=one.router)
        )
        for one in values
    )


def fdb(values: Iterable[FdbEntry]) -> str:
    """`bridge -j fdb`."""
    return _array(
        _without(
            {
                "mac": one.mac,
                "ifname": one.dev,
                "master": one.master,
                "dst": one.dst,
                "port": one.port,
                "vni": one.vni,
                "vlan": one.vlan,
                "flags": _flags(sticky=one.sticky),
                "state": "permanent" if one.permanent else "static" if one.static else "",
                "nhid": one.nhid or None,
            }
        )
        for one in values
    )


def address(one: Address) -> Json:
    """One of `addr_info`."""
    row = {
        "family": "inet6" if ":" in one.ip else "inet",
        "local": one.ip,
        "address": one.peer,
        "prefixlen": one.prefixlen,
        "broadcast": one.broadcast,
        "scope": one.scope,
    }
    flags = _flags(
        secondary=one.secondary,
        deprecated=one.deprecated,
        tentative=one.tentative,
        dadfailed=one.dadfailed,
        noprefixroute=one.noprefixroute,
    )
    return {key: value for key, value in row.items() if value is not None} | dict.fromkeys(flags, True)


def port(one: BridgePort) -> Json:
    """`info_slave_data` of a bridge port."""
    return {name: getattr(one, name) for name in one.__struct_fields__}


def ports(values: Mapping[str, BridgePort]) -> str:
    """`bridge -j -d link`."""
    return json.dumps([{"ifindex": 1, "ifname": name, **port(one)} for name, one in values.items()])


def vlans(values: Mapping[str, tuple[PortVlan, ...]]) -> str:
    """`bridge -j -d vlan show`."""
    return json.dumps(
        [
            {
                "ifname": name,
                "vlans": [
                    {
                        "vlan": one.vid,
                        "flags": [
                            *(["PVID"] if one.pvid else []),
                            *(["Egress Untagged"] if one.untagged else []),
                        ],
                    }
                    for one in found
                ],
            }
            for name, found in values.items()
        ]
    )


def links(values: Iterable[Interface]) -> str:
    """`ip -j -d addr`."""
    return json.dumps([_link(one) for one in values])


def _link(one: Interface) -> Json:
    info: Json = {"info_kind": one.kind} if one.kind not in ("", "loopback") else {}
    data = _settings(one)
    if data:
        info["info_data"] = data
    if one.port is not None:
        info |= {"info_slave_kind": "bridge", "info_slave_data": port(one.port)}
    elif not one.slave_active:
        info |= {"info_slave_kind": "bond", "info_slave_data": {"state": "BACKUP"}}
    row = {
        "ifindex": one.index,
        "ifname": one.name,
        "flags": _flags(UP=one.up, LOWER_UP=one.carrier, NOARP=one.noarp, PROMISC=one.promisc),
        "mtu": one.mtu,
        "operstate": one.operstate,
        "master": one.master,
        "link": one.lower,
        "link_index": one.lower_index if one.lower_index is not None else one.peer_index,
        "link_netnsid": one.lower_nsid if one.lower_nsid is not None else one.peer_nsid,
        "group": one.group,
        "link_type": "loopback" if one.kind == "loopback" else "ether" if one.mac else "none",
        "address": one.mac or None,
        "linkinfo": info or None,
        "addr_info": [address(each) for each in one.addresses],
    }
    return {key: value for key, value in row.items() if value is not None}


def _settings(one: Interface) -> Json:
    data: Json = {"mode": one.mode or None, "active_slave": one.active_slave, "id": one.vlan_id}
    data |= {"protocol": one.vlan_protocol} if one.kind == "vlan" else {}
    data |= {"table": one.vrf_table}
    if one.vxlan is not None:
        fields = {name: getattr(one.vxlan, name) for name in one.vxlan.__struct_fields__ if name != "vni"}
        six = {"local": "local6", "group": "group6"}
        data |= {"id": one.vxlan.vni}
        data |= {six[name] if name in six and ":" in str(value) else name: value for name, value in fields.items()}
    if one.bridge is not None:
        data |= {name: int(getattr(one.bridge, name)) for name in one.bridge.__struct_fields__ if name != "stp"}
        data["stp_state"] = int(one.bridge.stp)
    if one.tunnel is not None:
        data |= {
            name: getattr(one.tunnel, name) for name in one.tunnel.__struct_fields__ if name not in ("vni", "encap")
        }
        data |= {"local": one.tunnel_local or "any", "remote": one.tunnel_remote or "any"}
        data |= {name: str(IPv4Address(data[name])) for name in ("ikey", "okey") if data[name] is not None}
        data |= {"fwmark": f"0x{one.tunnel.fwmark:x}", "encap": {"type": one.tunnel.encap}}
        data |= {"encap_limit": one.tunnel.encap_limit if one.tunnel.encap_limit >= 0 else None}
        data |= {"id": one.tunnel.vni, "port": one.tunnel.port} if one.kind == "geneve" else {"port": None}
    return {key: value for key, value in data.items() if value is not None}


# --- conntrack, ss, sysctl ---------------------------------------------------------------------------------------------


def conntrack(values: Iterable[ConntrackEntry]) -> str:
    """`conntrack -L -o extended`."""
    return "".join(f"{_entry(one)}\n" for one in values)


def _entry(one: ConntrackEntry) -> str:
    number = PROTOCOL_NUMBERS.get(one.protocol, 253)
    family = "ipv6     10" if ":" in one.original.src else "ipv4     2"
    words = [f"{family} {one.protocol:8} {number}", str(one.timeout_s), one.state] if one.timeout_s else [
        f"{family} {one.protocol:8} {number}", one.state
    ]  # fmt: skip
    words += [_tuple(one.original, one.protocol), "" if one.replied else "[UNREPLIED]"]
    words += [_tuple(one.reply, one.protocol), "[ASSURED]" if one.assured else "", f"mark={one.mark}"]
    words += [f"zone={one.zone}" if one.zone else "", "use=1"]
    return " ".join(word for word in words if word)


def _tuple(one: Tuple, protocol: Protocol) -> str:
    ends = f"src={one.src} dst={one.dst}"
    if protocol in (Protocol.ICMP, Protocol.ICMPV6):
        return f"{ends} type=8 code=0 id={one.sport}"
    return f"{ends} sport={one.sport} dport={one.dport}"


SS_KINDS = {Protocol.TCP: "tcp", Protocol.UDP: "udp", Protocol.SCTP: "sctp"}


def sockets(values: Iterable[Socket]) -> str:
    """`ss -H -n` with kinds."""
    return "".join(f"{_socket(one)}\n" for one in values)


def _socket(one: Socket) -> str:
    kind = SS_KINDS.get(one.protocol, "raw")
    number = one.port if kind != "raw" else PROTOCOL_NUMBERS.get(one.protocol, 253)
    local = f"[{one.ip}]" if ":" in one.ip else str(one.ip)
    if one.ip == "::" and not one.v6only:
        local = "*"
    if one.dev:
        local = f"{local[:-1]}]%{one.dev}" if local.endswith("]") else f"{local}%{one.dev}"
    peer = (
        "*:*"
        if one.peer is None
        else f"[{one.peer}]:{one.peer_port}"
        if ":" in one.peer
        else f"{one.peer}:{one.peer_port}"
    )
    names = ",".join(f'("{name}",pid=1,fd=3)' for name in one.process.split(",") if name)
    extra = [f"users:({names})"] if names else []
    extra += ["v6only:1"] if one.v6only else []
    return " ".join((kind, one.state, str(one.recv_queue), str(one.backlog), f"{local}:{number}", peer, *extra))


def sysctl(values: Mapping[str, str]) -> str:
    """`sysctl -a`."""
    swap = str.maketrans("./", "/.")
    return "".join(f"{path.translate(swap)} = {value}\n" for path, value in values.items())


# --- ipset, IPVS, wireguard, nftables ------------------------------------------------------------------------------------


def _set_options(one: IpSet) -> str:
    words = [f"family {'inet6' if one.family == 6 else 'inet'}"] if one.family else []
    words += (
        [f"netmask {one.netmask}"] if one.netmask.isdecimal() else [f"bitmask {one.netmask}"] if one.netmask else []
    )
    words += [f"markmask 0x{one.markmask:08x}"] if one.markmask else []
    return " ".join((*words, "hashsize 1024 maxelem 65536"))


def ipset_save(values: Iterable[IpSet]) -> str:
    """`ipset save`."""
    return "".join(
        f"create {one.name} {one.type} {_set_options(one)}\n"
        + "".join(f"add {one.name} {each.text}{' nomatch' if each.nomatch else ''}\n" for each in one.entries)
        for one in values
    )


def ipset_list(values: Iterable[IpSet]) -> str:
    """`ipset list`."""
    return "\n".join(
        f"Name: {one.name}\nType: {one.type}\nRevision: 5\nHeader: {_set_options(one)}\nSize in memory: 9\n"
        f"References: 0\nNumber of entries: {len(one.entries)}\nMembers:\n"
        + "".join(f"{each.text}{' nomatch' if each.nomatch else ''}\n" for each in one.entries)
        for one in values
    )


def _end(ip: Ip | None, port: int) -> str:
    return f"[{ip}]:{port}" if ip and ":" in ip else f"{ip}:{port}"


IPVS_FLAGS = {Protocol.TCP: "-t", Protocol.UDP: "-u", Protocol.SCTP: "--sctp-service"}
METHODS = {"masq": "-m", "route": "-g", "tunnel": "-i"}


def ipvsadm(values: Iterable[IpvsService]) -> str:
    """`ipvsadm -Sn`."""
    lines = []
    for one in values:
        if one.ip is None:
            who = f"-f {one.fwmark}{' -6' if one.family == 6 else ''}"
        else:
            who = f"{IPVS_FLAGS[one.protocol]} {_end(one.ip, one.port)}"
        words = ["-A", who, "-s", one.scheduler]
        words += ["-p", str(one.persistent_s)] if one.persistent_s else []
        words += ["-M", one.netmask] if one.netmask else []
        words += ["-o"] if "ops" in one.flags else []
        more = [flag for flag in one.flags if flag != "ops"]
        words += ["-b", ",".join(more)] if more else []
        lines.append(" ".join(words))
        for server in one.destinations:
            tunnel = f" --tun-type {server.encapsulation}" if server.method == "tunnel" else ""
            lines.append(
                f"-a {who} -r {_end(server.ip, server.port)} {METHODS[server.method]} -w {server.weight}{tunnel}"
            )
    return "".join(f"{line}\n" for line in lines)


HEADINGS = (
    "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n"
    "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"
)


def _hex_ip(ip: Ip) -> str:
    return str(ip) if ":" in ip else f"{int(IPv4Address(ip)):08X}"


def _hex_end(ip: Ip, port: int) -> str:
    return f"[{ip}]:{port:04X}" if ":" in ip else f"{_hex_ip(ip)}:{port:04X}"


def _ipvs_table(values: Iterable[IpvsService], *, proc: bool) -> str:
    end, mark = (_hex_end, "{:08X}") if proc else (_end, "{}")
    lines = []
    for one in values:
        who = f"FWM {mark.format(one.fwmark)}" if one.ip is None else f"{one.protocol.upper()} {end(one.ip, one.port)}"
        words = [who, one.scheduler]
        words += ["ops"] if proc and "ops" in one.flags else []
        if one.persistent_s and proc:
            mask = f"{int(IPv4Address(one.netmask)):08X}" if one.netmask else "FFFFFFFF"
            words += ["persistent", str(one.persistent_s * 250), mask]
        elif one.persistent_s:
            words += ["persistent", str(one.persistent_s), *(["mask", one.netmask] if one.netmask else [])]
        words += ["ops"] if not proc and "ops" in one.flags else []
        lines.append(" ".join(words))
        lines += [
            f"  -> {end(server.ip, server.port)} {server.method.capitalize()} {server.weight} 0 0"
            for server in one.destinations
        ]
    return HEADINGS + "".join(f"{line}\n" for line in lines)


def ip_vs(values: Iterable[IpvsService]) -> str:
    """/proc/net/ip_vs."""
    return _ipvs_table(values, proc=True)


def ipvsadm_list(values: Iterable[IpvsService]) -> str:
    """`ipvsadm -Ln`."""
    return _ipvs_table(values, proc=False)


def ip_vs_conn(values: Iterable[IpvsConnection]) -> str:
    """/proc/net/ip_vs_conn."""
    names = {Protocol.OTHER: "IP"}
    return "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData\n" + "".join(
        f"{names.get(one.protocol, one.protocol.upper())} {_hex_ip(one.client)} {one.client_port:04X} "
        f"{_hex_ip(one.virtual)} {one.virtual_port:04X} {_hex_ip(one.ip)} {one.port:04X} {one.state} {one.expires_s}\n"
        for one in values
    )


def wireguard(values: Mapping[str, WireGuard]) -> str:
    """`wg show all`."""
    lines = []
    for name, one in values.items():
        lines += [f"interface: {name}", f"  public key: {one.public_key}", "  private key: (hidden)"]
        lines += [f"  listening port: {one.port}"] if one.port else []
        lines += [f"  fwmark: 0x{one.fwmark:x}"] if one.fwmark else []
        for peer in one.peers:
            lines += ["", f"peer: {peer.public_key}"]
            lines += [f"  endpoint: {_end(peer.endpoint, peer.endpoint_port)}"] if peer.endpoint else []
            lines += [f"  allowed ips: {', '.join(peer.allowed_ips) or '(none)'}"]
            lines += ["  latest handshake: 1 minute ago"] if peer.handshake else []
            lines += [f"  persistent keepalive: every {peer.keepalive_s} seconds"] if peer.keepalive_s else []
        lines.append("")
    return "".join(f"{line}\n" for line in lines)


def nft(values: Iterable[NftTable]) -> str:
    """`nft -j list ruleset`."""
    objects = [text for one in values for text in one.objects]
    return '{"nftables": [' + ", ".join(['{"metainfo": {"json_schema_version": 1}}', *objects]) + "]}"
