"""Builds a scenario in network namespaces of this machine, with the tools that its lines are written for."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import rtnl
from lab.errors import LabFailed
from lab.netns import Netns, write_sysctl
from tasks.skoop.model.packet import Protocol
from tests.scenarios.scenario import BENCH, PORT_FLAGS, Device, Scenario, Space, Tracked
from tests.scenarios.state import base_sysctls, carrier
from tests.scenarios.tables import TRACKED_S, family_of, saved

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
        for name, netns in spaces.items():  # with carriers on both sides: nexthop objects ask for them
            _lead(scenario.spaces[name], netns)
        _wait(scenario, spaces)
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
            lines.append(f"addr add {address} dev {device.name} {extra}")
    _batch(netns, "ip", lines)


def _lead(space: Space, netns: Netns) -> None:
    """Add what leads packets on: nexthops, routes, neighbours, rules, forwarding entries."""
    lines = [f"nexthop add {' '.join(words)}" for words in space.nexthops]
    lines += [f"route add {' '.join(words)}" for words in space.routes]
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
            spaces[name].run(["nft", "-f", "-"], "".join(f"{' '.join(words)}\n" for words in space.nft))
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
