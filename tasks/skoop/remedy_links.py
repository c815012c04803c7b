"""What a change of a link, an address or a sysctl does to the rest of a namespace.

Follows devinet and fib_frontend (IPv4 routes that come and go with a device), addrconf (IPv6), br_add_if, and
devinet_sysctl_forward (forwarding is copied to every interface when it changes, and only then).
"""

from msgspec.structs import replace

from tasks.skoop.model.addr import Ip, Net, ip_version, parse_net
from tasks.skoop.model.state import Address, BridgePort, FdbEntry, Interface, NetNS, NextHop, Route
from tasks.skoop.model.suspicion import SetLink

LOCAL_TABLE = 255
MAIN_TABLE = 254
VXLAN_HEADROOM = {4: 50, 6: 70}
"""Bytes that vxlan adds over each IP version."""

ALL_FORWARDING = {
    "net/ipv4/ip_forward": "net/ipv4/conf",
    "net/ipv4/conf/all/forwarding": "net/ipv4/conf",
    "net/ipv6/conf/all/forwarding": "net/ipv6/conf",
}
"""Switches for all interfaces → where each interface's own copy lives."""


def set_sysctl(netns: NetNS, key: str, value: str) -> NetNS:
    """Return the namespace after writing a sysctl, with what the kernel copies along.

    Source: devinet_sysctl_forward, inet_forward_change (net/ipv4/devinet.c); addrconf_fixup_forwarding (net/ipv6/addrconf.c).
    """
    sysctls = dict(netns.sysctls)
    folder = ALL_FORWARDING.get(key)
    if folder is not None and sysctls.get(key) != value:
        if folder == "net/ipv4/conf":
            sysctls["net/ipv4/ip_forward"] = sysctls["net/ipv4/conf/all/forwarding"] = value
        names = {"default", *(link.name for link in netns.interfaces)}
        sysctls.update({f"{folder}/{name}/forwarding": value for name in names})
    sysctls[key] = value
    return replace(netns, sysctls=sysctls)


def add_address(netns: NetNS, dev: str, address: Address) -> NetNS:
    """Return the namespace with one more address on an interface, and its routes if the interface is up."""
    links = tuple(
        replace(link, addresses=(*link.addresses, address)) if link.name == dev else link for link in netns.interfaces
    )
    changed = replace(netns, interfaces=links)
    link = changed.interface(dev)
    return _with_routes(changed, _address_routes(link, (address,))) if link is not None and link.up else changed


def set_link(netns: NetNS, change: SetLink) -> tuple[str, NetNS]:
    """Return ("", the namespace after the change), or why the kernel refuses it and the namespace as it was."""
    link = netns.interface(change.dev)
    assert link is not None, "the caller has looked"
    if change.mtu is not None:
        problem = _mtu_problem(netns, link, change.mtu)
        if problem:
            return problem, netns
        netns, link = _put(netns, replace(link, mtu=change.mtu))
    if change.master is not None:
        bridge = netns.interface(change.master) if change.master else None
        if change.master and (bridge is None or bridge.kind != "bridge"):
            return f"{change.master} is not a bridge", netns
        netns, link = _set_master(netns, link, change.master)
    if (change.hairpin, change.isolated, change.port_state) != (None, None, None):
        if link.port is None:
            return f"{change.dev} is on no bridge", netns
        port = link.port
        port = replace(port, hairpin=port.hairpin if change.hairpin is None else change.hairpin)
        port = replace(port, isolated=port.isolated if change.isolated is None else change.isolated)
        port = replace(port, state=port.state if change.port_state is None else change.port_state)
        netns, link = _put(netns, replace(link, port=port))
    if change.up is not None and change.up != link.up:
        netns = _go_up(netns, link) if change.up else _go_down(netns, link)
    return "", netns


def _put(netns: NetNS, link: Interface) -> tuple[NetNS, Interface]:
    links = tuple(link if known.name == link.name else known for known in netns.interfaces)
    return replace(netns, interfaces=links), link


def _mtu_problem(netns: NetNS, link: Interface, mtu: int) -> str:
    """Return why the kernel refuses an MTU (vxlan_change_mtu, drivers/net/vxlan)."""
    if link.vxlan is None or link.vxlan.link is None:
        return ""
    lower = netns.interface(link.vxlan.link)
    if lower is None:
        return ""
    most = lower.mtu - VXLAN_HEADROOM[ip_version(link.vxlan.local or "")]
    return f"{link.name} cannot have more than {most} bytes over {lower.name}" if mtu > most else ""


