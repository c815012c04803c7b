"""Carries out a scenario in the kernel: builds it, sends real packets, and looks at what comes out and which rules counted."""

import select
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import replace

from lab.counters import parse_counters
from lab.netns import Netns
from lab.plan import Listener
from lab.prober import Ask, Attempt, attempt_all
from lab.servers import IP_PKTINFO, IPV6_RECVPKTINFO, Servers, _Open
from tasks.skoop.model.packet import Packet, Protocol
from tasks.skoop.model.state import ConntrackEntry, NetNS, Route
from tasks.skoop.model.trace import View
from tasks.skoop.model.xtables import Match, Target, XTable
from tasks.skoop.parse.conntrack import parse_conntrack
from tasks.skoop.parse.ipset import parse_ipset_save
from tasks.skoop.parse.iptables import parse_iptables_save
from tasks.skoop.parse.nexthops import parse_nexthops, resolve
from tasks.skoop.parse.routes import parse_routes, parse_rules
from tests.scenarios.building import built, filter_up, nft_counters, nft_tables
from tests.scenarios.frames import frame, read
from tests.scenarios.results import ICMP, Rule, Seen, connect_text, leaving_text
from tests.scenarios.scenario import BENCH, Connect, Inject, Listen, Scenario, Space
from tests.scenarios.state import netns_of, state_of
from tests.scenarios.tables import FILTER_KINDS, TRACKED_S

ETH_P_ALL, SO_BINDTODEVICE, IP_TRANSPARENT = 3, 25, 19
PACKET_OUTGOING = 4
SAVE = {
    "iptables": "iptables-legacy-save",
    "ip6tables": "ip6tables-legacy-save",
    "iptables-nft": "iptables-nft-save",
    "ip6tables-nft": "ip6tables-nft-save",
}
SETTLE_S = 0.01


class Performed:
    """The kernel as a runner. `patience_s` is how long a client waits; a late packet of a busy machine needs more.

    `surprises` is, after a run, how what stood there differed from the state that the simulator is given.
    """

    def __init__(self, folder: Path, *, patience_s: float = 0.12) -> None:
        self.lock = folder / "xtables.lock"
        self.patience_s = patience_s
        self.surprises: list[str] = []

    def run(self, scenario: Scenario) -> Sequence[Seen]:
        """Return what came of each trial."""
        with built(scenario, self.lock) as spaces, _served(scenario, spaces) as servers, _tapped(spaces[BENCH]) as taps:
            filter_up(scenario, spaces, self.lock)
            told = state_of(scenario)
            self.surprises = [
                surprise
                for name, space in scenario.spaces.items()
                if name != BENCH
                for surprise in (
                    *_surprises(space, spaces[name], told.netns[netns_of(name)], six=scenario.six),
                    *_other_surprises(space, spaces[name], told.netns[netns_of(name)]),
                )
            ]
            bench = _Bench(scenario, spaces, servers, taps, self.patience_s)
            return [bench.try_(trial.what) for trial in scenario.trials]


