"""Plays scenarios and compares: what the kernel did with every connection, and what the simulator had foretold.

A difference is looked at again alone, with more patience and a fresh start, before it is believed: connections that are tried
at the same moment share tables, and a busy machine is late. One that stays is made small: changes are left out one by one
as long as it stays, and what is left is written down.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from pathlib import Path

from lab.errors import LabFailed
from lab.prober import Ask, Attempt
from tasks.skoop.diagnostor import Diagnostor
from tasks.skoop.model.diagnosis import Diagnosis, FlowOutcome
from tasks.skoop.model.trace import Outcome, Reason, Stage, View
from tests.kernel.differential.comparing import difference, question_of, same_place
from tests.kernel.fuzz.change import Change, Edit, Scenario
from tests.kernel.fuzz.found import Found
from tests.kernel.fuzz.generator import BLOCK, Generator, LabKind, lab_of
from tests.kernel.fuzz.world import World

FIRST_S, PATIENT_S = 0.15, 0.7
ARP_S = 3.5
"""A device that was taken down and up may ask three times, a second apart, again (retrans_time_ms)."""
_FEATURE = re.compile(r"-[mjg] [A-Za-z0-9_]+")
_SEEN = re.compile(r"kernel:? (connected|refused|unreachable|timeout)")
_ROUTE_ERRORS = {Reason.IP_INNOROUTES, Reason.ROUTE_UNREACHABLE, Reason.ROUTE_PROHIBIT}
_FAMILIES = re.compile(r"-[jg] (KUBE|FLANNEL|CNI|fz)-?")


@dataclass(slots=True, kw_only=True)
class Mismatch:
    """A difference that stayed: the scenario made small, the connection, what both said."""

    seed: int
    number: int
    lab: LabKind
    changes: tuple[Change | Edit, ...]
    ask: Ask
    said: str
    sees: str = ""

    def text(self) -> str:
        """Return the report: a scenario that can be played again (`found`), with what both said."""
        about = (
            f"found by make fuzz-kernel SEED={self.seed} ONLY={self.number}",
            *(line[:400] for line in self.said.splitlines()),
        )
        return Found(
            lab=self.lab, changes=self.changes, ask=self.ask, sees=(self.sees or "unknown",), about=about
        ).text()


@dataclass(slots=True, kw_only=True)
class Tally:
    """What a campaign has counted."""

    scenarios: int = 0
    verdicts: int = 0
    unknown: int = 0
    late: int = 0
    places: int = 0
    same_places: int = 0
    rebuilt: int = 0
    views: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    gaps: Counter[str] = field(default_factory=Counter)
    elsewhere: list[str] = field(default_factory=list)
    mismatches: list[Mismatch] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Take in what another has counted."""
        for name in ("scenarios", "verdicts", "unknown", "late", "places", "same_places", "rebuilt"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("views", "changed", "met", "refused", "gaps"):
            getattr(self, name).update(getattr(other, name))
        self.elsewhere += other.elsewhere
        self.mismatches += other.mismatches


class Campaign:
    """Plays scenarios of one seed, one after the other, in a lab that is kept."""

    def __init__(
        self, seed: int, *, places: float = 0.25, judge: Callable[[Diagnostor], Diagnostor] = lambda one: one
    ) -> None:
        """`places` is the share of scenarios of which the place of one drop is compared too."""
        self.seed = seed
        self.tally = Tally()
        self._places = places
        self._judge = judge
        self._world: World | None = None
        self._generator: Generator | None = None
        self._block = -1

    def close(self) -> None:
        """Take the lab down."""
        if self._world is not None:
            self._world.close()
            self._world = None

    def forget_compiled(self) -> None:
        """Compile every namespace anew for the next scenario: the simulator has been changed."""
        if self._world is not None:
            self._world.compiled.clear()

    def play(self, number: int) -> list[Mismatch]:
        """Play one scenario; return its mismatches, made small."""
        world, generator = self._ready(number)
        scenario = generator.scenario(number)
        found: list[Mismatch] = []
        self.tally.scenarios += 1
        self.tally.changed.update(change.kind for change in scenario.changes)
        whole = False
        try:
            diagnostor = self._judge(world.apply(scenario.changes))
            self.tally.refused.update(
                re.sub(r"[0-9a-f.:/]{4,}", "*", line.partition(": ")[2])[:150] for line in world.refused
            )
            wrong = self._compare(world, diagnostor, scenario)
            whole = world.undo(scenario.changes)
            if whole:
                for ask, said in wrong[:3]:
                    found.append(self._small(world, scenario, ask, said))
        except (LabFailed, OSError) as error:
            self.tally.refused[f"lab: {error}"[:150]] += 1
            whole = False
        if not whole:
            self.tally.rebuilt += 1
            self.close()
        self.tally.mismatches += found
        return found

    def _ready(self, number: int) -> tuple[World, Generator]:
        if number // BLOCK != self._block:
            self.close()
            self._block = number // BLOCK
        if self._world is None or self._generator is None:
            lab = lab_of(self.seed, number)
            self._world = World(lab)
            self._generator = Generator(self.seed, lab, self._world.rules)
        return self._world, self._generator

    # --- compare -----------------------------------------------------------------------------------------------------

    def _compare(self, world: World, diagnostor: Diagnostor, scenario: Scenario) -> list[tuple[Ask, str]]:
        """Try and foretell everything; return the differences that stay."""
        attempts = world.attempt(scenario.asks, FIRST_S)
        diagnoses = [diagnostor.diagnose(question_of(ask)) for ask in scenario.asks]
        stays = []
        for ask, attempt, diagnosis in zip(scenario.asks, attempts, diagnoses, strict=True):
            self.tally.verdicts += 1
            self.tally.views[attempt.view] += 1
            self._count(diagnosis)
            if View.UNKNOWN in diagnosis.client_sees:
                self.tally.unknown += 1
                self.tally.gaps.update(re.sub(r"^[^ ]+ ", "", gap) for gap in diagnosis.missing)
            elif differs(attempt, diagnosis):
                if said := self._again(world, diagnosis, ask):
                    stays.append((ask, said))
                else:
                    self.tally.late += 1
        self._compare_place(world, scenario, diagnoses, attempts)
        return stays

    def _again(self, world: World, diagnosis: Diagnosis, ask: Ask) -> str:
        """Try one connection alone, as the first one after a fresh start; return how it still differs."""
        said = ""
        slow = (ARP_S,) if View.UNREACHABLE in diagnosis.client_sees else ()
        for patience in (FIRST_S, PATIENT_S, *slow):
            world.forget()
            said = differs(world.attempt([ask], patience)[0], diagnosis)
            if not said:
                return ""
        return said

    def _compare_place(
        self, world: World, scenario: Scenario, diagnoses: Sequence[Diagnosis], attempts: Sequence[Attempt]
    ) -> None:
        """Look where one connection ended that did not come to stand."""
        if hash((self.seed, scenario.number)) % 100 >= self._places * 100:
            return
        for ask, attempt, diagnosis in zip(scenario.asks, attempts, diagnoses, strict=True):
            if attempt.view in (View.CONNECTED, View.UNKNOWN) or set(diagnosis.client_sees) != {attempt.view}:
                continue
            if differs(attempt, diagnosis) or any(_silent(outcome) for outcome in diagnosis.outcomes):
                continue
            truth = None
            for _ in range(2):
                world.forget()
                truth = world.lab.probe(changed(ask, timeout_s=FIRST_S), tries=1)
                if truth.place is None or same_place(diagnosis, truth):
                    break
            if truth is None or truth.place is None or truth.view != attempt.view:
                return
            self.tally.places += 1
            if same_place(diagnosis, truth):
                self.tally.same_places += 1
            else:
                said = [str(_end(outcome)) for outcome in diagnosis.outcomes]
                self.tally.elsewhere.append(
                    f"scenario {scenario.number} {ask.src} {ask.protocol} {ask.dst}:{ask.dport} kernel: {truth.place} {truth.reason} {truth.evidence}; foretold: {said}"
                )
            return

    def _count(self, diagnosis: Diagnosis) -> None:
        """Count which kinds of rule the walks met."""
        for outcome in diagnosis.outcomes:
            for walk in (outcome.forward, outcome.reply):
                for step in walk.steps if walk else ():
                    if step.place.stage == Stage.NETFILTER and step.place.rule:
                        self.tally.met.update(_features(step.place.text))

    # --- make small --------------------------------------------------------------------------------------------------

    def _small(self, world: World, scenario: Scenario, ask: Ask, said: str) -> Mismatch:
        """Leave out changes one by one as long as the difference stays."""
        kept = list(scenario.changes)
        for change in reversed(scenario.changes):
            fewer = [one for one in kept if one is not change]
            still = self._differs_with(world, fewer, ask)
            if still:
                kept, said = fewer, still
        return Mismatch(
            seed=self.seed,
            number=scenario.number,
            lab=lab_of(self.seed, scenario.number),
            changes=tuple(kept),
            ask=ask,
            said=said,
            sees=_SEEN.search(said)[1] if _SEEN.search(said) else "",
        )

    def _differs_with(self, world: World, changes: Sequence[Change | Edit], ask: Ask) -> str:
        try:
            diagnosis = self._judge(world.apply(changes)).diagnose(question_of(ask))
            return "" if View.UNKNOWN in diagnosis.client_sees else self._again(world, diagnosis, ask)
        finally:
            world.undo(changes)


_seen: dict[str, tuple[str, ...]] = {}


def _features(text: str) -> tuple[str, ...]:
    """Return the matches and targets of a rule's text."""
    if text not in _seen:
        found = _FEATURE.findall(_FAMILIES.sub("-j chain ", text))
        _seen[text] = tuple(dict.fromkeys(found))
    return _seen[text]


def _silent(outcome: FlowOutcome) -> bool:
    """Say whether it ends at a native nft rule or policy: without a counter there the kernel's traces do not show it."""
    places = [walk.place for walk in (outcome.data, outcome.reply, outcome.forward) if walk is not None]
    return any(place is not None and place.backend == "nft" and " " in place.table for place in places)


def _end(outcome: FlowOutcome) -> str:
    for walk in (outcome.data, outcome.reply, outcome.forward):
        if walk is not None and walk.reason != Reason.NONE:
            return f"{walk.place} {walk.reason}"
    return "delivered"


def differs(attempt: Attempt, diagnosis: Diagnosis) -> str:
    """Return how kernel and simulator disagree, or "".

    A router that has no way tells it at most five times and then once a second (ip_error, net/ipv4/route.c): where the
    simulator foretells such an answer, silence is as good.
    """
    said = difference(attempt, diagnosis)
    limited = any(
        one.client_sees == View.UNREACHABLE and one.forward.reason in _ROUTE_ERRORS for one in diagnosis.outcomes
    )
    if said and limited and attempt.view == View.TIMEOUT:
        return ""
    rejected = any(one.data is not None and one.data.reason == Reason.NETFILTER_REJECT for one in diagnosis.outcomes)
    strays = any(
        one.stalls and one.data is not None and one.data.outcome == Outcome.DELIVERED for one in diagnosis.outcomes
    )
    if said and strays and attempt.errno == "ECONNRESET":
        return ""  # the third segment comes to a stranger, whose reset is here before connect() returns
    if said and rejected and attempt.view in (View.REFUSED, View.UNREACHABLE):
        return ""  # a later segment is rejected: with IP_RECVERR, which the prober sets, connect() already hears of it
    if not said and attempt.view == View.CONNECTED and attempt.ask.protocol == "tcp":
        stalls = {one.stalls for one in diagnosis.outcomes if one.client_sees == View.CONNECTED}
        if (attempt.answer != "ok") not in stalls:
            return f"{attempt.ask.src} -> {attempt.ask.dst}:{attempt.ask.dport} tcp payload {attempt.ask.payload}: kernel connected, then {attempt.answer}; simulator stalls {stalls}"
    return said


def write(mismatch: Mismatch, folder: Path) -> Path:
    """Write a mismatch's report."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{mismatch.seed}-{mismatch.number}.txt"
    path.write_text(mismatch.text())
    return path
