"""One native table and its base chains: what each says about a packet at its hook (nft_do_chain)."""

from functools import cached_property

from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.state import NetNS, NftTable
from tasks.skoop.model.trace import Place
from tasks.skoop.netstack.nftables.expressions import Compiler
from tasks.skoop.netstack.nftables.fib_lookup import Routes
from tasks.skoop.netstack.nftables.jsonform import Json
from tasks.skoop.netstack.nftables.render import rendered
from tasks.skoop.netstack.nftables.source import RuleSource, TableSource
from tasks.skoop.netstack.nftables.statements import StatementCompiler
from tasks.skoop.netstack.nftables.way import Statement, TableId, Way
from tasks.skoop.netstack.xtables.api import HookContext, TableResult, Verdict

MAX_WAYS = 4096
"""More ways than this through one base chain are summed up as unknown."""


class CompiledRule:
    """One rule, ready to be asked. `number` counts from 1 in its chain."""

    __slots__ = ("_places", "chain", "number", "passive_from", "source", "statements", "table")

    def __init__(
        self, table: TableId, chain: str, number: int, source: RuleSource, statements: tuple[Statement, ...]
    ) -> None:
        self.table = table
        self.chain = chain
        self.number = number
        self.source = source
        self.statements = statements
        self.passive_from = len(statements)
        while self.passive_from and statements[self.passive_from - 1].passive:
            self.passive_from -= 1
        self._places: dict[str, Place] = {}

    def place(self, hook: str) -> Place:
        """Return where this rule stands, as the user would see it."""
        place = self._places.get(hook)
        if place is None:
            source = self.source
            text = rendered(source.statements(), family=self.table.family, comment=source.comment, handle=source.handle)
            place = self._places[hook] = self.table.place(hook, self.chain, self.number, text)
        return place


class CompiledChain:
    """One chain; its rules are compiled when a packet first enters it."""

    def __init__(self, name: str, table: "Table") -> None:
        self.name = name
        self._table = table

    @cached_property
    def rules(self) -> tuple[CompiledRule, ...]:
        """The rules in order."""
        table = self._table
        return tuple(
            CompiledRule(table.id, self.name, number, source, tuple(map(table.statement, source.statements())))
            for number, source in enumerate(table.source.rules[self.name], start=1)
        )


class Table:
    """One table; chains are made ready one by one."""

    def __init__(self, source: NftTable, netns: NetNS, routes: Routes) -> None:
        self.id = TableId(netns.id, source.family, source.name)
        self.source = TableSource(source)
        self._statements = StatementCompiler(Compiler(netns, self.source, routes), self.chain)
        self._chains: dict[str, CompiledChain] = {}

    def chain(self, name: str) -> CompiledChain | None:
        """Return a chain by name."""
        chain = self._chains.get(name)
        if chain is None and name in self.source.rules:
            chain = self._chains[name] = CompiledChain(name, self)
        return chain

    def objections(self, value: Json) -> list[str]:
        """Return why it cannot be told what a statement does; [] if it can."""
        return self._statements.objections(value)

    def statement(self, value: Json) -> Statement:
        """Return a statement, ready to act."""
        return self._statements.statement(value)


class BaseChain:
    """A chain at a hook: for the walk it is a table of its own, as each is called by itself in order of priority."""

    backend = "nft"

    def __init__(self, table: Table, chain: str, kind: str, hook: str, priority: int, policy: str) -> None:
        self.table = table
        self.chain = chain
        self.type = kind
        self.hook = hook.upper()
        self.priority = priority
        self.policy = policy
        self.name = f"{table.id.family} {table.id.name}"
        self.family = {"ip": 4, "ip6": 6}.get(table.id.family, 0)

    @property
    def netns(self) -> NetnsId:
        """Where it is."""
        return self.table.id.netns

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that it is bound to at an ingress or egress hook; () where the listing does not say."""
        return self.table.source.devices(self.chain)

    def has_chain(self, hook: str) -> bool:
        """Say whether it stands at this hook and can do anything: it has a rule, or drops by its policy."""
        return self.hook == hook and (self.policy == "drop" or bool(self.table.source.rules.get(self.chain)))

    def evaluate(self, context: HookContext) -> tuple[TableResult, ...]:
        """Return every way through the base chain, most of the time one; probabilities add up to 1."""
        base = self.table.chain(self.chain)
        if base is None:
            missing = (f"{self.netns}: chain {self.chain} of table {self.name}",)
            return (TableResult(verdict=Verdict.UNKNOWN, packet=context.packet, missing=missing),)
        pending: list[Way] = []
        pending.append(Way(self.table.id, base, self.policy, self.hook, context, pending))
        results: list[TableResult] = []
        while pending:
            results.append(pending.pop().run())
            if len(results) + len(pending) >= MAX_WAYS and pending:
                results.append(self._summed_up(pending))
                break
        return tuple(results)

    def _summed_up(self, pending: list[Way]) -> TableResult:
        first = pending[-1]
        first.probability = sum(way.probability for way in pending)
        where = f"{self.netns} {self.name}/{self.chain}"
        return first.finish(Verdict.UNKNOWN, missing=(f"{where}: more than {MAX_WAYS} ways through the rules",))
