"""What the simulator knows, in Markdown, from the tables that it works by: devices, routes, matches, targets, settings.

Sysctls have no table: every one that is read is named in a call, and is found there.
"""

import ast
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from tasks.skoop.netstack import fib, stack
from tasks.skoop.netstack.nftables import header_fields, packet_facts, statements
from tasks.skoop.netstack.skb import At
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
NOT_ALL_KNOWN = ("owner", "cgroup", "policy", "socket", "helper", "pkttype")
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


def _stage(at: At) -> str:
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
    if builder is header_matches.no_extension_header:
        return "approximate"
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
    devices = {f"{side}{name}": "exact" for side in "io" for name in ("if", "ifgroup", "ifkind", "iftype")}
    yield from _by_level("`meta`", {name: _level(get) for name, (_, get) in packet_facts.META.items()} | devices)
    ends = dict.fromkeys(("state", *packet_facts.ENDS), "exact")
    yield from _by_level("`ct`", {name: _level(get) for name, (_, get) in packet_facts.CT.items()} | ends)
    for header, found in (("ip", header_fields.IPV4), ("ip6", header_fields.IPV6)):
        yield from _by_level(f"`{header}`", {name: _level(get) for name, (_, get) in found.items()})
    for header, (_, found) in sorted(header_fields.TRANSPORTS.items()):
        levels = {name: _level(get) for name, (_, get) in found.items()}
        yield from _by_level(f"`{header}`", levels)
        yield f"`{header}`", "unknown", "all other fields; packets of other protocols do not have them"
    yield (
        "`exthdr`, `ip option`, `sctp chunk`",
        "approximate",
        "taken as not there, as the packets that are asked about carry none",
    )
    yield "`tcp option`", "unknown", "to match it; setting one (MSS) changes nothing that is looked at"
    yield "sets, maps, vmaps, intervals, concatenations", "exact", ""
    yield "`fib`", "exact", "from routes and addresses of the namespace"
    yield "`rt`", "approximate", "`ipsec`: taken as none; `classid`, `nexthop`, `mtu` are unknown"
    yield (
        "`socket`",
        "exact",
        "`transparent`, `wildcard`, from the sockets of the namespace; `mark` and `cgroupv2` are unknown",
    )
    yield "`numgen`, `jhash`, `symhash`", "approximate", "every outcome is followed"
    yield "`limit`, `quota`, `ct count`, `meter`", "approximate", "taken not to be used up"
    yield "verdicts", "exact", _words(statements.VERDICTS)
    yield "`dnat`, `snat`, `masquerade`, `redirect`, `reject`, `notrack`", "exact", ""
    yield (
        "`… set …`",
        "exact",
        "`meta mark`, `ct mark`, `ct zone`, addresses, ports, TTL, DSCP; what the model of a packet does not carry may be set without a difference",
    )
    yield (
        "`add`, `update`, `delete` of elements",
        "approximate",
        "seen by the statements that follow for this packet, not by later packets",
    )
    yield (
        "`tproxy`",
        "approximate",
        "to the socket that listens there, taken to be transparent; without one the rule does not match",
    )
    yield "`flow add`", "approximate", "never takes a handshake's segments; followed both ways later"
    yield "hooks of netdev, bridge and arp", "exact", "ingress, egress, the bridge's five, ARP's two"
    yield "`ct` and `reject` on a bridge, `fwd`, `synproxy`, `queue`", "unknown", ""
    yield "other statements", "approximate", f"{_words(statements.PASSIVE)}: the next one follows"
    yield "`queue`, `synproxy`, `osf`, `tunnel`, `ipsec`, `xt`", "unknown", ""


LEVELS: Mapping[str, str] = {
    "_moment": "approximate",
    "_unknown": "unknown",
    "_hidden": "unknown",
    "_sender": "approximate",
    "_pkttype": "approximate",
}
"""Function that makes or is a getter → how well it knows what it gives; all others are exact."""
ASSUMED = frozenset(("ipsec", "nftrace", "random", "secpath"))
"""Pieces of metadata that are assumed (no IPsec, no trace), or of which every value is followed."""


def _level(get: Callable[..., object]) -> str:
    return LEVELS.get(get.__qualname__.partition(".")[0], "exact")


def _by_level(what: str, levels: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield a row for each level: what of an expression is known so well."""
    for level in ("exact", "approximate", "unknown"):
        names = [
            name
            for name, found in levels.items()
            if ("approximate" if what == "`meta`" and name in ASSUMED else found) == level
        ]
        if names:
            yield what, level, _words(names)


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
        elif node.func.attr in READERS and isinstance(first, ast.Constant) and isinstance(first.value, str):
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
