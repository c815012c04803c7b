"""NetstackAssertion on the healthy cluster with one thing changed: that one thing is found, and nothing else."""

from collections.abc import Callable, Sequence

import pytest
from msgspec.structs import replace

from tasks.skoop.assertions.netstack import NetstackAssertion
from tasks.skoop.assertions.scene import Cluster
from tasks.skoop.ipcache import IPCache
from tasks.skoop.model.addr import Ip, Mac, Net
from tasks.skoop.model.cluster import ClusterState, ContainerPort
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import (
    ConntrackEntry,
    Missing,
    Neighbour,
    NeighbourState,
    NetNS,
    NextHop,
    PolicyRule,
    Route,
    Section,
    Socket,
    Tuple,
)
from tasks.skoop.model.suspicion import Level, SetPolicy, SetSysctl, Suspicion
from tasks.skoop.remedy import apply
from tests.unit.clusters import N1, N2, broken, edited, healthy, ip_of, pod, put, with_link, with_sysctl

DNS_POD = ip_of("coredns", "n1")
WEB = pod("web-", "n1").netns


def _check(state: ClusterState, netns: NetnsId = N1) -> list[Suspicion]:
    found = NetstackAssertion(Cluster(IPCache(state))).check(netns)
    return [item for item in found if item.level != Level.INFO]


def _routes(*routes: Route) -> Callable[[NetNS], NetNS]:
    return lambda netns: replace(netns, routes=(*netns.routes, *routes))


def _neighbour(ip: str, mac: str, dev: str) -> Callable[[NetNS], NetNS]:
    entry = Neighbour(ip=Ip(ip), dev=dev, mac=Mac(mac), state=NeighbourState.PERMANENT)
    return lambda netns: replace(netns, neighbours=(*(known for known in netns.neighbours if known.ip != ip), entry))


def _stale(backend: str) -> Callable[[NetNS], NetNS]:
    entry = ConntrackEntry(
        protocol=Protocol.UDP,
        original=Tuple(Ip("10.244.1.4"), Ip("10.96.0.10"), 40053, 53),
        reply=Tuple(Ip(backend), Ip("10.244.1.4"), 53, 40053),
    )
    return lambda netns: replace(netns, conntrack=(*netns.conntrack, entry))


def _full(count: int) -> Callable[[NetNS], NetNS]:
    values = {"net/netfilter/nf_conntrack_count": str(count), "net/netfilter/nf_conntrack_max": "1000"}
    return lambda netns: replace(netns, sysctls={**netns.sysctls, **values})


def _listener(port: int, queue: int) -> Callable[[NetNS], NetNS]:
    socket = Socket(protocol=Protocol.TCP, ip=Ip("0.0.0.0"), port=port, recv_queue=queue, backlog=128)
    return lambda netns: replace(netns, sockets=(*netns.sockets, socket))


def _neighbours(base: str, count: int, state: NeighbourState) -> Callable[[NetNS], NetNS]:
    """Fill the table: the limit is 100 for either family."""
    limits = {f"net/ipv{family}/neigh/default/gc_thresh3": "100" for family in (4, 6)}
    more = tuple(Neighbour(ip=Ip(f"{base}{last:x}"), dev="eth0", state=state) for last in range(1, count + 1))
    return lambda netns: replace(netns, sysctls={**netns.sysctls, **limits}, neighbours=(*netns.neighbours, *more))


@pytest.mark.parametrize(
    ("base", "count", "state", "codes"),
    [
        pytest.param("2001:db8::", 95, NeighbourState.STALE, {"KP-NEIGH-003"}, id="many of one family"),
        pytest.param("2001:db8::", 60, NeighbourState.STALE, set(), id="too few for either family"),
        pytest.param("2001:db8::", 95, NeighbourState.PERMANENT, set(), id="permanent ones do not count"),
    ],
)
def test_a_neighbour_table_near_its_limit(base: str, count: int, state: NeighbourState, codes: set[str]) -> None:
    found = _check(edited(N1, _neighbours(base, count, state)))
    assert {item.code for item in found} == codes


