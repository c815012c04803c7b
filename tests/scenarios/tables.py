"""What do a scenario's `route`, `rule`, `neigh`, `fdb`, `ipset` and iptables lines put into the kernel's tables?

Lines are brought into the form in which the tools print them (`ip -j`, `bridge -j`, iptables-save), and read by the project's
own parsers, so that a scenario goes the way that a collected dump goes.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise

from tasks.skoop.model.addr import contains, parse_ip, parse_net
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import (
    ConntrackEntry,
    FdbEntry,
    IpSet,
    Neighbour,
    NextHopObject,
    PolicyRule,
    Route,
)
from tasks.skoop.model.xtables import Backend, XTable
from tasks.skoop.parse.ipset import parse_ipset_save
from tasks.skoop.parse.iptables import parse_iptables_save
from tasks.skoop.parse.neighbours import parse_fdb, parse_neighbours
from tasks.skoop.parse.nexthops import parse_nexthops, resolve
from tasks.skoop.parse.routes import parse_routes, parse_rules
from tests.scenarios.scenario import Space

Row = dict[str, object]
TYPES = ("unicast", "local", "broadcast", "unreachable", "blackhole", "prohibit", "throw")
BUILT_IN: Mapping[str, tuple[str, ...]] = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}
FILTER_KINDS: Mapping[str, tuple[Backend, int]] = {
    "iptables": (Backend.LEGACY, 4),
    "ip6tables": (Backend.LEGACY, 6),
    "iptables-nft": (Backend.NFT, 4),
    "ip6tables-nft": (Backend.NFT, 6),
}
TRACKED_S = 300
"""How long a connection from before is still known."""
_RANGED = {"sport": ("sport", "sport_start", "sport_end"), "dport": ("dport", "dport_start", "dport_end")}


def routes_of(space: Space) -> tuple[Route, ...]:
    """Return the routes that the lines add."""
    return tuple(route for words in space.routes for route in _route(space, words))


def _route(space: Space, words: Sequence[str]) -> tuple[Route, ...]:
    rest = iter(words)
    first = next(rest)
    kind = first if first in TYPES else "unicast"
    dst = next(rest) if first in TYPES else first
    row: Row = {"dst": dst, "protocol": "boot"}
    if kind != "unicast":
        row["type"] = kind
    if kind == "local":
        row |= {"table": "local", "scope": "host"}
    if kind == "broadcast":
        row["scope"] = "link"
    hops: list[Row] = []
    now = row
    for word in rest:
        match word:
            case "nexthop":
                now = {"weight": 1, "flags": []}
                hops.append(now)
            case "via":
                now["gateway"] = next(rest)
            case "onlink":
                now["flags"] = ["onlink"]
            case "dev" | "scope":
                now[word] = next(rest)
            case "src":
                row["prefsrc"] = next(rest)
            case "mtu":
                row["metrics"] = [{"mtu": int(next(rest))}]
            case "metric" | "weight" | "nhid":
                now[word] = int(next(rest))
            case "table" | "pref" | "from" | "tos":
                row[word] = next(rest)
            case "proto":
                row["protocol"] = next(rest)
            case _:
                raise ValueError(f"route … {word}")
    six = ":" in " ".join(words)
    if "nhid" in row:
        hops = _hops_of(space, int(str(row["nhid"])))
        if len(hops) == 1:
            row |= {name: value for name, value in hops.pop().items() if name not in ("weight", "scope")}
            row["scope"] = "link" if "dev" in row and "gateway" not in row else "global"
    _complete(space, row, hops, six=six)
    return resolve(parse_routes(json.dumps([row]), family=6 if six else 4), nexthops_of(space))


def nexthops_of(space: Space) -> tuple[NextHopObject, ...]:
    """Return the nexthop objects that the lines add."""
    return parse_nexthops(json.dumps([_nexthop(space, words) for words in space.nexthops]))


def _nexthop(space: Space, words: Sequence[str]) -> Row:
    row: Row = {"flags": []}
    rest = iter(words)
    for word in rest:
        match word:
            case "id":
                row["id"] = int(next(rest))
            case "via":
                row["gateway"] = next(rest)
            case "dev":
                row["dev"] = next(rest)
            case "onlink":
                row["flags"] = ["onlink"]
            case "blackhole":
                row["blackhole"] = None
            case "group":
                members = [one.split(",") for one in next(rest).split("/")]
                row["group"] = [{"id": int(one[0]), "weight": int(one[1]) if one[1:] else 1} for one in members]
            case "type" | "buckets":
                next(rest)
            case _:
                raise ValueError(f"nexthop … {word}")
    if "gateway" in row:
        row.setdefault("dev", _device_towards(space, str(row["gateway"])))
    return row


def _hops_of(space: Space, number: int) -> list[Row]:
    rows = {int(str(row["id"])): row for row in (_nexthop(space, words) for words in space.nexthops)}
    members: list[Row] = rows[number].get("group") or [{"id": number, "weight": 1}]  # type: ignore[assignment]
    return [
        {name: value for name, value in rows[int(str(one["id"]))].items() if name in ("gateway", "dev", "flags")}
        | {"weight": one["weight"]}
        for one in members
    ]


def _complete(space: Space, row: Row, hops: list[Row], *, six: bool) -> None:
    """Fill in what the kernel finds out for itself: devices, the scope, IPv6's metric."""
    for hop in hops or [row]:
        if "gateway" in hop and "dev" not in hop:
            hop["dev"] = _device_towards(space, str(hop["gateway"]))
    if hops:
        row["nexthops"] = hops
    if six:
        row.setdefault("metric", 1024)
        row.setdefault("pref", "medium")
        if row.get("type", "unicast") != "unicast":
            row.setdefault("dev", "lo")
    elif "type" not in row and "nhid" not in row and not hops and "gateway" not in row:
        row.setdefault("scope", "link")


