"""Do packets find their way out of a pod, and on its node into it? The pod's default route, the node's route to its address."""

from collections.abc import Iterator

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.ipcache import IPCache
from tasks.skoop.model.addr import Net, bounds, contains, ip_version, is_link_local, parse_net
from tasks.skoop.model.cluster import PodMeta
from tasks.skoop.model.ids import NetnsId, node_netns
from tasks.skoop.model.state import Address, Interface, NetNS, NextHop, Route, Section
from tasks.skoop.model.suspicion import AddRoute, Change, DeleteRoute, Suspicion
from tasks.skoop.model.trace import Place, Stage
from tasks.skoop.netstack.fib import FlowKey, Router
from tasks.skoop.remedy_commands import route_text
from tasks.skoop.remedy_links import MAIN_TABLE


class PodGateways:
    """Default routes of pods, and the routes of nodes to their own pods."""

    def __init__(self, ipcache: IPCache) -> None:
        self._ipcache = ipcache
        self._state = ipcache.state
        self._routers: dict[tuple[NetnsId, int], Router] = {}

    def suspicions(self, pod: PodMeta, netns: NetNS, inside: Interface, node: NetNS | None) -> Iterator[Suspicion]:
        """Yield what is wrong with the default routes in a pod."""
        if netns.lacks(Section.ROUTES) is not None or not inside.up:
            return
        for version in sorted({ip_version(ip) for ip in pod.ips}):
            default = next((route for route in netns.routes if _is_default(route, version)), None)
            if default is None:
                wanted = self.default_route(pod, inside, version)
                yield suspect(
                    "KP-ROUTE-003",
                    f"{pod.key} has no IPv{version} default route",
                    subject=netns.id,
                    place=Place(netns=netns.id, stage=Stage.ROUTE, key="0.0.0.0/0" if version == 4 else "::/0"),
                    seen="no default route",
                    expected=f"default via {wanted.nexthops[0].via}" if wanted else "a default route",
                    changes=(AddRoute(netns=netns.id, route=wanted),) if wanted else (),
                )
            elif node is not None:
                yield from self._gateway(pod, default, node)

    def _gateway(self, pod: PodMeta, default: Route, node: NetNS) -> Iterator[Suspicion]:
        for hop in default.nexthops:
            if hop.via is None or is_link_local(hop.via):
                continue  # the gateway of plugins that answer by proxy ARP
            owners = self._ipcache.owners(hop.via)
            if not any(owner.netns == node.id for owner in owners):
                whose = f"an address of {owners[0].name}" if owners else "nobody's address"
                yield suspect(
                    "KP-ROUTE-004",
                    f"the gateway {hop.via} of {pod.key} is {whose}, not one of its node's",
                    subject=pod.netns,
                    place=Place(netns=pod.netns, stage=Stage.ROUTE, key=default.dst),
                    seen=hop.via,
                )

    def default_route(self, pod: PodMeta, inside: Interface, version: int) -> Route | None:
        """Return the default route that the pod should have: through the bridge, or as its neighbours on the node have it."""
        node = self._state.netns.get(node_netns(pod.node_name))
        own = [ip for ip in pod.ips if ip_version(ip) == version]
        dst = Net("0.0.0.0/0" if version == 4 else "::/0")
        for link in node.interfaces if node is not None else ():
            for address in link.addresses:
                if link.kind == "bridge" and own and contains(_net_of(address), own[0]):
                    return Route(dst=dst, nexthops=(NextHop(dev=inside.name, via=address.ip),))
        for other in self._ipcache.pods_by_netns.values():
            netns = self._state.netns.get(other.netns)
            if netns is not None and other.node_name == pod.node_name:
                for route in netns.routes:
                    if _is_default(route, version) and route.nexthops and route.nexthops[0].dev == inside.name:
                        return route
        return None

    def lost_routes(self, pod: PodMeta, inside: Interface) -> list[Change]:
        """Return the routes to add after the pod's interface went up again: the kernel only restores the connected ones."""
        found: list[Change] = []
        for version in sorted({ip_version(ip) for ip in pod.ips}):
            route = self.default_route(pod, inside, version)
            if route is not None:
                found.append(AddRoute(netns=pod.netns, route=route))
        return found

    def way_in(self, pod: PodMeta, host: Interface | None, node: NetNS | None) -> Iterator[Suspicion]:
        """Yield a narrow route of the node that leads away from a pod which is plugged in there."""
        if node is None or host is None or node.lacks(Section.ROUTES) is not None:
            return
        ways = {host.name, host.master}
        for ip in pod.ips:
            key = (node.id, ip_version(ip))
            if key not in self._routers:
                self._routers[key] = Router(key[1], node.routes, node.rules, node.interfaces)
            found = self._routers[key].lookup(FlowKey(dst=ip))
            route = found.route if found is not None and not found.errno else None
            if found is None or route is None or bounds(route.dst).length < HOST_LENGTH[key[1]] or not found.legs:
                continue
            if not any(leg.dev in ways for leg in found.legs):
                yield suspect(
                    "KP-ROUTE-010",
                    f"a route for {route.dst} on {node.id.removeprefix('node/')} leads away from {pod.key}, which is there",
                    subject=node.id,
                    place=Place(netns=node.id, stage=Stage.ROUTE, key=route.dst),
                    seen=route_text(route),
                    expected=f"dev {host.master or host.name}",
                    changes=(DeleteRoute(netns=node.id, route=route),),
                )


HOST_LENGTH = {4: 32, 6: 128}
"""Length of a route for one address."""


def _net_of(address: Address) -> Net:
    return parse_net(f"{address.ip}/{address.prefixlen}")


def _is_default(route: Route, version: int) -> bool:
    return (
        route.type == "unicast"
        and bounds(route.dst).length == 0
        and ip_version(route.dst) == version
        and route.table == MAIN_TABLE
    )