BLACKHOLE = Route(dst=Net("10.244.2.0/25"), type="blackhole")
DIVERT = Route(dst=Net("10.244.2.0/24"), table=77, nexthops=(NextHop(dev="eth0", via=Ip("172.18.0.12")),))
RULE = PolicyRule(family=4, priority=50, table=77, src=Net("10.244.1.0/24"))
TWO_LEGS = Route(
    dst=Net("10.50.0.0/16"),
    nexthops=(NextHop(dev="eth0", via=Ip("172.18.0.1")), NextHop(dev="eth0", via=Ip("172.18.0.9"), dead=True)),
)


@pytest.mark.parametrize(
    ("netns", "edit", "code"),
    [
        pytest.param(WEB, lambda ns: with_link(ns, "lo", up=False), "KP-LINK-002", id="lo down in a pod"),
        pytest.param(N1, lambda ns: with_link(ns, "eth0", carrier=False), "KP-LINK-010", id="underlay without carrier"),
        pytest.param(N1, with_sysctl("net/ipv4/conf/cni0/forwarding", "0"), "KP-SYSCTL-007", id="one interface does not forward"),
        pytest.param(N1, _routes(BLACKHOLE), "KP-ROUTE-005", id="blackhole over pods of another node"),
        pytest.param(N1, _routes(TWO_LEGS), "KP-ROUTE-009", id="dead leg"),
        pytest.param(N1, lambda ns: replace(ns, routes=tuple(r for r in ns.routes if r.dst != "0.0.0.0/0")), "KP-ROUTE-007", id="no default route"),
        pytest.param(N1, lambda ns: replace(ns, rules=(PolicyRule(family=4, priority=9, action="blackhole", dst=Net("10.244.3.0/24")), *ns.rules)), "KP-ROUTE-005", id="ip rule blackhole"),
        pytest.param(N1, _neighbour(DNS_POD, "02:00:00:00:00:99", "cni0"), "KP-NEIGH-001", id="wrong MAC of a pod"),
        pytest.param(N1, _neighbour("172.18.0.12", "02:00:00:00:00:99", "eth0"), "KP-NEIGH-001", id="wrong MAC of a node"),
        pytest.param(WEB, _neighbour("10.244.1.1", "02:00:00:00:00:99", "eth0"), "KP-NEIGH-001", id="wrong MAC of the gateway"),
        pytest.param(N1, _stale("10.244.1.250"), "KP-CT-002", id="flow to a backend that is gone"),
        pytest.param(N1, _stale("10.96.0.10"), "KP-CT-002", id="flow that was never translated"),
        pytest.param(N1, _full(1000), "KP-CT-001", id="tracking table full"),
        pytest.param(WEB, _listener(9999, 129), "KP-SOCK-003", id="accept queue full"),
    ],
)  # fmt: skip
def test_a_fault_is_found_alone(netns: NetnsId, edit: Callable[[NetNS], NetNS], code: str) -> None:
    assert [item.code for item in _check(edited(netns, edit), netns)] == [code]


@pytest.mark.parametrize(
    ("netns", "edit"),
    [
        pytest.param(N1, lambda ns: ns, id="nothing changed"),
        pytest.param(N1, with_sysctl("net/ipv4/conf/all/rp_filter", "1"), id="strict filter, symmetric routes"),
        pytest.param(N1, with_sysctl("net/ipv4/conf/veth735e45b9/forwarding", "0"), id="a bridge port that does not forward"),
        pytest.param(N1, lambda ns: replace(ns, rules=(*ns.rules, RULE)), id="ip rule whose table is empty"),
        pytest.param(N1, _routes(Route(dst=Net("10.244.1.128/25"), type="blackhole")), id="blackhole over addresses no pod has"),
        pytest.param(N1, _routes(Route(dst=Net("192.0.2.0/24"), type="unreachable")), id="unreachable elsewhere"),
        pytest.param(N1, _stale(ip_of("coredns", "n2")), id="flow to a backend that is there"),
        pytest.param(N1, _full(900), id="tracking table with room"),
        pytest.param(WEB, _listener(9999, 128), id="accept queue at its limit"),
        pytest.param(N1, lambda ns: with_link(ns, "flannel.1", carrier=False), id="carrier of a device without one"),
    ],
)  # fmt: skip
def test_what_does_no_harm_is_not_reported(netns: NetnsId, edit: Callable[[NetNS], NetNS]) -> None:
    assert _check(edited(netns, edit), netns) == []


