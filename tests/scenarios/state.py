"""Which state of the network does a scenario describe, as a collector would find it?

What nobody writes down but every kernel makes is added: lo, the routes of own addresses and of their networks, broadcast
addresses, carriers, a vxlan's smaller MTU. The kernel's runner compares it with what is really there.
"""

from collections.abc import Iterator

from msgspec.structs import replace

from tasks.skoop.model.addr import Ip, ip_int, parse_ip, parse_net
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.ids import NetnsId, node_netns
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import (
    Address,
    Bridge,
    BridgePort,
    Interface,
    NetNS,
    NextHop,
    Route,
    Socket,
    Vxlan,
)
from tests.scenarios.scenario import BENCH, Device, Listen, Scenario, Space
from tests.scenarios.tables import (
    fdb_of,
    filters_of,
    ipsets_of,
    neighbours_of,
    nexthops_of,
    routes_of,
    rules_of,
    tracked_of,
)

VXLAN_OVERHEAD = {4: 50, 6: 70}
LOOPBACK = ("127.0.0.1/8", "::1/128")
PER_DEVICE4 = {
    "forwarding": 0,
    "rp_filter": 0,
    "accept_local": 0,
    "route_localnet": 0,
    "proxy_arp": 0,
    "arp_ignore": 0,
    "arp_filter": 0,
    "arp_announce": 0,
    "proxy_arp_pvlan": 0,
    "send_redirects": 0,
    "ignore_routes_with_linkdown": 0,
    "src_valid_mark": 0,
}
PER_DEVICE6 = {"forwarding": 0, "proxy_ndp": 0, "accept_ra": 0}
SINGLE = {
    "net/bridge/bridge-nf-call-iptables": 0,
    "net/bridge/bridge-nf-call-ip6tables": 0,
    "net/bridge/bridge-nf-call-arptables": 0,
    "net/ipv4/icmp_echo_ignore_all": 0,
    "net/ipv4/icmp_errors_use_inbound_ifaddr": 0,
    "net/netfilter/nf_conntrack_tcp_loose": 1,
}
"""What every namespace of a scenario starts from, whatever the machine has as defaults."""


def state_of(scenario: Scenario) -> ClusterState:
    """Return the whole state, the bench included."""
    return ClusterState(netns={netns_of(name): _netns(scenario, space) for name, space in scenario.spaces.items()})


def netns_of(name: str) -> NetnsId:
    """Return the id of a scenario's namespace."""
    return node_netns(name)


def carrier(scenario: Scenario, space: str, name: str) -> bool:
    """Say whether a device that is up has a link: the other end is up too, or for a bridge, some port."""
    device = scenario.spaces[space].devices[name]
    if device.peer is not None:
        return device.up and scenario.spaces[device.peer[0]].devices[device.peer[1]].up
    if (lower := device.lower()) is not None:
        return device.up and carrier(scenario, *lower)
    if device.kind == "bridge":
        ports = [port for port in scenario.spaces[space].devices.values() if port.master == name]
        return device.up and any(carrier(scenario, space, port.name) for port in ports)
    return device.up


def _netns(scenario: Scenario, space: Space) -> NetNS:
    six = scenario.six and space.name != BENCH
    sysctls = sysctls_of(space, six=six)
    links = tuple(_interface(scenario, space, device, six=six) for device in space.devices.values())
    own = tuple(route for link in links for route in _own_routes(link, sysctls, six=six))
    families = (4, 6) if six else (4,)
    return NetNS(
        id=netns_of(space.name),
        interfaces=links,
        routes=_flagged((*own, *routes_of(space)), links, sysctls),
        rules=tuple(rule for family in families for rule in rules_of(space, family)),
        nexthops=nexthops_of(space),
        neighbours=neighbours_of(space),
        fdb=fdb_of(space),
        sockets=tuple(socket for listen in space.listeners for socket in _sockets(scenario, listen)),
        sysctls=sysctls,
        tables=filters_of(space),
        nft=space.nft_listed,
        ipsets=ipsets_of(space),
        conntrack=tracked_of(space),
    )


# --- links -----------------------------------------------------------------------------------------------------------


