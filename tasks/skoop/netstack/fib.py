"""Which route does the kernel take for this flow? (policy rules, longest prefix, multipath, source address)

Follows fib_rules_lookup (net/core/fib_rules.c), fib_table_lookup (net/ipv4/fib_trie.c), fib_select_multipath and
inet_select_addr (net/ipv4). Of IPv6, fib6_rule_lookup with the same shape, find_rr_leaf and ipv6_dev_get_saddr. Left out: rules by
full DSCP, flow label or tunnel key, realms, address labels other than the kernel's own, a socket's preferences among addresses,
home addresses (their rule is only in kernels with CONFIG_IPV6_MIP6=y).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from msgspec import Struct
from msgspec.structs import replace

from tasks.skoop.model.addr import (
    Ip,
    Net,
    bounds,
    contains,
    ip_int,
    ip_version,
    is_link_local,
    is_loopback,
    is_multicast,
    parse_net,
)
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


_RT_TOS_MASK, _DSCP_MASK = 0x1C, 0xFC
"""What routing sees of the TOS octet: IPTOS_RT_MASK (fib_dscp_masked_match); IPv6 the whole DSCP."""


class FlowKey(Struct, frozen=True, gc=False, kw_only=True):
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
    rather: bool = False
    """Whether `oif` is only preferred where routes are equal (without RT6_LOOKUP_F_IFACE); rules compare it all the same."""
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
            uid=packet.uid,
            tos=packet.tos,
        )


class Leg(Struct, frozen=True, gc=False, kw_only=True):
    """One usable next hop of a found route, with its share among the legs."""

    nexthop: NextHop
    share: float = 1.0

    @property
    def dev(self) -> str:
        """The device the leg leaves by ("" for a route without one)."""
        return self.nexthop.dev or ""


class Found(Struct, frozen=True, gc=False, kw_only=True):
    """A lookup that ended at a route; `legs` is empty for types that are no way out. `errno` set: the flow is refused."""

    route: Route | None
    rule: PolicyRule
    legs: tuple[Leg, ...] = ()
    errno: str = ""

    @property
    def type(self) -> str:
        """The route's type, or the rule's action where the rule refused."""
        return self.route.type if self.route else self.rule.action


Devices = frozenset[tuple[int, str]]
"""(family, device) pairs."""
_NOTHING = Found(route=None, rule=PolicyRule(family=0, priority=0))
"""A table has no route for the flow (other than None: what it has does not count, so that the next rule's turn has come)."""
_PREFERENCES = {"high": 0, "medium": 1, "low": 2}


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
                    {first: tuple(sorted(group, key=_rank)) for first, group in nets.items()},
                )
                for length, nets in sorted(by_length.items(), reverse=True)
            )
        )

    def candidates(self, number: int) -> Iterable[tuple[int, Route]]:
        """Yield the routes whose prefix holds the address, best first, with their prefix lengths."""
        for length, shift, nets in self.lengths:
            for route in nets.get(number >> shift << shift, ()):
                yield length, route


