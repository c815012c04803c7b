"""Builds a scenario in network namespaces of this machine, with the tools that its lines are written for."""

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from lab import rtnl
from lab.errors import LabFailed
from lab.netns import Netns, write_sysctl
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import NftTable
from tasks.skoop.model.xtables import Backend
from tasks.skoop.parse.nft import FAMILIES, lacks_devices, parse_nft, with_devices, without_iptables
from tests.scenarios.scenario import ADDRESS_FLAGS, BENCH, PORT_FLAGS, STATES, Device, Scenario, Space, Tracked
from tests.scenarios.state import base_sysctls, carrier
from tests.scenarios.tables import TRACKED_S, family_of, filters_of, saved

ARP_RETRY_MS = 15
READY_S = 5.0
QUIET = {
    "net/ipv4/icmp_ratelimit": "0",
    "net/ipv4/icmp_ratemask": "0",
    "net/ipv6/icmp/ratelimit": "0",
    "net/ipv4/ping_group_range": "0 0",
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/default/addr_gen_mode": "1",
    "net/ipv6/conf/default/router_solicitations": "0",
}
"""What would hide or disturb what is looked at: rate limits, duplicate detection, addresses made up by the kernel."""
_HANDLE = re.compile(r', "handle": \d+')
RESTORE = {
    "iptables": "iptables-legacy-restore",
    "ip6tables": "ip6tables-legacy-restore",
    "iptables-nft": "iptables-nft-restore",
    "ip6tables-nft": "ip6tables-nft-restore",
}


@contextmanager
def built(scenario: Scenario, lock: Path) -> Iterator[dict[str, Netns]]:
    """Build a scenario; namespaces are there inside the `with` block. `lock` is a file for iptables' lock. Raises LabFailed."""
    spaces: dict[str, Netns] = {}
    try:
        for name in scenario.spaces:
            spaces[name] = Netns(name)
        for name, netns in spaces.items():
            _first_sysctls(scenario, netns, six=scenario.six and name != BENCH)
        for name, netns in spaces.items():
            _batch(netns, "ip", [*_pairs(scenario, name, spaces), *_standing(scenario, name, spaces), "link set lo up"])
        for name, netns in spaces.items():
            _furnish(scenario.spaces[name], netns, six=scenario.six)
        for name, netns in spaces.items():
            _lead(scenario.spaces[name], netns)
        _wait(scenario, spaces)
        for name, netns in spaces.items():  # nexthop objects, and states of ports, want a carrier
            space = scenario.spaces[name]
            ports = [one for one in space.devices.values() if one.state]
            _batch(
                netns, "ip", [f"link set dev {one.name} type bridge_slave state {STATES[one.state]}" for one in ports]
            )
            lines = [f"nexthop add {' '.join(words)}" for words in space.nexthops]
            _batch(
                netns, "ip", [*lines, *(f"route add {' '.join(words)}" for words in space.routes if "nhid" in words)]
            )
        yield spaces
    finally:
        for netns in spaces.values():
            netns.close()


def _first_sysctls(scenario: Scenario, netns: Netns, *, six: bool) -> None:
    with netns.inside():
        for key, value in base_sysctls(["lo"], six=six).items():
            write_sysctl(key.removeprefix("net/"), value)
        for key, value in QUIET.items():
            write_sysctl(key.removeprefix("net/"), value)


def _batch(netns: Netns, tool: str, lines: list[str], *options: str) -> None:
    if lines:
        netns.run([tool, *options, "-batch", "-"], "\n".join(lines) + "\n")


def _pairs(scenario: Scenario, name: str, spaces: dict[str, Netns]) -> Iterator[str]:
    """Yield the lines that make veths; each pair is made by the namespace that comes first."""
    order = list(spaces)
    for device in scenario.spaces[name].devices.values():
        if device.peer is None:
            continue
        there, end = device.peer
        if (order.index(there), end) < (order.index(name), device.name):
            continue
        other = scenario.spaces[there].devices[end]
        path = f"/proc/{os.getpid()}/fd/{spaces[there].fd}"
        yield (
            f"link add name {device.name} index {device.index} address {device.mac} type veth"
            f" peer name {end} index {other.index} address {other.mac} netns {path}"
        )


