"""What the simulator knows, in Markdown, from the tables that it works by: devices, routes, matches, targets, settings.

Sysctls have no table: every one that is read is named in a call, and is found there.
"""

import ast
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from tasks.skoop.netstack import fib, stack
from tasks.skoop.netstack.nftables import header_fields, packet_facts, statements
from tasks.skoop.netstack.xtables import chance_matches, header_matches, targets
from tasks.skoop.netstack.xtables.matches import MATCHES, REMARKS
from tasks.skoop.netstack.xtables.nat_targets import NAT_TARGETS

NETSTACK = Path(stack.__file__).parent
READERS: Mapping[str, str] = {
    "conf": "the device's",
    "either": "all or the device's",
    "highest": "the larger of all and the device's",
}
"""Method of a Namespace that reads a device's setting → which value counts."""
STAND_INS = ("bond", "team")
"""Devices of which one slave is followed: which one a hash or a daemon chooses is not known."""
NOT_ALL_KNOWN = ("owner", "cgroup", "policy", "socket", "helper")
"""Matches that are certain for some packets only: for others what they ask is not in a dump."""
SPECIAL = {
    "set": ("exact", "`-m set`: elements, `nomatch`, lists of sets; their counters are unknown"),
    "recent": ("approximate", "`-m recent`: --set always matches; who is on the list is not in a dump: both ways are followed"),
    "connlimit": ("approximate", "`-m connlimit`: counts the collected connections"),
    "ipvs": ("approximate", "`-m ipvs`: certain only where there are no virtual services"),
}  # fmt: skip
"""Matches that `Scope.condition` makes, as they need the namespace."""
ROUTES = {
    "unicast": ("exact", "a way out; of several next hops each is followed, with its share"),
    **dict.fromkeys(fib.FOR_US, ("exact", "for this host")),
    "multicast": ("approximate", "for this host; multicast is not routed"),
    **{kind: ("exact", f"refused: a program is told {errno}") for kind, errno in fib.ROUTE_ERRNO.items()},
    "throw": ("exact", "the next policy rule decides"),
}