def _interface(scenario: Scenario, space: Space, device: Device, *, six: bool) -> Interface:
    lo = device.name == "lo"
    lower = device.lower()
    addresses = [*LOOPBACK, *device.addresses] if lo else device.addresses
    vxlan = _vxlan(device) if device.kind == "vxlan" else None
    return Interface(
        index=device.index,
        name=device.name,
        kind=device.kind,
        up=device.up,
        carrier=carrier(scenario, space.name, device.name),
        mtu=65536 if lo else mtu_of(space, device),
        mac=device.mac,
        noarp=device.noarp or device.kind == "dummy",
        master=device.master or None,
        mode=device.word("mode") if lower else "",
        lower=lower[1] if lower else None,
        lower_at=(netns_of(lower[0]), lower[1]) if lower else None,
        peer=(netns_of(device.peer[0]), device.peer[1]) if device.peer else None,
        addresses=tuple(_addresses([text for text in addresses if six or ":" not in text], device.flags, lo=lo)),
        group=str(device.group or "default"),
        vxlan=vxlan,
        bridge=_bridge(device) if device.kind == "bridge" else None,
        port=_port(device, space.devices[device.master]) if device.master else None,
    )


def mtu_of(space: Space, device: Device) -> int:
    """Return the MTU: as set, a vxlan's by its lower device (vxlan_config_apply), a bridge's by its smallest port."""
    if device.mtu:
        return device.mtu
    if device.kind == "vxlan" and device.word("dev"):
        lower = mtu_of(space, space.devices[device.word("dev")])
        return lower - VXLAN_OVERHEAD[6 if ":" in device.word("local") else 4]
    if device.kind == "bridge":
        return min((mtu_of(space, port) for port in space.devices.values() if port.master == device.name), default=1500)
    return 1500


def _addresses(texts: list[str], flags: dict[str, str], *, lo: bool) -> list[Address]:
    found: list[Address] = []
    for text in texts:
        ip, _, length = text.partition("/")
        net = parse_net(text)
        first = any(parse_net(f"{one.ip}/{one.prefixlen}") == net and not one.secondary for one in found)
        found.append(
            Address(
                ip=parse_ip(ip),
                prefixlen=int(length),
                scope="host" if ip in ("127.0.0.1", "::1") and lo else "link" if ip.startswith("fe80:") else "global",
                secondary=first and ":" not in ip,
                deprecated=flags.get(text) == "deprecated",
            )
        )
    # ipv6_link_dev_addr: the latest first, link-local ones last
    six = sorted(
        ((one.scope == "link", -place, one) for place, one in enumerate(found) if ":" in one.ip),
        key=lambda key: key[:2],
    )
    return [*(one for one in found if ":" not in one.ip), *(one for _, _, one in six)]


def _vxlan(device: Device) -> Vxlan:
    local = device.word("local")
    return Vxlan(
        vni=int(device.word("id")),
        local=Ip(local) if local else None,
        link=device.word("dev") or None,
        port=int(device.word("dstport", "8472")),
        learning="nolearning" not in device.words,
        df=device.word("df", "unset"),
    )


def _bridge(device: Device) -> Bridge:
    return Bridge(nf_call_iptables=device.word("nf_call_iptables") == "1")


def _port(device: Device, bridge: Device) -> BridgePort:
    flags = device.port_flags
    return BridgePort(
        state=(device.state or "forwarding") if bridge.up and device.up else "disabled",
        hairpin="hairpin" in flags,
        isolated="isolated" in flags,
        flood="noflood" not in flags,
        learning="nolearning" not in flags,
    )


# --- sysctls ---------------------------------------------------------------------------------------------------------


def base_sysctls(names: list[str], *, six: bool) -> dict[str, str]:
    """Return the settings that a namespace with these devices starts from."""
    found = {key: str(value) for key, value in SINGLE.items()}
    for name in ("all", "default", *names):
        found |= {f"net/ipv4/conf/{name}/{key}": str(value) for key, value in PER_DEVICE4.items()}
        found |= {f"net/ipv6/conf/{name}/{key}": str(value) for key, value in PER_DEVICE6.items()}
        found[f"net/ipv6/conf/{name}/disable_ipv6"] = "0" if six else "1"
    found["net/ipv4/ip_forward"] = "0"
    return found


def sysctls_of(space: Space, *, six: bool) -> dict[str, str]:
    """Return the settings after a scenario's own are written, in order, with what the kernel copies from one to others."""
    names = list(space.devices)
    found = base_sysctls(names, six=six)
    for key, value in space.sysctls:
        found[key] = value
        if key in ("net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding"):
            found |= {f"net/ipv4/conf/{name}/forwarding": value for name in ("all", "default", *names)}
            found["net/ipv4/ip_forward"] = value
        if key in ("net/ipv6/conf/all/forwarding", "net/ipv6/conf/all/disable_ipv6"):
            setting = key.rpartition("/")[2]
            found |= {f"net/ipv6/conf/{name}/{setting}": value for name in ("all", "default", *names)}
    return found


