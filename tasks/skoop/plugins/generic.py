"""Any plugin that works through the kernel's own stack: what must hold whoever set it up.

A pod has its interface, address and default route, and is plugged into its node; a node has a route of its own to the pods of
the others if the others have one. Nothing is said about how a particular plugin does it.
"""

from tasks.skoop.ipcache import IPCache
from tasks.skoop.model.addr import Ip, contains
from tasks.skoop.model.ids import NodeName, PodKey, node_netns
from tasks.skoop.model.netnode import NetNode, NetNodeType
from tasks.skoop.model.state import FdbEntry, Neighbour, Route
from tasks.skoop.model.suspicion import Suspicion
from tasks.skoop.plugins.podlink import PodLinks
from tasks.skoop.plugins.podroute import PodRoutes


class Generic:
    """The Plugin for networks that no other plugin knows."""

    name = "generic"
    description = "no plugin that is known here: only what holds for every one"

    def __init__(self, ipcache: IPCache) -> None:
        self._ipcache = ipcache
        self._state = ipcache.state
        self._links = PodLinks(ipcache)
        self._routes = PodRoutes(ipcache)

    def create_pod(self, pod: PodKey) -> NetNode:
        """Return the NetNode of a pod. Raises KeyError for a pod that does not exist."""
        meta = next((known for known in self._state.objects.pods if known.key == pod), None)
        if meta is None:
            raise KeyError(pod)
        found = self._links.pod_suspicions(meta) if not meta.host_network else ()
        return NetNode(type=NetNodeType.POD, id=f"pod/{pod}", netns=meta.netns, suspicions=tuple(found))

    def create_node(self, node: NodeName) -> NetNode:
        """Return the NetNode of a node. Raises KeyError for a node that does not exist."""
        meta = self._ipcache.nodes[node]
        id_ = node_netns(node)
        netns = self._state.netns.get(id_)
        found = list(self._links.node_suspicions(meta, netns)) if netns is not None else []
        for peer in self._ipcache.nodes:
            if peer != node:
                found += self.link_suspicions(node, peer)
        return NetNode(type=NetNodeType.NODE, id=id_, netns=id_, suspicions=tuple(found))

    def link_suspicions(self, source: NodeName, target: NodeName) -> tuple[Suspicion, ...]:
        """Return what looks wrong about the way, judged by the routes that the other nodes have."""
        return self._routes.peer_suspicions(source, target)

    def suspicions(self) -> tuple[Suspicion, ...]:
        """Return everything that looks wrong: nodes, then pods."""
        found: list[Suspicion] = []
        for node in self._ipcache.nodes:
            found += self.create_node(node).suspicions
        for pod in self._ipcache.pods_by_netns.values():
            found += self._links.pod_suspicions(pod)
        return tuple(found)

    def route_to(self, node: NodeName, dst: Ip) -> Route | None:
        """Return the connected route to the node's own pods; to those of others what the other nodes use, if they agree."""
        for meta in self._state.objects.nodes:
            for net in meta.pod_cidrs:
                if contains(net, dst):
                    if meta.name == node:
                        return self._links.connected_route(node, net)
                    return self._routes.usual_route(node, net)
        return None

    def neighbour_for(self, node: NodeName, ip: Ip) -> Neighbour | None:
        """Return None: no entries are known to be set."""
        del node, ip
        return None

    def forwarding_for(self, node: NodeName, ip: Ip) -> FdbEntry | None:
        """Return None: no entries are known to be set."""
        del node, ip
        return None
