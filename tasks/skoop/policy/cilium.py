"""What do Cilium's policies say about layers 3 and 4: CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy?

Follows the Cilium documentation (v1.14 to v1.18, "Layer 3 Policies", "Layer 4 Policies", "Deny policies"): rules of all policies add
up, and with NetworkPolicies; a deny rule beats every allow rule; an empty rule allows nothing but isolates; a selector in a namespaced
policy means pods of that namespace unless it names one; CIDRs match what is not a pod or node. Rules of layer 7, groups of clouds and
host names are not decided here: a rule with layer 7 clauses is taken for what it says of the port, others are in doubt.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from msgspec import UNSET, Raw, Struct, UnsetType, field

from tasks.skoop.model.addr import Net
from tasks.skoop.model.packet import Protocol
from tasks.skoop.policy.certainty import Answer, Unsure
from tasks.skoop.policy.clauses import PROTOCOLS, BadClause, Frame, decode, doubts, net, read_rules, unreadable
from tasks.skoop.policy.parties import Party, PartyKind
from tasks.skoop.policy.peers import (
    AllOf,
    AnyOf,
    KindPeer,
    NetworksPeer,
    NobodyKnows,
    NodesPeer,
    OwnNodePeer,
    Peer,
    PortMatch,
    Ports,
    Scope,
    UnreadPort,
)
from tasks.skoop.policy.rules import Action, Policy, PolicyRef, Rule
from tasks.skoop.policy.selectors import Labels, Requirement, Selector

T = TypeVar("T")
NAMESPACED, CLUSTERWIDE = "CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"
TIER = "default"
DENY_RANK, ALLOW_RANK = (-1, 0.0, ""), (0, 0.0, "")
POD_NAMESPACE = "io.kubernetes.pod.namespace"
NAMESPACE_LABELS = "io.cilium.k8s.namespace.labels."
_ICMP = frozenset((Protocol.ICMP, Protocol.ICMPV6))
_WORLD = KindPeer(kinds=frozenset((PartyKind.OUTSIDE,)))
_NODES = KindPeer(kinds=frozenset((PartyKind.NODE,)))
_PODS_AND_NODES = KindPeer(kinds=frozenset((PartyKind.POD, PartyKind.NODE)))
_V4, _V6 = (NetworksPeer(nets=(Net(text),)) for text in ("0.0.0.0/0", "::/0"))
_OTHERS = NobodyKnows(reason="which of the outside or the nodes the entity means was not collected")
_ENTITIES: Mapping[str, Peer] = {
    "all": AllOf(),
    "world": _WORLD,
    "world-ipv4": AllOf(peers=(_WORLD, _V4)),
    "world-ipv6": AllOf(peers=(_WORLD, _V6)),
    "cluster": _PODS_AND_NODES,
    "host": OwnNodePeer(),
    "remote-node": OwnNodePeer(other=True),
    "kube-apiserver": AllOf(peers=(AnyOf(peers=(_WORLD, _NODES)), _OTHERS)),
    "none": AnyOf(),
    "init": AnyOf(),
    "health": AnyOf(),
}
"""Entity → whom it means; `ingress` and `unmanaged` are not here: of them nothing is known."""


class _CidrSet(Struct, frozen=True, rename={"excluded": "except"}):
    cidr: str = ""
    excluded: list[str] | None = None


class _PortProtocol(Struct, frozen=True, rename="camel"):
    port: str = "0"
    end_port: int = 0
    protocol: str = "ANY"


class _PortRule(Struct, frozen=True):
    ports: list[_PortProtocol] | None = None
    rules: Any = None  # only whether it is there counts


class _Rule(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A rule of any of the four lists; UNSET = the member is not there, which is not the same as an empty list."""

    from_endpoints: list[Selector] | UnsetType | None = UNSET
    to_endpoints: list[Selector] | UnsetType | None = UNSET
    from_requires: list[Selector] | None = None
    to_requires: list[Selector] | None = None
    from_cidr: list[str] | UnsetType | None = field(name="fromCIDR", default=UNSET)
    to_cidr: list[str] | UnsetType | None = field(name="toCIDR", default=UNSET)
    from_cidr_set: list[_CidrSet] | UnsetType | None = field(name="fromCIDRSet", default=UNSET)
    to_cidr_set: list[_CidrSet] | UnsetType | None = field(name="toCIDRSet", default=UNSET)
    from_entities: list[str] | UnsetType | None = UNSET
    to_entities: list[str] | UnsetType | None = UNSET
    from_nodes: list[Selector] | UnsetType | None = UNSET
    to_nodes: list[Selector] | UnsetType | None = UNSET
    from_groups: list[Raw] | UnsetType | None = UNSET
    to_groups: list[Raw] | UnsetType | None = UNSET
    to_services: list[Raw] | UnsetType | None = UNSET
    to_fqdns: list[Raw] | UnsetType | None = field(name="toFQDNs", default=UNSET)
    to_ports: list[_PortRule] | None = None
    icmps: list[Raw] | None = None
    authentication: Any = None  # only whether it is there counts


