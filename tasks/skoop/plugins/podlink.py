"""Is a pod plugged in? Its interface, the host end of its veth, the bridge port, and its address.

Holds for every plugin that connects pods by veth pairs; what is asked of the host end (that it is on a bridge, with hairpin
mode) is asked only where the node's other pods have it so.
"""

from collections.abc import Iterator
from functools import cached_property
from ipaddress import ip_address

from msgspec import Struct

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.ipcache import NO_ADDRESS_PHASES, IPCache
from tasks.skoop.model.addr import Ip, Net, bounds, contains, ip_version, is_link_local
from tasks.skoop.model.cluster import NodeMeta, PodMeta
from tasks.skoop.model.ids import NetnsId, NodeName, node_netns
from tasks.skoop.model.state import Address, Interface, NetNS, NextHop, Route, Section
from tasks.skoop.model.suspicion import AddAddress, AddRoute, Change, SetLink, Suspicion
from tasks.skoop.model.trace import Place, Stage
from tasks.skoop.plugins.podgateway import PodGateways
from tasks.skoop.remedy_links import LOCAL_TABLE, MAIN_TABLE


class Plug(Struct, frozen=True, kw_only=True):
    """How a pod is plugged in: its own interface, and the host end of the veth, if they were found."""

    inside: Interface | None
    host: Interface | None
    node: NetNS | None


