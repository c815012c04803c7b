"""Which rules go into which chain, as text that iptables-restore reads. Pure, and free of any product's knowledge."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Tables:
    """Rules of one namespace and one family: table → chain → rules in the words of iptables-save, in order."""

    chains: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    policies: dict[tuple[str, str], str] = field(default_factory=dict)

    def chain(self, table: str, name: str, policy: str = "-") -> None:
        """Declare a chain (`policy` for a built-in one); declaring it again changes nothing."""
        self.chains.setdefault(table, {}).setdefault(name, [])
        self.policies.setdefault((table, name), policy)

    def add(self, table: str, chain: str, rule: str) -> None:
        """Append a rule; its chain is declared if it was not."""
        self.chain(table, chain)
        self.chains[table][chain].append(rule)

    def built_in(self, table: str, *names: str) -> None:
        """Declare built-in chains with policy ACCEPT."""
        for name in names:
            self.chain(table, name, "ACCEPT")

    def render(self) -> str:
        """Return the text for iptables-restore."""
        lines = []
        for table, chains in self.chains.items():
            lines.append(f"*{table}")
            lines += [f":{name} {self.policies[table, name]} [0:0]" for name in chains]
            lines += [f"-A {name} {rule}" for name, rules in chains.items() for rule in rules]
            lines.append("COMMIT")
        return "\n".join(lines) + "\n"


def parse_save(text: str) -> dict[str, dict[str, list[str]]]:
    """Return table → chain → rules of iptables-save's text, counters and comments lines dropped. Declared chains are there."""
    tables: dict[str, dict[str, list[str]]] = {}
    current: dict[str, list[str]] = {}
    for raw in text.splitlines():
        line = raw.partition("] ")[2] if raw.startswith("[") else raw
        if line.startswith("*"):
            current = tables.setdefault(line[1:].strip(), {})
        elif line.startswith(":"):
            current.setdefault(line[1:].split()[0], [])
        elif line.startswith("-A "):
            _, chain, *rest = line.split(" ", 2)
            current.setdefault(chain, []).append(rest[0].strip() if rest else "")
    return tables
