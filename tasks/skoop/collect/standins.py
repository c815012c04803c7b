"""Objects for what was collected but Kubernetes does not tell of: nodes and pods made from their own interfaces.

So a test bed without Kubernetes, or a node looked at without its API server, is diagnosed by name like any other.
"""

from msgspec.structs import replace

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.cluster import ClusterObjects, ClusterState, NodeMeta, PodMeta
from tasks.skoop.model.ids import NodeName
from tasks.skoop.model.state import NetNS

_DEFAULTS = ("0.0.0.0/0", "::/0")
_UPLINK_KINDS = ("", "veth", "bond", "vlan", "macvlan", "ipvlan")


def with_standins(state: ClusterState) -> ClusterObjects:
    """Return the objects, with a node or pod for each collected namespace of a node or pod that they lack."""
    nodes = {node.name for node in state.objects.nodes}
    pods = {pod.key for pod in state.objects.pods}
    more_nodes, more_pods = [], []
    for name, netns in state.netns.items():
        kind, _, rest = name.partition("/")
        if kind == "node" and rest not in nodes:
            addresses = tuple(("InternalIP", ip) for ip in uplink_addresses(netns))
            more_nodes.append(NodeMeta(name=NodeName(rest), addresses=addresses))
        elif kind == "pod" and rest not in pods:
            namespace, _, pod = rest.partition("/")
            node = NodeName(_node_of(state, netns))
            more_pods.append(PodMeta(namespace=namespace, name=pod, node_name=node, ips=_addresses(netns)))
    if not more_nodes and not more_pods:
        return state.objects
    return replace(state.objects, nodes=(*state.objects.nodes, *more_nodes), pods=(*state.objects.pods, *more_pods))


def uplink_addresses(netns: NetNS) -> tuple[Ip, ...]:
    """Return the global addresses of the interface with the default route; without one, of those that may lead outside."""
    uplinks = {
        hop.dev for route in netns.routes if route.dst in _DEFAULTS and route.table == 254 for hop in route.nexthops
    }
    links = [link for link in netns.interfaces if link.name in uplinks] or [
        link for link in netns.interfaces if link.kind in _UPLINK_KINDS and link.master is None
    ]
    return tuple(one.ip for link in links for one in link.addresses if one.scope == "global")


def _addresses(netns: NetNS) -> tuple[Ip, ...]:
    return tuple(
        one.ip
        for link in netns.interfaces
        if link.kind != "loopback"
        for one in link.addresses
        if one.scope == "global"
    )


def _node_of(state: ClusterState, netns: NetNS) -> str:
    """Return the node that holds the other end of one of the pod's links, or ""."""
    ends = (link.peer[0] for link in netns.interfaces if link.peer is not None)
    return next((end.removeprefix("node/") for end in ends if end.startswith("node/") and end in state.netns), "")
