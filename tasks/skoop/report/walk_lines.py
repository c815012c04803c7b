"""Which steps of a walk does a reader need, and how are they laid out?

Three depths, as ovn-trace has them: every step; what was done to the packet at every hop, without the rules that only led on;
the hops alone. A packet is shown where it is sent and where it changed, not after each step.
"""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import groupby

from msgspec import Struct
from msgspec.structs import replace

from tasks.skoop.model.trace import Outcome, Place, Stage, Step, Walk
from tasks.skoop.report.depth import Depth
from tasks.skoop.report.words import end_words, place_words


class LineKind(StrEnum):
    """What a line of a walk is about, for indentation and colour."""

    NETNS = "netns"
    STEP = "step"
    GOOD_END = "good-end"
    BAD_END = "bad-end"


class WalkLine(Struct, frozen=True):
    """One line: the place (or the namespace) on the left, what happened on the right, with the packet where it is new."""

    kind: LineKind
    left: str
    right: str = ""
    packet: str = ""


LED_ON = frozenset(
    {"match", "jump", "goto", "return", "accept", "policy", "conntrack", "track", "mark", "recv", "deliver"}
)
"""Actions that change neither the packet nor its course enough to be told in a summary."""
_TRANSLATING = frozenset({"dnat", "snat", "masquerade", "redirect", "netmap"})
_ENDING = frozenset({"drop", "reject", "deliver", "unknown"})


def lines_of(walk: Walk, depth: Depth) -> tuple[WalkLine, ...]:
    """Return the lines of a walk, grouped by network namespace in the order of the walk, its end last."""
    steps = _without_ending(walk.steps, walk.place)
    if depth is not Depth.DETAILED:
        steps = tuple(step for step in _joined(steps) if depth is Depth.SUMMARY and not _leads_on(step))
    lines: list[WalkLine] = []
    shown = ""
    visited = [step.place.netns for step in walk.steps]
    for netns, _ in groupby([*visited, *([walk.place.netns] if walk.place is not None else [])]):
        lines.append(WalkLine(LineKind.NETNS, netns))
        while steps and steps[0].place.netns == netns:
            line, shown = _step_line(steps[0], shown)
            lines.append(line)
            steps = steps[1:]
    lines.append(_end_line(walk))
    return tuple(lines)


def _without_ending(steps: tuple[Step, ...], end: Place | None) -> tuple[Step, ...]:
    """Leave out a last step that says again what the end says."""
    if steps and steps[-1].action in _ENDING and steps[-1].place == end:
        return steps[:-1]
    return steps


def _joined(steps: Sequence[Step]) -> Iterator[Step]:
    """Yield the steps with a rule that translates and the translation itself made one.

    The rule asks for it, conntrack does it: a reader wants the rule, and the packet as conntrack made it.
    """
    rule: Step | None = None
    for step in steps:
        if rule is not None:
            if step.place.stage is Stage.CONNTRACK and step.action in _TRANSLATING:
                yield replace(rule, packet=step.packet)
                rule = None
                continue
            yield rule
            rule = None
        if step.place.stage is Stage.NETFILTER and step.action in _TRANSLATING:
            rule = step
        else:
            yield step
    if rule is not None:
        yield rule


def _leads_on(step: Step) -> bool:
    # That a frame goes out of a device is seen from the namespace where it comes in.
    return step.action in LED_ON or (step.place.stage is Stage.LINK and step.action == "send")


def _step_line(step: Step, shown: str) -> tuple[WalkLine, str]:
    """Return the line of a step, and the packet that the reader has seen last after it."""
    packet = str(step.packet) if step.packet is not None else shown
    left, right = place_words(step.place), step.detail
    if step.packet is not None and right.endswith(packet):
        right = ""  # "from this to that": the packet says it
    for said in (step.place.key, step.place.dev):
        right = right.removeprefix(said).lstrip() if said else right
    if step.action != step.place.stage:
        right = f"{step.action} {right}".rstrip()
    return WalkLine(LineKind.STEP, left, right, packet if packet != shown else ""), packet


def _end_line(walk: Walk) -> WalkLine:
    kind = LineKind.GOOD_END if walk.outcome is Outcome.DELIVERED else LineKind.BAD_END
    return WalkLine(kind, place_words(walk.place) if walk.place is not None else "", end_words(walk))
