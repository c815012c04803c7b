"""Routes, rules and route exceptions as `ip -j` prints them; the rows are what iproute2 6.1 and 6.15 printed."""

import pytest

from tasks.skoop.model.addr import Ip, Net
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import NextHop, PolicyRule, Route, RouteException
from tasks.skoop.parse.errors import ParseError
from tasks.skoop.parse.routes import locked_mtus, parse_exceptions, parse_routes, parse_rules
from tasks.skoop.parse.rtnames import read_rt_tables


def net(text: str) -> Net:
    return Net(text)


ROUTES = [
    pytest.param(
        '{"dst":"default","gateway":"172.18.0.1","dev":"eth0","flags":[]}',
        Route(dst=net("0.0.0.0/0"), nexthops=(NextHop(dev="eth0", via=Ip("172.18.0.1")),), protocol="boot"),
        id="default",
    ),
    pytest.param(
        '{"dst":"10.244.1.0/24","dev":"cni0","protocol":"kernel","scope":"link","prefsrc":"10.244.1.1","flags":[]}',
        Route(
            dst=net("10.244.1.0/24"),
            nexthops=(NextHop(dev="cni0"),),
            prefsrc=Ip("10.244.1.1"),
            scope="link",
            protocol="kernel",
        ),
        id="connected",
    ),
    pytest.param(
        '{"dst":"10.244.2.0/24","gateway":"10.244.2.0","dev":"flannel.1","flags":["onlink"]}',
        Route(
            dst=net("10.244.2.0/24"),
            nexthops=(NextHop(dev="flannel.1", via=Ip("10.244.2.0"), onlink=True),),
            protocol="boot",
        ),
        id="flannel's",
    ),
    pytest.param(
        '{"type":"local","dst":"10.0.0.1","dev":"d0","table":"local","protocol":"kernel","scope":"host",'
        '"prefsrc":"10.0.0.1","flags":[]}',
        Route(
            dst=net("10.0.0.1/32"),
            table=255,
            type="local",
            nexthops=(NextHop(dev="d0"),),
            prefsrc=Ip("10.0.0.1"),
            scope="host",
            protocol="kernel",
        ),
        id="local",
    ),
    pytest.param(
        '{"type":"unreachable","dst":"10.3.0.0/16","flags":[]}',
        Route(dst=net("10.3.0.0/16"), type="unreachable", protocol="boot"),
        id="unreachable",
    ),
    pytest.param(
        '{"dst":"10.2.0.0/16","flags":[],"nexthops":[{"gateway":"10.0.0.2","dev":"d0","weight":3,"flags":["dead","linkdown"]},'
        '{"gateway":"10.0.0.3","dev":"d0","weight":1,"flags":["onlink"]}]}',
        Route(
            dst=net("10.2.0.0/16"),
            nexthops=(
                NextHop(dev="d0", via=Ip("10.0.0.2"), weight=3, dead=True, linkdown=True),
                NextHop(dev="d0", via=Ip("10.0.0.3"), onlink=True),
            ),
            protocol="boot",
        ),
        id="multipath",
    ),
    pytest.param(
        '{"dst":"10.4.0.0/16","via":{"family":"inet6","host":"fe80::1"},"dev":"d0","table":"100","metric":5,"flags":[]}',
        Route(
            dst=net("10.4.0.0/16"),
            table=100,
            nexthops=(NextHop(dev="d0", via=Ip("fe80::1")),),
            metric=5,
            protocol="boot",
        ),
        id="IPv4 through an IPv6 gateway",
    ),
    pytest.param(
        '{"dst":"10.7.0.0/16","tos":"0x10","dev":"d0","scope":"link","prefsrc":"10.0.0.1","flags":[],'
        '"metrics":[{"mtu":1300,"advmss":1000}]}',
        Route(
            dst=net("10.7.0.0/16"),
            nexthops=(NextHop(dev="d0"),),
            prefsrc=Ip("10.0.0.1"),
            scope="link",
            tos=16,
            mtu=1300,
            protocol="boot",
        ),
        id="metrics and tos",
    ),
    pytest.param(
        '{"type":"unicast","dst":"10.8.0.0/16","dev":"d0","table":"254","protocol":"4","scope":"253","flags":[]}',
        Route(dst=net("10.8.0.0/16"), nexthops=(NextHop(dev="d0"),), scope="link", protocol="static"),
        id="numbers, as -N prints them",
    ),
    pytest.param(
        '{"dst":"default","gateway":"fe80::9","dev":"d0","metric":1024,"flags":[],"pref":"medium"}',
        Route(dst=net("::/0"), nexthops=(NextHop(dev="d0", via=Ip("fe80::9")),), metric=1024, protocol="boot"),
        id="IPv6 default",
    ),
    pytest.param(
        '{"dst":"default","dev":"d0","metric":1024,"flags":[],"pref":"medium"}',
        Route(dst=net("::/0"), nexthops=(NextHop(dev="d0"),), metric=1024, protocol="boot"),
        id="IPv6 default without gateway",
    ),
    pytest.param(
        '{"dst":"2001:dba::/32","from":"2001:1::/64","dev":"d0","metric":1024,"flags":[],"pref":"medium"}',
        Route(
            dst=net("2001:dba::/32"),
            src=net("2001:1::/64"),
            nexthops=(NextHop(dev="d0"),),
            metric=1024,
            protocol="boot",
        ),
        id="IPv6 by source",
    ),
]


@pytest.mark.parametrize(("text", "route"), ROUTES)
def test_routes(text: str, route: Route) -> None:
    assert parse_routes(f"[{text}]") == (route,)