def _standing(scenario: Scenario, name: str, spaces: dict[str, Netns]) -> Iterator[str]:
    """Yield the lines that make macvlans which stand on devices of this namespace, each in its own."""
    for space in scenario.spaces.values():
        for device in space.devices.values():
            lower = device.lower()
            if lower is not None and lower[0] == name:
                path = f"/proc/{os.getpid()}/fd/{spaces[space.name].fd}"
                yield (
                    f"link add link {lower[1]} name {device.name} index {device.index} address {device.mac} netns {path}"
                    f" type {device.kind} mode {device.word('mode')}"
                )


def _furnish(space: Space, netns: Netns, *, six: bool) -> None:
    lines: list[str] = []
    own = [device for device in space.devices.values() if device.kind != "loopback"]
    for device in own:
        lines += _device_lines(device)
    ports = [device for device in own if device.master]
    lines += [f"link set dev {port.name} master {port.master}" for port in ports]
    lines += [
        f"link set dev {port.name} type bridge_slave {' '.join(PORT_FLAGS[flag])}"
        for port in ports
        for flag in port.port_flags
    ]
    _batch(netns, "ip", lines)
    with netns.inside():
        _tune(own, six=six and space.name != BENCH)
        for key, value in space.sysctls:
            write_sysctl(key.removeprefix("net/"), value)
    lines = [f"link set dev {device.name} up" for device in own if device.up]
    for device in space.devices.values():
        for address in device.addresses:
            extra = "nodad" if ":" in address else "brd +" if not address.endswith(("/31", "/32")) else ""
            if flag := device.flags.get(address):
                extra += f" {ADDRESS_FLAGS[flag]}"
            lines.append(f"addr add {address} dev {device.name} {extra}")
    _batch(netns, "ip", lines)


def _lead(space: Space, netns: Netns) -> None:
    """Add what leads packets on: routes, neighbours, rules, forwarding entries."""
    lines = [f"route add {' '.join(words)}" for words in space.routes if "nhid" not in words]
    lines += [f"neigh add {' '.join(_permanent(words))}" for words in space.neighbours]
    lines += [f"rule add {' '.join(words)}" for words in space.rules if family_of(words) == 4]
    _batch(netns, "ip", lines)
    _batch(
        netns,
        "ip",
        [f"rule add {' '.join(words[words[0] == '-6' :])}" for words in space.rules if family_of(words) == 6],
        "-6",
    )
    _batch(netns, "bridge", [f"fdb append {' '.join(words)}" for words in space.fdb])


def _device_lines(device: Device) -> Iterator[str]:
    if device.kind not in ("veth", "macvlan"):
        words = " ".join(device.words)
        yield f"link add name {device.name} index {device.index} address {device.mac} type {device.kind} {words}"
    if device.mtu:
        yield f"link set dev {device.name} mtu {device.mtu}"
    if device.group:
        yield f"link set dev {device.name} group {device.group}"
    if device.noarp:
        yield f"link set dev {device.name} arp off"


def _permanent(words: list[str]) -> list[str]:
    if "proxy" in words or "nud" in words:
        return words
    return [*words, "nud", "permanent"]


def _tune(devices: list[Device], *, six: bool) -> None:
    for device in devices:
        for family in ("ipv4", "ipv6") if six else ("ipv4",):
            write_sysctl(f"{family}/neigh/{device.name}/retrans_time_ms", ARP_RETRY_MS)
            write_sysctl(f"{family}/neigh/{device.name}/proxy_delay", 0)


def filter_up(scenario: Scenario, spaces: dict[str, Netns], lock: Path) -> None:
    """Load sets, the rules of iptables and nft, and old connections; counters start from here."""
    for name, space in scenario.spaces.items():
        if space.ipsets:
            spaces[name].run(["ipset", "restore"], "".join(f"{' '.join(words)}\n" for words in space.ipsets))
        for command, lines in space.filters.items():
            spaces[name].run([RESTORE[command]], saved(lines), lock=lock)
        if space.nft:
            spaces[name].run(["nft", "-f", "-"], "\n".join(space.nft) + "\n")
        for one in space.tracked:
            spaces[name].run(["conntrack", "-I", *_entry_words(one)])


