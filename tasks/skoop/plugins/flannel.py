"""flannel (vxlan, host-gw): what flanneld sets on every node, and whether it is there.

Follows pkg/backend/vxlan (device `flannel.<vni>` without learning, for each peer a permanent neighbour entry, a forwarding
entry and an onlink route), pkg/backend/hostgw (a route through the peer's public address) and pkg/trafficmngr/iptables of
flannel v0.22. Checks the effect where an effect can be looked up (a route), and the entry itself where only it counts. Not
checked: the backends udp, ipip, wireguard, alivpc and the like; their nodes get the checks that hold for every plugin.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.ipcache import IPCache
from tasks.skoop.model.addr import Ip, Mac, contains
from tasks.skoop.model.ids import NodeName, PodKey, node_netns
from tasks.skoop.model.netnode import NetNode, NetNodeType
from tasks.skoop.model.state import FdbEntry, Neighbour, NeighbourState, NetNS, Route
from tasks.skoop.model.suspicion import Suspicion
from tasks.skoop.plugins.flannel_config import FlannelConfig, FlannelNode, underlay_device
from tasks.skoop.plugins.flannel_device import device_suspicions, masquerade_suspicions
from tasks.skoop.plugins.flannel_peer import PeerCheck, expected_route, real_mac
from tasks.skoop.plugins.podlink import PodLinks
from tasks.skoop.plugins.podroute import PodRoutes

CHECKED = frozenset(("vxlan", "host-gw"))


class Flannel:
    """The Plugin for flannel."""

    name = "flannel"

    def __init__(self, ipcache: IPCache, configs: Iterable[FlannelConfig]) -> None:
        self._ipcache = ipcache
        self._state = ipcache.state
        self.configs = tuple(configs)
        self._links = PodLinks(ipcache)
        self._routes = PodRoutes(ipcache)

    @property
    def description(self) -> str:
        """Which backend, and how that was found out."""
        first = self.configs[0]
        families = " and ".join(f"IPv{config.family}" for config in self.configs)
        return f"flannel, backend {first.backend}, {families} (from {', '.join(first.sources)})"

    # --- NetNodes ------------------------------------------------------------------------------------------------

    def create_pod(self, pod: PodKey) -> NetNode:
        """Return the NetNode of a pod. Raises KeyError for a pod that does not exist."""
        meta = next((known for known in self._state.objects.pods if known.key == pod), None)
        if meta is None:
            raise KeyError(pod)
        found = self._links.pod_suspicions(meta) if not meta.host_network else ()
        return NetNode(type=NetNodeType.POD, id=f"pod/{pod}", netns=meta.netns, suspicions=tuple(found))

    def create_node(self, node: NodeName) -> NetNode:
        """Return the NetNode of a node. Raises KeyError for a node that does not exist."""
        self._ipcache.nodes[node]
        netns = node_netns(node)
        return NetNode(type=NetNodeType.NODE, id=netns, netns=netns, suspicions=tuple(self._node_suspicions(node)))

    def _node_suspicions(self, node: NodeName) -> Iterator[Suspicion]:
        netns = self._state.netns.get(node_netns(node))
        if netns is None:
            return
        yield from self._links.node_suspicions(self._ipcache.nodes[node], netns)
        for config in self.configs:
            yield from _announcement(config, node, netns)
            if config.backend == "vxlan":
                yield from device_suspicions(self._state, config, netns, config.nodes[node])
            yield from masquerade_suspicions(self._state, config, netns, node)
        for peer in self._ipcache.nodes:
            if peer != node:
                yield from self.link_suspicions(node, peer)

    def link_suspicions(self, source: NodeName, target: NodeName) -> tuple[Suspicion, ...]:
        """Return what looks wrong on the source node about the way to the pods of the target node."""
        netns = self._state.netns.get(node_netns(source))
        if netns is None:
            return ()
        found: list[Suspicion] = []
        for config in self.configs:
            if config.backend in CHECKED:
                found += PeerCheck(
                    self._state, config, netns, source, target, self._routes.router(netns, config.family)
                ).run()
            else:
                found += self._routes.peer_suspicions(source, target)
        return tuple(found)

    def suspicions(self) -> tuple[Suspicion, ...]:
        """Return everything that looks wrong: the configuration, then nodes, then pods."""
        found = [item for config in self.configs for item in _configuration(config)]
        for node in self._ipcache.nodes:
            found += self._node_suspicions(node)
        for pod in self._ipcache.pods_by_netns.values():
            found += self._links.pod_suspicions(pod)
        return tuple(found)

    # --- what flannel would set ----------------------------------------------------------------------------------

    def route_to(self, node: NodeName, dst: Ip) -> Route | None:
        """Return the route flanneld sets on a node for a pod's address elsewhere; of its own pods the connected one."""
        for config in self.configs:
            for peer in config.nodes.values():
                for net in peer.pod_cidrs:
                    if contains(net, dst):
                        if peer.name == node:
                            return self._links.connected_route(node, net)
                        return self._peer_route(config, node, peer)
        return None

    def _peer_route(self, config: FlannelConfig, node: NodeName, peer: FlannelNode) -> Route | None:
        netns = self._state.netns.get(node_netns(node))
        return None if netns is None else expected_route(config, netns, config.nodes[node], peer)

    def neighbour_for(self, node: NodeName, ip: Ip) -> Neighbour | None:
        """Return the permanent entry that flanneld sets for a peer's vxlan address."""
        for peer, dev, mac in self._peers(node):
            if peer.gateway == ip:
                return Neighbour(ip=ip, dev=dev, mac=mac, state=NeighbourState.PERMANENT)
        return None

    def forwarding_for(self, node: NodeName, ip: Ip) -> FdbEntry | None:
        """Return the forwarding entry that flanneld sets for a peer, by the peer's vxlan address."""
        for peer, dev, mac in self._peers(node):
            if peer.gateway == ip:
                return FdbEntry(mac=mac, dev=dev, dst=peer.public_ip, permanent=True)
        return None

    def _peers(self, node: NodeName) -> Iterator[tuple[FlannelNode, str, Mac]]:
        for config in self.configs:
            if config.backend == "vxlan":
                dev = config.device(config.nodes[node].vni)
                for peer in config.nodes.values():
                    mac = self.macs.get((peer.name, config.family))
                    if peer.name != node and mac is not None:
                        yield peer, dev, mac

    @cached_property
    def macs(self) -> dict[tuple[NodeName, int], Mac]:
        """MAC of each node's vxlan device by (node, family): what the device has, else what the node announces."""
        found: dict[tuple[NodeName, int], Mac] = {}
        for config in self.configs:
            for peer in config.nodes.values():
                mac = real_mac(self._state.netns.get(node_netns(peer.name)), config, peer)
                if mac is not None:
                    found[peer.name, config.family] = mac
        return found


