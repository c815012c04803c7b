"""The way of a first packet through one router, with nothing but tables and a fixed set of addresses: enough to foretell counters.

It is not the simulator's walk: hooks, routes and NAT of this one topology are written down here by hand, so that only the
rule engine is under test.
"""

from dataclasses import dataclass

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.ids import host_netns
from tasks.skoop.model.packet import CtState, Packet, Protocol, TcpFlags
from tasks.skoop.model.state import Tuple
from tasks.skoop.model.trace import Step
from tasks.skoop.netstack.xtables.api import (
    CompiledTables,
    ConnectionView,
    Hook,
    HookContext,
    NatKind,
    TableResult,
    Verdict,
)
from tests.kernel.xtables.router_lab import C_MAC

ROUTER = host_netns("r")
LOCAL = {"10.1.0.1": "rc", "10.2.0.1": "rs", "fd00:1::1": "rc", "fd00:2::1": "rs"}
FIRST = {"rc": {4: "10.1.0.1", 6: "fd00:1::1"}, "rs": {4: "10.2.0.1", 6: "fd00:2::1"}}
BEGINS = frozenset((8, 13, 128))


@dataclass(frozen=True)
class RouterFacts:
    """The answers of the router of `router_lab`."""

    def address_type(self, ip: Ip, dev: str | None) -> str:
        if ip in LOCAL:
            return "LOCAL" if dev in (None, LOCAL[ip]) else "UNICAST"
        if ip in ("10.1.0.255", "10.2.0.255"):
            return "BROADCAST"
        return "UNICAST"

    def reverse_path_ok(self, packet: Packet, dev: str, *, loose: bool, validmark: bool, accept_local: bool) -> bool:
        return _route(packet.src) == dev or loose

    def has_socket(self, packet: Packet, *, transparent: bool, wildcard: bool) -> bool | None:
        return None


def _route(ip: Ip) -> str:
    return "rc" if ip.startswith(("10.1.", "fd00:1:")) else "rs"


@dataclass
class Passage:
    """What is foretold: the rules met, and the packet as it arrives or None."""

    steps: list[Step]
    arrives: Packet | None


class Traveller:
    """One packet on its way."""

    def __init__(self, tables: CompiledTables, packet: Packet) -> None:
        self.tables = tables
        self.packet = packet
        self.family = packet.version
        self.tracks = tables.needs_conntrack[self.family]
        self.steps: list[Step] = []
        self.original = self._tuple()
        self.arrival = packet
        self.connmark = 0
        self.translated = False
        self.in_dev, self.out_dev = "rc", ""

    def _tuple(self) -> Tuple:
        packet = self.packet
        icmp = packet.protocol in (Protocol.ICMP, Protocol.ICMPV6)
        return Tuple(packet.src, packet.dst, packet.sport, packet.icmp_type << 8 if icmp else packet.dport)

    def walk(self) -> Passage:
        """Return what becomes of the packet."""
        if not self._hook(Hook.PREROUTING, "raw"):
            return self._end()
        self._track()
        if not (self._hook(Hook.PREROUTING, "mangle") and self._hook(Hook.PREROUTING, "nat")):
            return self._end()
        if self.packet.dst in LOCAL:
            if self._hook(Hook.INPUT, "mangle") and self._hook(Hook.INPUT, "filter"):
                self._hook(Hook.INPUT, "nat")
            return self._end()
        self.packet = self.packet.with_(ttl=self.packet.ttl - 1)
        self.out_dev = _route(self.packet.dst)
        if not (self._hook(Hook.FORWARD, "mangle") and self._hook(Hook.FORWARD, "filter")):
            return self._end()
        # since Linux 5.7 POSTROUTING knows the input device of a forwarded packet (ip_output), though `-i` is refused there
        passes = self._hook(Hook.POSTROUTING, "mangle") and self._hook(Hook.POSTROUTING, "nat")
        return Passage(self.steps, self.packet if passes and self.out_dev == "rs" else None)

    def _end(self) -> Passage:
        return Passage(self.steps, None)

    def _track(self) -> None:
        if not self.tracks or self.packet.ct_state == CtState.UNTRACKED:
            return
        packet = self.packet
        begins = {
            Protocol.TCP: packet.tcp_flags in (TcpFlags.SYN, TcpFlags.ACK, TcpFlags.PSH_ACK),
            Protocol.UDP: True,
        }.get(packet.protocol, packet.icmp_type in BEGINS)
        self.packet = packet.with_(ct_state=CtState.NEW if begins else CtState.INVALID)

    def _view(self) -> ConnectionView:
        here = self._tuple()
        return ConnectionView(
            original=self.original,
            reply=Tuple(here.dst, self.original.src, here.dport, self.original.sport),
            status=frozenset(("DNAT",)) if self.translated else frozenset(),
            mark=self.connmark,
        )

    def _hook(self, hook: Hook, name: str) -> bool:
        """Let the packet go through a table; say whether it goes on."""
        if name == "nat" and self.packet.ct_state != CtState.NEW:
            return True
        for table in self.tables.tables.get((self.family, name), ()):
            (result,) = table.evaluate(
                HookContext(
                    netns=ROUTER,
                    hook=hook,
                    packet=self.packet,
                    facts=RouterFacts(),
                    in_dev=self.in_dev,
                    out_dev=self.out_dev,
                    connection=self._view(),
                    mac=C_MAC if hook in (Hook.PREROUTING, Hook.INPUT, Hook.FORWARD) else "",
                )
            )
            assert not result.missing, result.missing
            self.steps += result.steps
            self.packet = result.packet
            self.connmark = self.connmark if result.connmark is None else result.connmark
            if result.verdict != Verdict.ACCEPT:
                return False
            self._translate(result)
        return True

    def _translate(self, result: TableResult) -> None:
        if result.nat is None:
            return
        ip = Ip(result.nat.addresses[0][0]) if result.nat.addresses else None
        port = result.nat.ports[0] if result.nat.ports else None
        if result.nat.kind in (NatKind.SNAT, NatKind.MASQUERADE):
            self.packet = self.packet.with_(src=ip or FIRST[self.out_dev][self.family])
            return
        ip = ip or Ip(FIRST[self.in_dev][self.family])
        before = (self.packet.dst, self.packet.dport)
        self.packet = self.packet.with_(dst=ip, dport=self.packet.dport if port is None else port)
        self.translated = before != (self.packet.dst, self.packet.dport)
