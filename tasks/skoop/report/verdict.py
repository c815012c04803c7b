"""What does a diagnosis come to, in one word and one line?

The verdict itself is the diagnostor's; here it is only put into the words that the other reports and the exit status share.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum

from tasks.skoop.model.diagnosis import Diagnosis, FlowOutcome
from tasks.skoop.model.endpoint import Endpoint, Question
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.trace import Outcome, View, Walk


class Judgement(StrEnum):
    """What a diagnosis comes to for the one who asked."""

    WORKS = "works"
    STALLS = "stalls"
    PARTLY = "partly"
    FAILS = "fails"
    UNKNOWN = "unknown"


VIEW_WORDS: Mapping[View, str] = {
    View.CONNECTED: "connects",
    View.REFUSED: "is refused",
    View.UNREACHABLE: "is told that the destination is unreachable",
    View.TIMEOUT: "waits until it times out",
    View.UNKNOWN: "cannot be foretold",
}

VIEW_VERBS: Mapping[View, str] = {
    View.CONNECTED: "connect",
    View.REFUSED: "are refused",
    View.UNREACHABLE: "are told that the destination is unreachable",
    View.TIMEOUT: "time out",
    View.UNKNOWN: "cannot be foretold",
}


def judge(diagnosis: Diagnosis) -> Judgement:
    """Return what the possible views and the stalls come to.

    A view that is bad outweighs one that is not known: PARTLY or FAILS as soon as any is bad, UNKNOWN only where the rest
    connects. STALLS: every connection stands, but full-size packets are lost in some.
    """
    views = {view for view, probability in diagnosis.client_sees.items() if probability > 0}
    bad = views & {View.REFUSED, View.UNREACHABLE, View.TIMEOUT}
    if bad:
        return Judgement.FAILS if views == bad else Judgement.PARTLY
    if View.UNKNOWN in views or not views:
        return Judgement.UNKNOWN
    if diagnosis.mtu.stalls or any(outcome.stalls for outcome in diagnosis.outcomes):
        return Judgement.STALLS
    return Judgement.WORKS


def headline(diagnosis: Diagnosis) -> str:
    """Return the verdict in one line: the judgement in capitals, the two ends, what the client sees."""
    word = judge(diagnosis)
    said = "connects, but full-size packets are lost" if word is Judgement.STALLS else views_text(diagnosis.client_sees)
    return f"{word.upper()}: {question_text(diagnosis.question)}: {said}"


def views_text(views: Mapping[View, float]) -> str:
    """Return `connects`, or with more than one view `connected 67 %, timeout 33 %`, the likeliest first."""
    seen = _ranked(views)
    if not seen:
        return VIEW_WORDS[View.UNKNOWN]
    if len(seen) == 1:
        return VIEW_WORDS[seen[0][0]]
    return ", ".join(f"{view} {percent(share)}" for view, share in seen)


def shares_text(views: Mapping[View, float]) -> str:
    """Return `67 % connect, 33 % time out`, the likeliest first."""
    return ", ".join(f"{percent(share)} {VIEW_VERBS[view]}" for view, share in _ranked(views))


def _ranked(views: Mapping[View, float]) -> list[tuple[View, float]]:
    return [(view, share) for view, share in sorted(views.items(), key=lambda item: -item[1]) if share > 0]


def percent(share: float) -> str:
    """Return a probability as a person writes it: never `0 %` for what can happen nor `100 %` for what may not."""
    if share >= 1:
        return "100 %"
    points = share * 100
    if points < 1:
        return "under 1 %"
    return f"{min(round(points), 99)} %"


def question_text(question: Question) -> str:
    """Return `shop/client (10.244.1.4) -> svc/shop/web (10.96.10.1) tcp/80`."""
    port = "" if question.protocol in (Protocol.ICMP, Protocol.ICMPV6) else f"/{question.dst.port}"
    return f"{endpoint_text(question.src)} -> {endpoint_text(question.dst)} {question.protocol}{port}"


def endpoint_text(endpoint: Endpoint) -> str:
    """Return the name with the address in brackets, or the address alone where there is no name."""
    return f"{endpoint.name} ({endpoint.ip})" if endpoint.name and endpoint.name != endpoint.ip else endpoint.ip


def is_bad(outcome: FlowOutcome) -> bool:
    """Say whether this course of the connection is not what the client wants."""
    return outcome.stalls or outcome.client_sees is not View.CONNECTED


def told_outcome(outcomes: Iterable[FlowOutcome]) -> FlowOutcome | None:
    """Return the course worth telling in full: the likeliest bad one (a known before an unknown), else the likeliest."""
    ranked = sorted(
        outcomes, key=lambda one: (not is_bad(one), one.client_sees is View.UNKNOWN and is_bad(one), -one.probability)
    )
    return ranked[0] if ranked else None


def ending_walk(outcome: FlowOutcome) -> Walk:
    """Return the walk in which this course is decided: the lost segment's, else the reply's, else the request's.

    A request that did not arrive has no reply worth naming; a reply that arrived leaves the request as what is told.
    """
    if outcome.data is not None and outcome.stalls:
        return outcome.data
    answered = outcome.forward.outcome in (Outcome.DELIVERED, Outcome.REFUSED)
    if answered and outcome.reply is not None and outcome.reply.outcome is not Outcome.DELIVERED:
        return outcome.reply
    return outcome.forward
