"""What is asked of a service Processor: where a packet for a Service goes, and whether a node is programmed so."""

from collections.abc import Collection
from enum import StrEnum
from typing import Protocol as Interface

from msgspec import Struct

from tasks.skoop.model.ids import NodeName
from tasks.skoop.model.packet import Packet
from tasks.skoop.model.suspicion import Suspicion
from tasks.skoop.service.selection import Backend, PortName


class Frontend(StrEnum):
    """By which kind of address a client reaches a Service."""

    CLUSTER_IP = "cluster ip"
    EXTERNAL_IP = "external ip"
    LOAD_BALANCER = "load balancer"
    NODE_PORT = "node port"


class Refusal(StrEnum):
    """What a Service does with a connection that no backend takes: REJECT answers, DROP is silent."""

    NONE = ""
    REJECT = "reject"
    DROP = "drop"


class Mode(StrEnum):
    """How the service proxy of a node works, as its state shows."""

    IPTABLES = "iptables"
    NFTABLES = "nftables"
    IPVS = "ipvs"
    NONE = "none"


class Expected(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What should become of a packet for a Service on a node.

    `backends` are equally likely, but for a client of a Service with session affinity (`affinity_s` > 0), who keeps one of
    them. Without backends `refusal` says how it ends. `masquerade`: whether the source should be replaced on the way to a
    backend other than the sender himself; None if that hangs on kube-proxy's settings.
    """

    port: PortName
    frontend: Frontend
    backends: tuple[Backend, ...] = ()
    refusal: Refusal = Refusal.NONE
    masquerade: bool | None = None
    affinity_s: int = 0


class Processor(Interface):
    """A service proxy: kube-proxy, or what takes its place."""

    def mode(self, node: NodeName) -> Mode:
        """Return how the proxy works on a node, found by what the node holds."""

    def backends(self, packet: Packet, node: NodeName) -> Expected | None:
        """Return what should become of a packet that a node sees first, None if it is not for a Service."""

    def validate(self, node: NodeName, *, services: Collection[str] | None = None) -> tuple[Suspicion, ...]:
        """Return where a node's programming differs from what its Services ask; `services` limits the check to these keys."""
