"""What moved in every namespace while a connection was tried: packets seen, rules hit, counters raised.

One AF_PACKET socket per namespace sees every packet on every interface, in and out; iptables' and nft's own rule counters
and the counters of /proc/net say what became of it. Works for root of any user namespace; no tracing, no BPF.
"""

import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from lab import rtnl
from lab.counters import ProcTexts, RuleCount, read_counters, risen, rule_counts
from lab.netns import Netns
from lab.plan import ClusterPlan

ETH_P_ALL, ETH_P_IP, ETH_P_ARP, ETH_P_IPV6 = 0x0003, 0x0800, 0x0806, 0x86DD
PACKET_OTHERHOST, PACKET_OUTGOING, SO_TIMESTAMPNS = 3, 4, 35
VXLAN_PORT = 8472
_WAYS = {PACKET_OUTGOING: "out", PACKET_OTHERHOST: "other"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One packet on one interface: `way` is in, out, or other (arrived, but for another MAC). ARP/ND: kind "ask"/"tell"."""

    at_ns: int
    netns: str
    dev: str
    way: str
    kind: str
    """tcp, udp, icmp, error (an ICMP error), ask, tell (ARP or neighbour discovery) or other."""
    src: str = ""
    dst: str = ""
    sport: int = 0
    dport: int = 0
    length: int = 0
    flags: str = ""
    """TCP: letters of SAFRP."""
    seq: int = 0
    ack: int = 0
    outer: bool = False
    """Carried in vxlan: src and dst are the inner packet's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleHit:
    """A rule (0: the chain's policy) whose packet counter rose."""

    netns: str
    family: int
    backend: str
    table: str
    chain: str
    rule: int
    text: str
    packets: int
    stops: bool
    """Whether packets end here: DROP or REJECT, or a policy that drops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that moved, in order of time where there is one."""

    packets: tuple[Seen, ...] = ()
    rules: tuple[RuleHit, ...] = ()
    counters: dict[str, dict[str, int]] = field(default_factory=dict)
    """netns → counter (`Ip.InAddrErrors`, `dev.eth0.tx_dropped`) → how much it rose."""
    ports: dict[str, dict[str, int]] = field(default_factory=dict)
    """netns → bridge port → its state (3: forwarding; -1: its bridge is down)."""

    def rose(self, netns: str, *names: str) -> bool:
        """Say whether one of these counters rose in a namespace."""
        return any(self.counters.get(netns, {}).get(name) for name in names)


@dataclass(slots=True)
class _Before:
    rules: dict[str, tuple[RuleCount, ...]]
    counts: dict[str, ProcTexts]


class Watch:
    """Watches a lab. `start` just before a try, `stop` just after; the sockets stay open in between."""

    def __init__(self, plan: ClusterPlan, spaces: dict[str, Netns]) -> None:
        self._plan = plan
        self._spaces = spaces
        self._taps: dict[str, socket.socket] = {}
        self._before = _Before({}, {})
        self._family = 4

    def start(self, family: int) -> None:
        """Note every counter and empty the taps. `family` is the one whose rules matter (4 or 6)."""
        self._family = family
        if not self._taps:
            for name, netns in self._spaces.items():
                self._taps[name] = _tap(netns)
        rules = {name: rule_counts(netns, family) for name, netns in self._spaces.items()}
        counts = {name: read_counters(netns) for name, netns in self._spaces.items()}
        self._before = _Before(rules, counts)
        for tap in self._taps.values():
            _drain(tap)

    def stop(self) -> Evidence:
        """Return what moved since `start`."""
        time.sleep(0.002)  # packets that were sent in the last moment are stamped in another softirq
        packets = sorted(
            (seen for name, tap in self._taps.items() for seen in _read(tap, name)),
            key=lambda seen: seen.at_ns,
        )
        moved = {name: risen(self._before.counts[name], read_counters(netns)) for name, netns in self._spaces.items()}
        counters = {name: rose for name, rose in moved.items() if rose}
        hits = tuple(hit for name in self._spaces for hit in self._hits(name))
        ports = {name: bridge_ports(netns) for name, netns in self._spaces.items() if not name.startswith("pod/")}
        arrived = tuple(replace(seen, way="in") if _by_port(seen, ports) else seen for seen in packets)
        return Evidence(packets=arrived, rules=hits, counters=counters, ports=ports)

    def close(self) -> None:
        """Close the taps."""
        for tap in self._taps.values():
            tap.close()
        self._taps = {}

    def _hits(self, name: str) -> Iterable[RuleHit]:
        earlier = {(r.backend, r.table, r.chain, r.rule): r.packets for r in self._before.rules[name]}
        if not earlier:
            return
        for rule in rule_counts(self._spaces[name], self._family):
            rose = rule.packets - earlier.get((rule.backend, rule.table, rule.chain, rule.rule), 0)
            if rose > 0:
                yield RuleHit(
                    netns=name,
                    family=self._family,
                    backend=rule.backend,
                    table=rule.table,
                    chain=rule.chain,
                    rule=rule.rule,
                    text=rule.text,
                    packets=rose,
                    stops=rule.stops,
                )


def _by_port(seen: Seen, ports: dict[str, dict[str, int]]) -> bool:
    """A bridge port takes in what is for other MACs than its own: that is an arrival like any other."""
    return seen.way == "other" and seen.dev in ports.get(seen.netns, {})


def bridge_ports(netns: Netns) -> dict[str, int]:
    """Return bridge port → state as the kernel has it (3 = forwarding), -1 where the bridge itself is down."""
    ports: dict[str, tuple[int, int]] = {}
    up: dict[int, bool] = {}
    for body in netns.rtnl.dump(rtnl.RTM_GETLINK, rtnl.ifinfo()):
        index, flags = struct.unpack_from("=iI", body, 4)
        up[index] = bool(flags & rtnl.IFF_UP)
        found = dict(rtnl.attributes(body[16:]))
        info = dict(rtnl.attributes(found.get(18, b"")))
        if info.get(4, b"").startswith(b"bridge"):
            state = dict(rtnl.attributes(info.get(5, b""))).get(1, b"\3")[0]
            ports[found[3].rstrip(b"\0").decode()] = (state, struct.unpack("=I", found[10])[0])
    return {name: state if up.get(master, True) else -1 for name, (state, master) in ports.items()}


def _tap(netns: Netns) -> socket.socket:
    with netns.inside():
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.htons(ETH_P_ALL))
    tap.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 19)
    return tap


