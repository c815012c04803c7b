"""What one table says about a packet at a hook: ipt_do_table, and every way where the rules leave it open.

Chains are compiled when a packet first comes to them. A rule that is not certain splits the way in two; ways are walked one
after the other, the matching side first, and bounded in number.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate, islice

from msgspec.structs import replace

from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.xtables import Chain, Rule, XTable
from tasks.skoop.netstack.xtables.api import Hook, HookContext, TableResult, Verdict
from tasks.skoop.netstack.xtables.chance_matches import asks_list
from tasks.skoop.netstack.xtables.index import LONG, ChainIndex
from tasks.skoop.netstack.xtables.matches import Scope
from tasks.skoop.netstack.xtables.targets import compile_target
from tasks.skoop.netstack.xtables.truth import Chance
from tasks.skoop.netstack.xtables.view import PacketView
from tasks.skoop.netstack.xtables.way import CompiledRule, TableId, Way

MAX_WAYS = 4096
"""More ways than this through one table are summed up as unknown."""
MAX_DOUBTFUL_WAYS = 256
"""The same for ways on which something was not known: they double with every such rule, and all end as unknown anyway."""


class CompiledChain:
    """One chain; its rules are compiled one by one when a packet might fit them."""

    def __init__(self, source: Chain, table: "Table") -> None:
        self.name = source.name
        self.policy = source.policy
        self.source = source
        self._table = table
        self._rules: list[CompiledRule | None] = [None] * len(source.rules)
        self.all: tuple[CompiledRule, ...] | None = None
        self._index: ChainIndex | None = None
        self._lists: tuple[int, ...] | None = None

    def candidates(self, view: PacketView) -> Sequence[CompiledRule]:
        """Return the rules that this packet could fit, in order; all others certainly do not fit."""
        if len(self._rules) < self._table.index_from:
            if self.all is None:
                self.all = tuple(self._rule(position) for position in range(len(self._rules)))
            return self.all
        if self._index is None:
            self._index = ChainIndex(self.source.rules, self._table.family)
        return [self._rule(position) for position in self._index.candidates(view)]

    def _rule(self, position: int) -> CompiledRule:
        rule = self._rules[position]
        if rule is None:
            table, source = self._table, self.source.rules[position]
            rule = self._rules[position] = CompiledRule(
                table.id,
                self.name,
                position + 1,
                source,
                table.scope.conditions(source.matches, self._lists_from(position)),
                compile_target(source.target, table.family, table.chain),
            )
        return rule

    def _lists_from(self, position: int) -> int:
        """Return how many rules from this one on ask a list of `recent`; 1 if this one does not."""
        if not _asks_list(self.source.rules[position]):
            return 1
        if self._lists is None:
            counts = accumulate(_asks_list(rule) for rule in reversed(self.source.rules))
            self._lists = tuple(reversed(tuple(counts)))
        return self._lists[position]


def _asks_list(rule: Rule) -> bool:
    return any(match.name == "recent" and asks_list(match.options) for match in rule.matches)


class Table:
    """One table of one back end, ready to evaluate. `index_from` is the length from which chains get an index."""

    def __init__(self, source: XTable, netns: NetnsId, scope: Scope, *, index_from: int = LONG) -> None:
        self.name = source.name
        self.family = source.family
        self.backend = str(source.backend)
        self.id = TableId(netns, self.backend, self.family, self.name)
        self.scope = scope
        self.index_from = index_from
        self.source = source
        self._by_name: Mapping[str, Chain] | None = None
        self._chains: dict[str, CompiledChain] = {}

    def chain(self, name: str) -> CompiledChain | None:
        """Return a chain by name."""
        chain = self._chains.get(name)
        if chain is None:
            if self._by_name is None:
                self._by_name = {each.name: each for each in self.source.chains}
            source = self._by_name.get(name)
            if source is None:
                return None
            chain = self._chains[name] = CompiledChain(source, self)
        return chain

    def _base(self, hook: Hook) -> CompiledChain | None:
        chain = self.chain(hook)
        return chain if chain is not None and chain.policy else None

    def has_chain(self, hook: Hook) -> bool:
        """Say whether the table has a built-in chain at this hook with a rule in it or a policy other than ACCEPT."""
        base = self._base(hook)
        return base is not None and (bool(base.source.rules) or base.policy != "ACCEPT")

    def evaluate(self, context: HookContext) -> tuple[TableResult, ...]:
        """Return every way through the table at this hook, most of the time one; probabilities add up to 1.

        Without a built-in chain at this hook the packet passes, without a step.
        """
        base = self._base(context.hook)
        if base is None:
            return (TableResult(verdict=Verdict.ACCEPT, packet=context.packet),)
        pending = [Way(self.id, base, context)]
        results: list[TableResult] = []
        doubtful = 0
        while pending:
            result = _run(pending.pop(), pending)
            if not pending and not results:
                return (result,)
            results.append(result)
            doubtful += bool(result.missing)
            if len(results) + len(pending) > MAX_WAYS:
                results += self._summed_up(pending)
                break
            if doubtful > MAX_DOUBTFUL_WAYS:
                results += self._summed_up([way for way in pending if way.missing])
                pending = [way for way in pending if not way.missing]
        return _merged(results) if doubtful > 1 else tuple(results)

    def _summed_up(self, ways: Sequence[Way]) -> list[TableResult]:
        """Return one unknown result that stands for all these ways, or none for none."""
        if not ways:
            return []
        first = ways[-1]
        first.probability = sum(way.probability for way in ways)
        where = f"{self.id.netns} {self.name}/{first.base.name}"
        return [first.finish(Verdict.UNKNOWN, missing=(f"{where}: too many ways through the rules",))]


def _merged(results: Sequence[TableResult]) -> tuple[TableResult, ...]:
    """Return the results with those made one that rest on something unknown and come to the same.

    Such a result has the steps of the first of them, their probabilities together, and all that was missing.
    """
    found: dict[object, TableResult] = {}
    for number, result in enumerate(results):
        same = (result.verdict, result.packet, result.nat, result.reject, result.notrack, result.zone, result.connmark)
        key: object = (*same, result.tproxy) if result.missing else number
        first = found.get(key)
        found[key] = (
            result
            if first is None
            else replace(
                first,
                probability=first.probability + result.probability,
                missing=tuple(dict.fromkeys(first.missing + result.missing)),
                assumed=tuple(dict.fromkeys(first.assumed + result.assumed)),
            )
        )
    return tuple(found.values())


def _run(way: Way, pending: list[Way]) -> TableResult:
    """Walk one way to its end, adding the ways that part from it to `pending`."""
    view = way.view
    while True:
        for rule in islice(way.rules, way.at, None):
            way.at += 1
            for condition in rule.conditions:
                truth = condition(view)
                if truth is not True:
                    break
            else:
                break  # it certainly matches
            if truth is False:
                continue
            truth = rule.holds(view)
            if truth is not False and (truth is True or _take(way, rule, truth, pending)):
                break
        else:
            if way.stack is None:
                result = way.leave()
                assert result is not None
                return result
            way.rules, way.at, way.stack = way.stack
            continue
        result = rule.effect.act(way, rule)
        if result is not None:
            return result


def _take(way: Way, rule: CompiledRule, chance: Chance, pending: list[Way]) -> bool:
    """Return whether the way goes on as if the uncertain rule matched; if both can be, the other side waits in `pending`.

    Where the rule changes nothing the ways are not parted, and it counts as matched only if that is the answer.
    """
    if rule.effect.passive:
        return chance.probability >= 1.0
    if 0.0 < chance.probability < 1.0:
        other = way.fork()
        other.decide(rule, chance, taken=False)
        pending.append(other)
    way.decide(rule, chance, taken=chance.probability > 0.0)
    return chance.probability > 0.0
