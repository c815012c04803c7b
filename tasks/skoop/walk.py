"""One packet's way from place to place until every branch of it has ended: the Diagnostor's legs.

Starts with passages (from `send` or `respond`) and follows each Transmission with `receive` on the next NetNode, depth first. The
connections that conntrack makes on the way travel with it. Bounded in hops and in branches; hitting a bound is `unknown`.
"""

from msgspec import Struct
from msgspec.structs import replace

from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.netnode import Link
from tasks.skoop.model.packet import Packet
from tasks.skoop.model.trace import Outcome, Place, Reason, Stage, Step, Walk
from tasks.skoop.netnodes import NetNodeManager, Passage
from tasks.skoop.netstack.conntrack import Flow
from tasks.skoop.netstack.skb import End, steps_of

MAX_HOPS = 256
"""Links that one packet may cross: more than a TTL of 64 lasts, so that a packet that goes in circles dies as it really does."""
_TWICE = 2
"""A packet may pass a place again on its way (out and back through a tunnel); more often than this is a loop."""
MAX_COURSES = 2048
"""Branches of one packet that are followed."""


class Course(Struct, frozen=True, kw_only=True):
    """One whole way of a packet. `last` is the NetNode where it ended, `visited` all of them in order.

    `original` is the packet as its sender's kernel first made it; `packet` as it was at the end. `uid` is the user it is sent for.
    """

    probability: float
    end: End
    packet: Packet
    original: Packet
    last: str
    steps: tuple[Step, ...]
    visited: tuple[str, ...]
    links: tuple[Link, ...]
    flow: Flow
    missing: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    path_mtu: int = 0
    redraw: bool = False
    uid: int = 0

    def walk(self) -> Walk:
        """Return the course as a report shows it."""
        return Walk(
            outcome=self.end.outcome,
            probability=self.probability,
            steps=self.steps,
            place=self.end.place,
            reason=self.end.reason,
            detail=self.end.detail,
            packet=self.packet,
            error=self.end.error,
            missing=self.missing,
            assumed=self.assumed,
        )


class _Pending(Struct, frozen=True, kw_only=True):
    passage: Passage
    at: str
    probability: float
    steps: tuple[Step, ...]
    visited: tuple[str, ...]
    links: tuple[Link, ...]
    missing: tuple[str, ...]
    assumed: tuple[str, ...]


def follow(nodes: NetNodeManager, start: str, passages: tuple[Passage, ...], *, answer: bool = False) -> list[Course]:
    """Return every course of a packet that left `start` in these passages; probabilities are those of the passages' own."""
    todo = [
        _Pending(
            passage=passage, at=start, probability=1.0, steps=(), visited=(start,), links=(), missing=(), assumed=()
        )
        for passage in reversed(passages)
    ]
    done: list[Course] = []
    while todo:
        now = todo.pop()
        way = now.passage.exit
        steps = now.steps + steps_of(way.trail)
        probability = now.probability * way.probability
        missing, assumed = now.missing + way.missing, now.assumed + way.assumed
        crossing = now.passage.transmission
        end = way.end
        if crossing is not None and (len(now.links) >= MAX_HOPS or len(done) + len(todo) > MAX_COURSES):
            end, missing = _bounded(now, missing)
        if end is not None or crossing is None:
            assert end is not None
            if end.reason == Reason.TTL_EXPIRED and now.visited.count(now.at) > _TWICE:
                end = replace(end, outcome=Outcome.LOOPED, detail=f"goes round by {now.at} until its TTL is used up")
            done.append(
                Course(
                    probability=probability,
                    end=end,
                    packet=way.packet,
                    original=_original(steps, way.packet),
                    last=now.at,
                    steps=steps,
                    visited=now.visited,
                    links=now.links,
                    flow=way.flow,
                    missing=missing,
                    assumed=assumed,
                    path_mtu=way.path_mtu,
                    redraw=way.redraw,
                )
            )
            continue
        after = nodes.get(crossing.next_hop.id).receive(
            crossing, way.flow, answer=answer, path_mtu=way.path_mtu, overhead=way.overhead
        )
        todo += [
            _Pending(
                passage=passage,
                at=crossing.next_hop.id,
                probability=probability,
                steps=steps,
                visited=(*now.visited, crossing.next_hop.id),
                links=(*now.links, crossing.link),
                missing=missing,
                assumed=assumed,
            )
            for passage in reversed(after)
        ]
    return done


def _bounded(now: _Pending, missing: tuple[str, ...]) -> tuple[End, tuple[str, ...]]:
    place = Place(netns=NetnsId(now.at), stage=Stage.ROUTE, key="bound")
    if len(now.links) >= MAX_HOPS:
        end = End(
            outcome=Outcome.LOOPED, reason=Reason.LOOP, place=place, detail=f"still on its way after {MAX_HOPS} links"
        )
        return end, missing
    end = End(outcome=Outcome.UNKNOWN, reason=Reason.BOUND, place=place, detail=f"more than {MAX_COURSES} branches")
    return end, (*missing, "branches past the bound")


def _original(steps: tuple[Step, ...], packet: Packet) -> Packet:
    return next((step.packet for step in steps if step.packet is not None), packet)