def _drain(tap: socket.socket) -> None:
    while True:
        try:
            tap.recv(1)
        except BlockingIOError:
            return
        except OSError:  # an interface went down: reported once, then the socket works on
            continue


def _read(tap: socket.socket, netns: str) -> Iterable[Seen]:
    while True:
        try:
            data, ancillary, _, address = tap.recvmsg(512, 128)
        except BlockingIOError:
            return
        except OSError:
            continue
        at_ns = 0
        for _, kind, value in ancillary:
            if kind == SO_TIMESTAMPNS:
                seconds, rest = struct.unpack_from("qq", value)
                at_ns = seconds * 10**9 + rest
        protocol, pkttype = address[1], address[2]
        where = {"at_ns": at_ns, "netns": netns, "dev": str(address[0])}
        yield _decode(data, protocol, where | {"way": _WAYS.get(pkttype, "in")})


def _decode(data: bytes, protocol: int, where: dict[str, object]) -> Seen:
    if protocol == ETH_P_ARP and len(data) >= 28:
        kind = "ask" if data[7] == 1 else "tell"
        return _seen(where, kind=kind, src=socket.inet_ntoa(data[14:18]), dst=socket.inet_ntoa(data[24:28]))
    if protocol == ETH_P_IP and len(data) >= 20:
        return _decode_ipv4(data, where)
    if protocol == ETH_P_IPV6 and len(data) >= 40:
        return _decode_ipv6(data, where)
    return _seen(where, kind="other")


def _seen(where: dict[str, object], **more: object) -> Seen:
    return Seen(**(where | more))  # type: ignore[arg-type]  # both name Seen's own fields


def _decode_ipv4(data: bytes, where: dict[str, object]) -> Seen:
    head = (data[0] & 15) * 4
    addresses = {"src": socket.inet_ntoa(data[12:16]), "dst": socket.inet_ntoa(data[16:20])}
    length = struct.unpack_from(">H", data, 2)[0]
    if struct.unpack_from(">H", data, 6)[0] & 0x1FFF:
        return _seen(where, kind="other", length=length, **addresses)
    return _decode_l4(data[head:], data[9], length, where | addresses)


def _decode_ipv6(data: bytes, where: dict[str, object]) -> Seen:
    src, dst = (socket.inet_ntop(socket.AF_INET6, data[at : at + 16]) for at in (8, 24))
    length = struct.unpack_from(">H", data, 4)[0] + 40
    return _decode_l4(data[40:], data[6], length, where | {"src": src, "dst": dst})


def _decode_l4(data: bytes, protocol: int, length: int, where: dict[str, object]) -> Seen:
    where = where | {"length": length}
    if protocol == socket.IPPROTO_TCP and len(data) >= 14:
        sport, dport, seq, ack = struct.unpack_from(">HHII", data)
        bits = data[13]
        flags = "".join(letter for letter, bit in (("S", 2), ("A", 16), ("F", 1), ("R", 4), ("P", 8)) if bits & bit)
        return _seen(where, kind="tcp", sport=sport, dport=dport, seq=seq, ack=ack, flags=flags)
    if protocol == socket.IPPROTO_UDP and len(data) >= 8:
        sport, dport = struct.unpack_from(">HH", data)
        if dport == VXLAN_PORT and len(data) >= 50:
            return _decode_inner(data[16:], where)
        return _seen(where, kind="udp", sport=sport, dport=dport)
    if protocol == socket.IPPROTO_ICMP and data:
        kind = "icmp" if data[0] in (0, 8) else "error"
        return _seen(where, kind=kind, sport=data[0], dport=data[1])
    if protocol == socket.IPPROTO_ICMPV6 and data:
        if data[0] in (135, 136) and len(data) >= 24:
            target = socket.inet_ntop(socket.AF_INET6, data[8:24])
            return _seen(where | {"dst": target}, kind="ask" if data[0] == 135 else "tell")
        kind = "icmp" if data[0] in (128, 129) else "error" if data[0] < 128 else "other"
        return _seen(where, kind=kind, sport=data[0], dport=data[1])
    return _seen(where, kind="other")


def _decode_inner(frame: bytes, where: dict[str, object]) -> Seen:
    protocol = struct.unpack_from(">H", frame, 12)[0]
    where = {key: value for key, value in where.items() if key not in ("src", "dst", "length")} | {"outer": True}
    return _decode(frame[14:], protocol, where)