class _Bench:
    """One scenario that stands."""

    def __init__(
        self,
        scenario: Scenario,
        spaces: dict[str, Netns],
        servers: Servers,
        taps: Mapping[str, socket.socket],
        patience_s: float,
    ) -> None:
        self.scenario = scenario
        self.spaces = spaces
        self.servers = servers
        self.taps = taps
        self.patience_s = patience_s
        self.counted: Counter[Rule] = Counter()

    def try_(self, what: Connect | Inject) -> Seen:
        results = self._connect(what) if isinstance(what, Connect) else {self._inject(what): 1.0}
        now = Counter(dict(self._counts()))
        hit = frozenset((now - self.counted).keys())
        self.counted = now
        return Seen(results=results, rules=hit)

    def _connect(self, what: Connect) -> dict[str, float]:
        ask = Ask(
            src=what.netns,
            dst=what.dst,
            dport=what.dport,
            protocol="icmp" if what.protocol in ICMP else str(what.protocol),
            sport=what.sport,
            payload=what.payload or (32 if what.protocol == Protocol.UDP else 0),
            df=what.df,
            tos=what.tos,
            uid=what.uid,
            timeout_s=self.patience_s,
        )
        attempts = attempt_all([ask] * what.times, self.spaces, self.servers)
        seen = Counter(_attempt_text(attempt) for attempt in attempts)
        return {text: count / what.times for text, count in seen.items()}

    def _inject(self, what: Inject) -> str:
        device = self.scenario.spaces[what.netns].devices[what.dev]
        assert device.peer is not None
        bench, end = device.peer
        for tap in self.taps.values():
            _drain(tap)
        mac = self.scenario.spaces[bench].devices[end].mac
        self.taps[end].send(frame(what.packet, mac, device.mac))
        return leaving_text(list(self._caught(time.monotonic() + self.patience_s / 2)))

    def _caught(self, deadline: float) -> Iterator[tuple[str, str, Packet]]:
        """Yield what arrives on the bench; waits for the first packet, and a moment for more."""
        while (left := deadline - time.monotonic()) > 0:
            self.servers.turn()
            watched: list[socket.socket | int] = [*self.taps.values(), self.servers.fd]
            ready, _, _ = select.select(watched, [], [], left)
            for end, tap in self.taps.items():
                if tap in ready:
                    for packet in _drain(tap):
                        netns, _, dev = end.partition(".")
                        yield netns, dev, packet
                        deadline = min(deadline, time.monotonic() + SETTLE_S)

    def _counts(self) -> Iterator[tuple[Rule, int]]:
        for name, space in self.scenario.spaces.items():
            for command in space.filters:
                backend, family = FILTER_KINDS[command]
                for one in parse_counters(self.spaces[name].run([SAVE[command], "-c"]), backend):
                    if one.rule and one.packets:
                        yield (name, family, str(backend), one.table, one.chain, one.rule), one.packets
            if space.nft:
                for rule, packets in nft_counters(space, self.spaces[name]):
                    yield (name, *rule), packets


def _attempt_text(attempt: Attempt) -> str:
    view, icmp = attempt.view, attempt.icmp
    if (
        attempt.errno == "ENOBUFS"
    ):  # a drop by the next device, told only to sockets that ask for IP_RECVERR, as ours do
        view = View.TIMEOUT
    failed = view in (View.REFUSED, View.UNREACHABLE)
    blocked = attempt.errno == "EPERM"  # sendto() failed; the ICMP error that REJECT made besides is of no interest
    stalled = view == View.CONNECTED and attempt.answer == "none"
    broken = f"connected, then {attempt.answer}" if attempt.answer in ("reset", "eof") else ""
    return connect_text(
        view,
        errno=attempt.errno if failed else "",
        icmp=f"{icmp.type}/{icmp.code} by {icmp.sender}" if icmp and icmp.sender and failed and not blocked else "",
        local=attempt.local_ip,
        server=attempt.server,
        saw=attempt.seen_src,
        after="stalls" if stalled else broken,
    )


def _drain(tap: socket.socket) -> list[Packet]:
    found: list[Packet] = []
    while True:
        try:
            data, address = tap.recvfrom(1 << 16)
        except BlockingIOError:
            return found
        packet = read(data) if address[2] != PACKET_OUTGOING else None
        if packet is not None:
            found.append(packet)


@contextmanager
def _tapped(bench: Netns) -> Iterator[dict[str, socket.socket]]:
    taps: dict[str, socket.socket] = {}
    try:
        with bench.inside():
            for name in [line.partition(":")[0].strip() for line in bench.read_proc("dev").splitlines()[2:]]:
                if name != "lo":
                    taps[name] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
                    taps[name].bind((name, ETH_P_ALL))
                    taps[name].setblocking(False)
        yield taps
    finally:
        for tap in taps.values():
            tap.close()


# --- servers ---------------------------------------------------------------------------------------------------------


@contextmanager
def _served(scenario: Scenario, spaces: dict[str, Netns]) -> Iterator[Servers]:
    servers = Servers()
    fillers: list[socket.socket] = []
    try:
        for name, space in scenario.spaces.items():
            for listen in space.listeners:
                for address, v6only in listen.binds(six=scenario.six):
                    _open(servers, spaces[name], listen, address, v6only=v6only)
                if listen.full:
                    fillers.append(_fill(spaces[name], listen))
        yield servers
    finally:
        servers.close()
        for filler in fillers:
            filler.close()


