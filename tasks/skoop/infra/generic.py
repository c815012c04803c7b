"""Any infrastructure: what follows from the nodes' own addresses and routes, and nothing more.

Two nodes with addresses in one subnet are on one link and it carries their frames; nodes that reach each other through a
router probably can, but what the router does is not known. Nothing is said about firewalls and security groups.
"""

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.ipcache import IPCache
from tasks.skoop.model.addr import Ip, contains, ip_version, parse_net
from tasks.skoop.model.ids import NetnsId, NodeName, node_netns
from tasks.skoop.model.packet import Packet
from tasks.skoop.model.state import NetNS, Section
from tasks.skoop.model.suspicion import Suspicion
from tasks.skoop.model.trace import Place, Stage
from tasks.skoop.netstack.fib import FlowKey, Found, Router


class GenericInfra:
    """The InfraShim for environments of which no more is known than their nodes."""

    name = "generic"

    def __init__(self, ipcache: IPCache) -> None:
        self._ipcache = ipcache
        self._state = ipcache.state
        self._routers: dict[tuple[NetnsId, int], Router] = {}

    def node_to_node(self, source: NodeName, target: NodeName, packet: Packet) -> tuple[Suspicion, ...]:
        """Return whether the nodes have a way to each other, by the family of the packet."""
        ours = self._state.netns.get(node_netns(source))
        theirs = self._address(target, packet.version)
        if ours is None or theirs is None or ours.lacks(Section.ROUTES) is not None or not ours.routes:
            return ()
        found = self._lookup(ours, theirs)
        if found is None or found.errno:
            return (
                suspect(
                    "KP-INFRA-001",
                    f"{source} has no route to {target} ({theirs})",
                    subject=ours.id,
                    place=Place(netns=ours.id, stage=Stage.ROUTE, key=theirs),
                    seen="no route" if found is None else found.type,
                ),
            )
        return () if self.carries(source, target) else (self._unknown(source, f"{source} and {target}"),)

    def node_to_external(self, source: NodeName, packet: Packet) -> tuple[Suspicion, ...]:
        """Return that what lies beyond the node's network is not known, unless the host was collected or is on a link."""
        ours = self._state.netns.get(node_netns(source))
        known = self._ipcache.lookup(packet.dst)
        near = ours is not None and _on_link(ours, packet.dst)
        if near or (known is not None and known.netns is not None):
            return ()
        return (self._unknown(source, f"{source} and {packet.dst}"),)

    def external_to_node(self, target: NodeName, packet: Packet) -> tuple[Suspicion, ...]:
        """Return that the way to the node is not known, unless the sender was collected or is on a link of the node."""
        return self.node_to_external(target, packet.with_(src=packet.dst, dst=packet.src))

    def external_to_load_balancer(self, packet: Packet) -> tuple[Suspicion, ...]:
        """Return that the load balancer itself is not known: only what the nodes do with its address is."""
        message = f"how packets for the load balancer's address {packet.dst} get to a node is not known"
        return (suspect("KP-INFRA-002", message, subject="infra"),)

    def carries(self, source: NodeName, target: NodeName) -> bool | None:
        """Return True for nodes with addresses in one subnet, None otherwise."""
        ours = self._state.netns.get(node_netns(source))
        ends = self._ipcache.nodes.get(target)
        if ours is None or ends is None:
            return None
        return True if any(_on_link(ours, ip) for ip in ends.ips) else None

    def _address(self, node: NodeName, family: int) -> Ip | None:
        meta = self._ipcache.nodes.get(node)
        return next((ip for ip in meta.ips if ip_version(ip) == family), None) if meta is not None else None

    def _lookup(self, netns: NetNS, dst: Ip) -> Found | None:
        key = (netns.id, ip_version(dst))
        if key not in self._routers:
            self._routers[key] = Router(key[1], netns.routes, netns.rules, netns.interfaces)
        return self._routers[key].lookup(FlowKey(dst=dst))

    def _unknown(self, subject: NodeName, ends: str) -> Suspicion:
        message = f"what lies between {ends} was not collected: firewalls and routers there are not judged"
        return suspect("KP-INFRA-002", message, subject=node_netns(subject))


def _on_link(netns: NetNS, ip: Ip) -> bool:
    """Say whether the address is in the subnet of an interface of the namespace that is no tunnel."""
    for link in netns.interfaces:
        if link.vxlan is None and link.name != "lo":
            for address in link.addresses:
                if ip_version(address.ip) == ip_version(ip) and contains(
                    parse_net(f"{address.ip}/{address.prefixlen}"), ip
                ):
                    return True
    return False
