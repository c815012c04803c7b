"""How is a walk shown in a scenario file? One line for each thing that decided or changed something.

`>` is the request, `<` what came back, `=` the result. Left out: frames sent, link-layer addresses that were found as
expected, rules that only count, policies that accept.
"""

from collections.abc import Iterator, Sequence

from tasks.skoop.model.packet import Packet
from tasks.skoop.model.trace import Outcome, Place, Reason, Stage, Step, Walk

TRANSLATIONS = ("dnat", "snat", "masquerade", "redirect", "netmap")
_QUIET = (Stage.NEIGHBOUR,)
_ENDS = ("drop", "reject", "refuse", "deliver")


def minimal(probability: float, walks: Sequence[Walk], result: str, *, alone: bool) -> list[str]:
    """Return the lines of one way: its walks and its result, under its probability unless it is the only one."""
    lines = [] if alone else [f"in {probability:.3g} of all cases"]
    for mark, walk in zip("><>", walks, strict=False):
        lines += [f"{mark} {line}" for line in walk_lines(walk)]
    return [*lines, f"= {result}"]


def walk_lines(walk: Walk) -> list[str]:
    """Return the lines of one walk, its end last."""
    place = walk.place
    steps = [step for step in walk.steps if step.place != place or step.action not in _ENDS]
    lines = [line for line in map(_line, _joined(steps)) if line]
    if place is not None:
        where = f"{_short(place.netns)} {place_text(place)}".rstrip()
        lines.append(f"{where} {_end(walk)}")
    return lines


def _end(walk: Walk) -> str:
    if walk.outcome == Outcome.DELIVERED:
        return "deliver"
    if walk.reason == Reason.NETFILTER_REJECT:
        return walk.detail
    return f"{walk.outcome} {walk.reason}".rstrip()


def _short(netns: str) -> str:
    return netns.partition("/")[2]


def place_text(place: Place) -> str:
    """Return a place as `nat/PREROUTING#1`, `route 10.0.0.0/24`, `socket tcp 10.0.0.1:80` …"""
    if place.stage == Stage.NETFILTER:
        mark = {("nft", 4): "nft ", ("nft", 6): "nft ipv6 ", ("legacy", 6): "ipv6 "}.get(
            (place.backend, place.family), ""
        )
        return f"{mark}{place.table}/{place.chain}" + (f"#{place.rule}" if place.rule else " policy")
    return " ".join(part for part in (place.stage, place.dev, place.key) if part)


def _joined(steps: Sequence[Step]) -> Iterator[tuple[Step, Packet | None]]:
    """Yield the steps, each with the packet before it; a rule that translates together with the translation."""
    before: Packet | None = None
    held: Step | None = None
    for step in steps:
        if held is not None:
            if step.place.stage == Stage.CONNTRACK and step.action in TRANSLATIONS:
                yield Step(place=held.place, action=held.action, packet=step.packet), before
                before, held = step.packet, None
                continue
            yield held, before
            held = None
        if step.place.stage == Stage.NETFILTER and step.action in TRANSLATIONS:
            held = step
            continue
        yield step, before
        before = step.packet or before
    if held is not None:
        yield held, before


def _line(step_and_before: tuple[Step, Packet | None]) -> str:
    step, before = step_and_before
    place, after = step.place, step.packet
    netns = _short(place.netns)
    if step.action == "send":
        return ""
    if place.stage == Stage.NETFILTER:
        if step.action == "policy" or (not place.rule and step.action != "assume"):
            return ""
        return f"{netns} {place_text(place)} {step.action}{_changed(before, after, step.action) or _detail(step)}"
    if place.stage in _QUIET and step.action == "neighbour":
        return ""
    if place.stage == Stage.ROUTE and step.action == "route":
        return f"{netns} route {step.detail}"
    if place.stage == Stage.LINK and step.action == "recv":
        return f"{netns} recv {place.dev}"
    if place.stage == Stage.CONNTRACK:
        return f"{netns} {step.action} {_changed(before, after, step.action) or step.detail}".replace("  ", " ")
    return f"{netns} {step.action} {step.detail}".rstrip()


def _detail(step: Step) -> str:
    if step.action in ("jump", "goto", "mark", "connmark", "reject") and step.detail:
        return f" {step.detail}"
    return ""


def _changed(before: Packet | None, after: Packet | None, action: str) -> str:
    """Return ` 192.0.2.1:80 -> 10.0.0.7:8080` for a translation."""
    if before is None or after is None or action.removeprefix("un-") not in TRANSLATIONS:
        return ""
    pairs = [
        (f"{before.dst}:{before.dport}", f"{after.dst}:{after.dport}"),
        (f"{before.src}:{before.sport}", f"{after.src}:{after.sport}"),
    ]
    told = [f"{old} -> {new}" for old, new in pairs if old != new]
    return f" {', '.join(told)}" if told else ""
