"""How is a diagnosis told to a tired person on call?

The verdict first, in one line. Then what happens, where and why, in one paragraph; the way there and back, hop by hop; the
evidence as the person's own tools would show it; what mends it, to be copied; and last what else looks odd. Words are wrapped
to the terminal's width, commands and lines of dumps never are.
"""

import textwrap
from collections.abc import Iterable
from enum import Enum, StrEnum

from msgspec import Struct

from tasks.skoop.model.diagnosis import Diagnosis, FlowOutcome, RootCause
from tasks.skoop.model.suspicion import Level, Suspicion
from tasks.skoop.model.trace import Outcome, View, Walk
from tasks.skoop.report.depth import Depth
from tasks.skoop.report.verdict import (
    VIEW_VERBS,
    Judgement,
    ending_walk,
    headline,
    is_bad,
    judge,
    percent,
    shares_text,
    told_outcome,
    views_text,
)
from tasks.skoop.report.walk_lines import LineKind, lines_of
from tasks.skoop.report.words import OUTCOME_WORDS, REASON_WORDS, end_words, how_to_see, netns_words, place_words


class Ink(Enum):
    """Whether the text carries ANSI colours."""

    PLAIN = "plain"
    ANSI = "ansi"


class Style(Struct, frozen=True, kw_only=True):
    """How to write: `width` in columns, colours, how much of the walks."""

    width: int = 100
    ink: Ink = Ink.PLAIN
    depth: Depth = Depth.SUMMARY


class _Paint(StrEnum):
    BOLD = "1"
    DIM = "2"
    RED = "1;31"
    GREEN = "1;32"
    YELLOW = "1;33"
    CYAN = "36"


_JUDGEMENT_PAINT = {
    Judgement.WORKS: _Paint.GREEN,
    Judgement.STALLS: _Paint.YELLOW,
    Judgement.PARTLY: _Paint.YELLOW,
    Judgement.FAILS: _Paint.RED,
    Judgement.UNKNOWN: _Paint.YELLOW,
}
_LEVEL_ORDER = (Level.FATAL, Level.CRITICAL, Level.WARNING, Level.INFO)
_PLACE_COLUMNS = 44
"""A place longer than this has what happened there on the line below it."""


def render(diagnosis: Diagnosis, style: Style | None = None) -> str:
    """Return the whole report, ending in a newline."""
    writer = _Writer(style or Style())
    word, _, rest = headline(diagnosis).partition(": ")
    writer.line(f"{writer.paint(word, _JUDGEMENT_PAINT[judge(diagnosis)])}: {writer.paint(rest, _Paint.BOLD)}")
    told = told_outcome(diagnosis.outcomes)
    writer.blank()
    writer.paragraph(_story(diagnosis, told))
    if told is not None:
        _write_walks(writer, diagnosis, told)
        _write_other_outcomes(writer, diagnosis, told)
    _write_causes(writer, diagnosis)
    _write_mtu(writer, diagnosis)
    _write_missing(writer, diagnosis)
    _write_also_seen(writer, diagnosis)
    return writer.text()


def render_cluster_suspicions(suspicions: Iterable[Suspicion], style: Style | None = None) -> str:
    """Return what is odd about the cluster as a whole, or "" if nothing is."""
    writer = _Writer(style or Style())
    _write_suspicion_list(writer, "About the cluster", tuple(suspicions))
    return writer.text()


def _story(diagnosis: Diagnosis, told: FlowOutcome | None) -> str:
    """Return the paragraph that says what happens, where, why, and whether the cause was proven."""
    judgement = judge(diagnosis)
    if told is None:
        return "Nothing could be simulated. " + _missing_text(diagnosis.missing)
    if judgement is Judgement.WORKS:
        return _story_of_success(diagnosis)
    sentences = [_share_text(diagnosis, told), _what_happens(told)]
    sentences += [_cause_text(cause) for cause in diagnosis.root_causes[:1]]
    if judgement is Judgement.UNKNOWN:
        sentences.append(_missing_text(diagnosis.missing))
    return " ".join(filter(None, sentences))


def _story_of_success(diagnosis: Diagnosis) -> str:
    servers = sorted({netns_words(one.server_sees.netns) for one in diagnosis.outcomes if one.server_sees is not None})
    who = f" {_and(servers)} would answer." if servers else ""
    return f"The request arrives and the answer comes back.{who}"


def _share_text(diagnosis: Diagnosis, told: FlowOutcome) -> str:
    if judge(diagnosis) is not Judgement.PARTLY:
        return ""
    return f"Of all connections {shares_text(diagnosis.client_sees)}. Told here is one of those that {VIEW_VERBS[told.client_sees]}."