DROP = "-j DROP"


@pytest.mark.parametrize(
    ("table", "chain", "raw", "code", "says"),
    [
        pytest.param(
            "filter", "FORWARD", "-p tcp -m tcp --dport 5432 -j DROP", "KP-NF-002", "port 5432", id="one port"
        ),
        pytest.param("filter", "FORWARD", "-d 10.244.2.0/24 -j REJECT", "KP-NF-002", "rejects", id="one node's pods"),
        pytest.param("mangle", "FORWARD", "-s 10.244.0.0/16 -p udp -j DROP", "KP-NF-002", "mangle", id="another table"),
        pytest.param("filter", "FORWARD", "-i cni0 -o flannel.1 -j DROP", "KP-NF-002", "n2", id="by interface"),
        pytest.param("filter", "OUTPUT", "-d 10.244.0.0/16 -j DROP", "KP-NF-005", "OUTPUT", id="the node's own"),
        pytest.param("filter", "INPUT", "-p udp -j DROP", "KP-VXLAN-010", "8472", id="all UDP: the overlay"),
        pytest.param(
            "raw", "PREROUTING", "-p udp -m udp --dport 8472 -j DROP", None, "", id="raw PREROUTING is not judged"
        ),
        pytest.param("raw", "PREROUTING", "-s 10.244.1.0/24 -j CT --notrack", "KP-CT-003", "raw", id="no tracking"),
        pytest.param("raw", "PREROUTING", "-j NOTRACK", "KP-CT-003", "raw", id="no tracking at all"),
    ],
)
def test_a_rule_that_stops_pods_is_found_with_its_place(
    table: str, chain: str, raw: str, code: str | None, says: str
) -> None:
    change = put(N1, table, chain, raw)
    found = _check(apply(healthy(), [change]))
    assert [item.code for item in found] == ([code] if code else [])
    for item in found:
        assert item.place is not None and item.remedy is not None
        assert (item.place.table, item.place.chain, item.place.rule) == (table, chain, 1)
        assert says in item.message
        assert apply(apply(healthy(), [change]), item.remedy.changes) == healthy()


@pytest.mark.parametrize(
    ("table", "chain", "raw", "rule"),
    [
        pytest.param("filter", "FORWARD", DROP, 0, id="DROP behind what accepts the pods"),
        pytest.param("filter", "FORWARD", "-i docker0 -j DROP", 1, id="another interface"),
        pytest.param("filter", "FORWARD", "-d 192.168.0.0/16 -j DROP", 1, id="another network"),
        pytest.param("filter", "FORWARD", "-m conntrack --ctstate INVALID -j DROP", 1, id="invalid packets"),
        pytest.param("filter", "INPUT", "-p tcp -m tcp --dport 22 -j DROP", 1, id="a firewall of the node"),
        pytest.param("filter", "INPUT", "-p udp -m udp --dport 53 -j DROP", 1, id="another UDP port"),
        pytest.param("raw", "PREROUTING", "-i lo -j NOTRACK", 1, id="loopback is not tracked"),
        pytest.param("raw", "PREROUTING", "-p tcp -m tcp --dport 9 -j CT --notrack", 1, id="one port is not tracked"),
    ],
)
def test_a_rule_that_no_pods_packet_meets_is_not_reported(table: str, chain: str, raw: str, rule: int) -> None:
    assert _check(broken(put(N1, table, chain, raw, rule))) == []