def _announcement(config: FlannelConfig, node: NodeName, netns: NetNS) -> Iterator[Suspicion]:
    """Check what the node announces against what it has."""
    own = config.nodes[node]
    if not own.backend and any(peer.backend for peer in config.nodes.values()):
        yield suspect("KP-FLANNEL-002", f"{node} carries no annotation of flannel", subject=netns.id)
    subnet = config.subnets.get(node)
    if subnet is not None and own.pod_cidrs and subnet not in own.pod_cidrs:
        yield suspect(
            "KP-FLANNEL-005",
            f"flannel on {node} uses {subnet}, but the node's podCIDR is {own.pod_cidrs[0]}",
            subject=netns.id,
            seen=str(subnet),
            expected=str(own.pod_cidrs[0]),
        )
    if own.backend and own.public_ip and netns.interfaces and underlay_device(netns, own.public_ip) is None:
        yield suspect(
            "KP-FLANNEL-006",
            f"{node} announces {own.public_ip}, which none of its interfaces has",
            subject=netns.id,
        )


def _configuration(config: FlannelConfig) -> Iterator[Suspicion]:
    """Check what only shows when nodes are compared."""
    by_ip: dict[Ip, list[NodeName]] = {}
    for node in config.nodes.values():
        if node.public_ip is not None:
            by_ip.setdefault(node.public_ip, []).append(node.name)
    for ip, names in by_ip.items():
        if len(names) > 1:
            message = f"{' and '.join(names)} all announce the public address {ip}"
            yield suspect("KP-FLANNEL-001", message, subject=node_netns(names[0]), seen=ip)
    backends = {node.backend: node.name for node in config.nodes.values() if node.backend}
    if len(backends) > 1:
        shown = ", ".join(f"{name}: {backend}" for backend, name in sorted(backends.items()))
        yield suspect(
            "KP-FLANNEL-003", f"nodes announce different backends ({shown})", subject=node_netns(min(backends.values()))
        )
