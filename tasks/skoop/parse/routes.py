"""Where packets are sent: `ip -j [-d|-N] route show table all` and `ip -j rule`, IPv4 and IPv6.

Follows iproute2 5 to 6.15, which leaves out what is usual: no table is main, no type unicast, no protocol boot, no scope
global. Not printed as JSON by any version, hence not read: that a route's MTU is locked (`locked_mtus` reads it from the
text form).
"""

from collections.abc import Mapping

from msgspec import UNSET, Struct, UnsetType, field

from tasks.skoop.model.addr import Ip, Net, parse_ip, parse_net
from tasks.skoop.model.state import NextHop, PolicyRule, Route, RouteException
from tasks.skoop.parse.errors import ParseError
from tasks.skoop.parse.jsontext import read_rows
from tasks.skoop.parse.rtnames import ROUTE_TYPES, ip_protocol, route_protocol, route_type, scope_name, table_number

Number = int | str


class _Via(Struct):
    host: str


class _Hop(Struct):
    gateway: str | None = None
    via: _Via | None = None
    dev: str | None = None
    weight: int = 1
    flags: list[str] = []


class _Metrics(Struct):
    mtu: int = 0


class _Route(Struct):
    dst: str = ""
    type: Number = "unicast"
    src: str | None = field(name="from", default=None)
    gateway: str | None = None
    via: _Via | None = None
    dev: str | None = None
    table: Number = "main"
    protocol: Number = "boot"
    scope: Number = "global"
    prefsrc: str | None = None
    metric: int = 0
    tos: Number = 0
    flags: list[str] = []
    metrics: list[_Metrics] = []
    nexthops: list[_Hop] = []
    expires: int = 0
    pref: str | None = None
    nhid: int = 0


class _Rule(Struct):
    """A flag is printed as null, hence the unions with None: present means set."""

    priority: int
    src: str = "all"
    srclen: int | None = None
    dst: str = "all"
    dstlen: int | None = None
    iif: str | None = None
    oif: str | None = None
    fwmark: Number | None = None
    fwmask: Number | None = None
    tos: Number = 0
    table: Number | None = None
    action: Number | None = None
    goto: Number | None = None
    nop: bool | UnsetType | None = UNSET
    invert: bool | UnsetType | None = field(name="not", default=UNSET)
    l3mdev: bool | UnsetType | None = UNSET
    suppress_prefixlen: int = -1
    suppress_ifgroup: Number = -1
    uid_start: int | None = None
    uid_end: int | None = None
    ipproto: Number | None = None
    sport: int | None = None
    sport_start: int | None = None
    sport_end: int | None = None
    dport: int | None = None
    dport_start: int | None = None
    dport_end: int | None = None


TYPE_NAMES = frozenset(ROUTE_TYPES.values())

DEFAULT_RULES6 = (
    PolicyRule(family=6, priority=0, table=255),
    PolicyRule(family=6, priority=32766, table=254),
)
"""The rules that every network namespace with IPv6 starts with (fib6_rules_net_init, net/ipv6/fib6_rules.c)."""


def parse_routes(
    text: str,
    source: str = "ip-route-all.json",
    *,
    family: int | None = None,
    tables: Mapping[str, int] | None = None,
) -> tuple[Route, ...]:
    """Return the routes, in order; only those of `family` (4 or 6) if it is given, as one dump may hold both.

    `tables` are names of tables beyond main, local and default, with their numbers. Raises ParseError.
    """
    rows = [row for row in read_rows(text, _Route, source) if row.dst]
    try:
        return tuple(
            _route(row, version, tables or {}, source)
            for row in rows
            if (version := _version(row)) and (family is None or version == family)
        )
    except ValueError as error:
        raise ParseError(source, 1, 1, str(error)) from None


def parse_exceptions(text: str, source: str = "ip-route-cache.json") -> tuple[RouteException, ...]:
    """Return what `ip -j route show cache` remembers beyond the routes: path MTUs and redirects. Raises ParseError."""
    try:
        return tuple(
            RouteException(
                dst=parse_ip(row.dst.partition("/")[0]),
                dev=row.dev,
                via=_gateway(row),
                mtu=_mtu(row),
                expires_s=row.expires,
            )
            for row in read_rows(text, _Route, source)
            if row.dst and (_mtu(row) or "redirected" in row.flags)
        )
    except ValueError as error:
        raise ParseError(source, 1, 1, str(error)) from None


def parse_rules(
    text: str, source: str = "ip-rule.json", *, family: int = 4, tables: Mapping[str, int] | None = None
) -> tuple[PolicyRule, ...]:
    """Return the policy rules of one family, in order. Raises ParseError."""
    try:
        return tuple(_rule(row, family, tables or {}, source) for row in read_rows(text, _Rule, source))
    except ValueError as error:
        raise ParseError(source, 1, 1, str(error)) from None


