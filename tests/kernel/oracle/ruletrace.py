"""Which rules did the kernel match, one by one, and are they those of the simulator's walk?

iptables' own TRACE, told by NFLOG to a socket in each namespace (legacy tables), and nft's trace, told to its multicast group
(nft tables, iptables-nft among them). For one connection at a time; the tracing rules are taken out again afterwards. Compared is
every matched rule of the first packet and of its answer in order: table, chain, position. What a chain's end or policy says
is left out: the simulator tells it only where it decides.
"""

import json
import socket
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from lab.errors import LabFailed
from lab.netns import Netns
from lab.prober import Attempt
from lab.rtnl import NETLINK_NETFILTER, attr, attributes
from tasks.skoop.model.diagnosis import FlowOutcome
from tasks.skoop.model.trace import Stage, Walk
from tests.kernel.oracle.events import ICMP, ICMPV6, RST, SYN, TCP, UDP
from tests.kernel.oracle.paths import Story
from tests.kernel.oracle.tracked import VXLAN_PORTS

_LOG_CONFIG, _LOG_PACKET, _TRACE = (4 << 8) | 1, 4 << 8, (10 << 8) | 17
_SOL_NETLINK, _ADD_MEMBERSHIP, _TRACE_GROUP = 270, 1, 9
_CHAINS = ("PREROUTING", "OUTPUT")
_NFT_TABLE = "kubeprobe_trace"
_NFT = f"""table inet {_NFT_TABLE} {{
  chain pre {{ type filter hook prerouting priority -500; meta nftrace set 1; }}
  chain out {{ type filter hook output priority -500; meta nftrace set 1; }}
}}
"""


Positions = dict[tuple[int, str, str, int], int]
"""(family, table, chain, handle) → position in the chain, from 1."""
_FAMILIES = {"ip": 2, "ip6": 10, "inet": 1, "bridge": 7, "arp": 3, "netdev": 5}


class Met(NamedTuple):
    """A rule that a packet matched; `rule` is its position in the chain from 1."""

    netns: str
    table: str
    chain: str
    rule: int


class Traced(NamedTuple):
    """A rule met, with the packet that met it, as far as it tells the direction (in a vxlan: the carried packet)."""

    met: Met
    protocol: int
    sport: int
    dport: int
    flags: int
    icmp_type: int
    outer: tuple[str, str] = ("", "")
    """A vxlan whose inside was not told (nft tells 20 bytes of the transport header): its own addresses."""