def _rank(route: Route) -> tuple[int, int, int, int, int]:
    return (
        -bounds(route.src).length if route.src else 0,
        -route.table,
        -route.tos,
        route.metric,
        _PREFERENCES.get(route.preference, 1),
    )


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
    """Routes and rules of one namespace and one family, ready for lookups.

    `avoided` are IPv6 routers, by device, that do not answer: a host goes by others while there are any (rt6_check_neigh).
    """

    def __init__(
        self,
        family: int,
        routes: Sequence[Route],
        rules: Sequence[PolicyRule],
        interfaces: Sequence[Interface],
        *,
        avoided: frozenset[tuple[str, Ip]] = frozenset(),
    ) -> None:
        self.family = family
        self._avoided = avoided
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
        self.by_user = any(rule.uids for rule in self.rules)
        self._vrfs = frozenset(link.name for link in interfaces if link.vrf_table is not None)
        self._plain = all(
            rule.action == "lookup" and not _selective(rule) and rule.suppress_prefixlength < 0 for rule in self.rules
        ) and not any(route.tos or route.src for route in mine)
        self._cache: dict[tuple[Ip, str], Found | None] = {}
        self._by_key: dict[tuple[FlowKey, Devices], Found | None] = {}
        self._local_types: dict[Ip, str | None] = {}

    def lookup(self, key: FlowKey, *, ignore_linkdown: Devices = frozenset()) -> Found | None:
        """Return the route for a flow, or None if no rule leads to one (ENETUNREACH).

        `ignore_linkdown` names the devices, by family, with ignore_routes_with_linkdown set. A flow bound to a VRF may leave by any of its
        devices (l3mdev_update_flow, net/l3mdev/l3mdev.c).
        """
        if key.oif in self._vrfs:
            key = replace(key, oif="", vrf=key.oif)
        if self._plain and not ignore_linkdown:  # nothing but destination and bound device decides: remember it
            slot = (key.dst, key.oif)
            if slot not in self._cache:
                self._cache[slot] = self._lookup(key, ignore_linkdown)
            return self._cache[slot]
        every = (key, ignore_linkdown)
        if every not in self._by_key:
            self._by_key[every] = self._lookup(key, ignore_linkdown)
        return self._by_key[every]

    def _lookup(self, key: FlowKey, ignore_linkdown: Devices) -> Found | None:
        number = ip_int(key.dst)
        skip_until = -1
        for rule in self.rules:
            if rule.priority < skip_until or not _rule_matches(rule, key):
                continue
            if rule.action == "goto":  # to a rule that is not there it goes nowhere (ctarget is NULL)
                if any(other.priority == rule.goto for other in self.rules):
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

    def _lookup_table(self, rule: PolicyRule, key: FlowKey, number: int, ignore_linkdown: Devices) -> Found | None:
        table = self._tables.get(self._table_of(rule, key))
        if self._merged is not None and rule.table == LOCAL_TABLE:
            table = self._merged
        if table is None:
            return None
        found = self._lookup_in(table, rule, key, number, ignore_linkdown, self._avoided)
        if found is _NOTHING and self._avoided:  # redo_rt6_select
            found = self._lookup_in(table, rule, key, number, ignore_linkdown, frozenset())
        return None if found is _NOTHING else found

    def _lookup_in(
        self,
        table: Table,
        rule: PolicyRule,
        key: FlowKey,
        number: int,
        ignore_linkdown: Devices,
        avoided: frozenset[tuple[str, Ip]],
    ) -> Found | None:
        """Return what the table says (None: the next rule's turn), or _NOTHING."""
        for length, route in table.candidates(number):
            if route.tos and route.tos != key.tos & _RT_TOS_MASK:
                continue
            if route.src is not None and (key.src is None or not contains(route.src, key.src)):
                continue
            if route.type == "throw":
                return None
            if route.type in ROUTE_ERRNO:
                return Found(route=route, rule=rule, errno=ROUTE_ERRNO[route.type])
            if self._would_loop(route):
                return Found(route=route, rule=rule, errno="ENETUNREACH")
            legs = self._legs(route, key, ignore_linkdown, avoided)
            if not legs:
                continue
            if length <= rule.suppress_prefixlength:
                return None
            if rule.suppress_ifgroup >= 0 and self._group(legs[0].dev) == str(rule.suppress_ifgroup):
                return None
            asked = rule if route.table in (rule.table, LOCAL_TABLE) or self._merged is None else self.rules[1]
            return Found(route=route, rule=asked, legs=legs)
        return _NOTHING

    def _would_loop(self, route: Route) -> bool:
        """fib6_is_reject: IPv6 has no true routes by the loopback device, it refuses what they take (ENETUNREACH)."""
        by_lo = self.family == 6 and route.type == "unicast" and any(hop.dev == "lo" for hop in route.nexthops)
        return by_lo and not is_loopback(Ip(route.dst.partition("/")[0]))

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
        return ("0" if link.group == "default" else link.group) if link else ""

    def _legs(
        self, route: Route, key: FlowKey, ignore_linkdown: Devices, avoided: frozenset[tuple[str, Ip]]
    ) -> tuple[Leg, ...]:
        usable = [
            hop
            for hop in route.nexthops
            if not hop.dead
            and (not key.oif or key.rather or hop.dev == key.oif)
            and not (self._linkdown(hop) and (self.family, hop.dev or "") in ignore_linkdown)
            and (hop.dev, hop.via) not in avoided
        ]
        if key.oif and key.rather:
            usable = [hop for hop in usable if hop.dev == key.oif] or usable
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
        if ip in self._local_types:
            return self._local_types[ip]
        table = self._tables.get(LOCAL_TABLE)
        found = None
        if table is not None:
            found = next((route.type for _, route in table.candidates(ip_int(ip))), None)
        self._local_types[ip] = found
        return found

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
    if rule.uids and not rule.uids[0] <= (key.uid or 0) <= rule.uids[1]:  # what no socket sent counts as root's
        return False
    if rule.src and not _from_matches(rule.src, key):
        return False
    if rule.dst and not contains(rule.dst, key.dst):
        return False
    if rule.protocol and key.protocol != rule.protocol:
        return False
    if rule.sports and not rule.sports[0] <= key.sport <= rule.sports[1]:
        return False
    if rule.dports and not rule.dports[0] <= key.dport <= rule.dports[1]:
        return False
    return not rule.tos or rule.tos == key.tos & (_RT_TOS_MASK if rule.family == 4 else _DSCP_MASK)


def _from_matches(src: Net, key: FlowKey) -> bool:
    """Compare the source: one not chosen yet is 0.0.0.0 to IPv4 (fib4_rule_match), and none to IPv6 (fib6_rule_match)."""
    if src.endswith("/0"):
        return True
    if key.src is None:
        return ":" not in key.dst and contains(src, Ip("0.0.0.0"))
    return contains(src, key.src)


