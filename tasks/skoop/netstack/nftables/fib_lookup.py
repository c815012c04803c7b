"""What `fib` expressions find: the type of an address, or the device that a route leads to.

Follows nft_fib_ipv4.c and nft_fib_ipv6.c: the address type is that of the namespace (or of one device), the route is looked up
from the local host's point of view, and a route to this host itself counts as none.
"""

from ipaddress import ip_address

from tasks.skoop.model.addr import Ip, is_link_local, is_multicast
from tasks.skoop.model.state import NetNS
from tasks.skoop.netstack.fib import FlowKey, Router
from tasks.skoop.netstack.nftables import datatypes as dt
from tasks.skoop.netstack.nftables.datatypes import Datatype, name_number
from tasks.skoop.netstack.nftables.jsonform import Json, fields, items, text
from tasks.skoop.netstack.nftables.outcomes import Getter, Outcome, Unsure
from tasks.skoop.netstack.nftables.packet_facts import Links, ifindex
from tasks.skoop.netstack.nftables.view import PacketView
from tasks.skoop.netstack.xtables.api import Hook
from tasks.skoop.netstack.xtables.truth import NotUnderstood


class Routes:
    """The routes of a namespace, made ready on first use."""

    def __init__(self, netns: NetNS) -> None:
        self._netns = netns
        self._routers: dict[int, Router] = {}

    def router(self, family: int) -> Router:
        """Return the routes of a family."""
        if family not in self._routers:
            netns = self._netns
            self._routers[family] = Router(family, netns.routes, netns.rules, netns.interfaces)
        return self._routers[family]

    def device_to(self, key: FlowKey, family: int, only: str) -> str:
        """Return the device that the route leads to ("" for none, or if it is not `only`)."""
        found = self.router(family).lookup(key)
        if found is None or found.errno or found.type == "local":
            return ""
        if only:
            return only if any(leg.dev == only for leg in found.legs) else ""
        return found.legs[0].dev if found.legs else ""


def fib(content: Json, links: Links, routes: Routes) -> tuple[Getter, Datatype]:
    """Return how to look an address up, and the answer's type."""
    result = text(content, "result")
    flags = frozenset(text(flag) for flag in items(fields(content).get("flags", [])))
    if not flags <= {"saddr", "daddr", "iif", "oif", "mark"} or not flags & {"saddr", "daddr"}:
        raise NotUnderstood(f"fib {' . '.join(sorted(flags))}")
    of_source, device = "saddr" in flags, "iif" if "iif" in flags else "oif" if "oif" in flags else ""
    if result == "type":
        return _type_of(of_source, device), dt.ADDRTYPE
    if result not in ("oif", "oifname", "check"):
        raise NotUnderstood(f"fib … {result}")
    lookup = _Lookup(routes, of_source, device, marked="mark" in flags)
    if result == "oifname":
        return (lambda view: name_number(lookup.device(view))), dt.IFNAME
    if result == "check":
        return (lambda view: int(bool(lookup.device(view)))), dt.BOOLEAN
    unknown = Unsure("a device that was not collected", "fib")

    def index(view: PacketView) -> Outcome:
        name = lookup.device(view)
        link = links.get(name)
        return 0 if not name else unknown if link is None else link.index

    return index, ifindex(links)


def _device(view: PacketView, which: str) -> str:
    return view.context.in_dev if which == "iif" else view.context.out_dev if which == "oif" else ""


def _type_of(of_source: bool, device: str) -> Getter:
    def get(view: PacketView) -> Outcome:
        ip = view.packet.src if of_source else view.packet.dst
        return dt.ADDRTYPE.symbols[view.context.facts.address_type(ip, _device(view, device) or None).lower()]

    return get


class _Lookup:
    """nft_fib4_eval and nft_fib6_eval for results that are a device."""

    def __init__(self, routes: Routes, of_source: bool, device: str, *, marked: bool) -> None:
        self.routes = routes
        self.of_source = of_source
        self.which = device
        self.marked = marked

    def device(self, view: PacketView) -> str:
        """Return the device that would be used towards the address, "" if none."""
        context, packet = view.context, view.packet
        if context.hook == Hook.PREROUTING and context.in_dev == "lo":
            return "lo"
        if packet.src == "0.0.0.0" and (packet.dst == "255.255.255.255" or packet.dst.startswith("224.0.0.")):
            return context.in_dev
        dst, src = (packet.src, packet.dst) if self.of_source else (packet.dst, packet.src)
        only = _device(view, self.which)
        key = FlowKey(
            dst=dst,
            src=_usable(src),
            oif=only if view.version == 6 and is_link_local(dst) else "",
            mark=view.mark if self.marked else 0,
        )
        return self.routes.device_to(key, view.version, only)


def _usable(ip: Ip) -> Ip | None:
    """Return the address as the other end of a look-up; none that no host has (get_saddr)."""
    return None if is_multicast(ip) or ip == "255.255.255.255" or ip_address(ip).is_unspecified else ip
