"""What a fuzzed scenario does to a lab: changes as a person would type them, rules edited by position, and how to undo both.

A change may fail (a route to a device that is down): the state is collected after all of them were tried, so that the kernel and
the simulator always look at the same world.
"""

from collections.abc import Collection
from dataclasses import dataclass

from lab.prober import Ask

LINKS, PORTS, ROUTES, NEIGHBOURS = "links", "ports", "routes", "neighbours"
SYSCTLS, TABLES, SETS, SOCKETS = "sysctls", "tables", "sets", "sockets"
ROUTING = frozenset((LINKS, PORTS, ROUTES, NEIGHBOURS))
"""Sections read by rtnetlink. `links`: anything may have changed with them; `ports`: only what links and addresses say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing done to one namespace: command lines, and those that undo it (newest first).

    Words as for a shell, without quoting: `ip …`, `bridge …`, `ipset …`, `nft …`, `sysctl net/ipv4/ip_forward=0`,
    `close tcp 8080`, `listen tcp 8080 127.0.0.1`. `touches` are the parts of the namespace's state that may differ afterwards.
    """

    netns: str
    kind: str
    do: tuple[str, ...]
    undo: tuple[str, ...] = ()
    touches: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.netns}: " + "; ".join(self.do)


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One change to the iptables rules of a namespace, by position: insert, delete, move, policy, chain.

    `rule` is the rule's text without `-A CHAIN`; `at` counts from 0 and is cut to the chain's length.
    """

    netns: str
    backend: str
    op: str
    table: str
    chain: str
    at: int = 0
    to: int = 0
    rule: str = ""

    @property
    def kind(self) -> str:
        """The kind of mutation, for the table of features."""
        return f"rules: {self.op}"

    def __str__(self) -> str:
        where = f"{self.netns}: {self.backend} {self.table}/{self.chain}"
        return f"{where} {self.op} {self.at}" + (f" to {self.to}" if self.op == "move" else "") + f" {self.rule}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Changes to a kept world, and what is tried in it."""

    number: int
    changes: tuple[Change | Edit, ...]
    asks: tuple[Ask, ...]


class Rules:
    """The rules of one namespace and back end, editable: table → chain → rules."""

    def __init__(self, saved: str) -> None:
        """Read the text of iptables-save."""
        self.chains: dict[str, dict[str, list[str]]] = {}
        self.policies: dict[tuple[str, str], str] = {}
        table = ""
        for line in saved.splitlines():
            if line.startswith("*"):
                table = line[1:].strip()
                self.chains[table] = {}
            elif line.startswith(":"):
                name, policy = line[1:].split()[:2]
                self.chains[table][name] = []
                self.policies[table, name] = policy
            elif line.startswith("-A "):
                _, chain, *rest = line.split(" ", 2)
                self.chains[table][chain].append(rest[0] if rest else "")

    def apply(self, edit: Edit) -> None:
        """Make one edit; one that finds nothing to change does nothing."""
        if edit.table not in self.chains:
            self.chains[edit.table] = {}
        chains = self.chains[edit.table]
        if edit.chain not in chains:
            chains[edit.chain] = []
            self.policies[edit.table, edit.chain] = "ACCEPT" if edit.chain.isupper() and "-" not in edit.chain else "-"
        rules = chains[edit.chain]
        if edit.op == "insert":
            rules.insert(min(edit.at, len(rules)), edit.rule)
        elif edit.op == "policy":
            self.policies[edit.table, edit.chain] = edit.rule
        elif rules and edit.op == "delete":
            rules.pop(edit.at % len(rules))
        elif rules and edit.op == "double":
            rules.insert(edit.to % len(rules), rules[edit.at % len(rules)])
        elif rules and edit.op == "move":
            rules.insert(edit.to % len(rules), rules.pop(edit.at % len(rules)))
        elif rules and edit.op == "negate":
            at = edit.at % len(rules)
            rules[at] = _negated(rules[at], edit.to)

    def render(self, tables: Collection[str]) -> str:
        """Return input of iptables-restore for some of the tables."""
        lines: list[str] = []
        for table, chains in self.chains.items():
            if table not in tables:
                continue
            lines += [f"*{table}", *(f":{name} {self.policies[table, name]} [0:0]" for name in chains)]
            lines += [f"-A {name} {rule}" for name, rules in chains.items() for rule in rules]
            lines.append("COMMIT")
        return "\n".join((*lines, "")) if lines else ""


_NEGATABLE = ("-s", "-d", "-i", "-o", "--dport", "--ctstate", "--mark", "--dst-type", "--match-set")


def _negated(rule: str, choice: int) -> str:
    """Turn one condition of a rule round."""
    words = rule.split(" ")
    found = [index for index, word in enumerate(words) if word in _NEGATABLE]
    if not found:
        return rule
    at = found[choice % len(found)]
    if at and words[at - 1] == "!":
        del words[at - 1]
    else:
        words.insert(at, "!")
    return " ".join(words)
