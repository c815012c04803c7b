"""What a Plugin is asked: the NetNodes of its network, what each should look like, and what it would set to mend it."""

from typing import Protocol as Interface

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.ids import NodeName, PodKey
from tasks.skoop.model.netnode import NetNode
from tasks.skoop.model.state import FdbEntry, Neighbour, Route
from tasks.skoop.model.suspicion import Suspicion


class Plugin(Interface):
    """A network plugin (CNI): what it promises, never what the kernel does with it."""

    name: str
    """`flannel`, `generic` …"""

    @property
    def description(self) -> str:
        """One line for reports: which plugin, in which mode, and how that was found out."""

    def create_pod(self, pod: PodKey) -> NetNode:
        """Return the NetNode of a pod, with what looks wrong there. Raises KeyError for a pod that does not exist."""

    def create_node(self, node: NodeName) -> NetNode:
        """Return the NetNode of a node, with what looks wrong there. Raises KeyError for a node that does not exist."""

    def link_suspicions(self, source: NodeName, target: NodeName) -> tuple[Suspicion, ...]:
        """Return what looks wrong on the source node about the way to the pods of the target node."""

    def suspicions(self) -> tuple[Suspicion, ...]:
        """Return everything that looks wrong, for all nodes, pods and ways between nodes."""

    def route_to(self, node: NodeName, dst: Ip) -> Route | None:
        """Return the route that the plugin sets on a node for a pod's address elsewhere, None if it sets none."""

    def neighbour_for(self, node: NodeName, ip: Ip) -> Neighbour | None:
        """Return the neighbour entry that the plugin sets on a node for a next hop, None if it sets none."""

    def forwarding_for(self, node: NodeName, ip: Ip) -> FdbEntry | None:
        """Return the forwarding entry that the plugin sets on a node to reach a next hop, None if it sets none."""
