"""Builds a world in the kernel that this process runs on, collects it, and tries its connections: a `Record`.

The same code runs on this machine's kernel and inside user-mode Linux (`uml`), so what either says can be compared with the
simulator by whoever reads the record.
"""

import os
import select
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from lab.netns import Netns
from lab.plan import Listener
from lab.prober import Ask, Attempt, attempt_all
from lab.servers import Servers, _Open
from tasks.skoop.collect.enter import enter_netns
from tasks.skoop.collect.messages import Place, Request
from tasks.skoop.collect.namespace import collect_namespace
from tasks.skoop.model.cluster import ClusterObjects, ClusterState
from tasks.skoop.model.state import NetNS
from tasks.skoop.model.trace import View
from tests.kernel.devices.world import PATIENCE_S, Serve, World, netns_of

SO_BINDTODEVICE, IP_PKTINFO, IPV6_RECVPKTINFO = 25, 8, 49
ARP_RETRY_MS = 40
READY_S = 4.0
IFA_F_TENTATIVE = 0x40
PORT = 40000
"""First source port: each connection gets its own, so that the simulator can be asked about the very same one."""
QUIET = {
    "ipv4/icmp_ratelimit": 0,
    "ipv4/icmp_ratemask": 0,
    "ipv6/icmp/ratelimit": 0,
    "ipv4/ping_group_range": "0 0",
    "ipv6/conf/all/accept_dad": 0,
    "ipv6/conf/default/accept_dad": 0,
    "ipv6/conf/default/router_solicitations": 0,
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 0,
}


_ONE_BY_ONE = "gso_max_segs 1"
"""Segments as they would be on a wire: a veth passes super-packets whatever its MTU."""


