"""What the packet filter holds: the output of iptables-save and ip6tables-save, of both back ends, with or without `-c`.

Follows iptables-save(8) 1.4 to 1.8. A dump is read whole or not at all: a table without COMMIT, half a line, or a
`# Generated` without its `# Completed` is a ParseError. What cannot be noticed is a dump that was cut exactly between two
tables; each of those that are there is whole. Input of iptables-restore that is not a dump (`-N`, `-I`, `-D`, a table
twice) is refused, since it says what to change and not what is there. Counters are dropped.
"""

import re

from tasks.skoop.model.xtables import Backend, Chain, Rule, XTable
from tasks.skoop.parse.errors import ParseError
from tasks.skoop.parse.iptables_rule import RuleReader, SpecError

POLICIES = frozenset(("ACCEPT", "DROP", "-", "QUEUE", "RETURN"))
COUNTERS = re.compile(r"\[\d+:\d+\]$")
COMPLETED = re.compile(r"# Completed(?: on .*\d{4})?$")
GENERATED = "# Generated"
NOT_A_DUMP = "this is not a dump; take one with iptables-save"
TRUNCATED = "the dump was cut short; take it again"
SMALL_DUMP = 5_000
"""Dumps of so many lines are read again and again (a lab, a watch); in larger ones the fragments repeat, not the rules."""
REMEMBERED = 50_000
_RULES: dict[str, Rule] = {}
"""What the rules of small dumps mean, by their text alone; begun anew when it holds REMEMBERED of them."""


def parse_iptables_save(
    text: str, *, backend: Backend, family: int, source: str = "iptables-save"
) -> tuple[XTable, ...]:
    """Return the tables of a dump, in its order, with chains in the order of their declaration.

    `family` is 4 or 6; `source` names the input in errors. An empty text holds no tables. Raises ParseError.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    return _Dump(text, backend, family, source).tables()


def backend_of(text: str) -> Backend | None:
    """Return which back end printed a dump as far as its first line tells (since iptables 1.8.8), else None."""
    first = text.partition("\n")[0]
    if "(nf_tables)" in first or "-nft-save" in first or "xtables-save" in first:
        return Backend.NFT
    return Backend.LEGACY if "(legacy)" in first or "-legacy-save" in first else None


class _Dump:
    """One reading of one dump."""

    def __init__(self, text: str, backend: Backend, family: int, source: str) -> None:
        self.lines = text.split("\n")
        self.backend = backend
        self.family = family
        self.source = source
        self.number = 0
        self.reader = RuleReader()

    def fail(self, problem: str, *, column: int = 1, advice: str = "take the dump again") -> ParseError:
        return ParseError(self.source, self.number, column, problem, advice)

    def tables(self) -> tuple[XTable, ...]:
        tables: dict[str, XTable] = {}
        generated = False
        while self.number < len(self.lines):
            line = self.lines[self.number]
            self.number += 1
            if line.startswith("*"):
                name = line[1:].strip()
                if not name or name in tables:
                    problem = f"the table {name} comes twice" if name else "a table without a name"
                    raise self.fail(problem, advice=NOT_A_DUMP)
                tables[name] = XTable(backend=self.backend, family=self.family, name=name, chains=self._table())
            elif line.startswith("#"):
                generated = self._remark(line, generated)
            elif line.strip():
                raise self.fail(f"{_shown(line)} outside of a table", advice=NOT_A_DUMP)
        if generated:
            problem = "a table that '# Generated' announces has no '# Completed' after it"
            raise self.fail(problem, advice="take the dump again, or add that line if nothing is missing")
        return tuple(tables.values())

    def _remark(self, line: str, generated: bool) -> bool:
        """Return whether a dump that was announced by `# Generated` is still open after this line."""
        if line.startswith("# Completed"):
            if not COMPLETED.match(line):
                raise self.fail("half a line", advice=TRUNCATED)
            return False
        cut_in_it = self.number == len(self.lines) and GENERATED.startswith(line)
        return generated or cut_in_it or line.startswith(GENERATED)

    def _table(self) -> tuple[Chain, ...]:
        """Read from the line after `*name` to COMMIT."""
        policies: dict[str, str] = {}
        rules: dict[str, list[Rule]] = {}
        read = self._remembered if len(self.lines) <= SMALL_DUMP else self.reader.rule
        for number, line in enumerate(self.lines[self.number :], self.number + 1):
            first = line[:1]
            if first == "-":
                words = line.split(" ", 2)
            elif first == "[":
                counters, _, rest = line.partition(" ")
                words = rest.split(" ", 2) if counters == "[0:0]" or COUNTERS.match(counters) else [""]
            elif line.rstrip() == "COMMIT":
                self.number = number
                return tuple(Chain(name, policy, tuple(rules[name])) for name, policy in policies.items())
            else:
                self.number = number
                self._declaration(line, policies, rules)
                continue
            try:
                if words[0] != "-A":
                    raise self._bad_rule(line, number, None)
                chain, spec = words[1], words[2] if len(words) > 2 else ""
                rules[chain].append(read(spec.rstrip(" ") if spec[-1:] == " " else spec))
            except (KeyError, IndexError, SpecError) as error:
                raise self._bad_rule(line, number, error) from None
        self.number = len(self.lines)
        raise self.fail("the table has no COMMIT", advice=TRUNCATED)

    def _remembered(self, spec: str) -> Rule:
        """Return the rule of this text, the same object for the same text as long as it is remembered. Raises SpecError."""
        rule = _RULES.get(spec)
        if rule is None:
            rule = self.reader.rule(spec)
            if len(_RULES) >= REMEMBERED:
                _RULES.clear()
            _RULES[spec] = rule
        return rule

    def _declaration(self, line: str, policies: dict[str, str], rules: dict[str, list[Rule]]) -> None:
        """Take a line of a table that is not a rule: a chain, a remark, nothing; anything else is an error."""
        if line.startswith(":"):
            words = line[1:].split()
            if (
                len(words) not in (2, 3)
                or words[1] not in POLICIES
                or (len(words) == 3 and not COUNTERS.match(words[2]))
            ):
                raise self.fail(f"{_shown(line)} is not the declaration of a chain")
            if words[0] in policies:
                raise self.fail(f"the chain {words[0]} comes twice", advice=NOT_A_DUMP)
            policies[words[0]] = "" if words[1] == "-" else words[1]
            rules[words[0]] = []
        elif line.startswith("*"):
            raise self.fail("the table before this line has no COMMIT", advice=TRUNCATED)
        elif line.strip() and not line.startswith("#"):
            raise self.fail(f"{_shown(line)} is not a line of a dump")

    def _bad_rule(self, line: str, number: int, error: Exception | None) -> ParseError:
        self.number = number
        cut = line.find("] ") + 2 if line.startswith("[") else 0
        _, _, rest = line[cut:].partition(" ")
        chain = rest.partition(" ")[0]
        if isinstance(error, SpecError):
            column = cut + len("-A ") + len(chain) + 1 + error.offset + 1
            return self.fail(f"{error.problem} (in the rule {_shown(line[cut:])})", column=column)
        if isinstance(error, KeyError):
            return self.fail(f"the chain {chain} was not declared", column=cut + len("-A ") + 1)
        return self.fail(f"{_shown(line)} is not a rule", advice=NOT_A_DUMP)


def _shown(line: str) -> str:
    """Return a line as it may stand in a message."""
    return repr(line if len(line) <= 100 else line[:97] + "...")