def locked_mtus(text: str) -> frozenset[str]:
    """Return the destinations, as printed, of routes whose MTU is locked, from the text form of `ip route`."""
    return frozenset(
        words[0] if words[0] not in TYPE_NAMES else words[1]
        for words in (line.split() for line in text.splitlines() if " mtu lock " in line)
    )


def _version(row: _Route) -> int:
    """Return the family of a route: the kernel prints the router preference of every IPv6 route, and of no other."""
    return 6 if ":" in row.dst or row.pref is not None or ":" in (row.gateway or row.prefsrc or "") else 4


def _route(row: _Route, version: int, site: Mapping[str, int], source: str) -> Route:
    return Route(
        dst=_net(row.dst, version),
        table=_table(row.table, site, source),
        type=route_type(str(row.type)),
        nexthops=_nexthops(row),
        prefsrc=parse_ip(row.prefsrc) if row.prefsrc else None,
        src=_net(row.src, version) if row.src else None,
        scope=scope_name(str(row.scope)),
        protocol=route_protocol(str(row.protocol)),
        metric=row.metric,
        tos=_number(row.tos),
        mtu=_mtu(row),
        preference=row.pref or "medium",
        nhid=row.nhid,
    )


def _nexthops(row: _Route) -> tuple[NextHop, ...]:
    if row.nexthops:
        return tuple(_hop(hop) for hop in row.nexthops)
    if row.dev is None and row.gateway is None and row.via is None:
        return ()
    return (_hop(_Hop(gateway=row.gateway, via=row.via, dev=row.dev, flags=row.flags)),)


def _hop(hop: _Hop) -> NextHop:
    return NextHop(
        dev=hop.dev,
        via=_gateway(hop),
        weight=hop.weight,
        onlink="onlink" in hop.flags,
        dead="dead" in hop.flags,
        linkdown="linkdown" in hop.flags,
    )


def _gateway(hop: _Hop | _Route) -> Ip | None:
    text = hop.via.host if hop.via else hop.gateway
    return parse_ip(text) if text else None


def _mtu(row: _Route) -> int:
    return next((metrics.mtu for metrics in row.metrics if metrics.mtu), 0)


def _net(text: str, version: int) -> Net:
    if text in ("default", "all"):
        return Net("::/0" if version == 6 else "0.0.0.0/0")
    return parse_net(text)


def _number(value: Number) -> int:
    """Return a number printed plainly or as 0x…."""
    return value if isinstance(value, int) else int(value, 0)


def _table(value: Number, site: Mapping[str, int], source: str) -> int:
    number = table_number(str(value), site)
    if number is None:
        raise ParseError(
            source,
            1,
            1,
            f"routing table {value!r} has no number",
            "take the dump with ip -N, or add the file rt_tables",
        )
    return number


def _rule(row: _Rule, family: int, site: Mapping[str, int], source: str) -> PolicyRule:
    goto = row.goto if row.goto is not None and str(row.goto).isdigit() else None
    action = (
        route_type(str(row.action))
        if row.action
        else ("goto" if row.goto is not None else "nop" if row.nop is not UNSET else "lookup")
    )
    marked = row.fwmark is not None or row.fwmask is not None
    return PolicyRule(
        family=family,
        priority=row.priority,
        table=_table(row.table, site, source) if row.table is not None else 0,
        action=action,
        goto=int(goto) if goto is not None else 0,
        invert=row.invert is not UNSET,
        src=_selector(row.src, row.srclen),
        dst=_selector(row.dst, row.dstlen),
        iif=row.iif,
        oif=row.oif,
        fwmark=_number(row.fwmark or 0),
        fwmask=(0xFFFFFFFF if row.fwmask is None else _number(row.fwmask)) if marked else 0,
        tos=_number(row.tos),
        protocol=ip_protocol(str(row.ipproto)) if row.ipproto is not None else None,
        sports=_ports(row.sport, row.sport_start, row.sport_end),
        dports=_ports(row.dport, row.dport_start, row.dport_end),
        uids=(row.uid_start, row.uid_end) if row.uid_start is not None and row.uid_end is not None else None,
        l3mdev=row.l3mdev is not UNSET,
        suppress_prefixlength=row.suppress_prefixlen,
        suppress_ifgroup=_group(row.suppress_ifgroup),
    )


def _selector(text: str, length: int | None) -> Net | None:
    if text == "all":
        return None
    return parse_net(text if length is None else f"{text}/{length}")


def _ports(single: int | None, first: int | None, last: int | None) -> tuple[int, int] | None:
    if single is not None:
        return single, single
    return (first, last) if first is not None and last is not None else None


def _group(value: Number) -> int:
    """Return the number of an interface group; `default` is 0."""
    return 0 if value == "default" else _number(value)
