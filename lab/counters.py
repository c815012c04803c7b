"""What the kernel counted in a namespace: packets per netfilter rule, protocol counters, dropped frames per interface."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.netns import Netns
from lab.rtnl import NETLINK_NETFILTER, NetlinkError, Rtnl

_NFT_GETTABLE = (10 << 8) | 1
Counts = dict[str, int]
_RULE = re.compile(r"\[(\d+):\d+\] -A (\S+) (.*)")
_STOP = re.compile(r"-j (?:DROP|REJECT)\b")
_DEV_FIELDS = {"rx_dropped": 3, "tx_errors": 10, "tx_dropped": 11, "rx_errors": 2}
_NFT_STOPS = ("drop", "reject")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleCount:
    """A rule's place and packet counter. `rule` counts from 1 in its chain; 0 is the chain's policy."""

    backend: str
    table: str
    chain: str
    rule: int
    text: str
    packets: int
    stops: bool


def rule_counts(netns: Netns, family: int) -> tuple[RuleCount, ...]:
    """Return the counters of every rule of the namespace: iptables of both back ends, and native nft where it counts."""
    six = "6" if family == 6 else ""
    found: list[RuleCount] = []
    with netns.inside():
        legacy = _has_legacy(six)
    if legacy:
        found += parse_counters(netns.run([f"ip{six}tables-legacy-save", "-c"]), "legacy")
    if not netns.name.startswith("host/") and _has_nft(netns):
        found += parse_counters(netns.run([f"ip{six}tables-nft-save", "-c"]), "nft")
        found += _native(json.loads(netns.run(["nft", "-j", "list", "ruleset"])), family)
    return tuple(found)


def _has_legacy(six: str) -> bool:
    try:
        return bool(Path(f"/proc/thread-self/net/ip{six}_tables_names").read_text().strip())
    except OSError:
        return False


def _has_nft(netns: Netns) -> bool:
    """Ask nf_tables for its tables (NFT_MSG_GETTABLE); a kernel without it has none."""
    with netns.inside():
        tables = Rtnl(NETLINK_NETFILTER)
    try:
        return any(True for _ in tables.dump(_NFT_GETTABLE, bytes(4)))
    except NetlinkError:
        return False
    finally:
        tables.close()


def parse_counters(text: str, backend: str) -> list[RuleCount]:
    """Return the counters of an `iptables-save -c`."""
    found, table, position = [], "", dict[str, int]()
    for line in text.splitlines():
        if line.startswith("*"):
            table, position = line[1:].strip(), {}
        elif line.startswith(":"):
            name, policy, counts = line[1:].split()
            packets = int(counts[1:].partition(":")[0])
            if policy != "-":
                found.append(_count(backend, table, name, 0, f"policy {policy}", packets, policy == "DROP"))
        elif rule := _RULE.match(line):
            packets_text, chain, body = rule.groups()
            position[chain] = position.get(chain, 0) + 1
            stops = bool(_STOP.search(body))
            found.append(_count(backend, table, chain, position[chain], f"-A {chain} {body}", int(packets_text), stops))
    return found


def _count(backend: str, table: str, chain: str, rule: int, text: str, packets: int, stops: bool) -> RuleCount:
    return RuleCount(backend=backend, table=table, chain=chain, rule=rule, text=text, packets=packets, stops=stops)


def _native(ruleset: dict[str, Any], family: int) -> list[RuleCount]:
    """Counters of native nft rules that carry one; tables that iptables-nft made are left to iptables-nft-save."""
    found, position = [], dict[tuple[str, str], int]()
    own = {"ip": 4, "ip6": 6}
    for item in ruleset["nftables"]:
        rule = item.get("rule")
        if not rule or own.get(rule["family"], family) != family:
            continue
        if rule["family"] in own and rule["table"] in ("filter", "nat", "mangle", "raw", "security"):
            continue
        key = (f"{rule['family']} {rule['table']}", rule["chain"])
        position[key] = position.get(key, 0) + 1
        counted = [part["counter"]["packets"] for part in rule["expr"] if isinstance(part.get("counter"), dict)]
        stops = any(word in part for part in rule["expr"] for word in _NFT_STOPS)
        if counted:
            text = json.dumps(rule["expr"], separators=(",", ":"))
            found.append(_count("nft", *key, position[key], text, counted[0], stops))
    return found


ProcTexts = dict[str, str]
_FILES = ("snmp", "netstat", "snmp6", "dev")


def read_counters(netns: Netns) -> ProcTexts:
    """Return the counter files of /proc/net as they are: taken twice, `risen` compares them."""
    with netns.inside():
        files = {name: Path("/proc/thread-self/net", name) for name in _FILES}
        return {name: file.read_text() for name, file in files.items() if file.exists()}


def risen(before: ProcTexts, after: ProcTexts) -> Counts:
    """Return which counters rose and by how much: `Group.Name`, for IPv6 the plain name, `dev.<interface>.<what>`."""
    found: Counts = {}
    for name, text in after.items():
        if text == before[name]:
            continue
        parse = {"snmp6": _parse_snmp6, "dev": _parse_dev}.get(name, _parse_snmp)
        earlier = parse(before[name])
        found |= {key: value - earlier.get(key, 0) for key, value in parse(text).items() if value > earlier.get(key, 0)}
    return found


def _parse_snmp(text: str) -> Counts:
    found: Counts = {}
    lines = text.splitlines()
    for heads, values in zip(lines[::2], lines[1::2], strict=True):
        group = heads.partition(":")[0]
        for key, value in zip(heads.split()[1:], values.split()[1:], strict=True):
            found[f"{group}.{key}"] = int(value)
    return found


def _parse_snmp6(text: str) -> Counts:
    return {key: int(value) for key, value in (line.split() for line in text.splitlines())}


def _parse_dev(text: str) -> Counts:
    found: Counts = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        numbers = rest.split()
        for key, position in _DEV_FIELDS.items():
            found[f"dev.{name.strip()}.{key}"] = int(numbers[position])
    return found