class RuleTrace:
    """Lets namespaces trace what comes through them; `with` takes the tracing rules out again at its end."""

    def __init__(self, spaces: Mapping[str, Netns], *, legacy: bool) -> None:
        """`legacy`: which back end's rules are traced (the other one's are not). Raises LabFailed, OSError."""
        self._spaces = spaces
        self._legacy = legacy
        self._taps: dict[str, socket.socket] = {}
        self._positions: dict[str, Positions] = {}
        try:
            for name, netns in spaces.items():
                self._taps[name] = _tap_log(netns) if legacy else _tap_trace(netns)
                if legacy:
                    for tool, chain in _tools(netns):
                        netns.run([tool, "-t", "raw", "-I", chain, "-j", "TRACE"])
                else:
                    self._positions[name] = _positions(netns)
                    netns.run(["nft", "-f", "-"], _NFT)
        except (LabFailed, OSError):
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the rules out and close the sockets."""
        for name, tap in self._taps.items():
            tap.close()
            netns = self._spaces[name]
            if not self._legacy:
                netns.run(["nft", "delete", "table", "inet", _NFT_TABLE])
                continue
            for tool, chain in _tools(netns):
                netns.run([tool, "-t", "raw", "-D", chain, "-j", "TRACE"])
            for family in (2, 10):
                netns.sysctl(f"netfilter/nf_log/{family}", "NONE")
        self._taps = {}

    def drain(self) -> list[Traced]:
        """Return what was traced since the last time, namespace by namespace, in order."""
        return [one for name, tap in self._taps.items() for one in self._read(name, tap)]

    def _read(self, name: str, tap: socket.socket) -> Iterator[Traced]:
        positions: Positions = self._positions.get(name, {})
        packets: dict[bytes, bytes] = {}  # nft tells the packet once a chain, later lines only its number
        for kind, body in _messages(tap):
            found = dict(attributes(body[4:]))
            if kind == _LOG_PACKET:
                met = _met_legacy(name, found.get(10, b"").rstrip(b"\0").decode())
                packet = found.get(9, b"")
            elif kind == _TRACE:
                met = _met_nft(name, found, positions)
                if 8 in found:
                    packets[found[6]] = found[8] + found.get(9, b"")
                packet = packets.get(found[6], b"")
            else:
                continue
            if met is not None and packet:
                yield _traced(met, packet)


def _tools(netns: Netns) -> Iterator[tuple[str, str]]:
    six = int(netns.read_sysctl("ipv6/conf/all/disable_ipv6")) == 0
    for tool in ("iptables-legacy", "ip6tables-legacy") if six else ("iptables-legacy",):
        for chain in _CHAINS:
            yield tool, chain


def _tap_log(netns: Netns) -> socket.socket:
    """Bind NFLOG group 0 of a namespace and make it the place where traces go (nfnetlink_log)."""
    for family in (2, 10):
        netns.sysctl(f"netfilter/nf_log/{family}", "nfnetlink_log")
    tap = _socket(netns)
    for family, body in (
        (2, attr(1, b"\4")),  # PF_UNBIND
        (2, attr(1, b"\3")),  # PF_BIND
        (10, attr(1, b"\4")),
        (10, attr(1, b"\3")),
        (0, attr(1, b"\1")),  # bind group 0
        (0, attr(2, struct.pack(">IBx", 128, 2))),  # copy the packet's first 128 bytes
        (0, attr(5, struct.pack(">I", 1))),  # tell every packet at once
    ):
        message = struct.pack(">BBH", family, 0, 0) + body
        tap.send(struct.pack("=IHHII", 16 + len(message), _LOG_CONFIG, 5, 1, 0) + message)
        (code,) = struct.unpack_from("=i", tap.recv(4096), 16)
        if code:
            raise OSError(-code, f"binding the packet log of {netns.name}")
    tap.setblocking(False)
    return tap


def _tap_trace(netns: Netns) -> socket.socket:
    tap = _socket(netns)
    tap.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _TRACE_GROUP)
    tap.setblocking(False)
    return tap


def _socket(netns: Netns) -> socket.socket:
    with netns.inside():
        tap = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    tap.bind((0, 0))
    tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
    return tap


def _messages(tap: socket.socket) -> Iterator[tuple[int, bytes]]:
    while True:
        try:
            data = tap.recv(1 << 18)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            length, kind = struct.unpack_from("=IH", data, at)
            yield kind, data[at + 16 : at + length]
            at += (length + 3) & ~3


def _met_legacy(name: str, prefix: str) -> Met | None:
    """Read `TRACE: nat:KUBE-SERVICES:rule:3`; the tracing rule itself is the first of raw's chains."""
    if not prefix.startswith("TRACE: "):
        return None
    table, chain, what, number = prefix.removeprefix("TRACE: ").strip().split(":")
    if what != "rule":
        return None
    rule = int(number) - (table == "raw" and chain in _CHAINS)
    return (
        Met(name, table, chain, rule) if rule else None
    )  # over lo a packet is traced already when it comes to the first rule


def _met_nft(name: str, found: Mapping[int, bytes], positions: Positions) -> Met | None:
    if 3 not in found or struct.unpack(">I", found[4])[0] != 3:  # only rules
        return None
    table, chain = (found[key].rstrip(b"\0").decode() for key in (1, 2))
    (handle,) = struct.unpack(">Q", found[3])
    (family,) = struct.unpack(">I", found[15])
    position = positions.get((family, table, chain, handle))
    return None if position is None else Met(name, table, chain, position)


def _positions(netns: Netns) -> Positions:
    found: Positions = {}
    count: dict[tuple[str, str, str], int] = {}
    for item in json.loads(netns.run(["nft", "-j", "-a", "list", "ruleset"]) or '{"nftables": []}')["nftables"]:
        if rule := item.get("rule"):
            slot = (rule["family"], rule["table"], rule["chain"])
            count[slot] = count.get(slot, 0) + 1
            found[_FAMILIES[rule["family"]], rule["table"], rule["chain"], rule["handle"]] = count[slot]
    return found


def _traced(met: Met, packet: bytes) -> Traced:
    protocol, payload = _transport(packet)
    if protocol == UDP and int.from_bytes(payload[2:4], "big") in VXLAN_PORTS:
        if len(payload) <= 50:
            return Traced(met, protocol, 0, 0, 0, -1, _addresses(packet))
        protocol, payload = _transport(payload[30:])
    if protocol in (ICMP, ICMPV6):
        return Traced(met, protocol, 0, 0, 0, payload[0] if payload else -1)
    sport, dport = struct.unpack_from(">HH", payload) if len(payload) >= 4 else (0, 0)
    flags = payload[13] if protocol == TCP and len(payload) > 13 else 0
    return Traced(met, protocol, sport, dport, flags, -1)