# --- routes ----------------------------------------------------------------------------------------------------------


def _own_routes(link: Interface, sysctls: dict[str, str], *, six: bool) -> list[Route]:
    """fib_add_ifaddr (net/ipv4/fib_frontend.c) and addrconf_prefix_route, addrconf_add_mroute (net/ipv6/addrconf.c)."""
    found = [route for address in link.addresses if ":" not in address.ip for route in _routes4(link, address)]
    if not link.up:  # own IPv4 addresses stay
        return [route for route in found if route.type == "local"]
    if not six or sysctls[f"net/ipv6/conf/{link.name}/disable_ipv6"] != "0":
        return found
    forwarding = sysctls[f"net/ipv6/conf/{link.name}/forwarding"] == "1"
    for address in link.addresses:
        if ":" in address.ip:
            found += _routes6(link, address, forwarding=forwarding)
    if link.name != "lo":
        found.append(_made(link, "ff00::/8", type="multicast", table=255, metric=256))
    return found


def _routes4(link: Interface, address: Address) -> list[Route]:
    net = parse_net(f"{address.ip}/{address.prefixlen}")
    primary = next(
        one.ip for one in link.addresses if ":" not in one.ip and parse_net(f"{one.ip}/{one.prefixlen}") == net
    )
    lo = link.name == "lo" and address.scope == "host"
    found = [_made(link, f"{address.ip}/32", type="local", table=255, prefsrc=primary, scope="host")]
    if address.secondary:
        return found
    if address.prefixlen < 32:
        kind = {"type": "local", "table": 255, "scope": "host"} if lo else {"scope": "link"}
        found.append(_made(link, net, prefsrc=address.ip, **kind))
    if address.prefixlen < 31:
        last = str(parse_ip(_last(net)))
        found.append(_made(link, f"{last}/32", type="broadcast", table=255, prefsrc=address.ip, scope="link"))
    return found


def _last(net: str) -> str:
    base, _, length = net.partition("/")
    number = ip_int(parse_ip(base)) | ((1 << (32 - int(length))) - 1)
    return ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))


def _routes6(link: Interface, address: Address, *, forwarding: bool) -> list[Route]:
    found = [_made(link, f"{address.ip}/128", type="local", table=255)]
    if address.ip == "::1":
        return found
    net = parse_net(f"{address.ip}/{address.prefixlen}")
    found.append(_made(link, net, metric=256))
    if link.name == "lo":
        return found
    if forwarding and address.prefixlen < 127:
        found.append(_made(link, f"{net.partition('/')[0]}/128", type="anycast", table=255))
    return found


def _made(link: Interface, dst: str, **more: object) -> Route:
    return Route(dst=parse_net(dst), nexthops=(NextHop(dev=link.name),), protocol="kernel", **more)  # type: ignore[arg-type]


def _flagged(routes: tuple[Route, ...], links: tuple[Interface, ...], sysctls: dict[str, str]) -> tuple[Route, ...]:
    """Mark the next hops whose device has no carrier, as a dump shows them (fib_nexthop_info); own addresses stay."""
    without = {link.name for link in links if link.up and not link.carrier}
    ignored = {dev for dev in without if sysctls[f"net/ipv4/conf/{dev}/ignore_routes_with_linkdown"] == "1"}

    def hop(one: NextHop) -> NextHop:
        return replace(one, linkdown=True, dead=one.dev in ignored) if one.dev in without else one

    return tuple(
        route if route.type == "local" else replace(route, nexthops=tuple(hop(one) for one in route.nexthops))
        for route in routes
    )


def _sockets(scenario: Scenario, listen: Listen) -> Iterator[Socket]:
    for address, v6only in listen.binds(six=scenario.six):
        yield Socket(
            protocol=Protocol(listen.protocol),
            ip=Ip(address),
            port=listen.port,
            state="LISTEN" if listen.protocol == "tcp" else "UNCONN",
            dev=listen.dev or None,
            v6only=v6only,
            recv_queue=1 if listen.full else 0,
            uid=0,
            backlog=0 if listen.full else 512,
        )
