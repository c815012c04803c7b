"""Which steps of a walk does a reader need, and how are they laid out?

Three depths, as ovn-trace has them: everything; what matters (every hop with what was done to the packet there, without the
rules that only led on); the places alone.
"""

from collections.abc import Iterator
from enum import StrEnum
from itertools import groupby

from msgspec import Struct

from tasks.skoop.model.trace import Outcome, Stage, Step, Walk
from tasks.skoop.report.depth import Depth
from tasks.skoop.report.words import end_words, place_words


class LineKind(StrEnum):
    """What a line of a walk is about, for indentation and colour."""

    NETNS = "netns"
    STEP = "step"
    GOOD_END = "good-end"
    BAD_END = "bad-end"


class WalkLine(Struct, frozen=True):
    """One line: the place (or the namespace) on the left, what happened on the right."""

    kind: LineKind
    left: str
    right: str = ""


LED_ON = frozenset(
    {"match", "jump", "goto", "return", "accept", "policy", "conntrack", "track", "assume", "socket", "recv", "deliver"}
)
"""Actions that change neither the packet nor its course enough to be told in a summary."""


def lines_of(walk: Walk, depth: Depth) -> tuple[WalkLine, ...]:
    """Return the lines of a walk, grouped by network namespace in the order of the walk, its end last."""
    lines: list[WalkLine] = []
    last_netns = ""
    for netns, steps in groupby(walk.steps, key=lambda step: step.place.netns):
        lines.append(WalkLine(LineKind.NETNS, netns))
        lines.extend(_step_lines(steps, depth))
        last_netns = netns
    if walk.place is not None and walk.place.netns != last_netns:
        lines.append(WalkLine(LineKind.NETNS, walk.place.netns))
    lines.append(_end_line(walk))
    return tuple(lines)


def _step_lines(steps: Iterator[Step], depth: Depth) -> Iterator[WalkLine]:
    if depth is Depth.MINIMAL:
        return
    for step in steps:
        if depth is Depth.SUMMARY and _leads_on(step):
            continue
        done = f"{step.action} {step.detail}" if step.detail else step.action
        if step.packet is not None and (
            depth is Depth.DETAILED or step.action in {"send", "dnat", "snat", "masquerade"}
        ):
            done = f"{done}   [{step.packet}]"
        yield WalkLine(LineKind.STEP, place_words(step.place), done)


def _leads_on(step: Step) -> bool:
    if step.action in LED_ON:
        return True
    # A verdict that ends a walk is told by its end line.
    return step.place.stage is Stage.NETFILTER and step.action in {"mark", "drop", "reject"}


def _end_line(walk: Walk) -> WalkLine:
    kind = LineKind.GOOD_END if walk.outcome is Outcome.DELIVERED else LineKind.BAD_END
    return WalkLine(kind, place_words(walk.place) if walk.place is not None else "", end_words(walk))
