"""One way of one packet through one base chain: where it stands, what it has met, what it has become.

The position is that of nft_do_chain: a chain, the rule in it, the statement in the rule, and a stack of places to return to. Jumps
push, gotos do not. A statement that does not match ends its rule, but what the statements before it did is done.
"""

from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import NamedTuple, Protocol

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.trace import Place, Stage, Step
from tasks.skoop.netstack.nftables.outcomes import Draw
from tasks.skoop.netstack.nftables.view import PacketView
from tasks.skoop.netstack.xtables.api import HookContext, NatAction, TableResult, Verdict
from tasks.skoop.netstack.xtables.truth import Chance

MAX_JUMPS = 1 << 16
"""More jumps than this in one way mean that the chains go round, which a kernel would not have loaded."""

FAMILIES = {"ip": 4, "ip6": 6}


class Flow(Enum):
    """What follows a statement, besides a result."""

    NEXT = auto()
    """The next statement."""
    BREAK = auto()
    """The next rule: this one does not match."""
    MOVED = auto()
    """The rule that the way stands at now: a chain was entered or left."""
    AGAIN = auto()
    """The same statement: a lot has been drawn for it."""


class Statement(NamedTuple):
    """What a statement does. A `passive` one changes nothing that follows and cannot fail to match."""

    act: "Callable[[Way, Rule], Flow | TableResult]"
    passive: bool = False


class Rule(Protocol):
    """A rule, as a way needs it."""

    @property
    def statements(self) -> Sequence[Statement]:
        """What it does, in order."""

    @property
    def passive_from(self) -> int:
        """Index of the statement from which on nothing but counting and logging follows."""

    def place(self, hook: str) -> Place:
        """Return where this rule stands, as the user would see it."""


class Chain(Protocol):
    """A chain, as a way needs it."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def rules(self) -> Sequence[Rule]:
        """Its rules in order."""


class TableId(NamedTuple):
    """Which table: what every place in it shares."""

    netns: NetnsId
    family: str
    name: str

    def place(self, hook: str, chain: str, rule: int, text: str) -> Place:
        """Return the place of a rule (from 1), or of the base chain's policy (0)."""
        return Place(
            netns=self.netns,
            stage=Stage.NETFILTER,
            backend="nft",
            family=FAMILIES.get(self.family, 0),
            hook=hook,
            table=f"{self.family} {self.name}",
            chain=chain,
            rule=rule,
            text=text,
        )


Frame = tuple[Sequence[Rule], int, "Frame | None"]
"""A place to return to: rules of the calling chain, index of the next one, the frame below."""


