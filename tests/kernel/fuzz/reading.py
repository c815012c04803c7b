"""What a scenario made of a namespace, read again quickly: only the sections that were touched, by the product's own readers.

The readers of `tasks.skoop.collect` are given what pyroute2 makes of rtnetlink messages; here every distinct message is decoded
once and kept, without the parts that move by themselves (statistics, timers), and no event loop is run. Of iptables only the
tables that were edited are saved and parsed, of /proc/sys only the settings of a name that was written.
"""

from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Any

from msgspec.structs import replace
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from lab import rtnl
from lab.errors import LabFailed
from lab.netns import Netns
from tasks.skoop.collect import namespace as collected
from tasks.skoop.collect.packetfilter import read_ipsets, read_packet_filter
from tasks.skoop.collect.rtroutes import _neighbour as one_neighbour
from tasks.skoop.collect.rtroutes import read_fdb, read_neighbours
from tasks.skoop.collect.settings import read_settings
from tasks.skoop.collect.tools import run_tool
from tasks.skoop.model.state import Neighbour, NetNS
from tasks.skoop.model.xtables import Backend, XTable
from tasks.skoop.parse.iptables import parse_iptables_save
from tests.kernel.fuzz.change import LINKS, NEIGHBOURS, PORTS, ROUTES, ROUTING, SETS, SOCKETS, SYSCTLS, TABLES

RTM_GETADDR, RTM_GETROUTE, RTM_GETNEIGH, RTM_GETRULE = 22, 26, 30, 34
NTF_PROXY = 8
_IFLA_LINKINFO, _INFO_DATA, _INFO_SLAVE_DATA = 18, 2, 5
_MOVING_LINK = frozenset((7, 23, 26, 47, 48, 54, 12))
"""IFLA_STATS, IFLA_STATS64, IFLA_AF_SPEC (statistics of IPv6), carrier counts and IFLA_PROTINFO: of no use to the readers."""
_MOVING_BRIDGE, _MOVING_PORT = frozenset((16, 17, 18, 19)), frozenset((21, 22, 23))
"""Timers of a bridge (IFLA_BR_*_TIMER) and of a bridge port (IFLA_BRPORT_*_TIMER)."""
_NDA_CACHEINFO = 3


class Netlink:
    """Dumps of one namespace; the methods are those of pyroute2's IPRoute that the readers call."""

    def __init__(self, netns: Netns) -> None:
        self._rtnl = netns.rtnl

    def get_links(self) -> list[Any]:
        """Return the messages of RTM_GETLINK."""
        return [_link(_calm_link(body)) for body in self._rtnl.dump(rtnl.RTM_GETLINK, rtnl.ifinfo())]

    def get_addr(self) -> list[Any]:
        """Return the messages of RTM_GETADDR."""
        return [_address(body) for body in self._rtnl.dump(RTM_GETADDR, bytes(8))]

    def get_routes(self, *, family: int) -> list[Any]:
        """Return the messages of RTM_GETROUTE."""
        return [_route(body) for body in self._rtnl.dump(RTM_GETROUTE, bytes([family]) + bytes(11))]

    def get_rules(self, *, family: int) -> list[Any]:
        """Return the messages of RTM_GETRULE."""
        return [_rule(body) for body in self._rtnl.dump(RTM_GETRULE, bytes([family]) + bytes(11))]

    def get_neighbours(self, *, family: int) -> list[Any]:
        """Return the messages of RTM_GETNEIGH."""
        return [_neighbour(_calm(body)) for body in self._rtnl.dump(RTM_GETNEIGH, bytes([family]) + bytes(11))]

    def fdb(self, command: str) -> list[Any]:
        """Return the forwarding entries."""
        del command
        return self.get_neighbours(family=rtnl.AF_BRIDGE)

    def proxies(self, family: int) -> list[Any]:
        """Return the proxy entries, which the kernel gives in a dump of their own."""
        head = bytes([family]) + bytes(9) + bytes([NTF_PROXY, 0])
        return [_neighbour(_calm(body)) for body in self._rtnl.dump(RTM_GETNEIGH, head)]


def _decoded(kind: type[Any], number: int, body: bytes) -> Any:  # noqa: ANN401 -- pyroute2's messages are untyped
    message = kind((16 + len(body)).to_bytes(4, "little") + number.to_bytes(2, "little") + bytes(10) + body)
    message.decode()
    return message


@lru_cache(maxsize=4096)
def _link(body: bytes) -> Any:  # noqa: ANN401
    return _decoded(ifinfmsg, 16, body)


@lru_cache(maxsize=4096)
def _address(body: bytes) -> Any:  # noqa: ANN401
    return _decoded(ifaddrmsg, 20, body)


@lru_cache(maxsize=16384)
def _route(body: bytes) -> Any:  # noqa: ANN401
    return _decoded(rtmsg, 24, body)


