"""What the readers of all policy APIs share: one object's frame, clauses that may be bad, protocols, networks.

A clause that cannot be read (a field or kind that is not known, a wrong type, an address that is none) becomes a rule in doubt;
an object of which not even the frame can be read becomes a policy that may do anything to whom it may select. Neither stops the
rest, and neither is taken for an empty clause, which would mean "everybody".
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
from msgspec import Raw, Struct

from tasks.skoop.model.addr import AddressError, Net, parse_net
from tasks.skoop.model.packet import Protocol
from tasks.skoop.policy.peers import NobodyKnows, PodsPeer
from tasks.skoop.policy.rules import Action, Policy, PolicyRef, Rule
from tasks.skoop.policy.selectors import EVERYTHING

T = TypeVar("T")
PROTOCOLS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}
ALL_PODS = PodsPeer(namespaces=EVERYTHING)


class BadClause(ValueError):
    """A clause of a policy is not of a form that is known; the text says how."""


class Meta(Struct, frozen=True, kw_only=True):
    """Name and namespace of an object."""

    name: str = ""
    namespace: str = ""
    labels: dict[str, str] | None = None


class Frame(Struct, frozen=True, kw_only=True, rename="camel"):
    """An object whose specification is not read yet."""

    metadata: Meta = Meta()
    kind: str = ""
    api_version: str = ""
    spec: Raw = Raw(b"null")

    @property
    def body(self) -> Raw:
        """The specification; an empty one where there is none."""
        return self.spec if self.has_spec else Raw(b"{}")

    @property
    def has_spec(self) -> bool:
        """Whether there is one."""
        return bytes(self.spec).strip() != b"null"


def decode(raw: Raw | bytes | str, wanted: type[T]) -> T:
    """Return JSON as a value. Raises BadClause."""
    try:
        return msgspec.json.decode(raw, type=wanted)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadClause(str(error)) from None


def protocol(text: str | None) -> Protocol:
    """Return the protocol that the API's text names; TCP where it is left out. Raises BadClause."""
    known = PROTOCOLS.get(text or "TCP")
    if known is None:
        raise BadClause(f"protocol {text!r} is not one of {', '.join(PROTOCOLS)}")
    return known


def net(text: str) -> Net:
    """Return a network. Raises BadClause."""
    try:
        return parse_net(text)
    except AddressError as error:
        raise BadClause(str(error)) from None


def read_rules(raws: Sequence[Raw], read: Callable[[int, Raw], Rule]) -> tuple[Rule, ...]:
    """Return the rules of a list; one that cannot be read is kept as a rule in doubt, with the actions that it may have."""
    return tuple(rule for index, raw in enumerate(raws) for rule in _one(index, raw, read))


class _ActionOnly(Struct):
    action: str = Action.ALLOW


def _one(index: int, raw: Raw, read: Callable[[int, Raw], Rule]) -> tuple[Rule, ...]:
    try:
        return (read(index, raw),)
    except BadClause as error:
        doubt = f"rule {index} could not be read: {error}"
    try:
        action = decode(raw, _ActionOnly).action
    except BadClause:
        action = ""
    actions = (Action(action),) if action in set(Action) else (Action.ALLOW, Action.DENY, Action.PASS)
    return tuple(Rule(index=index, action=one, doubt=doubt) for one in actions)


def doubts(*lists: tuple[Rule, ...] | None) -> tuple[str, ...]:
    """Return what is wrong with rules, each complaint once."""
    return tuple(dict.fromkeys(rule.doubt for rules in lists for rule in rules or () if rule.doubt))


def unreadable(kind: str, text: str, error: str, number: int, *, actions: Sequence[Action], tier: str = "") -> Policy:
    """Return the policy that stands for an object which could not be read: it may select any pod (of its namespace)."""
    ref = named(kind, text, number)
    reason = f"{ref} could not be read: {error}"
    within = PodsPeer(namespace=ref.namespace) if ref.namespace else ALL_PODS
    rules = tuple(Rule(index=0, action=action, doubt=reason) for action in actions)
    subject = NobodyKnows(reason=reason, within=within)
    return Policy(ref=ref, subject=subject, tier=tier, ingress=rules, egress=rules, defects=(error,))


def named(kind: str, text: str, number: int) -> PolicyRef:
    """Return what an object is called, as far as that can be read; else its number in the list."""
    try:
        meta = msgspec.json.decode(text, type=Frame).metadata
    except (msgspec.MsgspecError, RecursionError):
        meta = Meta()
    return PolicyRef(kind=kind, namespace=meta.namespace, name=meta.name or f"number {number} of the list")
