"""Collects one network namespace: the one that this process is in.

Each section by itself: what fails is recorded in `missing` with its reason, and the rest goes on. Links, addresses, routes,
rules, neighbours, fdb and sockets come from the kernel by netlink, connections and the packet filter from the tools that
own them, settings from /proc/sys. The process must have one thread, and may do this once (pyroute2 keeps an event loop).
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from msgspec.structs import replace
from pyroute2 import DiagSocket, IPRoute
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError

from tasks.skoop.collect import diag, rtlinks, rtroutes
from tasks.skoop.collect.ctdump import dump_conntrack
from tasks.skoop.collect.details import with_details, with_objects
from tasks.skoop.collect.messages import Request
from tasks.skoop.collect.packetfilter import PROC_NET, read_ipsets, read_ipvs, read_packet_filter
from tasks.skoop.collect.peers import resolve_peers
from tasks.skoop.collect.settings import read_settings
from tasks.skoop.collect.tools import find_tool, run_tool
from tasks.skoop.errors import KubeprobeError
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import (
    ConntrackEntry,
    Interface,
    Missing,
    Neighbour,
    NetNS,
    NextHopObject,
    PolicyRule,
    Route,
    RouteException,
    Section,
    Socket,
)
from tasks.skoop.parse.conntrack import parse_conntrack
from tasks.skoop.parse.neighbours import parse_neighbours
from tasks.skoop.parse.routes import parse_exceptions

AF_INET, AF_INET6, AF_BRIDGE = 2, 10, 7
DUMP_TRIES = 5
_FAILURES = (OSError, NetlinkError, NetlinkDumpInterrupted, KubeprobeError, ValueError, KeyError)
"""How reading a section fails where the kernel, a tool or its output is not as expected."""

_Value = TypeVar("_Value")


class _Gaps:
    """Collects what could not be read."""

    def __init__(self) -> None:
        self.found: list[Missing] = []

    def note(self, section: Section, reason: str) -> None:
        self.found.append(Missing(section=section, reason=reason))

    def read(self, section: Section, read: Callable[[], tuple[_Value, ...]]) -> tuple[_Value, ...]:
        """Return what `read` returns; nothing, with a note, where it fails."""
        try:
            return read()
        except _FAILURES as error:
            self.note(section, _reason(error))
            return ()


def _reason(error: BaseException) -> str:
    if isinstance(error, KubeprobeError):
        return str(error)
    if isinstance(error, NetlinkDumpInterrupted):
        return f"it changed while it was read, {DUMP_TRIES} times"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"


def collect_namespace(request: Request, pids: Sequence[int]) -> NetNS:
    """Return the state of the network namespace that this process is in, named as the request says.

    `pids` are the processes that live in it, to tell whose a socket is.
    """
    gaps = _Gaps()
    with _netlink() as netlink:
        interfaces = gaps.read(Section.LINKS, lambda: _interfaces(netlink))
        names = {link.index: link.name for link in interfaces}
        interfaces = gaps.read(Section.LINKS, lambda: with_details(interfaces)) or interfaces
        if any(link.peer_index or link.lower_index for link in interfaces):
            interfaces = gaps.read(Section.LINKS, lambda: resolve_peers(netlink, interfaces, request)) or interfaces
        objects: list[NextHopObject] = []
        routes = gaps.read(Section.ROUTES, lambda: _routes(netlink, names, objects))
        rules = gaps.read(Section.RULES, lambda: _rules(netlink))
        neighbours = gaps.read(Section.NEIGHBOURS, lambda: _neighbours(netlink, names))
        fdb = gaps.read(Section.FDB, lambda: rtroutes.read_fdb(_dump(netlink.fdb, "dump"), names))
    tables, nft = read_packet_filter(
        lambda reason: gaps.note(Section.IPTABLES, reason), lambda reason: gaps.note(Section.NFT, reason)
    )
    sysctls = dict(gaps.read(Section.SYSCTLS, lambda: tuple(read_settings().items())))
    return NetNS(
        id=request.place.id,
        interfaces=interfaces,
        routes=routes,
        rules=rules,
        neighbours=neighbours,
        fdb=fdb,
        sockets=gaps.read(Section.SOCKETS, lambda: _sockets(names, pids)),
        conntrack=gaps.read(Section.CONNTRACK, lambda: _conntrack(sysctls)),
        sysctls=sysctls,
        tables=tables,
        nft=nft,
        ipsets=gaps.read(Section.IPSETS, read_ipsets),
        ipvs=gaps.read(Section.IPVS, read_ipvs),
        route_exceptions=gaps.read(Section.ROUTE_EXCEPTIONS, _exceptions),
        missing=tuple(gaps.found),
        nexthops=tuple(objects),
    )


@contextmanager
def _netlink() -> Iterator[Any]:
    netlink = IPRoute()
    try:
        yield netlink
    finally:
        netlink.close()


def _dump(ask: Callable[..., Iterable[Any]], *args: object, **options: object) -> list[Any]:
    """Return all messages of a dump; asked again where the kernel says that it changed meanwhile."""
    for _ in range(DUMP_TRIES - 1):
        try:
            return list(ask(*args, **options))
        except NetlinkDumpInterrupted:
            continue
    return list(ask(*args, **options))


def _interfaces(netlink: Any) -> tuple[Interface, ...]:  # noqa: ANN401 -- pyroute2 is untyped
    return rtlinks.read_interfaces(_dump(netlink.get_links), _dump(netlink.get_addr))


def _routes(netlink: Any, names: rtroutes.Names, objects: list[NextHopObject]) -> tuple[Route, ...]:  # noqa: ANN401
    messages = [message for family in (AF_INET, AF_INET6) for message in _dump(netlink.get_routes, family=family)]
    routes = rtroutes.read_routes(messages, names)
    if rtroutes.name_objects(messages):
        routes, found = with_objects(routes)
        objects += found
    return routes


def _rules(netlink: Any) -> tuple[PolicyRule, ...]:  # noqa: ANN401
    messages = [message for family in (AF_INET, AF_INET6) for message in _dump(netlink.get_rules, family=family)]
    return rtroutes.read_rules(messages)


def _neighbours(netlink: Any, names: rtroutes.Names) -> tuple[Neighbour, ...]:  # noqa: ANN401
    messages = [message for family in (AF_INET, AF_INET6) for message in _dump(netlink.get_neighbours, family=family)]
    # pyroute2 cannot ask for proxy entries, which the kernel gives in a dump of their own.
    proxies = parse_neighbours(run_tool(["ip", "-j", "neigh", "show", "proxy"]), "ip neigh show proxy")
    return (*rtroutes.read_neighbours(messages, names), *(replace(entry, proxy=True) for entry in proxies))


def _sockets(names: rtroutes.Names, pids: Sequence[int]) -> tuple[Socket, ...]:
    owners = diag.socket_owners(pids)
    socket = DiagSocket()
    try:
        messages: list[tuple[Protocol, Any]] = []
        for number, protocol, states in diag.KINDS:
            for family in (AF_INET, AF_INET6):
                found = _dump(socket.get_sock_stats, family=family, protocol=number, states=states)
                messages += [(protocol, message) for message in found]
    finally:
        socket.close()
    raw = [
        one
        for name in ("raw", "raw6")
        if (PROC_NET / name).exists()
        for one in diag.raw_sockets((PROC_NET / name).read_text(), owners)
    ]
    return (*diag.read_sockets(messages, names, owners), *raw)


def _conntrack(sysctls: dict[str, str]) -> tuple[ConntrackEntry, ...]:
    if sysctls.get("net/netfilter/nf_conntrack_count", "0") == "0":
        return ()
    if find_tool("conntrack") is None:
        return dump_conntrack()
    return tuple(
        entry
        for family in ("ipv4", "ipv6")
        for entry in parse_conntrack(run_tool(["conntrack", "-L", "-f", family]), f"conntrack -L -f {family}")
    )


def _exceptions() -> tuple[RouteException, ...]:
    return tuple(
        one
        for family in ("-4", "-6")
        for one in parse_exceptions(
            run_tool(["ip", "-j", family, "route", "show", "cache"]), f"ip {family} route show cache"
        )
    )


def processes_by_netns() -> dict[int, list[int]]:
    """Return inode of a network namespace → processes in it, as far as we may look."""
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 -- thousands of entries
        if name.isdigit():
            try:
                found.setdefault(os.stat(f"/proc/{name}/ns/net").st_ino, []).append(int(name))  # noqa: PTH116
            except OSError:
                continue
    return found
