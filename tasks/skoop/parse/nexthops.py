"""Which nexthop objects there are: `ip -j nexthop show`.

Follows iproute2 5.3 to 6.15. A route that names an object mostly has its legs written out as well; what only the object tells is
that it is a blackhole, and its legs where net.ipv4.nexthop_compat_mode is off.
"""

from collections.abc import Iterable, Mapping

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from tasks.skoop.errors import KubeprobeError
from tasks.skoop.model.addr import parse_ip
from tasks.skoop.model.state import NextHop, NextHopObject, Route
from tasks.skoop.parse.errors import ParseError
from tasks.skoop.parse.jsontext import read_rows


class _Member(Struct):
    id: int
    weight: int = 1


class _Via(Struct):
    host: str = ""


class _Object(Struct):
    """Flags are printed as null: present means set."""

    id: int
    gateway: str | None = None
    via: str | _Via | None = None
    dev: str | None = None
    group: list[_Member] = []
    flags: list[str] = []
    blackhole: bool | UnsetType | None = UNSET
    fdb: bool | UnsetType | None = UNSET


def parse_nexthops(text: str, source: str = "ip-nexthop.json") -> tuple[NextHopObject, ...]:
    """Return the nexthop objects, in order. Raises ParseError."""
    try:
        return tuple(_object(row) for row in read_rows(text, _Object, source))
    except ValueError as error:
        raise ParseError(source, 1, 1, str(error)) from None


def _object(row: _Object) -> NextHopObject:
    far = row.via.host if isinstance(row.via, _Via) else row.via
    gateway = row.gateway or far
    leg = NextHop(
        dev=row.dev,
        via=parse_ip(gateway) if gateway else None,
        onlink="onlink" in row.flags,
        dead="dead" in row.flags,
        linkdown="linkdown" in row.flags,
    )
    return NextHopObject(
        id=row.id,
        nexthop=leg if row.dev or gateway else None,
        group=tuple((member.id, member.weight) for member in row.group),
        blackhole=row.blackhole is not UNSET,
        fdb=row.fdb is not UNSET,
    )


class UnresolvedNexthop(KubeprobeError):
    """A route says only which nexthop object it uses, and that object is not in the dump."""

    def __init__(self, dst: str, number: int) -> None:
        self.dst = dst
        self.number = number
        super().__init__(f"the route to {dst} goes by nexthop object {number}; add `ip -j nexthop show` to the dumps")


def resolve(routes: Iterable[Route], objects: Iterable[NextHopObject]) -> tuple[Route, ...]:
    """Return the routes with what their nexthop objects say: legs where they have none, and blackhole as their type.

    Raises UnresolvedNexthop for a route without legs whose object is not there.

    Source: fib_create_info and fib_table_lookup (net/ipv4/fib_semantics.c, fib_trie.c): a blackhole object discards at once.
    """
    by_id = {one.id: one for one in objects}
    return tuple(_resolved(route, by_id) for route in routes)


def _resolved(route: Route, by_id: Mapping[int, NextHopObject]) -> Route:
    found = by_id.get(route.nhid)
    if found is None:
        if route.nhid and not route.nexthops and route.type == "unicast":
            raise UnresolvedNexthop(route.dst, route.nhid)
        return route
    members = [by_id[number] for number, _ in found.group if number in by_id] or [found]
    if all(member.blackhole for member in members):
        return replace(route, type="blackhole", nexthops=())
    if route.nexthops:
        return route
    weights = dict(found.group)
    legs = tuple(
        replace(member.nexthop, weight=weights.get(member.id, 1)) for member in members if member.nexthop is not None
    )
    return replace(route, nexthops=legs)
