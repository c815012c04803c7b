"""The answer about a connection: what its egress and its ingress side say, and which policies and rules say so."""

from enum import StrEnum

from msgspec import Struct

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.packet import Protocol
from tasks.skoop.policy.rules import Direction, PolicyRef, RuleRef


class Ruling(StrEnum):
    """Whether policies let traffic through."""

    ALLOWED = "allowed"
    DENIED = "denied"
    UNKNOWN = "unknown"


class Side(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One direction: what policies that select the source (egress) or the destination (ingress) say.

    `allowed_by` and `denied_by` are the rules that decide; where it is unknown, those that may. `isolated_by` are the policies
    that select the end, so that what no rule allows is denied. `missing` says what would be needed to know.
    """

    direction: Direction
    ruling: Ruling
    why: str
    allowed_by: tuple[RuleRef, ...] = ()
    denied_by: tuple[RuleRef, ...] = ()
    isolated_by: tuple[PolicyRef, ...] = ()
    missing: tuple[str, ...] = ()


class PolicyVerdict(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What policies say about a connection, with its ends and port as policies see them (after translation)."""

    src: str
    dst: str
    dst_ip: Ip
    port: int
    protocol: Protocol
    egress: Side
    ingress: Side
    seen: str = ""
    """How the policies came to see these ends, where they are not those of the question."""

    @property
    def ruling(self) -> Ruling:
        """Denied if either side denies, else unknown if either is, else allowed."""
        sides = (self.egress.ruling, self.ingress.ruling)
        if Ruling.DENIED in sides:
            return Ruling.DENIED
        return Ruling.UNKNOWN if Ruling.UNKNOWN in sides else Ruling.ALLOWED

    @property
    def why(self) -> str:
        """One sentence: what decides."""
        if self.ruling is Ruling.ALLOWED:
            return f"egress: {self.egress.why}; ingress: {self.ingress.why}"
        side = self.egress if self.egress.ruling is self.ruling else self.ingress
        return f"{side.direction}: {side.why}"