def test_one_family_of_a_dump_of_both() -> None:
    both = "[" + ",".join(str(case.values[0]) for case in ROUTES) + "]"
    four, six = (parse_routes(both, family=family) for family in (4, 6))
    assert (len(four), len(six)) == (9, 3)
    assert all(":" not in route.dst for route in four)


def test_named_tables() -> None:
    text = '[{"dst":"10.0.0.0/8","dev":"d0","table":"blue","flags":[]}]'
    names = read_rt_tables("# a remark\n255 local\n 77  blue # ours\nodd\n")
    assert parse_routes(text, tables=names)[0].table == 77
    with pytest.raises(ParseError, match=r"blue.*ip -N"):
        parse_routes(text)


RULES = [
    pytest.param('{"priority":0,"src":"all","table":"local"}', PolicyRule(family=4, priority=0, table=255), id="local"),
    pytest.param(
        '{"priority":100,"src":"10.244.2.0","srclen":24,"dst":"10.244.1.0","dstlen":24,"table":"100"}',
        PolicyRule(family=4, priority=100, table=100, src=net("10.244.2.0/24"), dst=net("10.244.1.0/24")),
        id="by source and destination",
    ),
    pytest.param(
        '{"priority":5,"src":"1.2.3.4","fwmark":"0x1","fwmask":"0xff","iif":"d0","iif_detached":null,"table":"100"}',
        PolicyRule(family=4, priority=5, table=100, src=net("1.2.3.4/32"), fwmark=1, fwmask=255, iif="d0"),
        id="mark with a mask",
    ),
    pytest.param(
        '{"priority":5,"src":"all","fwmark":"0x20000","table":"main"}',
        PolicyRule(family=4, priority=5, table=254, fwmark=0x20000, fwmask=0xFFFFFFFF),
        id="mark without a mask",
    ),
    pytest.param(
        '{"priority":6,"not":null,"src":"all","oif":"d0","uid_start":0,"uid_end":100,"ipproto":"tcp","sport_start":5,'
        '"sport_end":9,"dport":80,"goto":32766}',
        PolicyRule(
            family=4,
            priority=6,
            action="goto",
            goto=32766,
            invert=True,
            oif="d0",
            protocol=Protocol.TCP,
            sports=(5, 9),
            dports=(80, 80),
            uids=(0, 100),
        ),
        id="everything else",
    ),
    pytest.param(
        '{"priority":7,"src":"all","l3mdev":null}', PolicyRule(family=4, priority=7, l3mdev=True), id="l3mdev"
    ),
    pytest.param(
        '{"priority":8,"src":"all","table":"main","suppress_prefixlen":0,"suppress_ifgroup":"default"}',
        PolicyRule(family=4, priority=8, table=254, suppress_prefixlength=0, suppress_ifgroup=0),
        id="suppress, as wg-quick does",
    ),
    pytest.param(
        '{"priority":9,"src":"9.9.9.9","action":"prohibit"}',
        PolicyRule(family=4, priority=9, action="prohibit", src=net("9.9.9.9/32")),
        id="prohibit",
    ),
    pytest.param(
        '{"priority":9,"src":"all","tos":"0x10","nop":null}',
        PolicyRule(family=4, priority=9, action="nop", tos=16),
        id="nop",
    ),
]


@pytest.mark.parametrize(("text", "rule"), RULES)
def test_rules(text: str, rule: PolicyRule) -> None:
    assert parse_rules(f"[{text}]") == (rule,)


def test_exceptions_are_path_mtus_and_redirects_only() -> None:
    text = """[{"dst":"172.18.0.12","dev":"eth0","flags":[],"cache":[]},
      {"dst":"10.96.10.1","gateway":"172.18.0.1","dev":"eth0","flags":[],"cache":[],"expires":594,"metrics":[{"mtu":1350}]}]"""
    assert parse_exceptions(text) == (
        RouteException(dst=Ip("10.96.10.1"), dev="eth0", via=Ip("172.18.0.1"), mtu=1350, expires_s=594),
    )


def test_locked_mtus_of_the_text_form() -> None:
    text = "10.1.0.0/16 dev d0 scope link mtu lock 1400 \nunicast 10.2.0.1 dev d0 mtu lock 1300\n10.3.0.0/16 dev d0 mtu 1200\n"
    assert locked_mtus(text) == {"10.1.0.0/16", "10.2.0.1"}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('[{"dst":"10.0.0.0/99","dev":"d0"}]', id="length"),
        pytest.param('[{"dst":"10.0.0.0/8","gateway":"x"}]', id="gateway"),
        pytest.param('[{"dst":"10.0.0.0/8","flags":[]},', id="cut short"),
    ],
)
def test_refuses_routes(text: str) -> None:
    with pytest.raises(ParseError, match=r"ip-route-all\.json"):
        parse_routes(text)


def test_numbers_of_ip_minus_n() -> None:
    text = """[{"type":"9","dst":"10.8.0.0/16","flags":[]},{"type":"2","dst":"127.0.0.1","dev":"lo","table":"255",
    "protocol":"2","scope":"254","flags":[]},{"type":7,"dst":"fd00:9::/64","dev":"lo","flags":[],"pref":"medium"}]"""
    assert [(route.type, route.protocol, route.scope) for route in parse_routes(text)] == [
        ("throw", "boot", "global"),
        ("local", "kernel", "host"),
        ("unreachable", "boot", "global"),
    ]
    rules = parse_rules('[{"priority":1,"src":"all","action":"6"},{"priority":2,"src":"all","action":8}]')
    assert [rule.action for rule in rules] == ["blackhole", "prohibit"]
