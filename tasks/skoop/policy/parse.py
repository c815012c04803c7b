"""What does a NetworkPolicy (networking.k8s.io/v1) say?

Follows the API's types and defaults: no policyTypes means Ingress, and Egress if there is an egress rule (SetDefaults_NetworkPolicy);
no protocol means TCP; a peer with both selectors selects pods by both, a pod selector alone those of the policy's own namespace;
no peers, or an empty list of them, is everybody; no ports, or an empty list, every port.
"""

from functools import partial

from msgspec import Raw, Struct

from tasks.skoop.policy.clauses import BadClause, Frame, decode, doubts, net, protocol, read_rules, unreadable
from tasks.skoop.policy.peers import NetworksPeer, Peer, PodsPeer, PortMatch
from tasks.skoop.policy.rules import Action, Policy, PolicyRef, Rule
from tasks.skoop.policy.selectors import EVERYTHING, Selector

KIND = "NetworkPolicy"


class _Block(Struct, frozen=True, rename={"excluded": "except"}, forbid_unknown_fields=True):
    cidr: str
    excluded: list[str] | None = None


class _Peer(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    pod_selector: Selector | None = None
    namespace_selector: Selector | None = None
    ip_block: _Block | None = None


class _Port(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    protocol: str | None = None
    port: int | str | None = None
    end_port: int | None = None


class _Rule(Struct, frozen=True, rename={"sources": "from", "targets": "to"}, forbid_unknown_fields=True):
    sources: list[_Peer] | None = None
    targets: list[_Peer] | None = None
    ports: list[_Port] | None = None


class _Spec(Struct, frozen=True, rename="camel"):
    pod_selector: Selector | None = None
    policy_types: list[str] | None = None
    ingress: list[Raw] | None = None
    egress: list[Raw] | None = None


def read_network_policy(text: str, number: int = 0) -> Policy:
    """Return a NetworkPolicy from its JSON text; `number` names it in a list where it has no name. Raises nothing."""
    try:
        return _read(decode(text, Frame))
    except BadClause as error:
        return unreadable(KIND, text, str(error), number, actions=(Action.ALLOW,))


def _read(frame: Frame) -> Policy:
    namespace = frame.metadata.namespace or "default"
    if not frame.metadata.name:
        raise BadClause("it has no name")
    spec = decode(frame.body, _Spec)
    ingress, egress = directions(spec.policy_types, has_egress=bool(spec.egress))
    read = partial(_rule, namespace)
    into = read_rules(spec.ingress or (), read) if ingress else None
    out = read_rules(spec.egress or (), read) if egress else None
    return Policy(
        ref=PolicyRef(kind=KIND, namespace=namespace, name=frame.metadata.name),
        subject=PodsPeer(namespace=namespace, pods=spec.pod_selector or EVERYTHING),
        ingress=into,
        egress=out,
        transport_only=True,
        defects=doubts(into, out),
    )


def directions(types: list[str] | None, *, has_egress: bool) -> tuple[bool, bool]:
    """Return whether a policy concerns ingress and egress. Raises BadClause for a type that is not known."""
    if not types:
        return True, has_egress
    strange = set(types) - {"Ingress", "Egress"}
    if strange:
        raise BadClause(f"policy type {min(strange)!r} is not known")
    return "Ingress" in types, "Egress" in types


def _rule(namespace: str, index: int, raw: Raw) -> Rule:
    rule = decode(raw, _Rule)
    peers = rule.sources or rule.targets
    return Rule(
        index=index,
        peers=tuple(_peer(namespace, peer) for peer in peers) if peers else None,
        ports=tuple(_port(port) for port in rule.ports) if rule.ports else None,
    )


def _peer(namespace: str, peer: _Peer) -> Peer:
    block = peer.ip_block
    if block is not None:
        if peer.pod_selector is not None or peer.namespace_selector is not None:
            raise BadClause("a peer has an ipBlock and a selector")
        return NetworksPeer(nets=(net(block.cidr),), excluded=tuple(net(text) for text in block.excluded or ()))
    if peer.pod_selector is None and peer.namespace_selector is None:
        raise BadClause("a peer names nobody")
    return PodsPeer(namespace=namespace, namespaces=peer.namespace_selector, pods=peer.pod_selector or EVERYTHING)


def _port(port: _Port) -> PortMatch:
    known = protocol(port.protocol)
    if port.end_port is not None and not isinstance(port.port, int):
        raise BadClause("endPort without a numeric port")
    if port.port is None:
        return PortMatch(protocol=known)
    if isinstance(port.port, str):
        return PortMatch(protocol=known, name=port.port)
    last = port.end_port if port.end_port is not None else port.port
    if not 0 < port.port <= last < 65536:
        raise BadClause(f"{port.port} to {last} are no ports")
    return PortMatch(protocol=known, first=port.port, last=last)