def _what_happens(told: FlowOutcome) -> str:
    walk = ending_walk(told)
    subject = "The request" if walk is told.forward else "The answer" if walk is told.reply else "A full-size packet"
    lead = "" if walk is told.forward else "The request arrives, " if walk is told.reply else "The connection stands, "
    subject = subject if not lead else f"but {subject[0].lower()}{subject[1:]}"
    if walk.outcome is Outcome.DELIVERED:
        return f"{lead}{subject} arrives; {told.detail or 'yet the client does not get what it wants'}."
    where = f" on {netns_words(walk.place.netns)} at {place_words(walk.place)}" if walk.place is not None else ""
    why = walk.detail or REASON_WORDS[walk.reason]
    end = f"{lead}{subject} is {OUTCOME_WORDS[walk.outcome]}{where}" + (f": {why}" if why else "")
    return f"{end.rstrip('.')}."


def _cause_text(cause: RootCause) -> str:
    messages = _and([one.message.rstrip(".") for one in cause.suspicions])
    if not cause.suspicions or not all(one.confirmed for one in cause.suspicions):
        return f"The likely cause: {messages}."
    after = f" the same connection {views_text(cause.turns_to)}" if cause.turns_to else " the verdict turns"
    return f"The cause: {messages}. This was tested: with it mended in a copy of the state,{after}."


def _missing_text(missing: tuple[str, ...]) -> str:
    return f"To say more, this would have to be known: {_and(list(missing))}." if missing else ""


def _write_walks(writer: "_Writer", diagnosis: Diagnosis, told: FlowOutcome) -> None:
    share = "" if len(diagnosis.outcomes) == 1 else f", {percent(told.probability)} of connections"
    writer.heading(f"The way there{share}")
    _write_walk(writer, told.forward)
    if told.reply is not None:
        writer.heading("The way back")
        _write_walk(writer, told.reply)
    if told.data is not None:
        writer.heading("The way of a full-size packet")
        _write_walk(writer, told.data)


def _write_walk(writer: "_Writer", walk: Walk) -> None:
    for line in lines_of(walk, writer.style.depth):
        match line.kind:
            case LineKind.NETNS:
                writer.line(f"  {writer.paint(netns_words(line.left), _Paint.CYAN)}")
            case LineKind.STEP:
                packet = writer.paint(f"[{line.packet}]", _Paint.DIM) if line.packet else ""
                writer.columns("    ", line.left, "  ".join(filter(None, (line.right, packet))))
            case LineKind.GOOD_END:
                writer.columns(f"  {writer.paint('✓', _Paint.GREEN)} ", line.left, line.right)
            case LineKind.BAD_END:
                writer.columns(f"  {writer.paint('✗', _Paint.RED)} ", line.left, writer.paint(line.right, _Paint.RED))
                if walk.place is not None and walk.place.text:
                    writer.line(f"      {walk.place.text}")


def _write_other_outcomes(writer: "_Writer", diagnosis: Diagnosis, told: FlowOutcome) -> None:
    others = [one for one in diagnosis.outcomes if one is not told]
    if not others:
        return
    writer.heading("The other ways it can go")
    for one in others:
        mark = writer.paint("✗", _Paint.RED) if is_bad(one) else writer.paint("✓", _Paint.GREEN)
        writer.hanging(f"  {mark} {percent(one.probability):>7}  ", _outcome_line(one), indent=13)


def _outcome_line(outcome: FlowOutcome) -> str:
    if outcome.client_sees is View.CONNECTED and outcome.server_sees is not None:
        seen = f"{netns_words(outcome.server_sees.netns)} answers, and sees {outcome.server_sees.src} as the source"
        return f"{seen}; full-size packets are lost" if outcome.stalls else seen
    walk = ending_walk(outcome)
    where = f" on {netns_words(walk.place.netns)} at {place_words(walk.place)}" if walk.place is not None else ""
    return f"{outcome.client_sees}{where}: {end_words(walk)}"


def _write_causes(writer: "_Writer", diagnosis: Diagnosis) -> None:
    for number, cause in enumerate(diagnosis.root_causes, start=1):
        rank = "" if len(diagnosis.root_causes) == 1 else f" {number}"
        proven = cause.suspicions and all(one.confirmed for one in cause.suspicions)
        writer.heading(f"Cause{rank} ({'confirmed' if proven else 'not confirmed'})")
        for suspicion in cause.suspicions:
            _write_suspicion(writer, suspicion)


def _write_suspicion(writer: "_Writer", suspicion: Suspicion) -> None:
    code = f"{suspicion.code} " if suspicion.code else ""
    writer.hanging("  ", f"{code}{suspicion.message}", indent=4)
    if suspicion.place is not None:
        seen = how_to_see(suspicion.place)
        command = f": {seen.command}" + (f"   ({seen.what})" if seen.what else "") if seen.command else ""
        writer.line(writer.paint(f"    see it on {netns_words(suspicion.place.netns)}{command}", _Paint.DIM))
    texts = [one.line for one in suspicion.evidence if one.line]
    if not texts and suspicion.place is not None and suspicion.place.text:
        texts = [suspicion.place.text]
    for text in texts:
        writer.line(f"      {text}")
    for one in suspicion.evidence:
        if one.seen:
            writer.hanging("    seen      ", one.seen, indent=14)
        if one.expected:
            writer.hanging("    expected  ", one.expected, indent=14)
    _write_remedy(writer, suspicion)


