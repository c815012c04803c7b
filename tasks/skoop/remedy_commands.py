"""Which command makes a change of state: what a person would type, and where.

Answers one question: given a `Change`, which host and which command line. The commands are those of iproute2, iptables and
sysctl; a change inside a pod is to be typed inside the pod's network namespace, and the host is then the namespace's id.
"""

import shlex
from typing import assert_never

from tasks.skoop.model.addr import ip_version
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.state import FdbEntry, NextHop, Route
from tasks.skoop.model.suspicion import (
    AcceptConnections,
    AddAddress,
    AddChain,
    AddRoute,
    AddSocket,
    Change,
    DeletePolicyRule,
    DeleteRoute,
    DeleteRule,
    FlushConntrack,
    ForgetPathMtu,
    InsertRule,
    SetFdb,
    SetLink,
    SetNeighbour,
    SetPolicy,
    SetSysctl,
)

TABLE_NAMES = {254: "", 255: "local", 253: "default"}
PORT_STATES = ("disabled", "listening", "learning", "forwarding", "blocking")
"""States of a bridge port in the order of their numbers (BR_STATE_*)."""


def host_of(netns: NetnsId) -> str:
    """Return where to type: the node's or host's name; for a pod the namespace's id."""
    kind, _, name = netns.partition("/")
    return netns if kind == "pod" else name


def commands_for(change: Change) -> tuple[tuple[str, str], ...]:
    """Return (host, command) pairs that make the change; empty where no command makes it (an application must listen)."""
    return tuple((host_of(change.netns), command) for command in _commands(change))


def _commands(change: Change) -> list[str]:
    match change:
        case SetSysctl():
            return [f"sysctl -w {sysctl_name(change.key)}={shlex.quote(change.value)}"]
        case DeleteRule() | InsertRule() | AddChain() | SetPolicy():
            return [_iptables(change)]
        case AddRoute():
            return [f"{_ip(change.route.dst)} route replace {route_text(change.route)}"]
        case DeleteRoute():
            return [f"{_ip(change.route.dst)} route del {route_text(change.route)}"]
        case DeletePolicyRule():
            return [f"ip -{change.family} rule del pref {change.priority} lookup {change.table}"]
        case SetLink():
            return _link(change)
        case AddAddress():
            return [f"ip addr add {change.address.ip}/{change.address.prefixlen} dev {change.dev}"]
        case SetNeighbour():
            if change.mac is None:
                return [f"ip neigh del {change.ip} dev {change.dev}"]
            state = change.state.lower()
            return [f"ip neigh replace {change.ip} lladdr {change.mac} dev {change.dev} nud {state}"]
        case SetFdb():
            return [f"bridge fdb {'del' if change.remove else 'replace'} {fdb_text(change.entry)}"]
        case AddSocket() | AcceptConnections():
            return []
        case FlushConntrack():
            port = f" --dport {change.dport}" if change.dport else ""
            return [f"conntrack -D --orig-dst {change.dst}{port}"]
        case ForgetPathMtu():
            return ["ip route flush cache"]
        case _:
            assert_never(change)


def sysctl_name(key: str) -> str:
    """Return the name as sysctl(8) takes it: dots for slashes, but for interfaces whose names hold dots."""
    return key.replace("/", ".") if "." not in key else key


def _iptables(change: DeleteRule | InsertRule | AddChain | SetPolicy) -> str:
    program = f"{'ip6tables' if change.family == 6 else 'iptables'}-{change.backend}"
    prefix = f"{program} -w -t {change.table}"
    match change:
        case DeleteRule():
            return f"{prefix} -D {change.chain} {change.raw}"
        case InsertRule(rule=0):
            return f"{prefix} -A {change.chain} {change.raw}"
        case InsertRule():
            return f"{prefix} -I {change.chain} {change.rule} {change.raw}"
        case AddChain():
            return f"{prefix} -N {change.chain}"
        case SetPolicy():
            return f"{prefix} -P {change.chain} {change.policy}"
        case _:
            assert_never(change)


def _ip(dst: str) -> str:
    return "ip -6" if ip_version(dst) == 6 else "ip"


def route_text(route: Route) -> str:
    """Return a route as `ip route` takes it."""
    words = [] if route.type == "unicast" else [route.type]
    words.append("default" if route.dst in {"0.0.0.0/0", "::/0"} else route.dst)
    if len(route.nexthops) == 1:
        words += _hop_words(route.nexthops[0])
    if route.prefsrc:
        words += ["src", route.prefsrc]
    if route.table != 254:
        words += ["table", TABLE_NAMES.get(route.table) or str(route.table)]
    if route.metric:
        words += ["metric", str(route.metric)]
    if route.mtu:
        words += ["mtu", *(["lock"] if route.mtu_locked else []), str(route.mtu)]
    if len(route.nexthops) > 1:
        for hop in route.nexthops:
            words += ["nexthop", *_hop_words(hop), "weight", str(hop.weight)]
    return " ".join(words)


def _hop_words(hop: NextHop) -> list[str]:
    words = ["via", hop.via] if hop.via else []
    if hop.dev:
        words += ["dev", hop.dev]
    return [*words, "onlink"] if hop.onlink else words


def _link(change: SetLink) -> list[str]:
    commands = []
    if change.master is not None:
        commands.append(f"ip link set {change.dev} " + (f"master {change.master}" if change.master else "nomaster"))
    if change.mtu is not None:
        commands.append(f"ip link set {change.dev} mtu {change.mtu}")
    if change.up is not None:
        commands.append(f"ip link set {change.dev} {'up' if change.up else 'down'}")
    for name, value in (("hairpin", change.hairpin), ("isolated", change.isolated)):
        if value is not None:
            commands.append(f"bridge link set dev {change.dev} {name} {'on' if value else 'off'}")
    if change.port_state is not None:
        commands.append(f"bridge link set dev {change.dev} state {PORT_STATES.index(change.port_state)}")
    return commands


def fdb_text(entry: FdbEntry) -> str:
    """Return a forwarding entry as `bridge fdb` takes it."""
    words = [str(entry.mac), "dev", entry.dev]
    if entry.dst:
        words += ["dst", entry.dst]
    words.append("master" if entry.master else "self")
    if entry.permanent:
        words.append("permanent")
    elif entry.static:
        words.append("static")
    return " ".join(words)