def _open(servers: Servers, netns: Netns, listen: Listen, address: str, *, v6only: bool) -> None:
    six = ":" in address
    kind = socket.SOCK_STREAM if listen.protocol == "tcp" else socket.SOCK_DGRAM
    with netns.inside():
        sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, kind | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listen.shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
        if listen.protocol == "udp":
            option = (socket.IPPROTO_IPV6, IPV6_RECVPKTINFO) if six else (socket.IPPROTO_IP, IP_PKTINFO)
            sock.setsockopt(*option, 1)
        if listen.transparent:
            sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
        if listen.dev:
            sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, listen.dev.encode())
        sock.bind((address, listen.port))
        if listen.protocol == "tcp":
            sock.listen(0 if listen.full else 512)
    told = Listener(protocol=listen.protocol, port=listen.port, address=listen.address)
    servers._add(_Open(sock, netns.name, told), 0 if listen.full else select.EPOLLIN)


def _fill(netns: Netns, listen: Listen) -> socket.socket:
    """Take the one place in the accept queue of a server that does not accept."""
    with netns.inside():
        filler = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        filler.connect(("127.0.0.1", listen.port))
    return filler


# --- is what was built what the simulator is told? --------------------------------------------------------------------


def _surprises(space: Space, netns: Netns, told: NetNS, *, six: bool) -> Iterator[str]:
    real: set[Route] = set()
    objects = parse_nexthops(netns.run(["ip", "-j", "nexthop", "show"])) if space.nexthops else ()
    for family in (4, 6) if six else (4,):
        shown = parse_routes(netns.run(["ip", "-j", f"-{family}", "route", "show", "table", "all"]), family=family)
        real |= set(resolve(shown, objects))
        rules = parse_rules(netns.run(["ip", "-j", f"-{family}", "rule"]), family=family)
        if list(rules) != [rule for rule in told.rules if rule.family == family]:
            yield f"{space.name}: rules are {rules}"
    real = {replace(one, nexthops=()) if one.nhid and one.type == "blackhole" else one for one in real}
    for route in sorted(real ^ set(told.routes), key=str):
        yield f"{space.name}: {'only in the kernel' if route in real else 'not in the kernel'}: {route}"
    if space.nft and (listed := nft_tables(space, netns)) != told.nft:
        yield f"{space.name}: nft lists {listed}, not {told.nft}"
    for command in space.filters:
        backend, family = FILTER_KINDS[command]
        saved = parse_iptables_save(netns.run([SAVE[command]]), backend=backend, family=family)
        there = _meaning(saved)
        here = _meaning(table for table in told.tables if (table.backend, table.family) == (backend, family))
        for table, chain in sorted(there.keys() | here.keys()):
            if there.get((table, chain)) != here.get((table, chain)):
                meant = f"{there.get((table, chain))}, not {here.get((table, chain))}"
                yield f"{space.name} {command} {table}/{chain}: the kernel has {meant}"


def _other_surprises(space: Space, netns: Netns, told: NetNS) -> Iterator[str]:
    """Look at the sets and the old connections."""
    if space.ipsets:
        sets = parse_ipset_save(netns.run(["ipset", "save"]))
        for real, wanted in zip(sorted(sets, key=str), sorted(told.ipsets, key=str), strict=True):
            if replace(real, entries=()) != replace(wanted, entries=()) or set(real.entries) != set(wanted.entries):
                yield f"{space.name}: the set is {real}, not {wanted}"
    if space.tracked:
        listed = "".join(netns.run(["conntrack", "-L", "-f", family]) for family in ("ipv4", "ipv6"))
        there = {replace(one, timeout_s=TRACKED_S) for one in parse_conntrack(listed)}
        for one in sorted(there ^ {replace(one, state=_state(one)) for one in told.conntrack}, key=str):
            yield f"{space.name}: {'only in the kernel' if one in there else 'not in the kernel'}: {one}"


def _state(one: ConntrackEntry) -> str:
    return one.state or ("SYN_SENT" if one.protocol == Protocol.TCP else "")


Meaning = tuple[str, list[tuple[tuple[Match, ...], Target]]]


def _meaning(tables: Iterable[XTable]) -> dict[tuple[str, str], Meaning]:
    """Return what tables say, without how it is written."""
    return {
        (table.name, chain.name): (chain.policy, [(rule.matches, rule.target) for rule in chain.rules])
        for table in tables
        for chain in table.chains
    }
