"""A mismatch as a file that is played again ever after: the lab, what was done to it, one connection, what its client sees.

    # why it is here
    lab bridge legacy nodes=2 families=4
    node/n1: ip4 rule add from 0.0.0.0/1 priority 32000 unreachable
    node/n2: edit legacy filter/OUTPUT insert 0 0 -m owner --uid-owner 0 -j DROP
    try node/n1 tcp 10.96.10.11:80 payload 200
    sees unreachable

`edit` changes iptables rules by position (`Edit`: back end, table/chain, operation, at, to, rule); other lines are commands
(`Change`). `sees` names what the kernel's client saw: connected, refused, unreachable, timeout; `or` between two of them where chance
decides. Lines that a newer kernel refuses are errors: the file would no longer say what it says.
"""

from dataclasses import dataclass
from pathlib import Path

from lab.plan import Backend, Kind
from lab.prober import Ask
from tests.kernel.fuzz.change import (
    LINKS,
    NEIGHBOURS,
    PORTS,
    ROUTES,
    SETS,
    SOCKETS,
    SYSCTLS,
    TABLES,
    Change,
    Edit,
)
from tests.kernel.fuzz.generator import LabKind

CASES = Path(__file__).parents[2] / "scenarios" / "found"
_TOUCHES = {
    "ip": (LINKS, PORTS, ROUTES, NEIGHBOURS),
    "ip4": (PORTS, ROUTES, NEIGHBOURS),
    "ip6": (PORTS, ROUTES, NEIGHBOURS),
    "bridge": (PORTS, NEIGHBOURS),
    "sysctl": (SYSCTLS,),
    "ipset": (SETS,),
    "nft": (TABLES,),
    "close": (SOCKETS,),
    "listen": (SOCKETS,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One file."""

    lab: LabKind
    changes: tuple[Change | Edit, ...]
    ask: Ask
    sees: tuple[str, ...]
    about: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the file's text."""
        lines = [*(f"# {line}" for line in self.about), f"lab {self.lab}"]
        for change in self.changes:
            lines += [f"{change.netns}: {line}" for line in _lines(change)]
        ask = self.ask
        payload = f" payload {ask.payload}" if ask.payload else ""
        lines.append(f"try {ask.src} {ask.protocol} {_ended(ask)}{payload}")
        lines.append(f"sees {' or '.join(self.sees)}")
        return "\n".join((*lines, ""))


def _lines(change: Change | Edit) -> tuple[str, ...]:
    if isinstance(change, Change):
        return change.do
    where = f"{change.backend} {change.table}/{change.chain}"
    return (f"edit {where} {change.op} {change.at} {change.to} {change.rule}".rstrip(),)


def _ended(ask: Ask) -> str:
    return f"[{ask.dst}]:{ask.dport}" if ":" in ask.dst else f"{ask.dst}:{ask.dport}"


def parse(text: str) -> Found:
    """Return the file's meaning. Raises ValueError with the line that cannot be read."""
    about, changes = [], []
    lab = ask = None
    sees: tuple[str, ...] = ()
    for line in text.splitlines():
        head, _, rest = line.partition(" ")
        if head == "#":
            about.append(rest)
        elif head == "lab":
            lab = _lab(rest)
        elif head == "try":
            ask = _ask(rest)
        elif head == "sees":
            sees = tuple(rest.split(" or "))
        elif head.endswith(":"):
            changes.append(_change(head[:-1], rest))
        elif line:
            raise ValueError(f"not a line of a found scenario: {line!r}")
    if lab is None or ask is None or not sees:
        raise ValueError("a found scenario needs the lines lab, try and sees")
    return Found(lab=lab, changes=tuple(changes), ask=ask, sees=sees, about=tuple(about))


def _lab(text: str) -> LabKind:
    kind, backend, *options = text.split()
    given = dict(option.split("=") for option in options)
    families = tuple(int(family) for family in given["families"].split(","))
    return LabKind(Kind(kind), Backend(backend), int(given["nodes"]), families)


def _ask(text: str) -> Ask:
    src, protocol, end, *more = text.split()
    ip, _, port = end.rpartition(":")
    return Ask(src=src, protocol=protocol, dst=ip.strip("[]"), dport=int(port), payload=int(more[1]) if more else 0)


def _change(netns: str, line: str) -> Change | Edit:
    verb, _, rest = line.partition(" ")
    if verb == "edit":
        backend, where, op, at, to, *rule = rest.split(" ", 5)
        table, _, chain = where.partition("/")
        return Edit(
            netns=netns, backend=backend, op=op, table=table, chain=chain, at=int(at), to=int(to), rule="".join(rule)
        )
    if verb not in _TOUCHES:
        raise ValueError(f"not a command of a found scenario: {line!r}")
    parts = _TOUCHES[verb] if not (verb == "ip" and not rest.startswith("link")) else _TOUCHES["ip4"]
    return Change(netns=netns, kind=verb, do=(line,), touches=frozenset(parts))
