"""Does the data plane do what the policies say? A verdict of the policies against a diagnosis of the same question.

A connection that policies deny and that is established is not enforced. One that they allow and that a packet filter drops or rejects
is dropped by somebody who should not; the chain is named. Drops for other reasons than a packet filter (no route, link down) say
nothing about policies. What either side does not know is not compared.
"""

from enum import StrEnum

from msgspec import Struct

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.model.diagnosis import Diagnosis, FlowOutcome
from tasks.skoop.model.suspicion import Level, Suspicion
from tasks.skoop.model.trace import Outcome, Place, Reason, Stage, View, Walk
from tasks.skoop.policy.verdict import PolicyVerdict, Ruling, Side

_FILTERED = frozenset((Reason.NETFILTER_DROP, Reason.NETFILTER_REJECT))


class Agreement(StrEnum):
    """How the policies' word and the data plane's deed compare."""

    AGREE = "agree"
    DROPPED = "allowed by policy, but filtered"
    PASSES = "denied by policy, but passes"
    CANNOT_TELL = "cannot tell"


class Comparison(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The outcome of a comparison: one sentence, the proof of either side, the place that decides, the finding if there is one."""

    agreement: Agreement
    why: str
    policy_proof: tuple[str, ...] = ()
    data_plane_proof: tuple[str, ...] = ()
    place: Place | None = None
    suspicion: Suspicion | None = None


def compare(found: PolicyVerdict, diagnosis: Diagnosis) -> Comparison:
    """Return whether policies and data plane agree about one connection to one backend.

    The diagnosis must be of the connection that the verdict is about; of several possible outcomes those to other backends are
    left out.
    """
    outcomes = [one for one in diagnosis.outcomes if _concerns(one, found)]
    if found.ruling is Ruling.UNKNOWN:
        return Comparison(agreement=Agreement.CANNOT_TELL, why=f"policies: {found.why}", policy_proof=_proof(found))
    if not outcomes:
        return Comparison(agreement=Agreement.CANNOT_TELL, why=f"no walk of the diagnosis leads to {found.dst}")
    filtered = next((walk for one in outcomes if (walk := _filtered(one)) is not None), None)
    passing = next((one for one in outcomes if one.client_sees is View.CONNECTED), None)
    if found.ruling is Ruling.ALLOWED and filtered is not None:
        return _dropped(found, filtered)
    if found.ruling is Ruling.DENIED and passing is not None:
        return _passes(found, passing.forward)
    if found.ruling is Ruling.ALLOWED:
        return _allowed(found, outcomes)
    if filtered is not None:
        return Comparison(
            agreement=Agreement.AGREE,
            why=f"denied by policy, and filtered at {filtered.place}",
            policy_proof=_proof(found),
            data_plane_proof=_steps(filtered),
            place=filtered.place,
        )
    reached = outcomes[0].forward
    return Comparison(
        agreement=Agreement.CANNOT_TELL,
        why=f"it does not arrive, but no packet filter stops it ({reached.outcome}: {reached.detail or reached.reason})",
        policy_proof=_proof(found),
        data_plane_proof=_steps(reached),
    )


def _allowed(found: PolicyVerdict, outcomes: list[FlowOutcome]) -> Comparison:
    unknown = next((one for one in outcomes if one.client_sees is View.UNKNOWN), None)
    if unknown is not None:
        walk = unknown.forward if unknown.forward.outcome is Outcome.UNKNOWN or unknown.reply is None else unknown.reply
        why = f"the walk ends in the unknown: {walk.detail or walk.reason}"
        return Comparison(agreement=Agreement.CANNOT_TELL, why=why, policy_proof=_proof(found))
    return Comparison(
        agreement=Agreement.AGREE,
        why="allowed by policy, and no packet filter stops it",
        policy_proof=_proof(found),
        data_plane_proof=_steps(outcomes[0].forward),
    )


def _dropped(found: PolicyVerdict, walk: Walk) -> Comparison:
    message = f"policies allow {_flow(found)}, but {walk.place} drops it"
    return Comparison(
        agreement=Agreement.DROPPED,
        why=message,
        policy_proof=_proof(found),
        data_plane_proof=_steps(walk),
        place=walk.place,
        suspicion=suspect(
            "KP-POL-012",
            message,
            subject=walk.place.netns if walk.place else "cluster",
            place=walk.place,
            seen=walk.place.text if walk.place else walk.detail,
            expected=found.why,
        ),
    )


def _passes(found: PolicyVerdict, walk: Walk) -> Comparison:
    message = f"policies deny {_flow(found)} ({found.why}), but it is established"
    return Comparison(
        agreement=Agreement.PASSES,
        why=message,
        policy_proof=_proof(found),
        data_plane_proof=_steps(walk),
        place=walk.place,
        suspicion=suspect(
            "KP-POL-013",
            message,
            subject=walk.place.netns if walk.place else "cluster",
            place=walk.place,
            seen="; ".join(_steps(walk)[-2:]),
            expected=found.why,
            level=Level.CRITICAL,
        ),
    )


def _flow(found: PolicyVerdict) -> str:
    return f"{found.src} to {found.dst} {found.protocol} {found.port}"


def _concerns(one: FlowOutcome, found: PolicyVerdict) -> bool:
    """Say whether an outcome is of the verdict's backend: by the packet as it was when it ended (before an answer's)."""
    packet = one.forward.packet
    return packet is None or not found.dst_ip or packet.dst == found.dst_ip


def _filtered(one: FlowOutcome) -> Walk | None:
    """Return the walk that a packet filter ended, of the request or of the answer."""
    for walk in (one.forward, one.reply):
        if walk is not None and walk.reason in _FILTERED and walk.outcome in (Outcome.DROPPED, Outcome.REFUSED):
            return walk
        if walk is not None and walk.reason in _FILTERED and walk.outcome is Outcome.UNREACHABLE:
            return walk
    return None


def _steps(walk: Walk) -> tuple[str, ...]:
    """Return what packet filters did to a walk's packet, and its end."""
    shown = [
        f"{step.place}: {step.detail or step.action}" for step in walk.steps if step.place.stage is Stage.NETFILTER
    ]
    end = f"{walk.place}: {walk.outcome}" if walk.place else str(walk.outcome)
    return (*shown, f"{end} {walk.detail}".rstrip())


def _proof(found: PolicyVerdict) -> tuple[str, ...]:
    return (*filter(None, (found.seen,)), *_side(found.egress), *_side(found.ingress))


def _side(side: Side) -> tuple[str, ...]:
    rules = (*(f"denies: {ref}" for ref in side.denied_by), *(f"allows: {ref}" for ref in side.allowed_by))
    isolating = tuple(f"isolates: {ref}" for ref in side.isolated_by)
    return (f"{side.direction}: {side.ruling}, {side.why}", *rules, *isolating)
