"""Rulesets that others published, as the real tools take and print them: each is loaded in a namespace of its own.

The folder is the one that KUBEPROBE_CORPUS names: iptables-save/*.txt, nft/*.txt, ipset/*.txt, ipvsadm/*.txt, index.json. Such
collections are of mixed licences, so none is carried here. Many are excerpts, or hang on the host that they come from. What is
loaded is mended as far as that goes, never in what a rule says: chains and sets that an excerpt leaves out are made empty, names of
users become numbers, and words that this nft prints but does not read back are written in another way.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tasks.skoop.model.state import IpSet

FOLDER = os.environ.get("KUBEPROBE_CORPUS", "")
TIMEOUT_S = 60

# --- iptables
MATCHED = re.compile(r"--match-set (\S+) (\S+)|--(?:add|del)-set (\S+) (\S+)")
OWNER = re.compile(r"(--[ug]id-owner )(?!\d)\S+")
STAND_INS = {1: "hash:ip", 2: "hash:ip,port", 3: "hash:ip,port,ip"}
BUILT_IN = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "raw": ("PREROUTING", "OUTPUT"),
}
APPENDED = re.compile(r"^-A (\S+)", re.MULTILINE)
DECLARED = re.compile(r"^:(\S+)", re.MULTILINE)

# --- nftables
REWRITTEN = (
    (re.compile(r"(hook (?:output|input) priority )dstnat"), r"\g<1>-100"),
    (re.compile(r"(hook (?:output|input) priority )srcnat \+ 1"), r"\g<1>101"),
    (re.compile(r"masquerade counter packets \d+ bytes \d+"), "masquerade"),
    (re.compile(r"(sk[ug]id (?:!= )?)(?=[a-z])\w+"), r"\g<1>4242"),
)
DEVICES = re.compile(r"\bdevices? (?:= )?(?:\{([^}]*)\}|(\S+))")
TABLE = re.compile(r"^\s*(?:add |create )?table (ip6?|inet|arp|bridge|netdev) ([\w/.-]+)")
RULE = re.compile(r"^\s*(?:add|insert) rule (ip6?|inet|arp|bridge|netdev) (\S+) (\S+)")
CHAIN = re.compile(r"^\s*(?:(?:add|create) chain (?:ip6?|inet|arp|bridge|netdev) \S+ |chain )([\w/.+-]+)")
CALLED = re.compile(r"\b(?:jump|goto) ([\w/.+-]+)")
ASKED = re.compile(r"(?:(ip6?) [sd]addr (?:!= )?|(l4proto \. th dport vmap ))@([\w-]+)")
PORT_MAP = "type inet_proto . inet_service : verdict"
NETS = {"ip": "type ipv4_addr; flags interval", "ip6": "type ipv6_addr; flags interval"}


class Published(NamedTuple):
    """One file: its text and what the index says of it."""

    path: Path
    kind: str
    family: int
    text: str

    @property
    def origin(self) -> str:
        """The project that it comes from."""
        return self.path.name.partition("__")[0]


@lru_cache
def published(*kinds: str) -> tuple[Published, ...]:
    """Return all files of these kinds; () where there is no folder."""
    index = Path(FOLDER, "index.json")
    if not FOLDER or not index.is_file():
        return ()
    return tuple(
        Published(path, entry["kind"], 6 if entry.get("family") == "ip6" else 4, path.read_text())
        for entry in json.loads(index.read_text())
        if entry["kind"] in kinds
        for path in (Path(FOLDER, entry["file"]),)
    )


def _run(command: str, given: str) -> subprocess.CompletedProcess[str]:
    shell = ["unshare", "-n", "sh", "-c", command]
    return subprocess.run(shell, input=given, text=True, capture_output=True, check=False, timeout=TIMEOUT_S)


def stand_ins(one: Published) -> tuple[IpSet, ...]:
    """Return empty sets for those that the rules ask, with as many dimensions as they ask for."""
    asked = {(found[1] or found[3]).strip('"'): found[2] or found[4] for found in MATCHED.finditer(one.text)}
    return tuple(
        IpSet(name=name, type=STAND_INS[min(sides.count(",") + 1, 3)], family=one.family)
        for name, sides in asked.items()
    )


def framed(text: str) -> str:
    """Return an excerpt that has rules but no table as a dump of one; other texts as they are."""
    if re.search(r"^\*", text, re.MULTILINE) or not APPENDED.search(text):
        return text
    if re.search(r"-j (DNAT|SNAT|MASQUERADE|REDIRECT)|DNAT", text):
        table = "nat"
    else:
        table = "mangle" if "-j TPROXY" in text else "filter"
    called = re.findall(r"-[jg] (\S*[a-z_-]\S*)", text)
    chains = dict.fromkeys((*DECLARED.findall(text), *APPENDED.findall(text), *called))
    declared = [f":{name} {'ACCEPT' if name in BUILT_IN[table] else '-'} [0:0]" for name in chains]
    rules = [line for line in text.splitlines() if line.startswith("-A ")]
    return "\n".join((f"*{table}", *declared, *rules, "COMMIT", ""))


def saved(one: Published) -> str:
    """Return what iptables-save prints after the text was loaded, "" if the tool does not take it."""
    tool = f"{'ip6tables' if one.family == 6 else 'iptables'}-nft"
    sets = "".join(
        f"ipset create {each.name!r} {each.type}{' family inet6' if one.family == 6 else ''}; "
        for each in stand_ins(one)
    )
    done = _run(f"{sets} {tool}-restore && {tool}-save", OWNER.sub(r"\g<1>4242", one.text))
    return done.stdout if done.returncode == 0 else ""


def _left_out(text: str) -> Iterator[str]:
    """Yield commands that make what an excerpt calls and does not have: tables, chains, sets."""
    table = ""
    there = {found[1] for line in text.splitlines() if (found := CHAIN.match(line))}
    for line in text.splitlines():
        if found := RULE.match(line):
            table = f"{found[1]} {found[2]}"
            if found[3] not in there:
                yield from (f"add table {table}", f"add chain {table} {found[3]}")
        elif found := TABLE.match(line):
            table = f"{found[1]} {found[2]}"
            yield f"add table {table}"
        if not table:
            continue
        yield from (f"add chain {table} {name}" for name in CALLED.findall(line) if name not in there)
        for family, ports, name in ASKED.findall(line):
            if not re.search(rf"\b(?:set|map) (?:\S+ \S+ )?{re.escape(name)}\b", text):
                kind = PORT_MAP if ports else NETS[family]
                yield f"add {'map' if ports else 'set'} {table} {name} {{ {kind}; }}"


def listed(one: Published) -> tuple[str, str]:
    """Return the JSON that nft lists after the text was loaded ("" if it does not take it), and its complaint."""
    text = one.text
    for pattern, by in REWRITTEN:
        text = pattern.sub(by, text)
    names = {name.strip(' "') for found in DEVICES.finditer(text) for name in (found[1] or found[2] or "").split(",")}
    links = "".join(
        f"ip link add {name} type veth peer name lab{number}; "
        for number, name in enumerate(sorted(names))
        if re.fullmatch(r"[\w.-]{1,15}", name) and name not in ("lo", "index")
    )
    command = f"{links} nft -f - && nft -j -a list ruleset"
    done = _run(command, text)
    if done.returncode:
        done = _run(command, "".join(f"{line}\n" for line in dict.fromkeys(_left_out(text))) + text)
    return (done.stdout, "") if done.returncode == 0 else ("", done.stderr)