@lru_cache(maxsize=4096)
def _rule(body: bytes) -> Any:  # noqa: ANN401
    return _decoded(fibmsg, 32, body)


@lru_cache(maxsize=4096)
def _neighbour(body: bytes) -> Any:  # noqa: ANN401
    return _decoded(ndmsg, 28, body)


def _calm(body: bytes) -> bytes:
    """Leave out when a neighbour was last used."""
    kept = (rtnl.attr(kind, value) for kind, value in rtnl.attributes(body[12:]) if kind != _NDA_CACHEINFO)
    return body[:12] + b"".join(kept)


def _calm_link(body: bytes) -> bytes:
    """Leave out statistics and timers."""
    return body[:16] + b"".join(_calm_attributes(body[16:]))


def _calm_attributes(data: bytes) -> Iterator[bytes]:
    for kind, value in rtnl.attributes(data):
        if kind == _IFLA_LINKINFO:
            yield rtnl.attr(kind, b"".join(_calm_info(value)))
        elif kind not in _MOVING_LINK:
            yield rtnl.attr(kind, value)


def _calm_info(data: bytes) -> Iterator[bytes]:
    inner = dict(rtnl.attributes(data))
    for kind, value in inner.items():
        moving: frozenset[int] = frozenset()
        if kind == _INFO_DATA and inner.get(1, b"").startswith(b"bridge\0"):
            moving = _MOVING_BRIDGE
        elif kind == _INFO_SLAVE_DATA and inner.get(4, b"").startswith(b"bridge\0"):
            moving = _MOVING_PORT
        kept = (
            [rtnl.attr(one, what) for one, what in rtnl.attributes(value) if one not in moving] if moving else [value]
        )
        yield rtnl.attr(kind, b"".join(kept))


def read_again(
    netns: Netns,
    before: NetNS,
    parts: Collection[str],
    *,
    settings: Collection[str] = (),
    tables: Collection[tuple[str, str]] = (),
) -> NetNS:
    """Return the namespace as it is now; only the sections in `parts` are read.

    `settings` are the names of sysctls that were written; `tables` the (back end, table) of iptables (family 4 or 6 by the back end's
    name: `legacy`, `nft`) that were edited, where nothing else of the packet filter was touched (TABLES not in `parts`).
    """
    now = _links_again(netns, before, parts) if ROUTING & set(parts) else before
    with netns.inside():
        if SYSCTLS in parts:
            now = replace(now, sysctls={**now.sysctls, **read_settings(named=settings)})
        if TABLES in parts:
            said: list[str] = []
            found, nft = read_packet_filter(said.append, said.append)
            if said:
                raise LabFailed("collecting rules", "; ".join(said))
            now = replace(now, tables=found, nft=nft)
        elif tables:
            now = replace(now, tables=_tables_again(now.tables, tables))
        if SETS in parts:
            now = replace(now, ipsets=read_ipsets())
        if SOCKETS in parts:
            names = {link.index: link.name for link in now.interfaces}
            now = replace(now, sockets=collected._sockets(names, ()))
    return now


def _tables_again(before: tuple[XTable, ...], edited: Collection[tuple[str, str]]) -> tuple[XTable, ...]:
    kept = {(str(table.backend), table.family, table.name): table for table in before}
    for backend, name in sorted(edited):
        family, program = (6, "ip6tables") if backend.endswith("6") else (4, "iptables")
        plain = backend.rstrip("6")
        text = run_tool([f"{program}-{plain}-save", "-t", name])
        for table in parse_iptables_save(text, backend=Backend(plain), family=family, source=program):
            kept[plain, family, table.name] = table
    return tuple(kept.values())


def _links_again(netns: Netns, before: NetNS, parts: Collection[str]) -> NetNS:
    """Read links, addresses, routes, rules, neighbours and forwarding entries again."""
    netlink, now, touched = Netlink(netns), before, set(parts)
    if touched & {LINKS, PORTS}:
        peers = {link.name: link.peer for link in before.interfaces}
        links = (replace(link, peer=peers.get(link.name)) for link in collected._interfaces(netlink))
        now = replace(now, interfaces=tuple(links))
    names = {link.index: link.name for link in now.interfaces}
    if touched & {LINKS, PORTS, ROUTES}:
        now = replace(now, routes=collected._routes(netlink, names, []), rules=collected._rules(netlink))
    if touched & {LINKS, NEIGHBOURS}:
        now = replace(now, neighbours=_neighbours(netlink, names), fdb=read_fdb(netlink.fdb("dump"), names))
    return now


def _neighbours(netlink: Netlink, names: dict[int, str]) -> tuple[Neighbour, ...]:
    known = [message for family in (2, 10) for message in netlink.get_neighbours(family=family)]
    proxies = [message for family in (2, 10) for message in netlink.proxies(family)]
    return (
        *read_neighbours(known, names),
        *(replace(one_neighbour(message, names), proxy=True) for message in proxies),
    )