class _DefaultDeny(Struct, frozen=True):
    ingress: bool | None = None
    egress: bool | None = None


class _Spec(Struct, frozen=True, rename="camel"):
    endpoint_selector: Selector | None = None
    node_selector: Selector | None = None
    ingress: list[Raw] | None = None
    egress: list[Raw] | None = None
    ingress_deny: list[Raw] | None = None
    egress_deny: list[Raw] | None = None
    enable_default_deny: _DefaultDeny = _DefaultDeny()


class _Several(Struct, frozen=True):
    specs: list[Raw] | None = None


class CiliumPods(Struct, frozen=True, kw_only=True):
    """Pods by labels in Cilium's spelling; of one namespace where `namespace` is set."""

    selector: Selector
    namespace: str = ""

    def matches(self, party: Party, scope: Scope) -> Answer:  # noqa: ARG002 -- the interface's
        """Say whether it is such a pod."""
        if party.kind is PartyKind.UNKNOWN:
            return Unsure(party.gap)
        if party.kind is not PartyKind.POD or (self.namespace and party.namespace != self.namespace):
            return False
        inside = {f"{NAMESPACE_LABELS}{key}": value for key, value in party.namespace_labels.values.items()}
        inside[POD_NAMESPACE] = party.namespace
        asks = any(key.startswith(NAMESPACE_LABELS) for key in self.selector.keys)
        gap = party.labels.gap or (party.namespace_labels.gap if asks else "")
        return self.selector.selects(Labels(values={**party.labels.values, **inside}, gap=gap))


def read_cilium_policies(kind: str, text: str, number: int = 0) -> tuple[Policy, ...]:
    """Return the policies that an object makes: of each of its specifications a denying and an allowing part. Raises nothing."""
    try:
        frame = decode(text, Frame)
        specs = [*((frame.spec,) if frame.has_spec else ()), *(decode(text, _Several).specs or ())]
        if not specs:
            raise BadClause("it has no specification")  # noqa: TRY301 -- as all that is wrong with the object
        return tuple(part for spec in specs for part in _read(kind, frame, decode(spec, _Spec)))
    except BadClause as error:
        actions = (Action.ALLOW, Action.DENY)
        return (unreadable(kind, text, str(error), number, actions=actions, tier=TIER),)


def _read(kind: str, frame: Frame, spec: _Spec) -> Iterable[Policy]:
    namespace = (frame.metadata.namespace or "default") if kind == NAMESPACED else ""
    ref = PolicyRef(kind=kind, namespace=namespace, name=frame.metadata.name)
    subject = _subject(spec, namespace)
    into, out = bool(spec.ingress or spec.ingress_deny), bool(spec.egress or spec.egress_deny)
    asked = spec.enable_default_deny
    parts = (
        (Action.DENY, DENY_RANK, spec.ingress_deny, spec.egress_deny),
        (Action.ALLOW, ALLOW_RANK, spec.ingress, spec.egress),
    )
    for action, rank, ingress, egress in parts:
        read = partial(_rule, namespace, action)
        inward = read_rules(ingress or (), read) if into else None
        outward = read_rules(egress or (), read) if out else None
        yield Policy(
            ref=ref,
            subject=subject,
            rank=rank,
            tier=TIER,
            ingress=inward,
            egress=outward,
            isolates_ingress=asked.ingress is not False,
            isolates_egress=asked.egress is not False,
            defects=doubts(inward, outward),
        )


def _subject(spec: _Spec, namespace: str) -> Peer:
    if spec.node_selector is not None:
        return NodesPeer(nodes=spec.node_selector)
    if spec.endpoint_selector is None:
        raise BadClause("it has neither endpointSelector nor nodeSelector")
    return CiliumPods(selector=_plain(spec.endpoint_selector), namespace=namespace)


def _plain(selector: Selector) -> Selector:
    """Return a selector with the sources taken off its keys (`k8s:app` → `app`); other sources than Kubernetes' are bad."""
    return Selector(
        match_labels={_key(key): value for key, value in (selector.match_labels or {}).items()},
        match_expressions=tuple(
            Requirement(key=_key(one.key), operator=one.operator, values=one.values)
            for one in selector.match_expressions or ()
        ),
    )


