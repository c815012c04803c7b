"""The answer: what happens to the traffic, what the client sees, why, and what mends it."""

from msgspec import Struct

from tasks.skoop.model.endpoint import Question
from tasks.skoop.model.netnode import PacketPath
from tasks.skoop.model.suspicion import Suspicion
from tasks.skoop.model.trace import Outcome, View, Walk


class ServerSees(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Who got the connection, and from which address it seemed to come."""

    netns: str
    src: str
    port: int = 0


class FlowOutcome(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One possible course of the connection: its first packet's walk, the answer's walk, what follows for the client.

    `stalls` is set where the connection stands but full-size segments do not get through (an MTU black hole), with the walk
    of the segment that is lost in `data`.
    """

    probability: float
    forward: Walk
    client_sees: View
    reply: Walk | None = None
    data: Walk | None = None
    server_sees: ServerSees | None = None
    stalls: bool = False
    detail: str = ""


class MtuReport(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Largest IP packet in bytes that gets through each way without fragmentation; 0 = not found out."""

    forward: int = 0
    reply: int = 0
    stalls: bool = False


class RootCause(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A smallest set of suspicions whose remedies, applied together to a copy of the state, turn the verdict."""

    suspicions: tuple[Suspicion, ...]
    turns_to: dict[View, float] = {}


class Diagnosis(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """The whole answer to one question. `client_sees` maps each possible view to its probability (they add up to 1)."""

    question: Question
    verdict: Outcome
    client_sees: dict[View, float]
    outcomes: tuple[FlowOutcome, ...] = ()
    root_causes: tuple[RootCause, ...] = ()
    suspicions: tuple[Suspicion, ...] = ()
    cluster_suspicions: tuple[Suspicion, ...] = ()
    path: PacketPath = PacketPath()
    mtu: MtuReport = MtuReport()
    missing: tuple[str, ...] = ()