def test_the_policy_is_blamed_only_if_nothing_accepts_before() -> None:
    policy = SetPolicy(netns=N1, backend="legacy", family=4, table="filter", chain="FORWARD", policy="DROP")
    assert _check(broken(policy)) == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        pytest.param([SetSysctl(netns=N1, key="net/ipv4/ip_forward", value="0")], "KP-SYSCTL-001", id="forwarding"),
        pytest.param(
            [SetSysctl(netns=N1, key="net/bridge/bridge-nf-call-iptables", value="0")], "KP-SYSCTL-003", id="bridge"
        ),
    ],
)
def test_the_remedy_of_a_switch_gives_the_healthy_state_back(changes: Sequence[SetSysctl], code: str) -> None:
    state = broken(*changes)
    found = _check(state)
    assert [item.code for item in found] == [code]
    assert found[0].remedy is not None
    assert _check(apply(state, found[0].remedy.changes)) == []


def test_a_strict_filter_is_found_where_another_node_takes_another_way() -> None:
    diverted = edited(
        N2,
        lambda ns: replace(
            ns,
            routes=(
                *ns.routes,
                replace(DIVERT, dst=Net("10.244.1.0/24"), nexthops=(NextHop(dev="eth0", via=Ip("172.18.0.11")),)),
            ),
            rules=(replace(RULE, src=Net("10.244.2.0/24")), *ns.rules),
        ),
    )
    assert _check(diverted) == []
    strict = edited(N1, with_sysctl("net/ipv4/conf/eth0/rp_filter", "1"), diverted)
    found = _check(strict)
    assert [item.code for item in found] == ["KP-SYSCTL-002"]
    assert found[0].remedy is not None
    assert _check(apply(strict, found[0].remedy.changes)) == []


def test_a_redirect_to_nobody_in_a_pod_is_found() -> None:
    rule = put(WEB, "nat", "OUTPUT", "-p tcp -j REDIRECT --to-ports 15001", 0)
    state = apply(healthy(), [rule])
    assert [item.code for item in _check(state, WEB)] == ["KP-NF-008"]
    serving = edited(WEB, _listener(15001, 0), state)
    assert _check(serving, WEB) == []


def test_a_namespace_that_was_not_collected_is_said_to_be_missing() -> None:
    kept = {key: netns for key, netns in healthy().netns.items() if key != WEB}
    found = NetstackAssertion(Cluster(IPCache(replace(healthy(), netns=kept)))).check_all()
    missing = [item for item in found if item.code == "KP-K8S-016"]
    assert [item.subject for item in missing] == [WEB]


@pytest.mark.parametrize("section", list(Section))
def test_a_section_that_was_not_collected_is_never_taken_for_empty(section: Section) -> None:
    fields = {
        Section.LINKS: "interfaces",
        Section.IPTABLES: "tables",
        Section.ROUTE_EXCEPTIONS: "route_exceptions",
    }
    name = fields.get(section, str(section).replace("-", "_"))
    empty: object = {} if section == Section.SYSCTLS else ()
    state = edited(
        N1,
        lambda ns: replace(ns, missing=(Missing(section=section, reason="denied"),), **{name: empty}),
    )
    assert _check(state) == []


HOST_PORT = (ContainerPort(port=8080, name="http", host_port=8088),)


def _with_host_port() -> ClusterState:
    pods = tuple(replace(known, ports=HOST_PORT) if known.netns == WEB else known for known in healthy().objects.pods)
    return replace(healthy(), objects=replace(healthy().objects, pods=pods))


def test_a_host_port_that_no_rule_serves_is_found_and_mended() -> None:
    state = _with_host_port()
    found = _check(state)
    assert [item.code for item in found] == ["KP-NF-009"]
    assert found[0].remedy is not None
    assert _check(apply(state, found[0].remedy.changes)) == []
    assert _check(edited(N1, _listener(8088, 0), state)) == []