def page() -> str:
    """Return the page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# What is simulated, and how well"
    yield ""
    yield "- **exact**: as the kernel does, held against it by `tests/scenarios` and `tests/kernel`."
    yield "- **approximate**: a choice that the collected state leaves open is followed both ways, or an assumption is made and told."
    yield "- **unknown**: the answer says `unknown` and names the rule or object. What is in no table below is unknown, too."
    yield from _table("Devices", ("kind", "", "what becomes of a frame"), _devices())
    yield from _table(
        "Routes", ("type", "", "what becomes of a packet"), ((f"`{k}`", *v) for k, v in sorted(ROUTES.items()))
    )
    yield from _table("Matches of iptables", ("match", "", "remarks"), _matches())
    yield from _table("Targets of iptables", ("target", "", "remarks"), _targets())
    yield from _table("Expressions and statements of nftables", ("what", "", "which"), _expressions())
    yield from _table("Settings that are read", ("sysctl", "which value counts", "read in"), _settings())


def _table(title: str, heads: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield from ("", f"## {title}", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads))
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _devices() -> Iterator[tuple[str, str, str]]:
    for kind, onward in sorted(stack.DEVICES.items()):
        where = "leaves the namespace, for the other end" if onward is None else f"goes on in `{_stage(onward)}`"
        if kind == "dummy":
            where = "is lost"
        if kind in STAND_INS:
            yield f"`{kind}`", "approximate", f"{where}; by one slave that can send"
        else:
            yield f"`{kind}`" if kind else "(physical)", "exact", where
    yield "`lo`", "exact", "comes back in at once"
    yield "any other", "unknown", "tun, macvtap, ipvtap: what their program does is not known; ifb, xfrm …"


def _stage(at: stack.At) -> str:
    function = stack.STAGES[at]
    return f"{function.__module__.rpartition('.')[2]}.{function.__name__}"


def _summary(function: Callable[..., object]) -> str:
    """Return the first line of a docstring, its end of sentence left off."""
    return (inspect.getdoc(function) or "").partition("\n")[0].rstrip(".").replace("|", "\\|")


def _matches() -> Iterator[tuple[str, str, str]]:
    found = {name: (_how_well(name, builder), _summary(builder)) for name, builder in MATCHES.items()} | SPECIAL
    for name, (level, remark) in sorted(found.items()):
        yield f"`{name}`", level, "no condition" if name in REMARKS else remark


def _how_well(name: str, builder: Callable[..., object]) -> str:
    if builder is header_matches.unsimulated_protocol:
        return "unknown"
    return "approximate" if builder.__module__ == chance_matches.__name__ or name in NOT_ALL_KNOWN else "exact"


def _targets() -> Iterator[tuple[str, str, str]]:
    found = dict.fromkeys(NAT_TARGETS, ("exact", "translates"))
    found |= dict.fromkeys(targets.TARGETS, ("exact", ""))
    found |= {
        name: ("exact" if word == "log" or not name else "approximate", "the next rule is tried; changes nothing that is looked at")
        for name, word in targets.PASSIVE.items()
    }  # fmt: skip
    found["SET"] = ("approximate", "the next rule is tried; the ipset is not changed")
    found |= dict.fromkeys(targets.PREFIX_TARGETS, ("exact", "translates IPv6 prefixes without a connection"))
    found["TPROXY"] = (
        "approximate",
        "to the socket that listens there, taken to be transparent; without one the packet is dropped",
    )
    for name, (level, remark) in sorted(found.items()):
        yield f"`{name}`" if name else "(none)", level, remark
    yield "a chain", "exact", "`-j` comes back to the next rule, `-g` does not"


def _expressions() -> Iterator[tuple[str, str, str]]:
    """Native nftables: what its expressions may read, and the statements that are more than expressions."""
    headers = {"ip": "ip, ip6", "th": ", ".join(sorted(header_fields.TRANSPORTS))}
    yield "`meta`", "exact", _words(packet_facts.META)
    yield "`ct`", "exact", _words(packet_facts.CT)
    yield "headers", "exact", f"{headers['ip']}: {_words(header_fields.NETWORK)}; {headers['th']}: their fields"
    yield "sets, maps, vmaps, intervals, concatenations", "exact", ""
    yield "`fib`, `socket`", "exact", "from routes, addresses and sockets of the namespace"
    yield "`rt`", "unknown", "but for `rt ipsec`: no IPsec is taken to apply"
    yield "`numgen`, `jhash`, `symhash`", "approximate", "every outcome is followed"
    yield "`limit`, `quota`, `ct count`", "approximate", "taken not to be used up"
    yield "verdicts", "exact", _words(statements.VERDICTS)
    yield "`dnat`, `snat`, `masquerade`, `redirect`, `reject`, `notrack`, `mangle`", "exact", ""
    yield (
        "`tproxy`",
        "approximate",
        "to the socket that listens there, taken to be transparent; without one the rule does not match",
    )
    yield "`flow`", "approximate", "never takes a handshake's segments; followed both ways later"
    yield "hooks of netdev, bridge and arp", "exact", "ingress, egress, the bridge's five, ARP's two"
    yield "`ct` and `reject` on a bridge, `fwd`, `synproxy`, `queue`", "unknown", ""
    yield "other statements", "approximate", f"{_words(statements.PASSIVE)}: the next one follows"


def _words(table: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(table))


def _settings() -> Iterator[tuple[str, str, str]]:
    read: dict[tuple[str, str], set[str]] = {}
    for path in sorted(NETSTACK.rglob("*.py")):
        module = str(path.relative_to(NETSTACK).with_suffix("")).replace("/", ".")
        for found in _read_in(ast.parse(path.read_text())):
            read.setdefault(found, set()).add(module)
    for (name, which), modules in sorted(read.items()):
        if which == READERS["conf"] and any((name, READERS[reader]) in read for reader in ("either", "highest")):
            continue  # read once more only to say whose value decided
        yield f"`{name}`", which, ", ".join(sorted(modules))


def _read_in(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
            continue
        first = node.args[0]
        if node.func.attr == "sysctl":
            yield from ((name, "") for name in _names(first, tree))
        elif node.func.attr in READERS and isinstance(first, ast.Constant):
            six = any(keyword.arg == "family" for keyword in node.keywords)
            yield f"net/ipv{6 if six else 4}/conf/DEVICE/{first.value}", READERS[node.func.attr]


def _names(value: ast.expr, tree: ast.AST) -> Iterator[str]:
    """Yield the names in an argument of `sysctl`: a constant, one of two, or what the variable is set to."""
    match value:
        case ast.Name(id=name):
            for node in ast.walk(tree):
                if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
                    yield from _names(node.value, tree) if not isinstance(node.value, ast.Name) else ()
        case ast.IfExp(body=one, orelse=other):
            yield from _names(one, tree)
            yield from _names(other, tree)
        case ast.Constant(value=str(text)) if text.startswith("net/"):
            yield text