def usable_addresses(link: Interface, family: int) -> Iterable[Address]:
    """Yield the addresses of a device in one family that it may use as a source."""
    for address in link.addresses:
        waits = (address.tentative and not address.optimistic) or address.dadfailed
        if ip_version(address.ip) == family and not waits:
            yield address


Conf = Callable[[str, str], int]
"""A device's IPv6 setting: (name, device) → value."""


def _unset(_name: str, _dev: str) -> int:
    return 0


def select_source(
    interfaces: Sequence[Interface],
    dev: str,
    towards: Ip,
    scope: str = "link",
    *,
    conf: Conf = _unset,
    localnet: bool = False,
) -> Ip | None:
    """Return the source address for a packet that leaves by `dev`, or None if the namespace has none fit.

    IPv4: the first primary address of the device whose subnet holds `towards`, else its first one of fitting scope, else the
    first of another device that is not of link scope. `localnet`: route_localnet is on for the device, so that an address of
    host scope (127.0.0.1) may also be used where those of link scope may. IPv6: the address of best fit by RFC 6724 in the
    kernel's order of rules, in which the address labels are the kernel's own; `conf` are the settings of its devices.

    Source: inet_select_addr, net/ipv4/devinet.c; ipv6_dev_get_saddr, net/ipv6/addrconf.c.
    """
    if ip_version(towards) == 6:
        return _select_source6(interfaces, dev, towards, conf)
    limit = _SCOPE_ORDER.get(scope, 253)
    first: Ip | None = None
    link = next((link for link in interfaces if link.name == dev), None)
    if link is not None:
        for address in usable_addresses(link, 4):
            order = _SCOPE_ORDER.get(address.scope, 0)
            if address.secondary or (min(order, 253) if localnet else order) > limit:
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
    """Return IPV6_ADDR_SCOPE_* of an address: interface-local, link-local, site-local, a group's own, global."""
    if is_loopback(ip):
        return 1
    number = ip_int(ip)
    if number >> 120 == 0xFF:
        return number >> 112 & 0xF
    if is_link_local(ip):
        return 2
    return 5 if number >> 118 == 0xFEC0 >> 6 else 14


_LABELS = (
    ("::1/128", 0),
    ("::ffff:0.0.0.0/96", 4),
    ("::/96", 3),
    ("2001:10::/28", 7),
    ("2001::/32", 6),
    ("2002::/16", 2),
    ("fc00::/7", 5),
    ("::/0", 1),
)
"""The kernel's own address labels, longest prefix first (ip6addrlbl_init_table, net/ipv6/addrlabel.c)."""
_LABEL_BOUNDS = tuple((bounds(parse_net(net)), label) for net, label in _LABELS)


def _label(ip: Ip) -> int:
    number = ip_int(ip)
    return next(
        label for box, label in _LABEL_BOUNDS if number >> (128 - box.length) == box.first >> (128 - box.length)
    )


def _is_orchid(ip: Ip) -> bool:
    return ip_int(ip) >> 100 == 0x2001001


def _select_source6(interfaces: Sequence[Interface], dev: str, towards: Ip, conf: Conf) -> Ip | None:
    """ipv6_get_saddr_eval: the rules one after the other, each only where those before it found two addresses equal."""
    wanted = _scope6(towards)
    own = next((link for link in interfaces if link.name == dev), None)
    near = wanted <= 2 or bool(conf("use_oif_addrs_only", dev)) or ip_int(towards) >> 120 == 0xFF
    master = own.master if own else None
    vrf = next((link.name for link in interfaces if link.name == master and link.vrf_table is not None), None)
    best: tuple[tuple[int, ...], Ip] | None = None
    links = [own] if own is not None and near else [] if near else interfaces
    for link in sorted(links, key=lambda one: one.name != dev):
        if vrf is not None and vrf not in (link.master, link.name):  # ipv6_dev_get_saddr: stay within the VRF
            continue
        if conf("disable_ipv6", link.name):
            continue
        for address in usable_addresses(link, 6):
            if is_multicast(address.ip) or address.ip == "::":
                continue
            scope = _scope6(address.ip)
            common = 128 - (ip_int(address.ip) ^ ip_int(towards)).bit_length()
            score = (
                int(address.ip == towards),
                -scope if scope >= wanted else scope - 128,
                int(not address.deprecated and not address.optimistic),
                int(link.name == dev),
                int(_label(address.ip) == _label(towards)),
                int(address.temporary == (conf("use_tempaddr", link.name) >= 2)),
                int(_is_orchid(address.ip) == _is_orchid(towards)),
                min(common, address.prefixlen),
                int(not address.optimistic),
            )
            if best is None or score > best[0]:
                best = (score, address.ip)
    return best[1] if best else None