def _write_remedy(writer: "_Writer", suspicion: Suspicion) -> None:
    remedy = suspicion.remedy
    if remedy is None:
        return
    if remedy.advice:
        writer.hanging("    to mend   ", remedy.advice, indent=14)
    for host, command in remedy.commands:
        writer.line(f"    {writer.paint('on ' + host, _Paint.DIM)}$ {writer.paint(command, _Paint.BOLD)}")


def _write_mtu(writer: "_Writer", diagnosis: Diagnosis) -> None:
    mtu = diagnosis.mtu
    ways = [f"{size} bytes {way}" for size, way in ((mtu.forward, "there"), (mtu.reply, "back")) if size]
    if ways and judge(diagnosis) in (Judgement.WORKS, Judgement.STALLS):
        writer.heading("Largest packet that gets through")
        writer.line("  " + ", ".join(ways))


def _write_missing(writer: "_Writer", diagnosis: Diagnosis) -> None:
    if diagnosis.missing and judge(diagnosis) is not Judgement.UNKNOWN:
        writer.heading("Not known, and left open here")
        for what in diagnosis.missing:
            writer.hanging("  - ", what, indent=4)


def _write_also_seen(writer: "_Writer", diagnosis: Diagnosis) -> None:
    causes = {(one.code, one.subject, one.message) for cause in diagnosis.root_causes for one in cause.suspicions}
    rest = tuple(one for one in diagnosis.suspicions if (one.code, one.subject, one.message) not in causes)
    _write_suspicion_list(writer, "Also seen on the way", rest)
    _write_suspicion_list(writer, "About the cluster", diagnosis.cluster_suspicions)


def _write_suspicion_list(writer: "_Writer", heading: str, suspicions: tuple[Suspicion, ...]) -> None:
    """Write one line for each, the worst first; those that are only good to know are counted unless all is asked for."""
    ranked = sorted(suspicions, key=lambda one: _LEVEL_ORDER.index(one.level))
    told = [one for one in ranked if one.level is not Level.INFO or writer.style.depth is Depth.DETAILED]
    if not ranked:
        return
    writer.heading(heading)
    for suspicion in told:
        where = netns_words(suspicion.subject)
        bare = where.rpartition(" ")[2]
        where = f" ({where})" if where and bare not in suspicion.message else ""
        writer.hanging(f"  {suspicion.level:<8}  ", f"{suspicion.code} {suspicion.message}{where}".strip(), indent=12)
    if len(told) < len(ranked):
        writer.line(writer.paint(f"  {len(ranked) - len(told)} of level info, told with --detail detailed", _Paint.DIM))


def _and(parts: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1]))) if parts else ""


class _Writer:
    """Collects lines in one style."""

    def __init__(self, style: Style) -> None:
        self.style = style
        self._lines: list[str] = []

    def text(self) -> str:
        return "".join(f"{line}\n" for line in self._lines)

    def paint(self, text: str, paint: _Paint) -> str:
        return f"\x1b[{paint.value}m{text}\x1b[0m" if self.style.ink is Ink.ANSI and text else text

    def line(self, text: str) -> None:
        self._lines.append(text.rstrip())

    def blank(self) -> None:
        self._lines.append("")

    def heading(self, text: str) -> None:
        self.blank()
        self.line(self.paint(text, _Paint.BOLD))

    def paragraph(self, text: str) -> None:
        for line in self._wrapped(text, self.style.width):
            self.line(line)

    def hanging(self, lead: str, text: str, *, indent: int) -> None:
        """Write `lead` and then `text`, wrapped, its further lines indented; `lead` may hold colours."""
        first, *more = self._wrapped(text, self.style.width - indent) or [""]
        self.line(lead + first)
        for line in more:
            self.line(" " * indent + line)

    def columns(self, lead: str, left: str, right: str) -> None:
        """Write a place and what happened there side by side, or one under the other where the place is long."""
        if len(left) > _PLACE_COLUMNS:
            self.line(lead + left)
            self.line(" " * (6 + _PLACE_COLUMNS // 4) + right)
        else:
            self.line(f"{lead}{left:<{_PLACE_COLUMNS}}  {right}")

    @staticmethod
    def _wrapped(text: str, width: int) -> list[str]:
        return textwrap.wrap(text, max(width, 30), break_long_words=False, break_on_hyphens=False)