def _key(key: str) -> str:
    source, colon, rest = key.partition(":")
    if not colon:
        return key
    if source not in ("k8s", "any"):
        raise BadClause(f"label {key!r} is not one of Kubernetes")
    return rest


def _endpoints(namespace: str, selector: Selector) -> Peer:
    for key in selector.keys:
        if key.startswith("reserved:"):
            return _entity(key.removeprefix("reserved:"))
    plain = _plain(selector)
    names_one = any(key == POD_NAMESPACE or key.startswith(NAMESPACE_LABELS) for key in plain.keys)
    return CiliumPods(selector=plain, namespace="" if names_one else namespace)


def _entity(name: str) -> Peer:
    return _ENTITIES.get(name) or NobodyKnows(reason=f"whom entity {name!r} means is not known")


def _cidr_set(one: _CidrSet) -> Peer:
    if not one.cidr:
        return NobodyKnows(reason="a group of networks (cidrGroupRef) was not collected")
    excluded = tuple(map(net, one.excluded or ()))
    return NetworksPeer(nets=(net(one.cidr),), excluded=excluded, outside_only=True)


def _rule(namespace: str, action: Action, index: int, raw: Raw) -> Rule:
    rule = decode(raw, _Rule)
    ports = tuple(_ports(rule))
    peers = _peers(namespace, rule)
    if peers is None and not ports:
        peers = ()  # an empty rule: it allows nothing, but it isolates
    layer7 = any(one.rules is not None for one in rule.to_ports or ())
    return Rule(
        index=index,
        action=action,
        peers=peers,
        ports=ports or None,
        name="its layer 7 clauses are not looked at" if layer7 else "",
    )


def _peers(namespace: str, rule: _Rule) -> tuple[Peer, ...] | None:
    """Return the peers of a rule; None where it names none, which is everybody; an empty list of peers is nobody."""
    members: Sequence[object] = (
        *(rule.from_endpoints, rule.to_endpoints, rule.from_cidr, rule.to_cidr, rule.from_cidr_set, rule.to_cidr_set),
        *(rule.from_entities, rule.to_entities, rule.from_nodes, rule.to_nodes),
        *(rule.from_groups, rule.to_groups, rule.to_services, rule.to_fqdns),
    )
    if all(member is UNSET for member in members):
        return None
    peers: list[Peer] = [
        *(_endpoints(namespace, one) for one in _list(rule.from_endpoints, rule.to_endpoints)),
        *(NetworksPeer(nets=(net(one),), outside_only=True) for one in _list(rule.from_cidr, rule.to_cidr)),
        *(_cidr_set(one) for one in _list(rule.from_cidr_set, rule.to_cidr_set)),
        *(_entity(one) for one in _list(rule.from_entities, rule.to_entities)),
        *(NodesPeer(nodes=_plain(one)) for one in _list(rule.from_nodes, rule.to_nodes)),
    ]
    if _list(rule.from_groups, rule.to_groups):
        peers.append(AllOf(peers=(_WORLD, NobodyKnows(reason="groups of a cloud are not collected"))))
    if _list(rule.to_services):
        peers.append(NobodyKnows(reason="toServices is not followed"))
    if _list(rule.to_fqdns):
        peers.append(
            AllOf(peers=(_WORLD, NobodyKnows(reason="which addresses the names of toFQDNs have is not known")))
        )
    required = [_endpoints(namespace, one) for one in (*(rule.from_requires or ()), *(rule.to_requires or ()))]
    return tuple(AllOf(peers=(peer, *required)) for peer in peers) if required else tuple(peers)


def _list(first: list[T] | UnsetType | None, second: list[T] | UnsetType | None = UNSET) -> list[T]:
    return [one for members in (first, second) if isinstance(members, list) for one in members]


def _ports(rule: _Rule) -> Iterable[Ports]:
    for port_rule in rule.to_ports or ():
        for one in port_rule.ports or ():
            yield _port(one)
    if rule.icmps:
        yield UnreadPort(reason="types of ICMP are not looked at", protocols=_ICMP)


def _port(one: _PortProtocol) -> PortMatch:
    spelled = one.protocol.upper() or "ANY"
    if spelled != "ANY" and spelled not in PROTOCOLS:
        raise BadClause(f"protocol {one.protocol!r} is not known")
    protocol = None if spelled == "ANY" else PROTOCOLS[spelled]
    if one.port in ("", "0"):
        return PortMatch(protocol=protocol)
    if not one.port.isdigit():
        return PortMatch(protocol=protocol, name=one.port)
    return PortMatch(protocol=protocol, first=int(one.port), last=one.end_port or int(one.port))
