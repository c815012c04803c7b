"""What netlink's common attributes do not tell of a namespace's devices, asked of the tools that know.

Settings of tunnels, macvlans, bonds and the like from `ip -j -d link`, VLANs of bridges that filter by them from `bridge -j vlan`,
wireguard's peers from `wg show all` (which hides keys), nexthop objects from `ip -j nexthop`. Each is asked only where there is
something to ask about: most namespaces have none of it, and a program costs more than a whole dump by netlink.
"""

from msgspec.structs import replace

from tasks.skoop.collect.tools import find_tool, run_tool
from tasks.skoop.model.state import Interface, NextHopObject, Route
from tasks.skoop.parse.links import SETTINGS, in_vlans, parse_links, parse_vlans, with_settings
from tasks.skoop.parse.nexthops import parse_nexthops, resolve
from tasks.skoop.parse.routes import parse_routes
from tasks.skoop.parse.wireguard import parse_wireguard


def with_details(interfaces: tuple[Interface, ...]) -> tuple[Interface, ...]:
    """Return the interfaces with the settings of their kinds. Raises ToolFailed, ParseError."""
    kinds = {link.kind for link in interfaces}
    if kinds & SETTINGS:
        interfaces = with_settings(interfaces, parse_links(run_tool(["ip", "-j", "-d", "link", "show"]), "ip -d link"))
    if any(link.bridge and link.bridge.vlan_filtering for link in interfaces):
        vlans = parse_vlans(run_tool(["bridge", "-j", "vlan", "show"]), "bridge vlan show")
        interfaces = tuple(replace(link, vlans=in_vlans(link, vlans)) for link in interfaces)
    if "wireguard" in kinds and find_tool("wg") is not None:
        devices = parse_wireguard(run_tool(["wg", "show", "all"]), "wg show all")
        interfaces = tuple(replace(link, wireguard=devices.get(link.name)) for link in interfaces)
    return interfaces


def with_objects(routes: tuple[Route, ...]) -> tuple[tuple[Route, ...], tuple[NextHopObject, ...]]:
    """Return the routes with the nexthop objects that they go by, and all objects. Raises ToolFailed, ParseError, UnresolvedNexthop."""
    printed = [
        route
        for family in ("-4", "-6")
        for route in parse_routes(
            run_tool(["ip", "-j", "-d", "-N", family, "route", "show", "table", "all"]),
            f"ip {family} route",
            family=int(family[1]),
        )
    ]
    numbers = {_key(route): route.nhid for route in printed if route.nhid}
    routes = tuple(replace(route, nhid=numbers.get(_key(route), 0)) for route in routes)
    objects = parse_nexthops(run_tool(["ip", "-j", "nexthop", "show"]), "ip nexthop show")
    return resolve(routes, objects), objects


def _key(route: Route) -> tuple[object, ...]:
    return route.dst, route.table, route.metric, route.tos, route.src
