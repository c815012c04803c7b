"""One way of one packet through one table: where it stands, what it has met, what it has become.

The position is that of ipt_do_table: a chain, the next rule in it, and a stack of places to return to. Jumps push, gotos do
not, so that the end of a chain that was gone to continues after the jump before; with nothing on the stack the base chain's
policy decides.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.trace import Place, Stage, Step
from tasks.skoop.model.xtables import Rule
from tasks.skoop.netstack.xtables.api import Hook, HookContext, NatAction, TableResult, Verdict
from tasks.skoop.netstack.xtables.truth import Chance, Condition, Truth, both
from tasks.skoop.netstack.xtables.view import PacketView

MAX_JUMPS = 1 << 16
"""More jumps than this in one way mean that the chains go round, which a kernel would not have loaded."""


class TableId(NamedTuple):
    """Which table: what every place in it shares."""

    netns: NetnsId
    backend: str
    family: int
    name: str

    def place(self, hook: str, chain: str, rule: int, text: str) -> Place:
        """Return the place of a rule (from 1), or of the chain's policy (0)."""
        return Place(
            netns=self.netns,
            stage=Stage.NETFILTER,
            backend=self.backend,
            family=self.family,
            hook=hook,
            table=self.name,
            chain=chain,
            rule=rule,
            text=text,
        )


class Effect(NamedTuple):
    """What a target does: `act` returns the result if it ends the way. A `passive` one changes nothing that follows."""

    act: "Callable[[Way, CompiledRule], TableResult | None]"
    passive: bool = False


class CompiledRule:
    """One rule, ready to be asked. `number` counts from 1 in its chain."""

    __slots__ = ("chain", "conditions", "effect", "number", "places", "source", "table")

    def __init__(
        self, table: TableId, chain: str, number: int, source: Rule, conditions: tuple[Condition, ...], effect: Effect
    ) -> None:
        self.table = table
        self.chain = chain
        self.number = number
        self.source = source
        self.conditions = conditions
        self.effect = effect
        self.places: dict[Hook, Place] = {}

    def place(self, hook: Hook) -> Place:
        """Return where this rule stands, as the user would see it."""
        place = self.places.get(hook)
        if place is None:
            place = self.places[hook] = self.table.place(hook, self.chain, self.number, self.source.raw)
        return place

    def holds(self, view: PacketView) -> Truth:
        """Return whether the packet fits: no, as soon as one condition certainly says so, even after uncertain ones."""
        result: Truth = True
        for condition in self.conditions:
            truth = condition(view)
            if truth is True:
                continue
            if truth is not False and truth.key and truth.key in view.decided:
                truth = view.decided[truth.key] != truth.inverted
            if truth is False:
                return False
            result = both(result, truth)
        return result


class RuleChain(Protocol):
    """A chain, as a way needs it."""

    name: str
    policy: str
    all: "tuple[CompiledRule, ...] | None"
    """Its rules, if there are few and they have been asked for before."""

    def candidates(self, view: PacketView) -> Sequence[CompiledRule]:
        """Return the rules that this packet could fit, in order; all others certainly do not fit."""


Frame = tuple[Sequence[CompiledRule], int, "Frame | None"]
"""A place to return to: rules of the calling chain, index of the next one, the frame below."""


class Way:
    """The state of one evaluation; `fork` makes an independent copy."""

    __slots__ = (
        "assumed",
        "at",
        "base",
        "branches",
        "hook",
        "jumps",
        "missing",
        "notrack",
        "probability",
        "rules",
        "stack",
        "steps",
        "table",
        "view",
        "wrote_connmark",
        "zone",
    )

    def __init__(self, table: TableId, base: RuleChain, context: HookContext) -> None:
        self.table = table
        self.base = base
        self.hook = context.hook
        self.view = PacketView(context, table.family)
        self.rules = base.all or base.candidates(self.view)
        self.at = 0
        self.stack: Frame | None = None
        self.steps: list[Step] = []
        self.probability = 1.0
        self.missing: tuple[str, ...] = ()
        self.assumed: tuple[str, ...] = ()
        self.branches: tuple[tuple[str, bool], ...] = ()
        self.jumps = 0
        self.notrack = False
        self.zone: int | None = None
        self.wrote_connmark = False

    def fork(self) -> "Way":
        """Return an independent copy."""
        twin = Way.__new__(Way)
        for name in Way.__slots__:
            setattr(twin, name, getattr(self, name))
        twin.view = self.view.fork()
        twin.steps = list(self.steps)
        return twin

    def note(self, rule: CompiledRule, action: str, detail: str = "") -> None:
        """Record that a rule matched and what came of it, with the packet as it is now."""
        place = rule.places.get(self.hook) or rule.place(self.hook)
        self.steps.append(Step(place=place, action=action, detail=detail, packet=self.view.packet))

    def decide(self, rule: CompiledRule, chance: Chance, taken: bool) -> None:
        """Go on as if the rule's uncertain conditions hold (`taken`) or do not."""
        where = str(rule.place(self.hook))
        if 0.0 < chance.probability < 1.0:
            self.probability *= chance.probability if taken else 1.0 - chance.probability
            self.branches = (*self.branches, (where, taken))
            if chance.key:
                self.view.decided[chance.key] = taken != chance.inverted
        self.missing = _with(self.missing, where, chance.missing)
        self.assumed = _with(self.assumed, where, chance.assumed)

    def enter(self, chain: RuleChain, *, push: bool) -> TableResult | None:
        """Go on at the start of a chain; `push` to come back behind the rule that led here."""
        self.jumps += 1
        if self.jumps > MAX_JUMPS:
            return self.finish(Verdict.UNKNOWN, missing=(f"{self._where()}: the chains call each other in a circle",))
        if push:
            self.stack = (self.rules, self.at, self.stack)
        self.rules, self.at = chain.all or chain.candidates(self.view), 0
        return None

    def leave(self) -> TableResult | None:
        """Go on where the chain was called; at the bottom let the base chain's policy decide."""
        if self.stack is not None:
            self.rules, self.at, self.stack = self.stack
            return None
        drops = self.base.policy == "DROP"
        place = self.table.place(self.hook, self.base.name, 0, f":{self.base.name} {self.base.policy}")
        self.steps.append(Step(place=place, action="drop" if drops else "accept", packet=self.view.packet))
        return self.finish(Verdict.DROP if drops else Verdict.ACCEPT)

    def finish(
        self,
        verdict: Verdict,
        *,
        nat: NatAction | None = None,
        reject: str = "",
        tproxy: tuple[Ip, int] | None = None,
        missing: tuple[str, ...] = (),
    ) -> TableResult:
        """Return the result of this way."""
        return TableResult(
            verdict=verdict,
            packet=self.view.packet,
            probability=self.probability,
            steps=tuple(self.steps),
            nat=nat,
            reject=reject,
            notrack=self.notrack,
            zone=self.zone,
            connmark=self.view.connmark if self.wrote_connmark else None,
            tproxy=tproxy,
            missing=self.missing + missing,
            branches=self.branches,
            assumed=self.assumed,
        )

    def _where(self) -> str:
        return f"{self.table.netns} {self.table.name}/{self.base.name}"


def _with(texts: tuple[str, ...], where: str, more: tuple[str, ...]) -> tuple[str, ...]:
    if not more:
        return texts
    return texts + tuple(line for line in (f"{where}: {text}" for text in more) if line not in texts)