def _device_towards(space: Space, gateway: str) -> str:
    for device in space.devices.values():
        if any(contains(parse_net(text), parse_ip(gateway)) for text in device.addresses):
            return device.name
    for words in space.routes:
        if words[1:2] == ["dev"] and contains(parse_net(words[0]), parse_ip(gateway)):
            return words[2]
    raise ValueError(f"{gateway} is on no link of {space.name}: give the device")


def rules_of(space: Space, family: int) -> tuple[PolicyRule, ...]:
    """Return the policy rules, those of the kernel's own among them, in order."""
    rows: list[Row] = [{"priority": 0, "table": "local"}, {"priority": 32766, "table": "main"}]
    if family == 4:
        rows.append({"priority": 32767, "table": "default"})
    rows += [_rule(words) for words in space.rules if family_of(words) == family]
    rows.sort(key=lambda row: int(str(row["priority"])))
    return parse_rules(json.dumps(rows), family=family)


def family_of(words: Sequence[str]) -> int:
    """Return the family of an `ip rule` line: IPv6 if it says so or names an IPv6 address."""
    return 6 if "-6" in words or any("::" in word for word in words) else 4


def _rule(words: Sequence[str]) -> Row:
    row: Row = {}
    rest = iter([word for word in words if word != "-6"])
    for word in rest:
        match word:
            case "pref":
                row["priority"] = int(next(rest))
            case "from" | "to":
                name = "src" if word == "from" else "dst"
                address, _, length = next(rest).partition("/")
                row[name] = address
                if length:
                    row[f"{name}len"] = int(length)
            case "fwmark":
                mark, _, mask = next(rest).partition("/")
                row["fwmark"] = mark
                if mask:
                    row["fwmask"] = mask
            case "iif" | "oif" | "table" | "ipproto" | "tos":
                row[word] = next(rest)
            case "sport" | "dport":
                low, _, high = next(rest).partition("-")
                one, start, end = _RANGED[word]
                row |= {start: int(low), end: int(high)} if high else {one: int(low)}
            case "suppress_prefixlength":
                row["suppress_prefixlen"] = int(next(rest))
            case "suppress_ifgroup":
                row["suppress_ifgroup"] = next(rest)
            case "uidrange":
                first, _, last = next(rest).partition("-")
                row |= {"uid_start": int(first), "uid_end": int(last)}
            case "goto":
                row["goto"] = int(next(rest))
            case "not" | "nop":
                row[word] = None
            case "blackhole" | "unreachable" | "prohibit":
                row["action"] = word
            case _:
                raise ValueError(f"rule … {word}")
    if not {"action", "goto", "nop"} & row.keys():
        row.setdefault("table", "main")
    if "priority" not in row:
        raise ValueError("a rule needs its pref")
    return row


