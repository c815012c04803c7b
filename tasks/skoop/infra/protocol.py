"""What an InfraShim is asked: does what lies between two ends carry the packet, and if it may not, what hints at it?

A shim asserts only what it knows. Whatever it cannot know it says as information (`KP-INFRA-002`), so that a report never
counts an unknown firewall as an open road.
"""

from typing import Protocol as Interface

from tasks.skoop.model.ids import NodeName
from tasks.skoop.model.packet import Packet
from tasks.skoop.model.suspicion import Suspicion


class InfraShim(Interface):
    """The infrastructure under a cluster: a cloud, a data centre, one bridge."""

    name: str
    """`generic`, or a cloud's name."""

    def node_to_node(self, source: NodeName, target: NodeName, packet: Packet) -> tuple[Suspicion, ...]:
        """Return what may stop a packet between two nodes."""

    def node_to_external(self, source: NodeName, packet: Packet) -> tuple[Suspicion, ...]:
        """Return what may stop a packet from a node to a host outside the cluster."""

    def external_to_node(self, target: NodeName, packet: Packet) -> tuple[Suspicion, ...]:
        """Return what may stop a packet from outside the cluster to a node."""

    def external_to_load_balancer(self, packet: Packet) -> tuple[Suspicion, ...]:
        """Return what may stop a packet from outside the cluster to a Service's load balancer."""

    def carries(self, source: NodeName, target: NodeName) -> bool | None:
        """Say whether frames pass between two nodes; None where it is not known."""
