"""What do the cluster administrator's policies say: AdminNetworkPolicy, BaselineAdminNetworkPolicy, ClusterNetworkPolicy?

Follows policy.networking.k8s.io: v1alpha1 (Allow, Deny, Pass; `ports`; priority 0 first; one baseline policy named `default`) and
v1alpha2 to v1beta1 (ClusterNetworkPolicy: Accept; `protocols`; a tier of its own choice). Networks match pods and nodes as well, as
the API says. Of domain names nothing can be said: rules with them are in doubt where the destination may be one.
"""

from collections.abc import Callable, Sequence
from functools import partial

from msgspec import Raw, Struct

from tasks.skoop.policy.clauses import BadClause, Frame, decode, doubts, net, protocol, read_rules, unreadable
from tasks.skoop.policy.peers import NetworksPeer, NobodyKnows, NodesPeer, Peer, PodsPeer, PortMatch
from tasks.skoop.policy.rules import Action, Policy, PolicyRef, Rule
from tasks.skoop.policy.selectors import EVERYTHING, Selector

ADMIN, BASELINE, CLUSTER = "AdminNetworkPolicy", "BaselineAdminNetworkPolicy", "ClusterNetworkPolicy"
ADMIN_TIER, BASELINE_TIER = "admin", "baseline"
DOUBTFUL = (Action.ALLOW, Action.DENY, Action.PASS)
_ACTIONS = {"Allow": Action.ALLOW, "Accept": Action.ALLOW, "Deny": Action.DENY, "Pass": Action.PASS}


class _Pods(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    namespace_selector: Selector | None = None
    pod_selector: Selector | None = None


class _Subject(Struct, frozen=True, forbid_unknown_fields=True):
    namespaces: Selector | None = None
    pods: _Pods | None = None


class _Peer(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    namespaces: Selector | None = None
    pods: _Pods | None = None
    nodes: Selector | None = None
    networks: list[str] | None = None
    domain_names: list[str] | None = None


class _Number(Struct, frozen=True, forbid_unknown_fields=True):
    port: int
    protocol: str | None = None


class _Range(Struct, frozen=True, forbid_unknown_fields=True):
    start: int
    end: int
    protocol: str | None = None


class _Port(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    port_number: _Number | None = None
    port_range: _Range | None = None
    named_port: str | None = None


class _Destination(Struct, frozen=True, forbid_unknown_fields=True):
    number: int | None = None
    range: _Range | None = None


class _Transport(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    destination_port: _Destination | None = None


class _Protocol(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    tcp: _Transport | None = None
    udp: _Transport | None = None
    sctp: _Transport | None = None
    destination_named_port: str | None = None


class _Rule(Struct, frozen=True, rename={"sources": "from", "targets": "to"}, forbid_unknown_fields=True):
    action: str
    name: str = ""
    sources: list[_Peer] | None = None
    targets: list[_Peer] | None = None
    ports: list[_Port] | None = None
    protocols: list[_Protocol] | None = None


class _Spec(Struct, frozen=True):
    subject: _Subject
    priority: int | None = None
    tier: str = ""
    ingress: list[Raw] | None = None
    egress: list[Raw] | None = None


def read_admin_policy(kind: str, text: str, number: int = 0) -> Policy:
    """Return an administrator's policy of a kind (ADMIN, BASELINE, CLUSTER) from its JSON text. Raises nothing."""
    try:
        return _read(kind, decode(text, Frame))
    except BadClause as error:
        tier = BASELINE_TIER if kind == BASELINE else ADMIN_TIER
        return unreadable(kind, text, str(error), number, actions=DOUBTFUL, tier=tier)


def _read(kind: str, frame: Frame) -> Policy:
    spec = decode(frame.body, _Spec)
    read: Callable[[int, Raw], Rule] = partial(_rule)
    into, out = (read_rules(raws, read) if raws else None for raws in (spec.ingress, spec.egress))
    if kind != BASELINE and spec.priority is None:
        raise BadClause("it has no priority")
    return Policy(
        ref=PolicyRef(kind=kind, name=frame.metadata.name),
        subject=_subject(spec.subject),
        rank=(0, float(spec.priority or 0), ""),
        tier=_tier(kind, spec.tier),
        ingress=into,
        egress=out,
        defects=doubts(into, out),
    )


def _tier(kind: str, tier: str) -> str:
    if kind != CLUSTER:
        return BASELINE_TIER if kind == BASELINE else ADMIN_TIER
    if tier not in ("Admin", "Baseline"):
        raise BadClause(f"tier {tier!r} is neither Admin nor Baseline")
    return tier.lower()


def _subject(subject: _Subject) -> Peer:
    if (subject.namespaces is None) == (subject.pods is None):
        raise BadClause("its subject must be given as namespaces or as pods")
    if subject.namespaces is not None:
        return PodsPeer(namespaces=subject.namespaces)
    return _pods(subject.pods)


def _pods(pods: _Pods | None) -> PodsPeer:
    chosen = pods or _Pods()
    return PodsPeer(namespaces=chosen.namespace_selector or EVERYTHING, pods=chosen.pod_selector or EVERYTHING)


def _rule(index: int, raw: Raw) -> Rule:
    rule = decode(raw, _Rule)
    action = _ACTIONS.get(rule.action)
    if action is None:
        raise BadClause(f"action {rule.action!r} is not known")
    peers = rule.sources or rule.targets
    if not peers:
        raise BadClause("it has no peers")
    ports = (*(_port(port) for port in rule.ports or ()), *(_transport(one) for one in rule.protocols or ()))
    return Rule(index=index, action=action, name=rule.name, peers=tuple(map(_peer, peers)), ports=ports or None)


def _peer(peer: _Peer) -> Peer:
    given = [
        one for one in (peer.namespaces, peer.pods, peer.nodes, peer.networks, peer.domain_names) if one is not None
    ]
    if len(given) != 1:
        raise BadClause("a peer must be given in exactly one way")
    if peer.namespaces is not None:
        return PodsPeer(namespaces=peer.namespaces)
    if peer.pods is not None:
        return _pods(peer.pods)
    if peer.nodes is not None:
        return NodesPeer(nodes=peer.nodes)
    if peer.networks is not None:
        return NetworksPeer(nets=tuple(map(net, peer.networks)))
    return NobodyKnows(reason=f"which addresses {', '.join(peer.domain_names or ())} has is not known")


def _port(port: _Port) -> PortMatch:
    if port.port_number is not None:
        return _numbers(port.port_number.protocol, port.port_number.port, port.port_number.port)
    if port.port_range is not None:
        return _numbers(port.port_range.protocol, port.port_range.start, port.port_range.end)
    if port.named_port:
        return PortMatch(protocol=None, name=port.named_port)
    raise BadClause("a port must be given in exactly one way")


def _numbers(transport: str | None, first: int, last: int) -> PortMatch:
    if not 0 < first <= last < 65536:
        raise BadClause(f"{first} to {last} are no ports")
    return PortMatch(protocol=protocol(transport), first=first, last=last)


def _transport(given: _Protocol) -> PortMatch:
    if given.destination_named_port:
        return PortMatch(protocol=None, name=given.destination_named_port)
    named: Sequence[tuple[str, _Transport | None]] = (("TCP", given.tcp), ("UDP", given.udp), ("SCTP", given.sctp))
    for name, one in named:
        if one is not None:
            port = one.destination_port
            if port is None:
                return PortMatch(protocol=protocol(name))
            if port.range is not None:
                return _numbers(name, port.range.start, port.range.end)
            return _numbers(name, port.number or 0, port.number or 0)
    raise BadClause("a protocol must be given in exactly one way")
