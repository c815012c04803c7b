"""What do Calico's own policies say: NetworkPolicy and GlobalNetworkPolicy of projectcalico.org, in their tiers?

Follows the Calico documentation (v3.27 to v3.31) of both resources: tiers by order, policies in a tier by order, then name; the
first rule that matches decides; a rule may ask something of both ends; `types` left out follow from the rules that are there.
Selectors find pods, and the addresses of network sets. Policies for host endpoints only (doNotTrack, preDNAT) concern no pod.
Service accounts, Services and HTTP in rules cannot be decided from what is collected: such rules are in doubt.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Raw, Struct, field

from tasks.skoop.model.addr import Net
from tasks.skoop.model.packet import Protocol
from tasks.skoop.policy.calico_selector import CalicoSelector, read_selector
from tasks.skoop.policy.certainty import Answer, Unsure, all_of, any_of
from tasks.skoop.policy.clauses import BadClause, Frame, decode, doubts, net, read_rules, unreadable
from tasks.skoop.policy.parties import NAMESPACE_NAME, Party, PartyKind
from tasks.skoop.policy.peers import AllOf, NetworksPeer, NobodyKnows, Peer, PortMatch, Ports, Scope, UnreadPort
from tasks.skoop.policy.rules import Action, Policy, PolicyRef, Rule
from tasks.skoop.policy.selectors import Labels

NAMESPACED, GLOBAL = "CalicoNetworkPolicy", "GlobalNetworkPolicy"
DEFAULT_TIER = "default"
_ACTIONS = {
    "Allow": Action.ALLOW,
    "Deny": Action.DENY,
    "Pass": Action.PASS,
    "Next-Tier": Action.PASS,
    "Log": Action.LOG,
}
_PROTOCOLS: dict[str, Protocol] = {
    **{
        "TCP": Protocol.TCP,
        "UDP": Protocol.UDP,
        "SCTP": Protocol.SCTP,
        "ICMP": Protocol.ICMP,
        "ICMPV6": Protocol.ICMPV6,
    },
    **{"6": Protocol.TCP, "17": Protocol.UDP, "132": Protocol.SCTP, "1": Protocol.ICMP, "58": Protocol.ICMPV6},
}
_DOUBTFUL = (Action.ALLOW, Action.DENY, Action.PASS)
_FAMILIES = {4: Net("0.0.0.0/0"), 6: Net("::/0")}


class NetworkSet(Struct, frozen=True, kw_only=True):
    """Addresses under a label; `namespace` "" = a global set."""

    namespace: str
    labels: Labels
    nets: tuple[Net, ...]


class _SetSpec(Struct, frozen=True):
    nets: list[str] | None = None


class _Entity(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    nets: list[str] | None = None
    not_nets: list[str] | None = None
    selector: str = ""
    not_selector: str = ""
    namespace_selector: str = ""
    ports: list[int | str] | None = None
    not_ports: list[int | str] | None = None
    service_accounts: Any = None  # only whether it is there counts
    services: Any = None  # only whether it is there counts
    domains: list[str] | None = None


class _Rule(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    action: str
    protocol: int | str | None = None
    not_protocol: int | str | None = None
    icmp: Any = None  # only whether it is there counts
    not_icmp: Any = None  # only whether it is there counts
    ip_version: int | None = None
    source: _Entity = _Entity()
    destination: _Entity = _Entity()
    http: Any = None  # only whether it is there counts
    metadata: Any = None  # only whether it is there counts


class _Spec(Struct, frozen=True, rename="camel"):
    tier: str = ""
    order: float | None = None
    selector: str = ""
    namespace_selector: str = ""
    service_account_selector: str = ""
    types: list[str] | None = None
    ingress: list[Raw] | None = None
    egress: list[Raw] | None = None
    do_not_track: bool = False
    pre_dnat: bool = field(name="preDNAT", default=False)


class CalicoPods(Struct, frozen=True, kw_only=True):
    """Pods by selectors of pod and namespace; of one namespace where `namespace` is set. `sets`: network sets it may find too."""

    selector: CalicoSelector
    namespace: str = ""
    namespaces: CalicoSelector | None = None
    sets: tuple[NetworkSet, ...] = ()

    def matches(self, party: Party, scope: Scope) -> Answer:
        """Say whether it is such a pod, or an address of such a set."""
        found = [NetworksPeer(nets=one.nets).matches(party, scope) for one in self.sets if self._finds(one) is True]
        found += [Unsure("labels of a network set") for one in self.sets if isinstance(self._finds(one), Unsure)]
        return any_of((self._pod(party), *found))

    def _pod(self, party: Party) -> Answer:
        if party.kind is PartyKind.UNKNOWN:
            return Unsure(party.gap)
        if party.kind is not PartyKind.POD or (self.namespaces is not None and self.namespaces.is_global):
            return False
        inside: Answer = not self.namespace or party.namespace == self.namespace
        if self.namespaces is not None:
            inside = self.namespaces.selects(_namespace_labels(party))
        return all_of((inside, self.selector.selects(_pod_labels(party))))

    def _finds(self, one: NetworkSet) -> Answer:
        wants_global = self.namespaces.is_global if self.namespaces is not None else not self.namespace
        if not one.namespace:
            return wants_global and self.selector.selects(one.labels)
        if self.namespaces is not None:
            known = Labels(
                values={NAMESPACE_NAME: one.namespace, "projectcalico.org/name": one.namespace}, gap="of a set"
            )
            return all_of((self.namespaces.selects(known), self.selector.selects(one.labels)))
        return self.namespace in ("", one.namespace) and self.selector.selects(one.labels)


def _pod_labels(party: Party) -> Labels:
    own = {"projectcalico.org/namespace": party.namespace, "projectcalico.org/orchestrator": "k8s"}
    return Labels(values={**party.labels.values, **own}, gap=party.labels.gap)


def _namespace_labels(party: Party) -> Labels:
    own = {"projectcalico.org/name": party.namespace}
    return Labels(values={**party.namespace_labels.values, **own}, gap=party.namespace_labels.gap)


def read_network_set(text: str) -> NetworkSet | None:
    """Return a NetworkSet or GlobalNetworkSet from its JSON text, or None if it cannot be read."""
    try:
        frame = decode(text, Frame)
        spec = decode(frame.body, _SetSpec)
        nets = tuple(map(net, spec.nets or ()))
    except BadClause:
        return None
    return NetworkSet(namespace=frame.metadata.namespace, labels=Labels(values=frame.metadata.labels or {}), nets=nets)


def read_calico_policy(kind: str, text: str, sets: tuple[NetworkSet, ...] = (), number: int = 0) -> Policy:
    """Return a policy of Calico (NAMESPACED or GLOBAL) from its JSON text. Raises nothing."""
    try:
        return _Reader(kind, decode(text, Frame), sets).policy()
    except BadClause as error:
        return unreadable(kind, text, str(error), number, actions=_DOUBTFUL, tier=DEFAULT_TIER)


class _Reader:
    """Reads one policy: what its namespace and the network sets are is asked at every rule."""

    def __init__(self, kind: str, frame: Frame, sets: tuple[NetworkSet, ...]) -> None:
        self.kind = kind
        self.meta = frame.metadata
        self.namespace = (frame.metadata.namespace or "default") if kind == NAMESPACED else ""
        self.spec = decode(frame.body, _Spec)
        self.sets = sets

    def policy(self) -> Policy:
        spec = self.spec
        ingress, egress = _directions(spec)
        into = (
            read_rules(spec.ingress or (), lambda index, raw: self._rule(index, raw, inward=True)) if ingress else None
        )
        out = read_rules(spec.egress or (), lambda index, raw: self._rule(index, raw, inward=False)) if egress else None
        if spec.do_not_track or spec.pre_dnat:
            into = out = None
        order = math.inf if spec.order is None else spec.order
        return Policy(
            ref=PolicyRef(kind=self.kind, namespace=self.namespace, name=self.meta.name),
            subject=self._subject(),
            rank=(1, order, f"{self.meta.name}/{self.namespace}"),
            tier=spec.tier or DEFAULT_TIER,
            ingress=into,
            egress=out,
            defects=doubts(into, out),
        )

    def _subject(self) -> Peer:
        spec = self.spec
        namespaces = read_selector(spec.namespace_selector) if spec.namespace_selector and not self.namespace else None
        pods = CalicoPods(selector=read_selector(spec.selector), namespace=self.namespace, namespaces=namespaces)
        if not spec.service_account_selector:
            return pods
        return AllOf(peers=(pods, NobodyKnows(reason="service accounts of pods are not collected")))

    def _rule(self, index: int, raw: Raw, *, inward: bool) -> Rule:
        rule = decode(raw, _Rule)
        action = _ACTIONS.get(rule.action) or _ACTIONS.get(rule.action.capitalize())
        if action is None:
            raise BadClause(f"action {rule.action!r} is not known")
        ends = (self._entity(rule.source), self._entity(rule.destination))
        other, own = ends if inward else ends[::-1]
        if rule.ip_version is not None:
            family = NetworksPeer(nets=(_FAMILIES[rule.ip_version],)) if rule.ip_version in _FAMILIES else None
            if family is None:
                raise BadClause(f"ipVersion {rule.ip_version}")
            other = AllOf(peers=(family, *filter(None, (other,))))
        ports, but_ports = _ports(rule)
        return Rule(
            index=index,
            action=action,
            peers=None if other is None else (other,),
            own=own,
            ports=ports,
            but_ports=but_ports,
        )

    def _entity(self, entity: _Entity) -> Peer | None:
        wanted: list[Peer] = []
        unwanted: list[Peer] = []
        if entity.nets:
            wanted.append(NetworksPeer(nets=tuple(map(net, entity.nets))))
        if entity.not_nets:
            unwanted.append(NetworksPeer(nets=tuple(map(net, entity.not_nets))))
        if entity.selector or entity.namespace_selector:
            wanted.append(self._pods(entity.selector, entity.namespace_selector))
        if entity.not_selector:
            unwanted.append(self._pods(entity.not_selector, entity.namespace_selector))
        for name, clause in (("serviceAccounts", entity.service_accounts), ("services", entity.services)):
            if clause is not None:
                wanted.append(NobodyKnows(reason=f"a rule by {name} cannot be decided from what is collected"))
        if entity.domains:
            wanted.append(NobodyKnows(reason=f"which addresses {', '.join(entity.domains)} has is not known"))
        return AllOf(peers=tuple(wanted), but=tuple(unwanted)) if wanted or unwanted else None

    def _pods(self, selector: str, namespaces: str) -> CalicoPods:
        return CalicoPods(
            selector=read_selector(selector),
            namespace="" if namespaces else self.namespace,
            namespaces=read_selector(namespaces) if namespaces else None,
            sets=self.sets,
        )


def _directions(spec: _Spec) -> tuple[bool, bool]:
    if spec.types:
        strange = set(spec.types) - {"Ingress", "Egress"}
        if strange:
            raise BadClause(f"type {min(strange)!r} is not known")
        return "Ingress" in spec.types, "Egress" in spec.types
    return bool(spec.ingress) or not spec.egress, bool(spec.egress)


def _ports(rule: _Rule) -> tuple[tuple[Ports, ...] | None, tuple[Ports, ...]]:
    """Return the traffic that a rule speaks of, and what it takes out of it."""
    wanted = None if rule.protocol is None else _protocol(rule.protocol)
    ports: list[Ports] = [_port(wanted, port) for port in rule.destination.ports or ()]
    if not ports and wanted is not None:
        ports = [PortMatch(protocol=wanted)]
    but: list[Ports] = [_port(wanted, port) for port in rule.destination.not_ports or ()]
    if rule.not_protocol is not None:
        but.append(PortMatch(protocol=_protocol(rule.not_protocol)))
    for doubtful, what in _doubtful(rule):
        if doubtful:
            protocols = None if wanted is None else frozenset((wanted,))
            ports = [UnreadPort(reason=f"a rule by {what} cannot be decided", protocols=protocols)]
    return tuple(ports) or None, tuple(but)


def _doubtful(rule: _Rule) -> Iterable[tuple[bool, str]]:
    yield rule.http is not None, "HTTP"
    yield rule.icmp is not None or rule.not_icmp is not None, "type of ICMP"
    yield bool(rule.source.ports or rule.source.not_ports), "source port"


def _protocol(text: int | str) -> Protocol:
    known = _PROTOCOLS.get(str(text).upper())
    if known is None:
        raise BadClause(f"protocol {text!r} is not known")
    return known


def _port(protocol: Protocol | None, text: int | str) -> PortMatch:
    if protocol is None:
        raise BadClause("ports without a protocol")
    first, _, last = str(text).partition(":")
    if not first.isdigit():
        return PortMatch(protocol=protocol, name=str(text))
    if last and not last.isdigit():
        raise BadClause(f"{text!r} is no range of ports")
    return PortMatch(protocol=protocol, first=int(first), last=int(last or first))


class CalicoTier(Struct, frozen=True, kw_only=True):
    """A tier's place and what it does to the traffic of a selected pod that none of its rules matched."""

    name: str
    order: float = math.inf
    default: Action = Action.DENY


class _TierSpec(Struct, frozen=True, rename="camel"):
    order: float | None = None
    default_action: str = "Deny"


def read_tiers(texts: Sequence[str]) -> tuple[tuple[CalicoTier, ...], tuple[str, ...]]:
    """Return the tiers of these JSON texts, and what could not be read."""
    tiers, bad = [], []
    for text in texts:
        try:
            frame = decode(text, Frame)
            spec = decode(frame.body, _TierSpec)
            if spec.default_action not in ("Deny", "Pass"):
                raise BadClause(f"Tier {frame.metadata.name}: default action {spec.default_action!r} is not known")  # noqa: TRY301
        except BadClause as error:
            bad.append(str(error))
            continue
        order = math.inf if spec.order is None else spec.order
        tiers.append(CalicoTier(name=frame.metadata.name, order=order, default=Action(spec.default_action)))
    return tuple(tiers), tuple(bad)
