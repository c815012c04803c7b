"""Does a node's routing lead where the plugin means it to, for packets that pods send?

Looks a packet up as the kernel would (policy rules included), and says what is in the way: nothing there, a rule, another
route. So a route that is present but never used is found as well.
"""

from collections.abc import Iterable, Iterator

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.ipcache import IPCache
from tasks.skoop.model.addr import Ip, Net, bounds, contains, ip_version
from tasks.skoop.model.ids import NetnsId, NodeName, node_netns
from tasks.skoop.model.state import NetNS, NextHop, Route, Section
from tasks.skoop.model.suspicion import AddRoute, Change, DeletePolicyRule, DeleteRoute, Suspicion
from tasks.skoop.model.trace import Place, Stage
from tasks.skoop.netstack.fib import MAIN_TABLE, FlowKey, Found, Router
from tasks.skoop.plugins.flannel_config import first_host
from tasks.skoop.remedy_commands import route_text

STOPPING = frozenset(("blackhole", "unreachable", "prohibit"))


class PodRoutes:
    """Routes between the pods of different nodes, for plugins of which no more is known than that they route."""

    def __init__(self, ipcache: IPCache) -> None:
        self._ipcache = ipcache
        self._state = ipcache.state
        self._routers: dict[tuple[NetnsId, int], Router] = {}

    def router(self, netns: NetNS, family: int) -> Router:
        """Return the compiled routes of a namespace."""
        key = (netns.id, family)
        if key not in self._routers:
            self._routers[key] = Router(family, netns.routes, netns.rules, netns.interfaces)
        return self._routers[key]

    def peer_suspicions(self, source: NodeName, target: NodeName) -> tuple[Suspicion, ...]:
        """Return what looks wrong about a node's routes to a peer's pods, judged by the routes that the other nodes have."""
        netns = self._state.netns.get(node_netns(source))
        peer = self._ipcache.nodes.get(target)
        if netns is None or peer is None or netns.lacks(Section.ROUTES) is not None:
            return ()
        found: list[Suspicion] = []
        for net in peer.pod_cidrs:
            wanted = self.usual_route(source, net)
            if wanted is not None:
                own = [known for known in self._ipcache.nodes[source].pod_cidrs if ip_version(known) == ip_version(net)]
                router = self.router(netns, ip_version(net))
                found += route_suspicions(netns, router, wanted, source=own[0] if own else None, peer=target)
            elif not self._specific(netns, net) and self._others_have(source, target, net):
                found.append(
                    suspect(
                        "KP-ROUTE-001",
                        f"{source} has no route to the pods of {target} ({net}), unlike other nodes",
                        subject=netns.id,
                        place=Place(netns=netns.id, stage=Stage.ROUTE, key=net),
                    )
                )
        return tuple(found)

    def usual_route(self, node: NodeName, net: Net) -> Route | None:
        """Return the route to a peer's pods through the peer's own address, if every other node has just that one.

        None where the others do it differently (an overlay), differ among themselves, or are not there to compare with.
        """
        peer = next((meta for meta in self._state.objects.nodes if net in meta.pod_cidrs), None)
        netns = self._state.netns.get(node_netns(node))
        if peer is None or netns is None or peer.name == node:
            return None
        hops = [
            hop
            for name in self._ipcache.nodes
            if name not in (node, peer.name) and (other := self._state.netns.get(node_netns(name))) is not None
            for route in other.routes
            if route.dst == net and route.table == MAIN_TABLE
            for hop in route.nexthops
        ]
        ways = {hop.via for hop in hops}
        via = next(iter(ways), None)
        if len(ways) != 1 or via is None or via not in peer.ips:
            return None
        dev = _device_of(netns, self._ipcache.nodes[node].ips, ip_version(via))
        return Route(dst=net, nexthops=(NextHop(dev=dev, via=via),)) if dev is not None else None

    def _specific(self, netns: NetNS, net: Net) -> bool:
        found = self.router(netns, ip_version(net)).lookup(FlowKey(dst=first_host(net), iif="lo"))
        return found is not None and found.route is not None and bounds(found.route.dst).length > 0

    def _others_have(self, source: NodeName, target: NodeName, net: Net) -> bool:
        others = (
            self._state.netns.get(node_netns(name)) for name in self._ipcache.nodes if name not in (source, target)
        )
        return any(netns is not None and self._specific(netns, net) for netns in others)


def _device_of(netns: NetNS, ips: Iterable[Ip], version: int) -> str | None:
    """Return the device with the node's own address of an IP version."""
    wanted = {ip for ip in ips if ip_version(ip) == version}
    return next((link.name for link in netns.interfaces if any(a.ip in wanted for a in link.addresses)), None)


def route_suspicions(
    netns: NetNS, router: Router, wanted: Route, *, source: Net | None, peer: str
) -> Iterator[Suspicion]:
    """Yield why packets of pods in `source` do not take the wanted route for its whole prefix."""
    if netns.lacks(Section.ROUTES) is not None:
        return
    iif = _pod_device(netns, source)
    key = FlowKey(dst=first_host(wanted.dst), src=first_host(source) if source else None, iif=iif)
    found = router.lookup(key)
    if not _as_wanted(found, wanted) and not _narrower(found, wanted):
        yield _explain(netns, wanted, found, peer)
    yield from _inside(netns, wanted, peer)


