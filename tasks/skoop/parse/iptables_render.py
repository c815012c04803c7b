"""iptables-save text out of tables: what a person would see in a dump, and iptables-restore would take.

Written from the typed matches and targets, not from `Rule.raw`, so that a rule that was changed or made by us prints as
what it now means. Quotes where iptables-save quotes (xtables_save_string, libxtables), and wherever a value would otherwise
be taken for an option. Counters are not kept, so none are printed but the zeros of the chains.
"""

from collections.abc import Iterable

from tasks.skoop.model.xtables import Match, Rule, Target, XTable
from tasks.skoop.parse.iptables_rule import BASIC, ONE_VALUE, Option

SHORT = {name: flag for flag, name in BASIC.items() if not flag.startswith("--")}
PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
"""What iptables-save prints without quotes in free text."""
ALWAYS_QUOTED = frozenset(("string", "hex-string", "u32"))
"""Options whose value iptables-save quotes whatever it is."""


def render_iptables_save(tables: Iterable[XTable]) -> str:
    """Return the dump of these tables; which back end and family they are of, the text does not say."""
    lines: list[str] = []
    for table in tables:
        lines.append(f"*{table.name}")
        lines += [f":{chain.name} {chain.policy or '-'} [0:0]" for chain in table.chains]
        lines += [f"-A {chain.name} {render_rule(rule)}".rstrip(" ") for chain in table.chains for rule in chain.rules]
        lines.append("COMMIT")
    return "".join(f"{line}\n" for line in lines)


def render_rule(rule: Rule) -> str:
    """Return the text of a rule after `-A CHAIN `."""
    return render_spec(rule.matches, rule.target)


def render_spec(matches: Iterable[Match], target: Target) -> str:
    """Return the text of a rule with these matches and this target."""
    words: list[str] = []
    for match in matches:
        flag = SHORT.get(match.name) if _is_condition(match) else None
        if flag is None:
            words += ["-m", match.name]
        for option in match.options:
            words += _option(option, flag)
    if target.name:
        words += ["-g" if target.goto else "-j", target.name]
        for option in target.options:
            words += _option(option, None)
    return " ".join(words)


def _is_condition(match: Match) -> bool:
    """Say whether a match needs no `-m`: `-d` and `-f` do not, the IPv6 extensions `dst` and `frag` do."""
    return bool(match.options) and match.options[0][0] == match.name


def _option(option: Option, flag: str | None) -> list[str]:
    name, negated, values = option
    free = name in ONE_VALUE and flag is None
    if name in ALWAYS_QUOTED and flag is None:
        return [*(["!"] if negated else []), f"--{name}", *(_in_quotes(value) for value in values)]
    return [*(["!"] if negated else []), flag or f"--{name}", *(_quoted(value, free=free) for value in values)]


def _quoted(value: str, *, free: bool) -> str:
    if free:
        plain = bool(value) and PLAIN.issuperset(value)
    else:
        plain = bool(value) and value[0] != "-" and value != "!" and not set(value) & set(' \t"')
    if plain:
        return value
    return _in_quotes(value)


def _in_quotes(value: str) -> str:
    return '"' + "".join(f"\\{letter}" if letter in "\"\\'" else letter for letter in value) + '"'