class Tried(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One connection: what was asked and what its client saw."""

    src: str
    dst: str
    protocol: str
    dport: int = 0
    sport: int = 0
    payload: int = 0
    df: bool = False
    view: View = View.UNKNOWN
    errno: str = ""
    icmp: tuple[int, int, str] | None = None
    answer: str = ""
    server: str = ""
    seen_src: str = ""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A world, perhaps with a fault, as it was collected, and what came of its connections."""

    world: str
    fault: str = ""
    kernel: str = ""
    netns: dict[str, NetNS] = {}
    tried: tuple[Tried, ...] = ()

    def state(self) -> ClusterState:
        """Return the collected cluster."""
        return ClusterState(objects=ClusterObjects(), netns=self.netns)  # type: ignore[arg-type]  # ids by construction


def perform(world: World, fault: str = "") -> Record:
    """Build the world with a fault ("": none), collect it, try its connections. Raises LabFailed where it cannot be built."""
    with _built(world, fault) as spaces, _served(world, spaces) as servers:
        netns = {name: _collected(space, spaces) for name, space in spaces.items()}
        patience_s = float(os.environ.get("PATIENCE_S", PATIENCE_S))
        asks = [
            replace(ask, sport=PORT + number if ask.protocol != "icmp" else 0, timeout_s=patience_s)
            for number, ask in enumerate(world.asks)
        ]
        attempts = attempt_all(asks, spaces, servers)
        for index, attempt in enumerate(attempts):
            if (
                attempt.view == View.TIMEOUT
            ):  # the machine was busy, or another's ARP request taught somebody: alone, then
                attempts[index] = replace(_alone(asks[index], spaces, servers), ask=asks[index])
    return Record(
        world=world.name,
        fault=fault,
        kernel=os.uname().release,
        netns=netns,
        tried=tuple(_tried(ask, attempt) for ask, attempt in zip(asks, attempts, strict=True)),
    )


def _alone(ask: Ask, spaces: dict[str, Netns], servers: Servers) -> Attempt:
    """Try one connection with nobody's neighbours known but those that were set by hand."""
    for netns in spaces.values():
        netns.run(["ip", "neigh", "flush", "all"])
    return attempt_all([replace(ask, sport=ask.sport and ask.sport + 1000)], spaces, servers)[0]


def _tried(ask: Ask, attempt: Attempt) -> Tried:
    icmp = attempt.icmp
    return Tried(
        src=ask.src,
        dst=ask.dst,
        protocol=ask.protocol,
        dport=ask.dport,
        sport=ask.sport,
        payload=ask.payload,
        df=ask.df,
        view=attempt.view,
        errno=attempt.errno,
        icmp=(icmp.type, icmp.code, icmp.sender) if icmp is not None else None,
        answer=attempt.answer,
        server=attempt.server,
        seen_src=attempt.seen_src,
    )


# --- building --------------------------------------------------------------------------------------------------------


@contextmanager
def _built(world: World, fault: str) -> Iterator[dict[str, Netns]]:
    spaces = {netns_of(name): Netns(netns_of(name)) for name in world.spaces}
    try:
        for netns in spaces.values():
            for key, value in QUIET.items():
                with suppress(OSError):
                    netns.sysctl(key, value)
            netns.run(["ip", "link", "set", "lo", "up"])
        lines = [line for cable in world.cables for line in _cable(spaces, *cable)]
        for space, line in [*lines, *world.lines, *world.faults.get(fault, [])]:
            netns = spaces[netns_of(space)]
            netns.run(["sh", "-ec", _with_descriptors(line, spaces)])
        for netns in spaces.values():
            _impatient(netns)
        _settle(spaces)
        yield spaces
    finally:
        for netns in spaces.values():
            netns.close()


def _cable(spaces: dict[str, Netns], one: tuple[str, str], two: tuple[str, str]) -> Iterator[tuple[str, str]]:
    far = f"/proc/{os.getpid()}/fd/{spaces[netns_of(two[0])].fd}"
    yield (
        one[0],
        f"ip link add name {one[1]} type veth peer name {two[1]} netns {far}; ip link set {one[1]} up {_ONE_BY_ONE}",
    )
    yield two[0], f"ip link set {two[1]} up {_ONE_BY_ONE}"


def _with_descriptors(line: str, spaces: dict[str, Netns]) -> str:
    """Put the files of namespaces for `netns NAME` in a line of `ip`."""
    words = line.split(" ")
    for index, word in enumerate(words[:-1]):
        if word == "netns" and netns_of(words[index + 1]) in spaces:
            words[index + 1] = f"/proc/{os.getpid()}/fd/{spaces[netns_of(words[index + 1])].fd}"
    return " ".join(words)


def _impatient(netns: Netns) -> None:
    """Let neighbour discovery fail quickly."""
    with netns.inside():
        for family in ("ipv4", "ipv6"):
            folder = Path("/proc/sys/net", family, "neigh")
            for dev in folder.iterdir() if folder.is_dir() else ():
                if dev.name not in ("default", "lo"):
                    (dev / "retrans_time_ms").write_text(str(ARP_RETRY_MS))


def _settle(spaces: dict[str, Netns]) -> None:
    """Wait until no IPv6 address is tentative, as far as devices that are up have carrier."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        flags = [line.split()[4] for netns in spaces.values() for line in netns.read_proc("if_inet6").splitlines()]
        if not any(int(one, 16) & IFA_F_TENTATIVE for one in flags):
            return
        time.sleep(0.02)


# --- collecting ------------------------------------------------------------------------------------------------------


def _collected(netns: Netns, spaces: dict[str, Netns]) -> NetNS:
    """Collect in a fork: pyroute2 keeps an event loop, and there may be one a process only."""
    places = [Place(one.name, f"/proc/{os.getpid()}/fd/{one.fd}") for one in spaces.values()]  # type: ignore[arg-type]
    own = next(place for place in places if place.id == netns.name)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            enter_netns(Path(own.path))
            request = Request(place=own, others=tuple(place for place in places if place is not own))
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(msgspec.msgpack.encode(collect_namespace(request, ())))
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    return msgspec.msgpack.decode(data, type=NetNS)


# --- servers ---------------------------------------------------------------------------------------------------------


@contextmanager
def _served(world: World, spaces: dict[str, Netns]) -> Iterator[Servers]:
    servers = Servers()
    try:
        for serve in world.serves:
            for address in [serve.address] if serve.address else ["0.0.0.0", "::"]:
                _open(servers, spaces[netns_of(serve.space)], serve, address)
        yield servers
    finally:
        servers.close()


def _open(servers: Servers, netns: Netns, serve: Serve, address: str) -> None:
    six = ":" in address
    kind = socket.SOCK_STREAM if serve.protocol == "tcp" else socket.SOCK_DGRAM
    with netns.inside():
        sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, kind | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if serve.protocol == "udp":
            option = (socket.IPPROTO_IPV6, IPV6_RECVPKTINFO) if six else (socket.IPPROTO_IP, IP_PKTINFO)
            sock.setsockopt(*option, 1)
        if serve.dev:
            sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, serve.dev.encode())
        sock.bind((address, serve.port))
        if serve.protocol == "tcp":
            sock.listen(64)
    told = Listener(protocol=serve.protocol, port=serve.port, address=serve.address)
    servers._add(_Open(sock, netns.name, told), select.EPOLLIN)


def cases(worlds: Sequence[World]) -> Iterator[tuple[World, str]]:
    """Yield every world healthy, then with each of its faults."""
    for world in worlds:
        yield world, ""
        for fault in world.faults:
            yield world, fault
