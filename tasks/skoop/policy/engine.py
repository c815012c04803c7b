"""May this connection be made, as far as policies go?

Each direction is judged on its own: egress by the policies that select the source, ingress by those that select the destination.
Tiers are asked in order (`rules`); what nobody isolates is allowed. Two things are never policed (Kubernetes documentation, Network
Policies): a pod's traffic to itself, and traffic between a pod and the node it runs on; of the latter an explicit rule of the other
APIs is honoured on the way out, as their plugins do. Answers are for the first packet of a connection; replies follow it.

What a rule says may be in doubt (an object that could not be read, labels not known). Doubt that changes nothing is passed over: the
answer is unknown only where both outcomes are possible.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tasks.skoop.model.cluster import ClusterObjects, PodMeta
from tasks.skoop.model.endpoint import Endpoint
from tasks.skoop.model.packet import Protocol
from tasks.skoop.policy import parse
from tasks.skoop.policy.catalogue import Catalogue, catalogue, reading_of
from tasks.skoop.policy.certainty import Answer, Unsure, all_of, any_of, negation
from tasks.skoop.policy.parties import Party, PartyKind, World
from tasks.skoop.policy.peers import TRANSPORT, Reading, Scope, Traffic
from tasks.skoop.policy.rules import Action, Direction, Policy, PolicyRef, Rule, RuleRef, Tier
from tasks.skoop.policy.verdict import PolicyVerdict, Ruling, Side


class Selecting(NamedTuple):
    """A policy that selects a pod, the directions in which it has a say, and why it is not sure, if so."""

    policy: Policy
    directions: tuple[Direction, ...]
    doubt: str = ""


class _Applying(NamedTuple):
    """A policy that selects an end, or may (`doubt`)."""

    policy: Policy
    rules: tuple[Rule, ...]
    doubt: str


class _Stage(NamedTuple):
    tier: Tier
    ranks: tuple[tuple[_Applying, ...], ...]


class PolicyEngine:
    """The policies of one cluster. `reading`: whom networks match; chosen by the plugin in use unless given."""

    def __init__(self, objects: ClusterObjects, reading: Reading | None = None) -> None:
        self.objects = objects
        self.world = World(objects)
        self.reading = reading or reading_of(objects)
        self.catalogue: Catalogue = catalogue(objects)
        self._stages: dict[tuple[object, Direction], tuple[_Stage, ...]] = {}

    def verdict(
        self,
        src: Endpoint | Party,
        dst: Endpoint | Party,
        port: int,
        protocol: Protocol = Protocol.TCP,
        *,
        ingress_src: Endpoint | Party | None = None,
        seen: str = "",
    ) -> PolicyVerdict:
        """Return what policies say of a connection between two ends that are no Services (see `translated`).

        `port` is the destination's own (0: none was named). `ingress_src` is who the destination's policies see as the source
        where that is somebody else, because the source was translated on the way.
        """
        source, target = self._party(src), self._party(dst)
        shown = source if ingress_src is None else self._party(ingress_src)
        traffic = Traffic(dst=target, port=port, protocol=protocol)
        return PolicyVerdict(
            src=source.name,
            dst=target.name,
            dst_ip=target.ip,
            port=port,
            protocol=protocol,
            egress=self._side(source, target, traffic, Direction.EGRESS),
            ingress=self._side(target, shown, traffic, Direction.INGRESS),
            seen=seen,
        )

    def policies_selecting(self, pod: PodMeta) -> tuple[Selecting, ...]:
        """Return the policies that select a pod, or may, in the order in which they are asked."""
        party = self.world.pod(pod)
        scope = Scope(reading=self.reading, node=party.node)
        found: list[Selecting] = []
        for policy in self.catalogue.policies:
            answer = policy.subject.matches(party, scope)
            ways = tuple(way for way in Direction if policy.rules(way) is not None)
            same = any(known.policy.ref == policy.ref for known in found)
            if answer is not False and ways and not same:
                found.append(Selecting(policy, ways, answer.reason if isinstance(answer, Unsure) else ""))
        return tuple(found)

    def _party(self, end: Endpoint | Party) -> Party:
        return end if isinstance(end, Party) else self.world.party(end)

    def _side(self, own: Party, other: Party, traffic: Traffic, direction: Direction) -> Side:
        if own.kind is PartyKind.POD and other.kind is PartyKind.POD and own.name == other.name:
            return Side(direction=direction, ruling=Ruling.ALLOWED, why="a pod's traffic to itself is never policed")
        own_node = own.kind is PartyKind.POD and other.kind is PartyKind.NODE and own.node == other.node
        if own_node and direction is Direction.INGRESS:
            return Side(
                direction=direction, ruling=Ruling.ALLOWED, why="traffic from a pod's own node is never policed"
            )
        return _Judge(self._applying(own, direction), own, other, traffic, direction, self.reading, own_node).side()

    def _applying(self, own: Party, direction: Direction) -> tuple[_Stage, ...]:
        """Return the tiers with the policies in them that select an end, or may; others have no say."""
        key = (own.key, direction)
        found = self._stages.get(key)
        if found is None:
            scope = Scope(reading=self.reading, node=own.node)
            stages = (
                _Stage(tier, tuple(filter(None, (tuple(_those(rank, own, scope, direction)) for rank in tier.ranks))))
                for tier in self.catalogue.tiers
            )
            found = self._stages[key] = tuple(stage for stage in stages if stage.ranks)
        return found


def verdict(
    objects: ClusterObjects, src: Endpoint, dst: Endpoint, port: int, protocol: Protocol = Protocol.TCP
) -> PolicyVerdict:
    """Return what the policies of a cluster say of one connection; as PolicyEngine.verdict, for a single question."""
    return PolicyEngine(objects).verdict(src, dst, port, protocol)


def _those(rank: Sequence[Policy], own: Party, scope: Scope, direction: Direction) -> Iterator[_Applying]:
    for policy in rank:
        rules = policy.rules(direction)
        answer = policy.subject.matches(own, scope) if rules is not None else False
        if rules is not None and answer is not False:
            yield _Applying(policy, rules, answer.reason if isinstance(answer, Unsure) else "")


class _Judge:
    """Asks the tiers about one direction of one connection, and keeps every outcome that is possible."""

    def __init__(
        self,
        stages: tuple[_Stage, ...],
        own: Party,
        other: Party,
        traffic: Traffic,
        direction: Direction,
        reading: Reading,
        own_node: bool,
    ) -> None:
        self.stages = stages
        self.own, self.other, self.traffic, self.direction = own, other, traffic, direction
        self.scope = Scope(reading=reading, node=own.node)
        self.own_node = own_node
        self.outcomes: set[Ruling] = set()
        self.allowed: list[RuleRef] = []
        self.denied: list[RuleRef] = []
        self.isolating: list[PolicyRef] = []
        self.doubts: list[str] = []

    def side(self) -> Side:
        """Return the ruling, with everything that speaks for it."""
        if all(self._goes_on(stage) for stage in self.stages):
            self.outcomes.add(Ruling.ALLOWED)
        ruling = self.outcomes.pop() if len(self.outcomes) == 1 else Ruling.UNKNOWN
        return Side(
            direction=self.direction,
            ruling=ruling,
            why=self._why(ruling),
            allowed_by=tuple(dict.fromkeys(self.allowed)),
            denied_by=tuple(dict.fromkeys(self.denied)),
            isolated_by=tuple(dict.fromkeys(self.isolating)),
            missing=tuple(dict.fromkeys(self.doubts)) if ruling is Ruling.UNKNOWN else (),
        )

    def _goes_on(self, stage: _Stage) -> bool:
        """Ask a tier; return whether the next one is to be asked as well. What is decided here is added to the outcomes."""
        passed = False
        for rank in stage.ranks:
            sure, actions = self._rank(rank)
            passed = passed or Action.PASS in actions
            if sure:
                return passed
        return self._default(stage) or passed

    def _rank(self, rank: Sequence[_Applying]) -> tuple[bool, set[Action]]:
        """Return whether a rank decides for sure, and what it may do. Its policies have no order: each may come first."""
        sure = False
        actions: set[Action] = set()
        for applying in rank:
            if self.own_node and applying.policy.ref.kind == parse.KIND:
                continue
            for rule in applying.rules:
                answer = self._matches(applying, rule)
                if answer is False or rule.action is Action.LOG:
                    continue
                self._note(applying.policy, rule, answer)
                actions.add(rule.action)
                if answer is True:
                    sure = True
                    if any(other.action is not Action.ALLOW for other in applying.rules):
                        break
        return sure, actions

    def _note(self, policy: Policy, rule: Rule, answer: Answer) -> None:
        ref = RuleRef(policy=policy.ref, direction=self.direction, index=rule.index, action=rule.action, name=rule.name)
        if isinstance(answer, Unsure):
            self.doubts.append(answer.reason)
        if rule.action is Action.ALLOW:
            self.allowed.append(ref)
            self.outcomes.add(Ruling.ALLOWED)
        elif rule.action is Action.DENY:
            self.denied.append(ref)
            self.outcomes.add(Ruling.DENIED)

    def _default(self, stage: _Stage) -> bool:
        """Apply what meets the traffic that no rule of a tier matched; return whether the next tier is to be asked."""
        if stage.tier.default is not Action.DENY:
            return True
        goes_on = True
        for applying in (one for rank in stage.ranks for one in rank):
            policy = applying.policy
            if not policy.isolates(self.direction) or (self.own_node and policy.ref.kind == parse.KIND):
                continue
            self.isolating.append(policy.ref)
            self.outcomes.add(Ruling.DENIED)
            other_protocol = policy.transport_only and self.traffic.protocol not in TRANSPORT
            if other_protocol:
                self.doubts.append(f"what {policy.ref} does to {self.traffic.protocol} is up to the network plugin")
                self.outcomes.add(Ruling.ALLOWED)
            if applying.doubt:
                self.doubts.append(applying.doubt)
            elif not other_protocol:
                goes_on = False
        return goes_on

    def _matches(self, applying: _Applying, rule: Rule) -> Answer:
        selects: Answer = Unsure(applying.doubt) if applying.doubt else True
        if rule.doubt:
            return Unsure(rule.doubt)
        traffic, scope = self.traffic, self.scope
        peers = True if rule.peers is None else any_of(peer.matches(self.other, scope) for peer in rule.peers)
        if peers is False:
            return False
        ports = True if rule.ports is None else any_of(port.matches(traffic) for port in rule.ports)
        but = any_of(port.matches(traffic) for port in rule.but_ports)
        own = True if rule.own is None else rule.own.matches(self.own, scope)
        return all_of((selects, peers, ports, negation(but), own, self._defined(applying.policy, rule)))

    def _defined(self, policy: Policy, rule: Rule) -> Answer:
        """Say whether what the policy does to this protocol is defined; rules with ports do not match others anyway."""
        if not policy.transport_only or self.traffic.protocol in TRANSPORT or rule.ports is not None:
            return True
        return Unsure(f"what {policy.ref} does to {self.traffic.protocol} is up to the network plugin")

    def _why(self, ruling: Ruling) -> str:
        match ruling:
            case Ruling.UNKNOWN:
                return "; ".join(dict.fromkeys(self.doubts)) or "policies of the same priority say different things"
            case Ruling.DENIED if self.denied:
                return f"denied by {self.denied[0]}"
            case Ruling.DENIED:
                names = ", ".join(map(str, dict.fromkeys(self.isolating)))
                return f"isolated by {names}, and no rule allows it"
            case _ if self.allowed:
                return f"allowed by {self.allowed[0]}"
            case _:
                return (
                    "no policy isolates it" if not self.own_node else "traffic with a pod's own node is never policed"
                )