def neighbours_of(space: Space) -> tuple[Neighbour, ...]:
    """Return the neighbour entries that the lines add."""
    rows: list[Row] = []
    for words in space.neighbours:
        row: Row = {"state": ["PERMANENT"]}
        rest = iter(words)
        for word in rest:
            match word:
                case "proxy":
                    row |= {"proxy": None, "dst": next(rest), "state": []}
                case "lladdr" | "dev":
                    row[word] = next(rest)
                case "nud":
                    row["state"] = [next(rest).upper()]
                case ip:
                    row["dst"] = ip
        rows.append(row)
    return parse_neighbours(json.dumps(rows))


def fdb_of(space: Space) -> tuple[FdbEntry, ...]:
    """Return the forwarding entries: those that every bridge has for itself, and those that the lines add."""
    rows: list[Row] = []
    for device in space.devices.values():
        master = device.name if device.kind == "bridge" else device.master
        if master:
            rows.append({"mac": device.mac, "ifname": device.name, "master": master, "state": "permanent"})
    for words in space.fdb:
        rest = iter(words[1:])
        row: Row = {"mac": words[0], "flags": [], "state": "permanent"}
        for word in rest:
            match word:
                case "dev":
                    row["ifname"] = next(rest)
                case "dst":
                    row["dst"] = next(rest)
                case "port" | "vni":
                    row[word] = int(next(rest))
                case "self":
                    row["flags"] = ["self"]
                case "master":
                    row["master"] = space.devices[str(row["ifname"])].master
                case "static" | "permanent":
                    row["state"] = word
                case _:
                    raise ValueError(f"fdb … {word}")
        rows.append(row)
    return parse_fdb(json.dumps(rows))


def saved(lines: Sequence[Sequence[str]]) -> str:
    """Return iptables lines (`-t nat -A PREROUTING …`, `-P`, `-N`) as a dump that iptables-save could have made."""
    policies: dict[str, dict[str, str]] = {}
    rules: dict[str, list[str]] = {}
    for line in lines:
        table = line[line.index("-t") + 1] if "-t" in line else "filter"
        words = [word for word in line if word not in ("-t", table)] if "-t" in line else list(line)
        chains = policies.setdefault(table, dict.fromkeys(BUILT_IN[table], "ACCEPT"))
        match words[0]:
            case "-P":
                chains[words[1]] = words[2]
            case "-N":
                chains[words[1]] = "-"
            case "-A":
                rules.setdefault(table, []).append(" ".join(_quoted(word) for word in _in_full(words)))
            case _:
                raise ValueError(f"iptables … {words[0]}")
    text = ""
    for table, chains in policies.items():
        declared = "".join(f":{name} {policy} [0:0]\n" for name, policy in chains.items())
        text += f"*{table}\n{declared}" + "".join(f"{rule}\n" for rule in rules.get(table, ())) + "COMMIT\n"
    return text


def _quoted(word: str) -> str:
    return json.dumps(word) if shlex.quote(word) != word and " " in word else word


def _in_full(words: Sequence[str]) -> list[str]:
    """Return a rule as iptables-save prints it: `-m tcp` before its options, prefix lengths, long names."""
    full: list[str] = []
    protocol = ""
    for before, word in zip(["", *words], words, strict=False):
        if before == "-p":
            protocol = word
        if word in ("--dport", "--sport", "--tcp-flags", "--syn", "--icmp-type", "--icmpv6-type"):
            module = "icmp6" if protocol == "ipv6-icmp" else protocol
            if module not in [name for flag, name in pairwise(full) if flag == "-m"]:
                full += ["-m", module]
        bare = before in ("-s", "-d") and "/" not in word
        full.append(f"{word}/{128 if ':' in word else 32}" if bare else word)
    return full


def filters_of(space: Space) -> tuple[XTable, ...]:
    """Return the tables of iptables that the lines make."""
    return tuple(
        table
        for command, lines in space.filters.items()
        for table in parse_iptables_save(
            saved(lines), backend=FILTER_KINDS[command][0], family=FILTER_KINDS[command][1], source=command
        )
    )


def ipsets_of(space: Space) -> tuple[IpSet, ...]:
    """Return the ipsets that the lines make."""
    return parse_ipset_save("\n".join(map(" ".join, space.ipsets)))


def tracked_of(space: Space) -> tuple[ConntrackEntry, ...]:
    """Return the connections that are known from before."""
    return tuple(
        ConntrackEntry(
            protocol=one.protocol,
            original=one.original,
            reply=one.reply,
            state="ESTABLISHED" if one.protocol == Protocol.TCP and one.replied else "",
            replied=one.replied,
            assured=one.assured,
            zone=one.zone,
            mark=one.mark,
            timeout_s=TRACKED_S,
        )
        for one in space.tracked
    )