class Way:
    """The state of one evaluation; `fork` makes an independent copy. Ways that part from this one go to `pending`."""

    __slots__ = (
        "assumed",
        "at",
        "base",
        "branches",
        "hook",
        "jumps",
        "missing",
        "noted",
        "notrack",
        "pending",
        "policy",
        "probability",
        "rules",
        "stack",
        "statement",
        "steps",
        "table",
        "tproxy",
        "view",
        "wrote_connmark",
        "zone",
    )

    def __init__(
        self, table: TableId, base: Chain, policy: str, hook: str, context: HookContext, pending: "list[Way]"
    ) -> None:
        self.table = table
        self.base = base
        self.policy = policy
        self.hook = hook
        self.view = PacketView(context)
        self.pending = pending
        self.rules = base.rules
        self.at = 0
        self.statement = 0
        self.noted = False
        self.stack: Frame | None = None
        self.steps: list[Step] = []
        self.probability = 1.0
        self.missing: tuple[str, ...] = ()
        self.assumed: tuple[str, ...] = ()
        self.branches: tuple[tuple[str, bool], ...] = ()
        self.jumps = 0
        self.notrack = False
        self.zone: int | None = None
        self.tproxy: tuple[Ip, int] | None = None
        self.wrote_connmark = False

    def fork(self) -> "Way":
        """Return an independent copy."""
        twin = Way.__new__(Way)
        for name in Way.__slots__:
            setattr(twin, name, getattr(self, name))
        twin.view = self.view.fork()
        twin.steps = list(self.steps)
        return twin

    def run(self) -> TableResult:
        """Walk this way to its end."""
        while True:
            if self.at >= len(self.rules):
                result = self.leave()
                if result is not None:
                    return result
                continue
            rule = self.rules[self.at]
            flow = self._run_rule(rule)
            if isinstance(flow, TableResult):
                return flow
            if flow is not Flow.MOVED:
                if flow is Flow.NEXT and not self.noted:
                    self.note(rule, "match")
                self._next_rule()

    def _run_rule(self, rule: Rule) -> Flow | TableResult:
        statements, drawn = rule.statements, self.view.drawn
        while self.statement < len(statements):
            self.statement += 1
            flow = statements[self.statement - 1].act(self, rule)
            if flow is Flow.AGAIN:
                self.statement -= 1
                continue
            if drawn:
                drawn.clear()
            if flow is not Flow.NEXT:
                return flow
        return Flow.NEXT

    def _next_rule(self) -> None:
        self.at += 1
        self.statement = 0
        self.noted = False

    def note(self, rule: Rule, action: str, detail: str = "") -> None:
        """Record that a rule matched and what came of it, with the packet as it is now."""
        self.noted = True
        self.steps.append(Step(place=rule.place(self.hook), action=action, detail=detail, packet=self.view.packet))

    def take(self, rule: Rule, chance: Chance) -> Flow:
        """Go on as if an uncertain condition of the rule held; the way on which it does not waits in `pending`.

        Where nothing but counting and logging follows the ways are not parted, and it holds only if that is the answer.
        """
        if chance.key and chance.key in self.view.decided:
            return Flow.NEXT if self.view.decided[chance.key] != chance.inverted else Flow.BREAK
        if self.statement >= rule.passive_from:
            return Flow.NEXT if chance.probability >= 1.0 else Flow.BREAK
        taken = chance.probability > 0.0
        if 0.0 < chance.probability < 1.0:
            other = self.fork()
            other._decide(rule, chance, taken=False)
            other._next_rule()
            self.pending.append(other)
        self._decide(rule, chance, taken=taken)
        return Flow.NEXT if taken else Flow.BREAK

    def _decide(self, rule: Rule, chance: Chance, *, taken: bool) -> None:
        where = str(rule.place(self.hook))
        if 0.0 < chance.probability < 1.0:
            self.probability *= chance.probability if taken else 1.0 - chance.probability
            self.branches = (*self.branches, (where, taken))
            if chance.key:
                self.view.decided[chance.key] = taken != chance.inverted
        self.missing = _with(self.missing, where, chance.missing)
        self.assumed = _with(self.assumed, where, chance.assumed)

    def draw(self, draw: Draw) -> Flow:
        """Part into one way for each outcome of a draw; each does the statement again, with its lot."""
        first, *others = draw.groups()
        for number, probability, _ in others:
            other = self.fork()
            other._drawn(draw, number, probability)
            other.statement -= 1
            self.pending.append(other)
        self._drawn(draw, first[0], first[1])
        return Flow.AGAIN

    def _drawn(self, draw: Draw, number: int, probability: float) -> None:
        (self.view.hashed if draw.sticky else self.view.drawn)[draw.key] = number
        self.probability *= probability

    def enter(self, chain: Chain, *, push: bool) -> Flow | TableResult:
        """Go on at the start of a chain; `push` to come back to the rule behind the one that led here."""
        self.jumps += 1
        if self.jumps > MAX_JUMPS:
            return self.finish(Verdict.UNKNOWN, missing=(f"{self._where()}: the chains call each other in a circle",))
        if push:
            self.stack = (self.rules, self.at + 1, self.stack)
        self.rules, self.at, self.statement, self.noted = chain.rules, 0, 0, False
        return Flow.MOVED

    def leave(self) -> TableResult | None:
        """Go on where the chain was called; at the bottom let the base chain's policy decide."""
        if self.stack is not None:
            self.rules, self.at, self.stack = self.stack
            self.statement, self.noted = 0, False
            return None
        place = self.table.place(self.hook, self.base.name, 0, f"policy {self.policy}")
        self.steps.append(Step(place=place, action=self.policy, packet=self.view.packet))
        return self.finish(Verdict.DROP if self.policy == "drop" else Verdict.ACCEPT)

    def assume(self, rule: Rule, text: str) -> None:
        """Note what is taken for granted."""
        self.assumed = _with(self.assumed, str(rule.place(self.hook)), (text,))

    def cannot_tell(self, rule: Rule, reason: str) -> TableResult:
        """End the way: what the rule does next is not known."""
        self.note(rule, "match", "what it does cannot be told")
        return self.finish(Verdict.UNKNOWN, missing=(f"{rule.place(self.hook)}: {reason}",))

    def finish(
        self, verdict: Verdict, *, nat: NatAction | None = None, reject: str = "", missing: tuple[str, ...] = ()
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
            tproxy=self.tproxy,
            missing=self.missing + missing,
            branches=self.branches,
            assumed=self.assumed,
        )

    def _where(self) -> str:
        return f"{self.table.netns} {self.table.family} {self.table.name}/{self.base.name}"


def _with(texts: tuple[str, ...], where: str, more: tuple[str, ...]) -> tuple[str, ...]:
    if not more:
        return texts
    return texts + tuple(line for line in (f"{where}: {text}" for text in more) if line not in texts)