def _addresses(packet: bytes) -> tuple[str, str]:
    if packet[0] >> 4 == 6:
        return socket.inet_ntop(socket.AF_INET6, packet[8:24]), socket.inet_ntop(socket.AF_INET6, packet[24:40])
    return socket.inet_ntop(socket.AF_INET, packet[12:16]), socket.inet_ntop(socket.AF_INET, packet[16:20])


def _transport(packet: bytes) -> tuple[int, bytes]:
    if packet[0] >> 4 == 6:
        return packet[6], packet[40:]
    return packet[9], packet[(packet[0] & 15) * 4 :]


def ways(traced: Iterable[Traced], story: Story, attempt: Attempt) -> tuple[list[Met], list[Met]]:
    """Return the rules that the first packet met, and those that its answer met, each in order within a namespace."""
    own = {hop.sport for hop in story.forward.hops} | {attempt.sport}
    if story.forward.drop is not None:
        own.add(story.forward.drop.hop.sport)
    there = {hop.outer for hop in story.forward.hops}
    back = {hop.outer for hop in story.reply.hops}
    answers = (0, 129) if story.error is None else story.error[:1]
    forward: list[Met] = []
    reply: list[Met] = []
    phases: Counter[str] = Counter()  # of a namespace: 1 once the answer came, 2 once what follows it did
    for one in traced:
        netns = one.met.netns
        if one.outer[0]:
            if one.outer in there and phases[netns]:
                phases[netns] = 2
            elif one.outer in there:
                forward.append(one.met)
            elif one.outer in back and phases[netns] < 2:
                phases[netns] = 1
                reply.append(one.met)
        elif one.protocol in (ICMP, ICMPV6):
            if one.icmp_type in (8, 128):
                forward.append(one.met)
            elif one.icmp_type in answers:
                phases[netns] |= 1
                reply.append(one.met)
        elif one.protocol == TCP and not one.flags & (SYN | RST):
            phases[netns] = 2
        elif one.sport in own and one.flags & (SYN | RST) in (0, SYN):
            forward.append(one.met)
        elif one.dport in own and not (one.flags & RST and not story.reply.flags & RST):
            phases[netns] |= 1
            reply.append(one.met)
    return forward, reply


def compare_rules(
    outcomes: Iterable[FlowOutcome], traced: Sequence[Traced], story: Story, attempt: Attempt, *, backend: str
) -> list[str]:
    """Return how the rules of the nearest of these outcomes differ from those that the kernel met ([] if one agrees)."""
    forward, reply = ways(traced, story, attempt)
    names = tuple(dict.fromkeys(met.netns for met in (*forward, *reply)))
    return min(
        (
            [
                *_against("forward", one.forward, forward, names, backend),
                *(_against("reply", one.reply, reply, names, backend) if one.reply is not None else ()),
            ]
            for one in outcomes
        ),
        key=len,
        default=[],
    )


def _against(way: str, walk: Walk, real: Sequence[Met], names: Collection[str], backend: str) -> Iterator[str]:
    foretold = [
        Met(step.place.netns, step.place.table, step.place.chain, step.place.rule)
        for step in walk.steps
        if step.place.stage == Stage.NETFILTER and step.place.rule and step.place.backend == backend
    ]
    for name in dict.fromkeys((*names, *(met.netns for met in foretold))):
        ours, theirs = ([met for met in _once(mets) if met.netns == name] for mets in (foretold, real))
        for number, (mine, kernel) in enumerate(zip(ours, theirs, strict=False), 1):
            if mine != kernel:
                yield f"{way}: rule {number} in {name}: kernel {_text(kernel)}, simulator {_text(mine)}"
                break
        else:
            if len(ours) != len(theirs):
                more, who = (ours, "simulator") if len(ours) > len(theirs) else (theirs, "kernel")
                yield f"{way}: only the {who} meets {_text(more[min(len(ours), len(theirs))])} in {name}"


def _once(mets: Iterable[Met]) -> Iterator[Met]:
    """A rule that is told twice in a row (it matched, and it decided) counts once."""
    last = None
    for met in mets:
        if met != last:
            yield met
        last = met


def _text(met: Met) -> str:
    return f"{met.table}/{met.chain}#{met.rule}"
