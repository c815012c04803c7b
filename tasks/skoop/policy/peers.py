"""Whom and what a rule speaks of: pods by selectors, nodes, networks, ports; each matches an end of a connection or not.

Peers also serve as subjects: whom a policy concerns is asked in the same words. Whether a network (`ipBlock`) matches pods and
nodes by their addresses is a reading, as the API leaves it to the plugin: `Reading`.
"""

from enum import StrEnum
from typing import Protocol as Interface

from msgspec import Struct

from tasks.skoop.model.addr import Net, contains
from tasks.skoop.model.packet import Protocol
from tasks.skoop.policy.certainty import Answer, Unsure, all_of, any_of
from tasks.skoop.policy.parties import Party, PartyKind
from tasks.skoop.policy.selectors import EVERYTHING, Selector

TRANSPORT = frozenset((Protocol.TCP, Protocol.UDP, Protocol.SCTP))
"""Protocols that have ports, and for which NetworkPolicy is defined."""


class Reading(StrEnum):
    """Whom a network given as CIDR matches: every address (plugins that filter by address), or none of pods and nodes (Cilium)."""

    EVERY_ADDRESS = "every address"
    OUTSIDE_ONLY = "outside only"


class Scope(Struct, frozen=True, kw_only=True):
    """In what sense an end is matched: the reading of networks, and the node of the end that the policy selects."""

    reading: Reading = Reading.EVERY_ADDRESS
    node: str = ""


class Peer(Interface):
    """A set of ends."""

    def matches(self, party: Party, scope: Scope) -> Answer:
        """Say whether an end belongs to it."""
        ...


class PodsPeer(Struct, frozen=True, kw_only=True):
    """Pods of one namespace (`namespace`), or of those that `namespaces` selects."""

    namespace: str = ""
    namespaces: Selector | None = None
    pods: Selector = EVERYTHING

    def matches(self, party: Party, scope: Scope) -> Answer:  # noqa: ARG002 -- the interface's
        """Say whether it is such a pod; what lives on the host's network is none."""
        if party.kind is PartyKind.UNKNOWN:
            return Unsure(party.gap)
        if party.kind is not PartyKind.POD:
            return False
        if self.namespaces is None:
            inside: Answer = party.namespace == self.namespace
        else:
            inside = self.namespaces.selects(party.namespace_labels)
        return False if inside is False else all_of((inside, self.pods.selects(party.labels)))


class NodesPeer(Struct, frozen=True, kw_only=True):
    """Nodes by their labels."""

    nodes: Selector = EVERYTHING

    def matches(self, party: Party, scope: Scope) -> Answer:  # noqa: ARG002 -- the interface's
        """Say whether it is such a node."""
        if party.kind is PartyKind.UNKNOWN:
            return Unsure(party.gap)
        return party.kind is PartyKind.NODE and self.nodes.selects(party.labels)


class NetworksPeer(Struct, frozen=True, kw_only=True):
    """Addresses in one of `nets` but in none of `excluded`. `outside_only` overrides the reading."""

    nets: tuple[Net, ...]
    excluded: tuple[Net, ...] = ()
    outside_only: bool = False

    def matches(self, party: Party, scope: Scope) -> Answer:
        """Say whether the end's address is in there."""
        narrow = self.outside_only or scope.reading is Reading.OUTSIDE_ONLY
        if narrow and party.kind in (PartyKind.POD, PartyKind.NODE):
            # Nodes are outside the pod network, and narrow readers differ on them; Cilium's, which is ours, leaves them out.
            return False
        if not party.ip:
            return Unsure(f"{party.name} has no address yet")
        inside = any(contains(net, party.ip) for net in self.nets)
        found = inside and not any(contains(net, party.ip) for net in self.excluded)
        return Unsure(party.gap) if narrow and found and party.kind is PartyKind.UNKNOWN else found


