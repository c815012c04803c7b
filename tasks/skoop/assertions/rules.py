"""What does one iptables rule say? Reading of typed rules, for everybody who compares rules with what they should be.

Only reads: whether a rule matches a packet is the simulator's question. A condition that is negated, or has a form that is
not looked for, is never taken for its opposite.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from tasks.skoop.model.addr import AddressError, Net, parse_net
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.state import NetNS
from tasks.skoop.model.trace import Place, Stage
from tasks.skoop.model.xtables import Backend, Chain, Rule, XTable

NO_CONDITION = frozenset(("comment",))
"""Matches that never stop a rule from matching."""

FINAL_TARGETS = frozenset(
    ("ACCEPT", "DROP", "REJECT", "RETURN", "DNAT", "SNAT", "MASQUERADE", "REDIRECT", "QUEUE", "NFQUEUE")
)
"""Targets after which the chain is not walked on."""


NEVER_BARE = frozenset(
    (
        "KUBE-FIREWALL",
        "KUBE-FORWARD",
        "KUBE-SERVICES",
        "KUBE-EXTERNAL-SERVICES",
        "KUBE-NODEPORTS",
        "KUBE-PROXY-FIREWALL",
    )
)
"""Chains whose DROP and REJECT rules always have a condition."""


def option(rule: Rule, name: str, key: str) -> tuple[bool, str] | None:
    """Return (negated, value) of an option of a match (`("dst", "dst")`, `("tcp", "dport")`), None if the rule has none."""
    for match in rule.matches:
        if match.name == name:
            for known, negated, values in match.options:
                if known == key:
                    return negated, values[0] if values else ""
    return None


def plain(rule: Rule, name: str, key: str = "") -> str | None:
    """Return the value of a condition that stands there un-negated, else None. `key` is `name` unless given."""
    found = option(rule, name, key or name)
    return None if found is None or found[0] else found[1]


def target_option(rule: Rule, key: str) -> str | None:
    """Return the value of an option of the rule's target ("" for one without value), None if it is not there."""
    for known, _, values in rule.target.options:
        if known == key:
            return values[0] if values else ""
    return None


def network(rule: Rule, name: str) -> Net | None:
    """Return the network of an un-negated `src` or `dst` condition, None if there is none or its mask has holes."""
    text = plain(rule, name)
    try:
        return None if text is None else parse_net(text)
    except AddressError:
        return None


def dport(rule: Rule) -> int | None:
    """Return the single destination port that the rule asks for, None if it asks for none or a range."""
    for name in ("tcp", "udp", "sctp"):
        text = plain(rule, name, "dport")
        if text is not None and text.isdigit():
            return int(text)
    return None


def probability(rule: Rule) -> float | None:
    """Return the chance of `-m statistic --mode random`, None without it."""
    text = plain(rule, "statistic", "probability")
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def conditions(rule: Rule) -> tuple[str, ...]:
    """Return the names of the matches that can stop the rule from matching."""
    return tuple(match.name for match in rule.matches if match.name not in NO_CONDITION)


def lost_its_match(chain: str, rule: Rule) -> bool:
    """Say whether a rule of kube-proxy or kubelet stops everything: none of theirs does, unless a condition got lost."""
    return chain in NEVER_BARE and rule.target.name in ("DROP", "REJECT") and not conditions(rule)


def has_match(rule: Rule, name: str) -> bool:
    """Say whether the rule uses a match of that name."""
    return any(match.name == name for match in rule.matches)


class TableView:
    """One table, with its chains by name and ways to point at its rules."""

    def __init__(self, netns: NetnsId, table: XTable) -> None:
        self.netns = netns
        self.table = table
        self.backend = Backend(table.backend)
        self.family = table.family
        self.name = table.name

    @cached_property
    def chains(self) -> Mapping[str, Chain]:
        """Chains by name."""
        return {chain.name: chain for chain in self.table.chains}

    def rules(self, chain: str) -> tuple[Rule, ...]:
        """Return the rules of a chain, none if there is no such chain."""
        known = self.chains.get(chain)
        return known.rules if known else ()

    def numbered(self, chain: str) -> Iterator[tuple[int, Rule]]:
        """Yield (position from 1, rule) of a chain."""
        return enumerate(self.rules(chain), 1)

    def place(self, chain: str, rule: int = 0, *, hook: str = "") -> Place:
        """Return the place of a rule, or of the chain's end (rule 0)."""
        rules = self.rules(chain)
        return Place(
            netns=self.netns,
            stage=Stage.NETFILTER,
            backend=self.backend,
            family=self.family,
            hook=hook,
            table=self.name,
            chain=chain,
            rule=rule,
            text=f"-A {chain} {rules[rule - 1].raw}" if 0 < rule <= len(rules) else "",
        )

    def reachable(self, start: str) -> Iterator[tuple[str, int, Rule]]:
        """Yield (chain, position, rule) of every rule that a packet at chain `start` may meet, in order of the walk."""
        seen: set[str] = set()

        def walk(chain: str) -> Iterator[tuple[str, int, Rule]]:
            if chain in seen:
                return
            seen.add(chain)
            for position, rule in self.numbered(chain):
                yield chain, position, rule
                if rule.target.name in self.chains:
                    yield from walk(rule.target.name)

        return walk(start)


def tables_of(netns: NetNS, name: str, family: int = 4) -> tuple[TableView, ...]:
    """Return the tables of that name and family, one per back end that has it."""
    return tuple(TableView(netns.id, table) for table in netns.tables if table.name == name and table.family == family)


def mentions(rules: Iterable[Rule], target: str) -> int | None:
    """Return the position (from 1) of the first rule that jumps to the target, None if none does."""
    return next((position for position, rule in enumerate(rules, 1) if rule.target.name == target), None)
