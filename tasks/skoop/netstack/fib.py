"""Which route does the kernel take for this flow? (policy rules, longest prefix, multipath, source address)

Follows fib_rules_lookup (net/core/fib_rules.c), fib_table_lookup (net/ipv4/fib_trie.c), fib_select_multipath and
inet_select_addr (net/ipv4). Of IPv6, fib6_rule_lookup with the same shape; RFC 6724 source selection is cut down to scope,
deprecation and longest common prefix. Left out: TOS in rules' DSCP form, realms, nexthop objects that were not resolved.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from msgspec import Struct
from msgspec.structs import replace

from tasks.skoop.model.addr import Ip, Net, bounds, contains, ip_int, ip_version, is_link_local, is_loopback, parse_net
from tasks.skoop.model.packet import Packet, Protocol
from tasks.skoop.model.state import Address, Interface, NextHop, PolicyRule, Route

LOCAL_TABLE = 255
MAIN_TABLE = 254
DEFAULT_TABLE = 253

_SCOPE_ORDER = {"global": 0, "universe": 0, "site": 200, "link": 253, "host": 254, "nowhere": 255}

FOR_US = ("local", "broadcast", "anycast", "multicast")
"""Types of routes whose packets are for this host."""

# What each route or rule type that is not a way gives as errno (fib_props, net/ipv4/fib_semantics.c; fib4_rule_action).
ROUTE_ERRNO = {"unreachable": "EHOSTUNREACH", "blackhole": "EINVAL", "prohibit": "EACCES"}
RULE_ERRNO = {"unreachable": "ENETUNREACH", "blackhole": "EINVAL", "prohibit": "EACCES"}


_DSCP = 0xFC
"""The bits of the TOS octet that routes and rules look at (INET_DSCP_MASK; routes of older kernels see 0x1C of them alone)."""


class FlowKey(Struct, frozen=True, kw_only=True):
    """What a lookup is made with (struct flowi4). `iif` "" means locally made, `oif` "" unbound; `src` None unspecified."""

    dst: Ip
    src: Ip | None = None
    iif: str = ""
    oif: str = ""
    mark: int = 0
    protocol: Protocol | None = None
    sport: int = 0
    dport: int = 0
    uid: int | None = None
    tos: int = 0
    vrf: str = ""
    """The VRF that the flow is in (flowi_l3mdev); `lookup` sets it for one that is bound to it."""

    @classmethod
    def of(cls, packet: Packet, *, iif: str = "", oif: str = "") -> "FlowKey":
        """Return the key of a packet as routing sees it."""
        return cls(
            dst=packet.dst,
            src=packet.src,
            iif=iif,
            oif=oif,
            mark=packet.mark,
            protocol=packet.protocol,
            sport=packet.sport,
            dport=packet.dport,
            tos=packet.tos,
        )


class Leg(Struct, frozen=True, kw_only=True):
    """One usable next hop of a found route, with its share among the legs."""

    nexthop: NextHop
    share: float = 1.0

    @property
    def dev(self) -> str:
        """The device the leg leaves by ("" for a route without one)."""
        return self.nexthop.dev or ""


class Found(Struct, frozen=True, kw_only=True):
    """A lookup that ended at a route; `legs` is empty for types that are no way out. `errno` set: the flow is refused."""

    route: Route | None
    rule: PolicyRule
    legs: tuple[Leg, ...] = ()
    errno: str = ""

    @property
    def type(self) -> str:
        """The route's type, or the rule's action where the rule refused."""
        return self.route.type if self.route else self.rule.action


@dataclass(frozen=True, slots=True)
class Table:
    """Routes of one table by prefix length, longest first, and within by network number."""

    lengths: tuple[tuple[int, int, dict[int, tuple[Route, ...]]], ...]

    @classmethod
    def build(cls, routes: Iterable[Route], width: int) -> "Table":
        """Sort routes of one table and family; `width` is 32 or 128."""
        by_length: dict[int, dict[int, list[Route]]] = {}
        for route in routes:
            box = bounds(route.dst)
            by_length.setdefault(box.length, {}).setdefault(box.first, []).append(route)
        return cls(
            lengths=tuple(
                (
                    length,
                    width - length,
                    {
                        first: tuple(sorted(group, key=lambda route: (-route.table, -route.tos, route.metric)))
                        for first, group in nets.items()
                    },
                )
                for length, nets in sorted(by_length.items(), reverse=True)
            )
        )

    def candidates(self, number: int) -> Iterable[tuple[int, Route]]:
        """Yield the routes whose prefix holds the address, best first, with their prefix lengths."""
        for length, shift, nets in self.lengths:
            for route in nets.get(number >> shift << shift, ()):
                yield length, route


DEFAULT_RULES = {
    4: (
        PolicyRule(family=4, priority=0, table=LOCAL_TABLE),
        PolicyRule(family=4, priority=32766, table=MAIN_TABLE),
        PolicyRule(family=4, priority=32767, table=DEFAULT_TABLE),
    ),
    6: (
        PolicyRule(family=6, priority=0, table=LOCAL_TABLE),
        PolicyRule(family=6, priority=32766, table=MAIN_TABLE),
    ),
}


class Router:
    """Routes and rules of one namespace and one family, ready for lookups."""

    def __init__(
        self, family: int, routes: Sequence[Route], rules: Sequence[PolicyRule], interfaces: Sequence[Interface]
    ) -> None:
        self.family = family
        width = 32 if family == 4 else 128
        mine = [route for route in routes if ip_version(route.dst) == family]
        tables = {route.table for route in mine}
        self._tables = {
            number: Table.build((route for route in mine if route.table == number), width) for number in tables
        }
        own = tuple(sorted((rule for rule in rules if rule.family == family), key=lambda rule: rule.priority))
        self.rules = own or DEFAULT_RULES[family]
        self.custom_rules = self.rules != DEFAULT_RULES[family]
        self.custom_locals = any(route.type == "local" and route.protocol != "kernel" for route in mine)
        self._interfaces = {link.name: link for link in interfaces}
        if family == 4 and not self.custom_rules and LOCAL_TABLE in self._tables:
            # Until a rule is added the kernel keeps both in one trie: the longest prefix wins (fib_trie_table, fib_unmerge).
            both = (route for route in mine if route.table in (LOCAL_TABLE, MAIN_TABLE))
            self._merged: Table | None = Table.build(both, width)
        else:
            self._merged = None
        self._by_tos = any(route.tos for route in mine)
        self._vrfs = frozenset(link.name for link in interfaces if link.vrf_table is not None)
        self._plain = all(
            rule.action == "lookup" and not _selective(rule) and rule.suppress_prefixlength < 0 for rule in self.rules
        )
        self._cache: dict[tuple[Ip, str, int], Found | None] = {}

    def lookup(self, key: FlowKey, *, ignore_linkdown: frozenset[str] = frozenset()) -> Found | None:
        """Return the route for a flow, or None if no rule leads to one (ENETUNREACH).

        `ignore_linkdown` names the devices with ignore_routes_with_linkdown set. A flow bound to a VRF may leave by any of its
        devices (l3mdev_update_flow, net/l3mdev/l3mdev.c).
        """
        if key.oif in self._vrfs:
            key = replace(key, oif="", vrf=key.oif)
        if self._plain and not ignore_linkdown:  # nothing but destination and bound device decides: remember it
            slot = (key.dst, key.oif, key.tos if self._by_tos else 0)
            if slot not in self._cache:
                self._cache[slot] = self._lookup(key, ignore_linkdown)
            return self._cache[slot]
        return self._lookup(key, ignore_linkdown)

    def _lookup(self, key: FlowKey, ignore_linkdown: frozenset[str]) -> Found | None:
        number = ip_int(key.dst)
        skip_until = -1
        for rule in self.rules:
            if rule.priority < skip_until or not _rule_matches(rule, key):
                continue
            if rule.action == "goto":
                skip_until = rule.goto
                continue
            if rule.action == "nop":
                continue
            if rule.action != "lookup":
                return Found(route=None, rule=rule, errno=RULE_ERRNO.get(rule.action, "EINVAL"))
            found = self._lookup_table(rule, key, number, ignore_linkdown)
            if found is not None:
                return found
        return None

    def _lookup_table(
        self, rule: PolicyRule, key: FlowKey, number: int, ignore_linkdown: frozenset[str]
    ) -> Found | None:
        table = self._tables.get(self._table_of(rule, key))
        if self._merged is not None and rule.table == LOCAL_TABLE:
            table = self._merged
        if table is None:
            return None
        for length, route in table.candidates(number):
            if route.tos and route.tos != key.tos & _DSCP:
                continue
            if route.src is not None and key.src is not None and not contains(route.src, key.src):
                continue
            if route.type == "throw":
                return None
            if route.type in ROUTE_ERRNO:
                return Found(route=route, rule=rule, errno=ROUTE_ERRNO[route.type])
            legs = self._legs(route, key, ignore_linkdown)
            if not legs:
                continue
            if length <= rule.suppress_prefixlength:
                return None
            if rule.suppress_ifgroup >= 0 and self._group(legs[0].dev) == str(rule.suppress_ifgroup):
                return None
            asked = rule if route.table in (rule.table, LOCAL_TABLE) or self._merged is None else self.rules[1]
            return Found(route=route, rule=asked, legs=legs)
        return None

    def _table_of(self, rule: PolicyRule, key: FlowKey) -> int:
        if not rule.l3mdev:
            return rule.table
        for name in (key.vrf, key.iif, key.oif):
            link = self._interfaces.get(name)
            master = self._interfaces.get(link.master or "") if link else None
            for candidate in (link, master):
                if candidate is not None and candidate.vrf_table is not None:
                    return candidate.vrf_table
        return -1

    def _group(self, dev: str) -> str:
        link = self._interfaces.get(dev)
        return link.group if link else ""

    def _legs(self, route: Route, key: FlowKey, ignore_linkdown: frozenset[str]) -> tuple[Leg, ...]:
        usable = [
            hop
            for hop in route.nexthops
            if not hop.dead
            and (not key.oif or hop.dev == key.oif)
            and not (self._linkdown(hop) and hop.dev in ignore_linkdown)
        ]
        total = sum(hop.weight for hop in usable)
        return tuple(Leg(nexthop=hop, share=hop.weight / total) for hop in usable)

    def _linkdown(self, hop: NextHop) -> bool:
        link = self._interfaces.get(hop.dev or "")
        return hop.linkdown or (link is not None and not link.carrier)

    def type_of(self, ip: Ip) -> str:
        """Return the type of an address by the local table and then the rest (inet_addr_type): LOCAL, UNICAST, …"""
        found = self.lookup(FlowKey(dst=ip))
        return found.type if found and found.route else "unicast"

    def local_types(self, ip: Ip) -> str | None:
        """Return the type of the address in the local table alone, or None (inet_addr_type)."""
        table = self._tables.get(LOCAL_TABLE)
        if table is None:
            return None
        return next((route.type for _, route in table.candidates(ip_int(ip))), None)

    def local_devs(self, ip: Ip) -> frozenset[str]:
        """Return the devices whose local routes hold the address."""
        table = self._tables.get(LOCAL_TABLE)
        if table is None:
            return frozenset()
        return frozenset(
            hop.dev or ""
            for _, route in table.candidates(ip_int(ip))
            if route.type == "local"
            for hop in route.nexthops
        )


def _selective(rule: PolicyRule) -> bool:
    return bool(
        rule.src
        or rule.dst
        or rule.iif
        or rule.oif
        or rule.fwmark
        or rule.fwmask
        or rule.protocol
        or rule.sports
        or rule.dports
        or rule.uids
        or rule.l3mdev
        or rule.invert
        or rule.tos
    )


def _rule_matches(rule: PolicyRule, key: FlowKey) -> bool:
    if not _selective(rule):
        return True
    return _selectors_match(rule, key) != rule.invert


def _selectors_match(rule: PolicyRule, key: FlowKey) -> bool:
    """fib_rule_match and fib4_rule_match: every selector that is set must agree."""
    if rule.iif and (key.iif or "lo") != rule.iif:
        return False
    if rule.oif and key.oif != rule.oif:
        return False
    if (rule.fwmark ^ key.mark) & rule.fwmask:
        return False
    if rule.uids and (key.uid is None or not rule.uids[0] <= key.uid <= rule.uids[1]):
        return False
    if rule.src and rule.src not in ("0.0.0.0/0", "::/0") and (key.src is None or not contains(rule.src, key.src)):
        return False
    if rule.dst and not contains(rule.dst, key.dst):
        return False
    if rule.protocol and key.protocol != rule.protocol:
        return False
    if rule.sports and not rule.sports[0] <= key.sport <= rule.sports[1]:
        return False
    if rule.dports and not rule.dports[0] <= key.dport <= rule.dports[1]:
        return False
    return rule.tos in (0, key.tos & _DSCP)


def usable_addresses(link: Interface, family: int) -> Iterable[Address]:
    """Yield the addresses of a device in one family that it may use as a source."""
    for address in link.addresses:
        if ip_version(address.ip) == family and not address.tentative and not address.dadfailed:
            yield address


def select_source(interfaces: Sequence[Interface], dev: str, towards: Ip, scope: str = "link") -> Ip | None:
    """Return the source address for a packet that leaves by `dev`, or None if the namespace has none fit.

    IPv4: the first primary address of the device whose subnet holds `towards`, else its first one of fitting scope, else the
    first of another device that is not of link scope. IPv6: the address of best fit by RFC 6724 rules 2, 3 and 8.

    Source: inet_select_addr, net/ipv4/devinet.c; ipv6_dev_get_saddr, net/ipv6/addrconf.c.
    """
    if ip_version(towards) == 6:
        return _select_source6(interfaces, dev, towards)
    limit = _SCOPE_ORDER.get(scope, 253)
    first: Ip | None = None
    link = next((link for link in interfaces if link.name == dev), None)
    if link is not None:
        for address in usable_addresses(link, 4):
            if address.secondary or _SCOPE_ORDER.get(address.scope, 0) > limit:
                continue
            if contains(subnet_of(address), towards):
                return address.ip
            first = first or address.ip
    if first is not None:
        return first
    for other in interfaces:
        for address in usable_addresses(other, 4):
            order = _SCOPE_ORDER.get(address.scope, 0)
            if not address.secondary and order != 253 and order <= limit:
                return address.ip
    return None


def subnet_of(address: Address) -> Net:
    """Return the network that an address is in: its peer's where it has one."""
    return parse_net(f"{address.peer or address.ip}/{address.prefixlen}")


def _scope6(ip: Ip) -> int:
    if is_loopback(ip):
        return 1
    return 2 if is_link_local(ip) else 14


def _select_source6(interfaces: Sequence[Interface], dev: str, towards: Ip) -> Ip | None:
    wanted = _scope6(towards)
    best: tuple[tuple[int, ...], Ip] | None = None
    for link in interfaces:
        for address in usable_addresses(link, 6):
            scope = _scope6(address.ip)
            if scope != 14 and link.name != dev:
                continue
            common = 128 - (ip_int(address.ip) ^ ip_int(towards)).bit_length()
            score = (
                int(address.ip == towards),
                -(scope - wanted) if scope >= wanted else scope - wanted - 100,
                int(not address.deprecated),
                int(link.name == dev),
                common,
            )
            if best is None or score > best[0]:
                best = (score, address.ip)
    return best[1] if best else None