def _set_master(netns: NetNS, link: Interface, master: str) -> tuple[NetNS, Interface]:
    """Join or leave a bridge: the port's own MAC becomes a permanent entry of the bridge, or all its entries go."""
    fdb = tuple(entry for entry in netns.fdb if entry.dev != link.name or entry.master is None)
    if not master:
        return _put(replace(netns, fdb=fdb), replace(link, master=None, port=None))
    fdb = (*fdb, FdbEntry(mac=link.mac, dev=link.name, master=master, permanent=True))
    return _put(replace(netns, fdb=fdb), replace(link, master=master, port=link.port or BridgePort()))


def _go_up(netns: NetNS, link: Interface) -> NetNS:
    carrier = True
    if link.kind == "bridge":
        netns = _with_ports(netns, link.name, forwarding=True)
        carrier = any(port.master == link.name and port.up and port.carrier for port in netns.interfaces)
    port = replace(link.port, state="forwarding") if link.port is not None else None
    netns, link = _put(netns, replace(link, up=True, carrier=carrier, operstate="UP" if carrier else "DOWN", port=port))
    return _with_routes(netns, _address_routes(link, link.addresses))


def _go_down(netns: NetNS, link: Interface) -> NetNS:
    """Take a device down: every route over it goes but those of the device's own IPv4 addresses (fib_sync_down_dev)."""
    port = replace(link.port, state="disabled") if link.port is not None else None
    if link.kind == "bridge":
        netns = _with_ports(netns, link.name, forwarding=False)
    netns, _ = _put(netns, replace(link, up=False, carrier=False, operstate="DOWN", port=port))

    def stays(route: Route) -> bool:
        over = [hop for hop in route.nexthops if hop.dev == link.name]
        return not over or (route.type == "local" and ip_version(route.dst) == 4)

    routes = []
    for route in netns.routes:
        if stays(route):
            routes.append(route)
        elif len(route.nexthops) > 1:
            routes.append(replace(route, nexthops=_dead(route.nexthops, link.name)))
    return replace(netns, routes=tuple(route for route in routes if not _all_dead(route)))


def _with_ports(netns: NetNS, bridge: str, *, forwarding: bool) -> NetNS:
    """Start or stop the ports of a bridge, as it goes up or down (br_stp_enable_bridge, br_stp_disable_bridge)."""
    links = []
    for link in netns.interfaces:
        if link.master == bridge and link.port is not None:
            state = "forwarding" if forwarding and link.up and link.carrier else "disabled"
            links.append(replace(link, port=replace(link.port, state=state)))
        else:
            links.append(link)
    return replace(netns, interfaces=tuple(links))


def _dead(hops: tuple[NextHop, ...], dev: str) -> tuple[NextHop, ...]:
    return tuple(replace(hop, dead=True) if hop.dev == dev else hop for hop in hops)


def _all_dead(route: Route) -> bool:
    return bool(route.nexthops) and all(hop.dead for hop in route.nexthops)


def _with_routes(netns: NetNS, routes: tuple[Route, ...]) -> NetNS:
    """Add routes that are not there yet (same prefix, table and device)."""

    def key(route: Route) -> tuple[Net, int, str, str | None]:
        return route.dst, route.table, route.type, route.nexthops[0].dev if route.nexthops else None

    present = {key(route) for route in netns.routes}
    return replace(netns, routes=(*netns.routes, *(route for route in routes if key(route) not in present)))


def _address_routes(link: Interface, addresses: tuple[Address, ...]) -> tuple[Route, ...]:
    """Return the routes that the kernel makes for addresses (fib_add_ifaddr; addrconf_prefix_route)."""
    routes: list[Route] = []
    hop = (NextHop(dev=link.name),)
    for address in addresses:
        own = parse_net(address.ip)
        prefsrc: Ip | None = address.ip
        if ip_version(address.ip) == 6:
            prefsrc = None
        routes.append(
            Route(
                dst=own, table=LOCAL_TABLE, type="local", nexthops=hop, prefsrc=prefsrc, scope="host", protocol="kernel"
            )
        )
        width = 32 if ip_version(address.ip) == 4 else 128
        if address.prefixlen < width and not address.noprefixroute:
            net = parse_net(f"{address.peer or address.ip}/{address.prefixlen}")
            metric = 0 if width == 32 else 256
            routes.append(Route(dst=net, nexthops=hop, prefsrc=prefsrc, scope="link", protocol="kernel", metric=metric))
        if address.broadcast:
            dst = parse_net(address.broadcast)
            routes.append(
                Route(
                    dst=dst,
                    table=LOCAL_TABLE,
                    type="broadcast",
                    nexthops=hop,
                    prefsrc=prefsrc,
                    scope="link",
                    protocol="kernel",
                )
            )
    return tuple(routes)