class PodLinks:
    """The connections of all pods to their nodes."""

    def __init__(self, ipcache: IPCache) -> None:
        self._ipcache = ipcache
        self._state = ipcache.state
        self._gateways = PodGateways(ipcache)

    def plug(self, pod: PodMeta) -> Plug:
        """Return how a pod is plugged in, as far as it was collected."""
        netns = self._state.netns.get(pod.netns)
        node = self._state.netns.get(node_netns(pod.node_name)) if pod.node_name else None
        inside = _pod_interface(pod, netns) if netns is not None else None
        return Plug(inside=inside, host=_host_end(inside, netns, node), node=node)

    def default_route(self, pod: PodMeta, version: int) -> Route | None:
        """Return the default route that a pod should have, None if that cannot be told."""
        inside = self.plug(pod).inside
        return self._gateways.default_route(pod, inside, version) if inside is not None else None

    def connected_route(self, node: NodeName, net: Net) -> Route | None:
        """Return the route to a node's own pods that its bridge's address makes, None without such a bridge."""
        netns = self._state.netns.get(node_netns(node))
        for link in netns.interfaces if netns else ():
            for address in link.addresses:
                if link.kind == "bridge" and contains(net, address.ip):
                    return Route(
                        dst=net, nexthops=(NextHop(dev=link.name),), prefsrc=address.ip, scope="link", protocol="kernel"
                    )
        return None

    # --- what most pods have -------------------------------------------------------------------------------------

    @cached_property
    def _hosts(self) -> dict[NetnsId, list[Interface]]:
        """Host ends of the pods of each node."""
        found: dict[NetnsId, list[Interface]] = {}
        for pod in self._ipcache.pods_by_netns.values():
            plug = self.plug(pod)
            if plug.host is not None and plug.node is not None:
                found.setdefault(plug.node.id, []).append(plug.host)
        return found

    @cached_property
    def _bridge(self) -> str | None:
        """Name of the bridge that most host ends of the cluster are on, None if most are on none."""
        masters = [host.master for hosts in self._hosts.values() for host in hosts]
        return max(sorted(set(masters), key=str), key=masters.count) if masters else None

    def _bridge_on(self, node: NetnsId) -> str | None:
        """Name of the bridge of a node's pods: what most of its host ends are on, else what is usual in the cluster."""
        masters = [host.master for host in self._hosts.get(node, ()) if host.master]
        if self._bridge is None:
            return None
        return max(sorted(set(masters)), key=masters.count) if masters else self._bridge

    @cached_property
    def _hairpin_is_usual(self) -> bool:
        ports = [host.port for hosts in self._hosts.values() for host in hosts if host.port is not None]
        return sum(port.hairpin for port in ports) * 2 > len(ports)

    # --- the node's side -----------------------------------------------------------------------------------------

    def node_suspicions(self, meta: NodeMeta, netns: NetNS) -> Iterator[Suspicion]:
        """Yield what is wrong with the bridge of a node's pods."""
        if not self._hosts.get(netns.id) or netns.lacks(Section.LINKS) is not None:
            return
        name = self._bridge_on(netns.id)
        if name is None:
            return
        place = Place(netns=netns.id, stage=Stage.BRIDGE, dev=name, key=name)
        bridge = netns.interface(name)
        if bridge is None:
            yield suspect("KP-LINK-015", f"{meta.name} has no bridge {name}", subject=netns.id, place=place)
            return
        if not bridge.up:
            yield suspect(
                "KP-LINK-005",
                f"bridge {name} on {meta.name} is down",
                subject=netns.id,
                place=place,
                seen="down",
                expected="up",
                changes=(SetLink(netns=netns.id, dev=name, up=True),),
            )
        yield from self._bridge_address(meta, netns, bridge, place)
        own = [entry for entry in netns.fdb if entry.master == name and entry.dev == name and entry.mac == bridge.mac]
        if bridge.mac and netns.fdb and not own and netns.lacks(Section.FDB) is None:
            message = f"bridge {name} on {meta.name} has no entry for its own MAC {bridge.mac}"
            yield suspect(
                "KP-LINK-012",
                message,
                subject=netns.id,
                place=place,
                expected=f"{bridge.mac} dev {name} master {name} permanent",
            )

    def _bridge_address(self, meta: NodeMeta, netns: NetNS, bridge: Interface, place: Place) -> Iterator[Suspicion]:
        for net in meta.pod_cidrs:
            own = [address for address in bridge.addresses if contains(net, address.ip)]
            if not own:
                others = [
                    a.ip for a in bridge.addresses if ip_version(a.ip) == ip_version(net) and not is_link_local(a.ip)
                ]
                version = ip_version(net)
                if not others and not self._carries(version):
                    continue
                gateway = _gateway(net)
                address = Address(ip=gateway, prefixlen=bounds(net).length)
                yield suspect(
                    "KP-ADDR-003",
                    f"bridge {bridge.name} on {meta.name} has no address in the pod network {net}",
                    subject=netns.id,
                    place=place,
                    seen=", ".join(others) or "none",
                    expected=gateway,
                    changes=(AddAddress(netns=netns.id, dev=bridge.name, address=address),),
                )
            elif bridge.up and netns.lacks(Section.ROUTES) is None and not _has_route(netns, net, bridge.name):
                route = self.connected_route(meta.name, net)
                yield suspect(
                    "KP-ROUTE-008",
                    f"{meta.name} has no route to its own pods ({net} dev {bridge.name})",
                    subject=netns.id,
                    place=Place(netns=netns.id, stage=Stage.ROUTE, key=net),
                    changes=(AddRoute(netns=netns.id, route=route),) if route else (),
                )

    def _carries(self, version: int) -> bool:
        """Say whether pods have addresses of that IP version at all."""
        return any(ip_version(ip) == version for pod in self._ipcache.pods_by_netns.values() for ip in pod.ips)

    # --- the pod's side ------------------------------------------------------------------------------------------

    def pod_suspicions(self, pod: PodMeta) -> Iterator[Suspicion]:
        """Yield what is wrong with a pod's connection to its node."""
        netns = self._state.netns.get(pod.netns)
        if netns is None or netns.lacks(Section.LINKS) is not None or pod.phase in NO_ADDRESS_PHASES:
            return
        plug = self.plug(pod)
        if plug.inside is None:
            yield suspect("KP-LINK-013", f"{pod.key} has no network interface but lo", subject=pod.netns)
            return
        yield from self._inside(pod, netns, plug.inside)
        if plug.host is not None and plug.node is not None:
            yield from self._outside(pod, plug.inside, plug.host, plug.node)
        yield from self._gateways.suspicions(pod, netns, plug.inside, plug.node)
        yield from self._gateways.way_in(pod, plug.host, plug.node)

    def _inside(self, pod: PodMeta, netns: NetNS, link: Interface) -> Iterator[Suspicion]:
        place = Place(netns=netns.id, stage=Stage.LINK, dev=link.name, key=link.name)
        have = {address.ip for other in netns.interfaces for address in other.addresses}
        if not link.up:
            changes: list[Change] = [SetLink(netns=netns.id, dev=link.name, up=True)]
            lost = [ip for ip in pod.ips if ip_version(ip) == 6 and ip not in have]  # a link that goes down loses them
            changes += [change for ip in lost for change in _give_back(netns.id, link, ip)]
            changes += self._gateways.lost_routes(pod, link)
            have |= set(lost)
            message = f"{link.name} of {pod.key} is down"
            yield suspect(
                "KP-LINK-001", message, subject=netns.id, place=place, seen="down", expected="up", changes=changes
            )
        for ip in pod.ips:
            if ip not in have:
                yield suspect(
                    "KP-ADDR-002",
                    f"{pod.key} does not have its address {ip}",
                    subject=netns.id,
                    place=place,
                    seen=", ".join(sorted(address.ip for address in link.addresses)) or "none",
                    expected=ip,
                    changes=_give_back(netns.id, link, ip),
                )

    def _outside(self, pod: PodMeta, inside: Interface, host: Interface, node: NetNS) -> Iterator[Suspicion]:
        place = Place(netns=node.id, stage=Stage.LINK, dev=host.name, key=host.name)
        who = f"{host.name} on {node.id.removeprefix('node/')} (the host end of {pod.key})"
        if not host.up:
            change = SetLink(netns=node.id, dev=host.name, up=True)
            yield suspect(
                "KP-LINK-003",
                f"{who} is down",
                subject=node.id,
                place=place,
                seen="down",
                expected="up",
                changes=(change,),
            )
        if inside.mtu != host.mtu:
            usual = self._usual_mtu(node.id, host)
            wrong_is_host = host.mtu != usual
            netns, dev = (node.id, host.name) if wrong_is_host else (pod.netns, inside.name)
            yield suspect(
                "KP-LINK-008",
                f"{inside.name} of {pod.key} has the MTU {inside.mtu}, its host end {host.name} has {host.mtu}",
                subject=netns,
                place=Place(netns=netns, stage=Stage.MTU, dev=dev, key=dev),
                seen=f"{inside.mtu} and {host.mtu}",
                expected=f"the same at both ends ({usual})",
                changes=(SetLink(netns=netns, dev=dev, mtu=usual),),
            )
        bridge = self._bridge_on(node.id)
        if bridge is not None:
            yield from self._port(host, node, bridge, who)

    def _usual_mtu(self, node: NetnsId, besides: Interface) -> int:
        mtus = [host.mtu for host in self._hosts.get(node, ()) if host.name != besides.name] or [besides.mtu]
        return max(sorted(set(mtus)), key=mtus.count)

    def _port(self, host: Interface, node: NetNS, bridge: str, who: str) -> Iterator[Suspicion]:
        place = Place(netns=node.id, stage=Stage.BRIDGE, dev=host.name, key=host.name)
        hairpin = True if self._hairpin_is_usual else None
        if host.master is None:
            yield suspect(
                "KP-LINK-004",
                f"{who} is not on the bridge {bridge}",
                subject=node.id,
                place=place,
                seen="no master",
                expected=f"master {bridge}",
                changes=(SetLink(netns=node.id, dev=host.name, master=bridge, hairpin=hairpin),),
            )
            return
        port = host.port
        if port is None:
            return
        if port.state != "forwarding" and host.up and host.carrier and self._is_up(node, host.master):
            message = f"the bridge port {who} is in state {port.state}"
            change = SetLink(netns=node.id, dev=host.name, port_state="forwarding")
            yield suspect(
                "KP-LINK-006",
                message,
                subject=node.id,
                place=place,
                seen=port.state,
                expected="forwarding",
                changes=(change,),
            )
        if hairpin and not port.hairpin:
            yield suspect(
                "KP-LINK-007",
                f"hairpin mode is off on {who}: the pod cannot reach itself through a Service",
                subject=node.id,
                place=place,
                seen="hairpin off",
                expected="hairpin on, as on most ports",
                changes=(SetLink(netns=node.id, dev=host.name, hairpin=True),),
            )
        if port.isolated:
            yield suspect(
                "KP-LINK-011",
                f"the bridge port {who} is isolated",
                subject=node.id,
                place=place,
                seen="isolated on",
                expected="isolated off",
                changes=(SetLink(netns=node.id, dev=host.name, isolated=False),),
            )

    @staticmethod
    def _is_up(node: NetNS, name: str) -> bool:
        link = node.interface(name)
        return link is not None and link.up


