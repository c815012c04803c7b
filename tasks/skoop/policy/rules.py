"""The one form into which policies of every API are brought: tiers of ranked policies with ordered rules.

A tier is asked after the one before it passed the traffic on. In a tier, ranks are asked in order; policies of one rank have no
order among them that could be relied on. A policy's rules are asked in order; the first that matches decides. Traffic of an end
that a policy of the tier selects, and that no rule matched, meets the tier's default: Deny isolates (NetworkPolicy, Calico,
Cilium), Pass does not (admin policies). NetworkPolicy is additive because all its rules allow.
"""

from enum import StrEnum

from msgspec import Struct

from tasks.skoop.policy.peers import Peer, Ports


class Direction(StrEnum):
    """Which way, seen from the end that a policy selects."""

    INGRESS = "ingress"
    EGRESS = "egress"


class Action(StrEnum):
    """What a rule that matches does. Pass goes on with the next tier, Log with the next rule."""

    ALLOW = "Allow"
    DENY = "Deny"
    PASS = "Pass"
    LOG = "Log"


class PolicyRef(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which policy: its kind, namespace ("" for cluster-wide ones) and name."""

    kind: str
    name: str
    namespace: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


class RuleRef(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which rule of a policy: `index` counts from 0 as in the object (`spec.ingress[0]`)."""

    policy: PolicyRef
    direction: Direction
    index: int
    action: Action = Action.ALLOW
    name: str = ""

    def __str__(self) -> str:
        named = f" ({self.name})" if self.name else ""
        return f"{self.policy} {self.direction}[{self.index}]{named}"


class Rule(Struct, frozen=True, kw_only=True):
    """One rule. `peers` and `ports` None = everybody, everything; of several, one must match; `doubt`: it could not be read."""

    index: int
    action: Action = Action.ALLOW
    peers: tuple[Peer, ...] | None = None
    ports: tuple[Ports, ...] | None = None
    but_ports: tuple[Ports, ...] = ()
    own: Peer | None = None
    """What Calico's rules ask of the selected end besides: None = nothing."""
    name: str = ""
    doubt: str = ""


class Policy(Struct, frozen=True, kw_only=True):
    """One policy. Rules None = it has no say in that direction. `rank` sorts it in its tier; `defects` say what is wrong with it."""

    ref: PolicyRef
    subject: Peer
    rank: tuple[int, float, str] = (0, 0.0, "")
    tier: str = ""
    ingress: tuple[Rule, ...] | None = None
    egress: tuple[Rule, ...] | None = None
    isolates_ingress: bool = True
    isolates_egress: bool = True
    """Whether the tier's default meets what its rules do not match (Cilium's enableDefaultDeny)."""
    transport_only: bool = False
    """It is defined for TCP, UDP and SCTP; what it does to other protocols is the plugin's matter."""
    defects: tuple[str, ...] = ()

    def rules(self, direction: Direction) -> tuple[Rule, ...] | None:
        """Return the rules of a direction."""
        return self.ingress if direction is Direction.INGRESS else self.egress

    def isolates(self, direction: Direction) -> bool:
        """Say whether an end that it selects is isolated by it, where the tier isolates."""
        return self.isolates_ingress if direction is Direction.INGRESS else self.isolates_egress


class Tier(Struct, frozen=True, kw_only=True):
    """Policies that are asked together: `ranks` in order, and what meets a selected end's traffic that no rule matched."""

    name: str
    ranks: tuple[tuple[Policy, ...], ...]
    default: Action = Action.DENY