def _with_port(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _entry_words(one: Tracked) -> Iterator[str]:
    """Yield what `conntrack -I` makes the entry from."""
    yield from ("-p", str(one.protocol), "-t", str(TRACKED_S), "-s", one.original.src, "-d", one.original.dst)
    yield from ("-r", one.original.dst, "-q", one.original.src)
    sport, dport = one.original.sport, one.original.dport
    ports = (("--sport", sport), ("--dport", dport), ("--reply-port-src", dport), ("--reply-port-dst", sport))
    yield from (word for name, port in ports for word in (name, str(port)))
    if (one.reply.dst, one.reply.dport) != (one.original.src, sport):  # without these the kernel would not translate
        yield from ("--src-nat", _with_port(one.reply.dst, one.reply.dport))
    if (one.reply.src, one.reply.sport) != (one.original.dst, dport):
        yield from ("--dst-nat", _with_port(one.reply.src, one.reply.sport))
    if one.protocol == Protocol.TCP:
        yield from ("--state", "ESTABLISHED" if one.replied else "SYN_SENT")
    status = [name for name, isset in (("SEEN_REPLY", one.replied), ("ASSURED", one.assured)) if isset]
    if status:
        yield from ("-u", ",".join(status))
    if one.zone:
        yield from ("-w", str(one.zone))
    if one.mark:
        yield from ("-m", str(one.mark))


def nft_tables(space: Space, netns: Netns) -> tuple[NftTable, ...]:
    """Return the native tables that stand in a namespace, as they are collected; without counts and handles, which differ each time."""
    tables = []
    for listed in without_iptables(parse_nft(netns.run(["nft", "-s", "-j", "list", "ruleset"])), filters_of(space)):
        table = listed
        if lacks_devices(table):
            table = with_devices(table, netns.run(["nft", "-s", "list", "table", table.family, table.name]))
        tables.append(msgspec.structs.replace(table, objects=tuple(_settled(text) for text in table.objects)))
    return tuple(tables)


def _settled(text: str) -> str:
    """Return an object of nft's without what differs from one listing to the next: handles, the order of elements, their ages."""
    text = _HANDLE.sub("", text)
    if not text.startswith(('{"set"', '{"map"')):
        return text
    ((kind, body),) = json.loads(text).items()
    if "elem" in body:
        body["elem"] = sorted((_ageless(one) for one in body["elem"]), key=lambda one: json.dumps(one, sort_keys=True))
    return json.dumps({kind: body})


def _ageless(element: object) -> object:
    if isinstance(element, list):
        return [_ageless(one) for one in element]
    if not isinstance(element, dict):
        return element
    return {key: _ageless(one) for key, one in element.items() if key != "expires"}


def nft_counters(space: Space, netns: Netns) -> Iterator[tuple[tuple[int, str, str, str, int], int]]:
    """Yield what the native rules have counted: (family, back end, table, chain, position from 1), packets."""
    own = {(table.family, table.name) for table in space.nft_listed}
    positions: Counter[tuple[str, str]] = Counter()
    for item in json.loads(netns.run(["nft", "-j", "list", "ruleset"]))["nftables"]:
        if (rule := item.get("rule")) is None or (rule["family"], rule["table"]) not in own:
            continue
        chain = (f"{rule['family']} {rule['table']}", rule["chain"])
        positions[chain] += 1
        packets = sum(part["counter"]["packets"] for part in rule["expr"] if isinstance(part.get("counter"), dict))
        if packets:
            yield (FAMILIES.get(rule["family"], 0), str(Backend.NFT), *chain, positions[chain]), packets


def _wait(scenario: Scenario, spaces: dict[str, Netns]) -> None:
    """Wait for the links that should have a carrier, and for bridge ports to forward (linkwatch works in the background)."""
    deadline = time.monotonic() + READY_S
    for name, netns in spaces.items():
        devices = scenario.spaces[name].devices
        wanted = {
            device.name
            for device in devices.values()
            if carrier(scenario, name, device.name) and (not device.master or devices[device.master].up)
        }
        while late := [dev for dev, ready in _links(netns) if dev in wanted and not ready]:
            if time.monotonic() > deadline:
                raise LabFailed(f"waiting for links of {name}", ", ".join(late))
            time.sleep(0.001)


def _links(netns: Netns) -> Iterator[tuple[str, bool]]:
    for body in netns.rtnl.dump(rtnl.RTM_GETLINK, rtnl.ifinfo()):
        found = dict(rtnl.attributes(body[16:]))
        name = found[3].rstrip(b"\0").decode()
        ready = found.get(16, b"\0")[0] in (0, 6)
        info = dict(rtnl.attributes(found.get(18, b"")))
        if info.get(4, b"").startswith(b"bridge"):
            state = dict(rtnl.attributes(info.get(5, b""))).get(1)
            ready = ready and (state is None or state[0] == 3)
        yield name, ready