def _pod_interface(pod: PodMeta, netns: NetNS) -> Interface | None:
    """Return the interface with the pod's address, else eth0, else the first that is not lo."""
    links = [link for link in netns.interfaces if link.name != "lo"]
    for link in links:
        if any(address.ip in pod.ips for address in link.addresses):
            return link
    return next((link for link in links if link.name == "eth0"), links[0] if links else None)


def _host_end(inside: Interface | None, pod: NetNS | None, node: NetNS | None) -> Interface | None:
    """Return the other end of the pod's veth on its node: as resolved by the collector, else by its number."""
    if inside is None or pod is None or node is None:
        return None
    if inside.peer is not None:
        return node.interface(inside.peer[1]) if inside.peer[0] == node.id else None
    if inside.kind not in ("veth", "") or inside.peer_index is None:
        return None
    fitting = [link for link in node.interfaces if link.index == inside.peer_index and link.peer_index == inside.index]
    return fitting[0] if fitting else None


def _gateway(net: Net) -> Ip:
    """Return the first address of a network after its own, which bridge plugins take for the gateway."""
    return Ip(str(ip_address(net.partition("/")[0]) + 1))


def _give_back(netns: NetnsId, link: Interface, ip: Ip) -> tuple[Change, ...]:
    others = [address.prefixlen for address in link.addresses if ip_version(address.ip) == ip_version(ip)]
    length = others[0] if others else (24 if ip_version(ip) == 4 else 64)
    return (AddAddress(netns=netns, dev=link.name, address=Address(ip=ip, prefixlen=length)),)


def _has_route(netns: NetNS, net: Net, dev: str) -> bool:
    return any(
        route.dst == net and route.table in (MAIN_TABLE, LOCAL_TABLE) and any(hop.dev == dev for hop in route.nexthops)
        for route in netns.routes
    )
