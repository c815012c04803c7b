"""Route lookups: the longest prefix as a search of all routes finds it, rules in order, source addresses."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.skoop.model.addr import Ip, Net
from tasks.skoop.model.state import Address, Interface, NextHop, PolicyRule, Route
from tasks.skoop.netstack.fib import DEFAULT_RULES, FlowKey, Found, Router, select_source

KINDS = ("unicast", "unicast", "unicast", "unreachable", "blackhole", "prohibit", "throw")


def prefix(number: int, length: int, width: int) -> Net:
    masked = number >> (width - length) << (width - length)
    return Net(str(ip_network((masked, length))))


@st.composite
def routes_and_target(draw: st.DrawFn, width: int) -> tuple[list[Route], Ip]:
    """Prefixes close together, so that many of them hold the address that is asked for."""
    base = draw(st.integers(1 << 127, (1 << 128) - 1) if width == 128 else st.integers(1 << 24, (1 << 32) - 1))
    near = st.integers(0, 255).map(lambda low: base ^ low)
    routes = []
    for number, length, kind, metric in draw(
        st.lists(
            st.tuples(near, st.integers(width - 10, width), st.sampled_from(KINDS), st.integers(0, 3)), max_size=12
        )
    ):
        hops = (NextHop(dev=f"eth{len(routes)}"),) if kind == "unicast" else ()
        routes.append(Route(dst=prefix(number, length, width), type=kind, nexthops=hops, metric=metric))
    return routes, Ip(str(ip_address(draw(near))))


def brute_force(routes: list[Route], target: Ip) -> Route | None:
    """The route with the longest prefix, then the smallest metric, then the one that came first."""
    holding = [route for route in routes if ip_address(target) in ip_network(route.dst)]
    ranked = sorted(holding, key=lambda route: (-ip_network(route.dst).prefixlen, route.metric))
    best = next(iter(ranked), None)
    return None if best is not None and best.type == "throw" else best


@pytest.mark.parametrize("width", [32, 128])
def test_the_longest_prefix_is_what_a_search_of_all_routes_finds(width: int) -> None:
    @given(routes_and_target(width))
    def law(case: tuple[list[Route], Ip]) -> None:
        routes, target = case
        found = Router(4 if width == 32 else 6, routes, (), ()).lookup(FlowKey(dst=target))
        assert (found.route if found else None) == brute_force(routes, target)

    law()


@given(routes_and_target(32), st.integers(0, 255))
def test_a_route_that_does_not_hold_the_address_changes_nothing(case: tuple[list[Route], Ip], low: int) -> None:
    routes, target = case
    elsewhere = Ip(str(ip_address(int(ip_address(target)) ^ 0x80000000)))
    more = Route(dst=Net(f"{elsewhere}/32"), nexthops=(NextHop(dev="other"),))
    at = low % (len(routes) + 1)
    before = Router(4, routes, (), ()).lookup(FlowKey(dst=target))
    assert Router(4, [*routes[:at], more, *routes[at:]], (), ()).lookup(FlowKey(dst=target)) == before


def found_dev(found: Found | None) -> str:
    return "none" if found is None else found.errno or found.legs[0].dev


def table(number: int, *routes: Route) -> list[Route]:
    return [Route(dst=route.dst, type=route.type, nexthops=route.nexthops, table=number) for route in routes]


DEFAULT = Net("0.0.0.0/0")
TO_A, TO_B = Route(dst=DEFAULT, nexthops=(NextHop(dev="a"),)), Route(dst=DEFAULT, nexthops=(NextHop(dev="b"),))
TWO_TABLES = (*table(254, TO_A), *table(100, TO_B))


def rule(**fields: object) -> PolicyRule:
    return PolicyRule(**{"family": 4, "priority": 100, "table": 100, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("selector", "key", "dev"),
    [
        pytest.param({"src": Net("10.0.0.0/8")}, {"src": "10.1.1.1"}, "b", id="from"),
        pytest.param({"src": Net("10.0.0.0/8")}, {"src": "11.1.1.1"}, "a", id="from another"),
        pytest.param({"src": Net("10.0.0.0/8")}, {}, "a", id="from, but no source is chosen yet"),
        pytest.param({"dst": Net("192.0.2.0/24")}, {}, "b", id="to"),
        pytest.param({"iif": "eth0"}, {"iif": "eth0"}, "b", id="iif"),
        pytest.param({"iif": "lo"}, {}, "b", id="iif lo is what is made here"),
        pytest.param({"oif": "vrf"}, {"oif": "a"}, "a", id="oif of another"),
        pytest.param({"fwmark": 0x10, "fwmask": 0xF0}, {"mark": 0x1F}, "b", id="mark under its mask"),
        pytest.param({"fwmark": 0x10, "fwmask": 0xFF}, {"mark": 0x1F}, "a", id="mark that differs"),
        pytest.param({"dports": (80, 90)}, {"dport": 90}, "b", id="end of a range of ports"),
        pytest.param({"dports": (80, 90)}, {"dport": 91}, "a", id="past a range of ports"),
        pytest.param({"src": Net("10.0.0.0/8"), "invert": True}, {"src": "11.1.1.1"}, "b", id="not"),
        pytest.param({"uids": (0, 0)}, {"uid": 1000}, "a", id="another user"),
        pytest.param({"suppress_prefixlength": 0}, {}, "a", id="too general a route is passed over"),
        pytest.param({"action": "prohibit"}, {}, "EACCES", id="prohibit"),
        pytest.param({"action": "unreachable"}, {}, "ENETUNREACH", id="unreachable"),
        pytest.param({"action": "blackhole"}, {}, "EINVAL", id="blackhole"),
    ],
)
def test_a_rule_selects(selector: dict[str, object], key: dict[str, object], dev: str) -> None:
    router = Router(4, TWO_TABLES, (*DEFAULT_RULES[4], rule(**selector)), ())
    assert found_dev(router.lookup(FlowKey(dst=Ip("192.0.2.1"), **key))) == dev  # type: ignore[arg-type]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_shares_of_next_hops_add_up_and_follow_the_weights(weights: list[int]) -> None:
    hops = tuple(NextHop(dev=f"eth{number}", weight=weight) for number, weight in enumerate(weights))
    found = Router(4, [Route(dst=DEFAULT, nexthops=hops)], (), ()).lookup(FlowKey(dst=Ip("192.0.2.1")))
    assert found is not None
    assert sum(leg.share for leg in found.legs) == pytest.approx(1)
    assert [leg.share * sum(weights) for leg in found.legs] == pytest.approx(weights)


# --- source addresses ------------------------------------------------------------------------------------------------


def link(name: str, *addresses: str, secondary: tuple[str, ...] = (), scope: str = "global") -> Interface:
    made = []
    for text in (*addresses, *secondary):
        ip, _, length = text.partition("/")
        made.append(Address(ip=Ip(ip), prefixlen=int(length), secondary=text in secondary, scope=scope))
    return Interface(index=2, name=name, addresses=tuple(made))


@pytest.mark.parametrize(
    ("links", "towards", "scope", "source"),
    [
        pytest.param([link("eth0", "10.0.0.1/24", "10.1.0.1/24")], "10.1.0.9", "global", "10.1.0.1", id="its network"),
        pytest.param([link("eth0", "10.0.0.1/24", "10.1.0.1/24")], "192.0.2.1", "global", "10.0.0.1", id="the first"),
        pytest.param(
            [link("eth0", "10.0.0.1/24", secondary=("10.0.0.2/24",))], "10.0.0.9", "global", "10.0.0.1", id="no secondary"
        ),
        pytest.param(
            [link("eth1", "10.5.0.1/24"), link("eth0")], "192.0.2.1", "global", "10.5.0.1", id="another device's"
        ),
        pytest.param(
            [link("eth1", "169.254.0.1/16", scope="link"), link("eth0")], "192.0.2.1", "global", None, id="none of link scope"
        ),
        pytest.param(
            [link("lo", "127.0.0.1/8", scope="host"), link("eth0")], "192.0.2.1", "global", None, id="none of host scope"
        ),
        pytest.param([link("eth0")], "192.0.2.1", "global", None, id="none at all"),
        pytest.param(
            [link("eth0", "fd00:1::1/64", "fd00:2::1/64")], "fd00:2::9", "global", "fd00:2::1", id="IPv6: longest common prefix"
        ),
        pytest.param(
            [link("eth0", "fe80::1/64", "fd00:2::1/64")], "fe80::9", "global", "fe80::1", id="IPv6: the scope of the target"
        ),
        pytest.param(
            [link("eth1", "fd00:9::1/64"), link("eth0", "fe80::1/64")], "fd00:9::2", "global", "fd00:9::1", id="IPv6: not too small a scope"
        ),
    ],
)  # fmt: skip
def test_the_source_address(links: list[Interface], towards: str, scope: str, source: str | None) -> None:
    assert select_source(links, "eth0", Ip(towards), scope) == source


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=6), st.integers(0, 3))
def test_a_source_is_always_one_of_ones_own_and_never_secondary(made: list[tuple[int, bool]], towards: int) -> None:
    addresses = [
        Address(ip=Ip(f"10.{net}.0.{number + 1}"), prefixlen=24, secondary=secondary)
        for number, (net, secondary) in enumerate(made)
    ]
    source = select_source(
        [Interface(index=2, name="eth0", addresses=tuple(addresses))], "eth0", Ip(f"10.{towards}.0.99")
    )
    primary = [address.ip for address in addresses if not address.secondary]
    assert source in primary if primary else source is None
    near = [ip for ip in primary if ip.startswith(f"10.{towards}.")]
    assert not near or source == near[0]


def address6(text: str, **flags: bool) -> Address:
    return Address(ip=Ip(text), prefixlen=64, **flags)


PLAIN, TEMPORARY = address6("2001:db8:1::1"), address6("2001:db8:1::7", temporary=True)
PRIVATE, WAITING = address6("fd00:1::1"), address6("2001:db8:1::8", tentative=True)
OPTIMISTIC = address6("2001:db8:1::9", tentative=True, optimistic=True)


@pytest.mark.parametrize(
    ("addresses", "settings", "towards", "source"),
    [
        pytest.param([PLAIN, TEMPORARY], {}, "2600::1", PLAIN, id="temporary ones are not preferred"),
        pytest.param([PLAIN, TEMPORARY], {"use_tempaddr": 2}, "2600::1", TEMPORARY, id="unless the device says so"),
        pytest.param(
            [PLAIN, TEMPORARY], {"use_tempaddr": 1}, "2600::1", PLAIN, id="having them is not preferring them"
        ),
        pytest.param([TEMPORARY], {}, "2600::1", TEMPORARY, id="better than none"),
        pytest.param([PLAIN, PRIVATE], {}, "fc00:9::1", PRIVATE, id="label before prefix"),
        pytest.param([PRIVATE, PLAIN], {}, "2600::1", PLAIN, id="the other label"),
        pytest.param([WAITING, PRIVATE], {}, "2600::1", PRIVATE, id="one that waits is none"),
        pytest.param([OPTIMISTIC, PRIVATE], {}, "2600::1", PRIVATE, id="an optimistic one comes last"),
        pytest.param([OPTIMISTIC], {}, "2600::1", OPTIMISTIC, id="but comes"),
        pytest.param([PLAIN], {"disable_ipv6": 1}, "2600::1", None, id="no IPv6 on the device"),
    ],
)
def test_the_source_address_of_ipv6(
    addresses: list[Address], settings: dict[str, int], towards: str, source: Address | None
) -> None:
    links = [Interface(index=2, name="eth0", addresses=tuple(addresses))]
    found = select_source(links, "eth0", Ip(towards), conf=lambda name, _dev: settings.get(name, 0))
    assert found == (source.ip if source else None)
