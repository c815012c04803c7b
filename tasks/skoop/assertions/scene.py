"""What an assertion looks at: one namespace, who it is in the cluster, and its compiled routes and tables.

Namespaces are compiled once per cluster and shared by all assertions. Nothing here asks the wire: assertions judge state, they
do not send packets.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from tasks.skoop.ipcache import IPCache
from tasks.skoop.model.addr import Ip, Mac, Net, contains, ip_version
from tasks.skoop.model.cluster import ClusterState, NodeMeta, PodMeta
from tasks.skoop.model.ids import NetnsId, NodeName, node_netns
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import Interface, NetNS
from tasks.skoop.netstack.fib import FlowKey, Found
from tasks.skoop.netstack.namespace import Answers, Namespace

Target = tuple[Ip, int]
"""Address and port."""


class SilentWire:
    """A wire that knows nothing: no answer, no far end."""

    def resolve(self, netns: NetnsId, dev: str, target: Ip, sender: Ip | None) -> Answers:
        """Return that nobody answers."""
        del netns, dev, target, sender
        return Answers()

    def reaches(self, netns: NetnsId, dev: str, mac: Mac, vlan: int = 0) -> bool:
        """Return False."""
        del netns, dev, mac, vlan
        return False

    def vteps(self, netns: NetnsId, dev: str, mac: Mac) -> tuple[Ip, ...]:
        """Return nothing."""
        del netns, dev, mac
        return ()

    def l3s_above(self, netns: NetnsId, dev: str, ip: Ip) -> tuple[NetnsId, str] | None:
        """Return None."""
        del netns, dev, ip
        return None


class Cluster:
    """A collected cluster with the namespaces compiled on first use."""

    def __init__(self, ipcache: IPCache) -> None:
        self.ipcache = ipcache
        self.state: ClusterState = ipcache.state
        self._namespaces: dict[NetnsId, Namespace] = {}
        self._wire = SilentWire()

    def namespace(self, netns: NetNS) -> Namespace:
        """Return the compiled namespace."""
        if netns.id not in self._namespaces:
            self._namespaces[netns.id] = Namespace(netns, self._wire)
        return self._namespaces[netns.id]

    def scene(self, netns: NetnsId) -> "Scene | None":
        """Return the scene of a namespace, None if it was not collected."""
        state = self.state.netns.get(netns)
        if state is None:
            return None
        name = netns.partition("/")[2]
        node = self.ipcache.nodes.get(NodeName(name)) if netns.startswith("node/") else None
        pod = self.ipcache.pods_by_netns.get(netns)
        return Scene(cluster=self, netns=state, node=node, pod=pod)

    @cached_property
    def pod_networks(self) -> Mapping[NodeName, tuple[Net, ...]]:
        """PodCIDRs by node."""
        return {node.name: node.pod_cidrs for node in self.state.objects.nodes if node.pod_cidrs}

    def pods_on(self, node: NodeName) -> Iterator[PodMeta]:
        """Yield the pods of a node that have an address of their own."""
        for pod in self.ipcache.pods_by_netns.values():
            if pod.node_name == node and pod.ips:
                yield pod

    @cached_property
    def udp_backends(self) -> Mapping[Target, frozenset[Target]]:
        """UDP addresses and ports of Services, each with those of its usable endpoints."""
        backends: dict[tuple[str, str], set[Target]] = {}
        for piece in self.state.objects.endpoint_slices:
            for offered in piece.ports:
                ends = {
                    (ip, offered.port)
                    for endpoint in piece.endpoints
                    if endpoint.ready or (endpoint.serving and endpoint.terminating)
                    for ip in endpoint.addresses
                }
                backends.setdefault((f"{piece.namespace}/{piece.service}", offered.name), set()).update(ends)
        found: dict[Target, frozenset[Target]] = {}
        for service in self.state.objects.services:
            for port in service.ports:
                if port.protocol == Protocol.UDP:
                    for ip in (*service.cluster_ips, *service.external_ips, *service.load_balancer_ips):
                        found[Ip(ip), port.port] = frozenset(backends.get((service.key, port.name), ()))
        return found

    @cached_property
    def families(self) -> tuple[int, ...]:
        """IP versions that pods use."""
        return tuple(sorted({ip_version(ip) for pod in self.ipcache.pods_by_netns.values() for ip in pod.ips}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One namespace and who it is: `node` and `pod` are None where it is not one."""

    cluster: Cluster
    netns: NetNS
    node: NodeMeta | None
    pod: PodMeta | None

    @property
    def id(self) -> NetnsId:
        """The namespace's id."""
        return self.netns.id

    @property
    def name(self) -> str:
        """What to call it in a message: the node's or host's name, the pod's key."""
        return self.netns.id.partition("/")[2]

    @property
    def compiled(self) -> Namespace:
        """The namespace, compiled."""
        return self.cluster.namespace(self.netns)

    def lookup(self, dst: Ip, *, src: Ip | None = None, iif: str = "") -> Found | None:
        """Return the route that the namespace takes to an address."""
        return self.compiled.router(ip_version(dst)).lookup(FlowKey(dst=dst, src=src, iif=iif))

    def carries_pods(self) -> bool:
        """Say whether this is a node with pods that have addresses of their own."""
        return self.node is not None and next(self.cluster.pods_on(self.node.name), None) is not None

    def pod_bridge(self) -> Interface | None:
        """Return the bridge that has an address in the node's pod network, None if there is none."""
        for link in self.netns.interfaces:
            if link.kind == "bridge" and self.node is not None:
                for net in self.node.pod_cidrs:
                    if any(contains(net, address.ip) for address in link.addresses):
                        return link
        return None

    def sysctl(self, key: str) -> str | None:
        """Return a sysctl's value, None if it was not collected or does not exist."""
        return self.netns.sysctls.get(key)

    def peers(self) -> Iterator["Scene"]:
        """Yield the scenes of the other nodes that were collected."""
        for name in self.cluster.ipcache.nodes:
            other = self.cluster.scene(node_netns(name))
            if other is not None and other.id != self.id:
                yield other