class NobodyKnows(Struct, frozen=True, kw_only=True):
    """A set that cannot be told from what was collected; of `within` at most (None: of everybody)."""

    reason: str
    within: PodsPeer | None = None

    def matches(self, party: Party, scope: Scope) -> Answer:
        """Say that it may belong to it."""
        if self.within is not None and self.within.matches(party, scope) is False:
            return False
        return Unsure(self.reason)


class AllOf(Struct, frozen=True, kw_only=True):
    """Ends that belong to every one of these, and to none of `but`."""

    peers: tuple[Peer, ...] = ()
    but: tuple[Peer, ...] = ()

    def matches(self, party: Party, scope: Scope) -> Answer:
        """Say whether the end belongs to all of them."""
        inside = all_of(peer.matches(party, scope) for peer in self.peers)
        outside = any_of(peer.matches(party, scope) for peer in self.but)
        if inside is False or outside is True:
            return False
        return outside if inside is True and isinstance(outside, Unsure) else inside


class AnyOf(Struct, frozen=True, kw_only=True):
    """Ends that belong to one of these."""

    peers: tuple[Peer, ...] = ()

    def matches(self, party: Party, scope: Scope) -> Answer:
        """Say whether the end belongs to one of them."""
        return any_of(peer.matches(party, scope) for peer in self.peers)


class KindPeer(Struct, frozen=True, kw_only=True):
    """Ends of certain kinds, whoever they are."""

    kinds: frozenset[PartyKind]

    def matches(self, party: Party, scope: Scope) -> Answer:  # noqa: ARG002 -- the interface's
        """Say whether the end is of such a kind."""
        return Unsure(party.gap) if party.kind is PartyKind.UNKNOWN else party.kind in self.kinds


class Traffic(Struct, frozen=True, kw_only=True):
    """What is asked of a rule besides the peer: the destination, its port (0: not said) and the protocol."""

    dst: Party
    port: int
    protocol: Protocol


class OwnNodePeer(Struct, frozen=True, kw_only=True):
    """The node on which the selected end runs (`other` False), or the other nodes."""

    other: bool = False

    def matches(self, party: Party, scope: Scope) -> Answer:
        """Say whether the end is that node."""
        if party.kind is PartyKind.UNKNOWN:
            return Unsure(party.gap)
        return party.kind is PartyKind.NODE and (party.node == scope.node) is not self.other


class PortMatch(Struct, frozen=True, kw_only=True):
    """Traffic of a protocol (None: any) to ports `first` to `last` (0: every port), or to the pod's port of that `name`."""

    protocol: Protocol | None = Protocol.TCP
    first: int = 0
    last: int = 0
    name: str = ""

    def matches(self, traffic: Traffic) -> Answer:
        """Say whether the traffic is such; a name is looked up in the pod that the traffic goes to."""
        if self.protocol is not None and self.protocol is not traffic.protocol:
            return False
        if not self.first and not self.name:
            return True
        if traffic.protocol not in TRANSPORT:
            return False
        if not traffic.port:
            return Unsure("no port was asked for, and a rule allows or denies some")
        if self.name:
            return self._by_name(traffic)
        return self.first <= traffic.port <= (self.last or self.first)

    def _by_name(self, traffic: Traffic) -> Answer:
        if traffic.dst.kind is PartyKind.UNKNOWN:
            return Unsure(traffic.dst.gap)
        ports = traffic.dst.pod.ports if traffic.dst.pod is not None else ()
        return any((one.name, one.port, one.protocol) == (self.name, traffic.port, traffic.protocol) for one in ports)


class UnreadPort(Struct, frozen=True, kw_only=True):
    """A clause of which it cannot be said whether it matches, for traffic of these protocols (None: of any)."""

    reason: str
    protocols: frozenset[Protocol] | None = None

    def matches(self, traffic: Traffic) -> Answer:
        """Say that it may match."""
        concerned = self.protocols is None or traffic.protocol in self.protocols
        return Unsure(self.reason) if concerned else False


Ports = PortMatch | UnreadPort
