"""Which of the packets that were seen belong to one try: the request's way, the answer's way, errors, large data. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from lab.prober import Attempt
from lab.watch import Evidence, Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One try's packets in order of time.

    `forward` is the request's first packet at each interface it crossed, `reply` its answer (SYN-ACK, RST, datagram, echo
    reply), `errors` ICMP errors, `large` the longest data packets.
    """

    forward: tuple[Seen, ...]
    reply: tuple[Seen, ...]
    errors: tuple[Seen, ...]
    large: tuple[Seen, ...]


def split(attempt: Attempt, evidence: Evidence) -> Flow:
    """Sort what was seen during a try. Address translation on the way is followed."""
    protocol = attempt.ask.protocol
    mine = [seen for seen in evidence.packets if seen.kind == protocol]
    errors = tuple(seen for seen in evidence.packets if seen.kind == "error")
    if protocol == "tcp":
        forward, reply = _split_tcp(attempt, mine)
    elif protocol == "icmp":
        forward = [seen for seen in mine if seen.sport in (8, 128)]
        reply = [seen for seen in mine if seen.sport in (0, 129)]
    else:
        forward, reply = _split_udp(attempt, mine)
    longest = max((seen.length for seen in mine), default=0)
    large = tuple(seen for seen in mine if seen.length >= longest - 80 and longest > 600)
    return Flow(forward=tuple(forward), reply=tuple(reply), errors=errors, large=large)


def _split_tcp(attempt: Attempt, mine: Sequence[Seen]) -> tuple[list[Seen], list[Seen]]:
    """Sequence numbers survive address translation: they tell the SYN and its answer."""
    forward = [seen for seen in mine if "S" in seen.flags and "A" not in seen.flags]
    syns = {seen.seq for seen in forward if seen.sport == attempt.sport} or {seen.seq for seen in forward}
    forward = [seen for seen in forward if seen.seq in syns]
    reply = [seen for seen in mine if "A" in seen.flags and ("S" in seen.flags or "R" in seen.flags)]
    return forward, [seen for seen in reply if (seen.ack - 1) % 2**32 in syns]


def _split_udp(attempt: Attempt, mine: Sequence[Seen]) -> tuple[list[Seen], list[Seen]]:
    """Follow address rewrites: what turns a known request round is an answer, and so is what comes after it."""
    forward: list[Seen] = []
    reply: list[Seen] = []
    known = {(attempt.local_ip, attempt.sport, attempt.ask.dst, attempt.ask.dport)}
    for seen in mine:
        here, back = (seen.src, seen.sport, seen.dst, seen.dport), (seen.dst, seen.dport, seen.src, seen.sport)
        if back in known or (reply and here not in known):
            reply.append(seen)
        else:
            known.add(here)
            forward.append(seen)
    return forward, reply