def _pod_device(netns: NetNS, source: Net | None) -> str:
    """Return the device on which packets of the node's own pods come in, "" if none is apparent."""
    if source is None:
        return ""
    for link in netns.interfaces:
        if link.kind == "bridge" and any(contains(source, address.ip) for address in link.addresses):
            return link.name
    return ""


def _as_wanted(found: Found | None, wanted: Route) -> bool:
    if found is None or found.route is None or found.errno or not found.legs:
        return False
    hop = wanted.nexthops[0]
    return all(leg.nexthop.dev == hop.dev and leg.nexthop.via == hop.via for leg in found.legs)


def _narrower(found: Found | None, wanted: Route) -> bool:
    """Say whether a route of the main table for a part of the prefix was taken: `_inside` reports those, each by itself."""
    if found is None or found.route is None or _from_rule(found):
        return False
    return found.route.table == MAIN_TABLE and bounds(found.route.dst).length > bounds(wanted.dst).length


def _explain(netns: NetNS, wanted: Route, found: Found | None, peer: str) -> Suspicion:
    """Return the suspicion that says why the wanted route is not taken."""
    node = netns.id.removeprefix("node/")
    exact = [route for route in netns.routes if route.dst == wanted.dst and route.table == MAIN_TABLE]
    add = AddRoute(netns=netns.id, route=wanted)
    changes: tuple[Change, ...] = (add,)
    expected = route_text(wanted)
    seen = route_text(found.route) if found is not None and found.route is not None else "no route at all"
    where = Place(netns=netns.id, stage=Stage.ROUTE, key=wanted.dst)
    if found is not None and _from_rule(found):
        rule = found.rule
        selector = " ".join(
            part for part in (f"from {rule.src}" if rule.src else "", f"to {rule.dst}" if rule.dst else "") if part
        )
        changes = (DeletePolicyRule(netns=netns.id, family=rule.family, priority=rule.priority, table=rule.table),)
        return suspect(
            "KP-ROUTE-006",
            f"ip rule {rule.priority} ({selector or 'from all'}) on {node} sends packets for the pods of {peer} another way",
            subject=netns.id,
            place=Place(netns=netns.id, stage=Stage.ROUTE, key=f"rule {rule.priority}"),
            seen=seen,
            expected=expected,
            changes=changes if rule.action == "lookup" else (),
        )
    stopping = found.route if found is not None and found.route is not None and found.route.type in STOPPING else None
    if stopping is not None:
        return _stops(netns, node, stopping, peer, wanted, exact)
    if not exact:
        code, message = "KP-ROUTE-001", f"{node} has no route to the pods of {peer} ({wanted.dst})"
    else:
        code, message = "KP-ROUTE-002", f"the route of {node} to the pods of {peer} ({wanted.dst}) leads elsewhere"
        changes = (*(DeleteRoute(netns=netns.id, route=route) for route in exact), add)
    return suspect(
        code, message, subject=netns.id, place=where, seen=f"taken: {seen}", expected=expected, changes=changes
    )


def _stops(netns: NetNS, node: str, route: Route, peer: str, wanted: Route, exact: list[Route]) -> Suspicion:
    present = any(_same_way(known, wanted) for known in exact)
    changes: list[Change] = [DeleteRoute(netns=netns.id, route=route)]
    if not present:
        changes.append(AddRoute(netns=netns.id, route=wanted))
    return suspect(
        "KP-ROUTE-005",
        f"a {route.type} route for {route.dst} on {node} discards packets for the pods of {peer}",
        subject=netns.id,
        place=Place(netns=netns.id, stage=Stage.ROUTE, key=route.dst),
        seen=route_text(route),
        expected=route_text(wanted),
        changes=changes,
    )


def _same_way(known: Route, wanted: Route) -> bool:
    return known.type == "unicast" and bool(known.nexthops) and known.nexthops[0].via == wanted.nexthops[0].via


def _from_rule(found: Found) -> bool:
    """Say whether a policy rule of the user decided, not one of the kernel's three."""
    return found.rule.priority not in (0, 32766, 32767) or found.rule.action != "lookup"


def _inside(netns: NetNS, wanted: Route, peer: str) -> Iterator[Suspicion]:
    """Report routes of the main table inside the peer's network: for a part of its pods they win."""
    box = bounds(wanted.dst)
    hop = wanted.nexthops[0]
    node = netns.id.removeprefix("node/")
    for route in netns.routes:
        inner = bounds(route.dst)
        if route.table != MAIN_TABLE or inner.version != box.version or inner.length <= box.length:
            continue
        if not box.first <= inner.first <= box.last:
            continue
        if route.nexthops and all((leg.dev, leg.via) == (hop.dev, hop.via) for leg in route.nexthops):
            continue
        code = "KP-ROUTE-005" if route.type in STOPPING else "KP-ROUTE-010"
        what = "discards" if route.type in STOPPING else "takes another way with"
        yield suspect(
            code,
            f"a route for {route.dst} on {node} {what} packets for some pods of {peer}",
            subject=netns.id,
            place=Place(netns=netns.id, stage=Stage.ROUTE, key=route.dst),
            seen=route_text(route),
            expected=route_text(wanted),
            changes=(DeleteRoute(netns=netns.id, route=route),),
        )
