from collections.abc import Callable, Sequence

import pytest
from msgspec.structs import replace

from tasks.skoop.ipcache import IPCache
from tasks.skoop.model.addr import Ip, Net
from tasks.skoop.model.cluster import ClusterState, EndpointSlice, Service, ServicePort
from tasks.skoop.model.ids import NodeName
from tasks.skoop.model.state import NetNS
from tasks.skoop.model.suspicion import Change, Suspicion
from tasks.skoop.model.xtables import Backend, Chain, XTable
from tasks.skoop.parse.iptables_rule import RuleReader
from tasks.skoop.remedy import apply
from tasks.skoop.service.kubeproxy import KubeProxy
from tests.unit.clusters import N1, broken, cut, edited, healthy, ip_of, put, recorded, rules

SVC = "KUBE-SVC-67NZLRHBNDSAWJRO"
"""shop/web:http"""
NODE_PORT_EXT = "KUBE-EXT-FFNRHJJFV2V5GBHP"
"""shop/web-nodeport:http"""


def _check(state: ClusterState, node: str = "n1") -> tuple[Suspicion, ...]:
    return KubeProxy(IPCache(state)).validate(NodeName(node))


def _sep(ip: str) -> str:
    """Return the chain of an endpoint of shop/web."""
    line = next(text for text in rules(N1, "nat", SVC) if f"-> {ip}:" in text)
    return line.rpartition(" ")[2]


WEB1, WEB3 = ip_of("web-", "n1"), ip_of("web-", "n3")
MOVED = [
    put(
        N1,
        "nat",
        _sep(WEB1),
        '-p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.244.1.99:8080',
        3,
    ),
    cut(N1, "nat", _sep(WEB1), "DNAT"),
]
REFUSED = put(N1, "filter", "KUBE-SERVICES", "-d 10.96.10.1/32 -p tcp -m tcp --dport 80 -j REJECT")
FOREIGN = "-d 10.96.55.55/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-67NZLRHBNDSAWJRO"


@pytest.mark.parametrize("name", ["il-healthy", "il-ok-foreign-chains", "il-ok-rpfilter2"])
def test_a_node_that_is_programmed_right_gives_nothing(name: str) -> None:
    state = recorded(name)
    assert [found for node in ("n1", "n2", "n3") for found in _check(state, node)] == []


@pytest.mark.parametrize(
    ("changes", "code", "mentions"),
    [
        pytest.param([cut(N1, "nat", "KUBE-SERVICES", "-d 10.96.10.1/32")], "KP-SVC-001", "10.96.10.1:80", id="cluster IP not caught"),
        pytest.param([cut(N1, "nat", SVC, WEB1)], "KP-SVC-002", WEB1, id="first backend missing"),
        pytest.param([cut(N1, "nat", SVC, WEB3)], "KP-SVC-002", WEB3, id="last backend missing"),
        pytest.param([cut(N1, "nat", _sep(WEB1), "MARK-MASQ")], "KP-SVC-005", WEB1, id="own traffic not masqueraded"),
        pytest.param([cut(N1, "nat", _sep(WEB1), "DNAT")], "KP-SVC-004", WEB1, id="no DNAT"),
        pytest.param(MOVED, "KP-SVC-004", WEB1, id="DNAT to another address"),
        pytest.param([cut(N1, "nat", SVC, "MARK-MASQ")], "KP-SVC-006", "unlike other", id="outside traffic not masqueraded"),
        pytest.param([cut(N1, "nat", "KUBE-POSTROUTING", "MASQUERADE")], "KP-SVC-007", "masquerade", id="no masquerade"),
        pytest.param([cut(N1, "nat", "KUBE-MARK-MASQ", "MARK")], "KP-SVC-008", "no mark", id="no mark"),
        pytest.param([cut(N1, "nat", "PREROUTING", "KUBE-SERVICES")], "KP-SVC-009", "PREROUTING", id="PREROUTING does not call"),
        pytest.param([cut(N1, "nat", "POSTROUTING", "KUBE-POSTROUTING")], "KP-SVC-009", "POSTROUTING", id="POSTROUTING does not call"),
        pytest.param([cut(N1, "filter", "FORWARD", "KUBE-FORWARD")], "KP-SVC-009", "KUBE-FORWARD", id="FORWARD does not call"),
        pytest.param([cut(N1, "filter", "KUBE-SERVICES", "10.96.10.6")], "KP-SVC-010", "shop/orphan", id="nobody refuses"),
        pytest.param([REFUSED], "KP-SVC-011", "shop/web", id="refused in vain"),
        pytest.param([cut(N1, "nat", "KUBE-NODEPORTS", "30080")], "KP-SVC-012", "30080", id="node port not caught"),
        pytest.param([cut(N1, "nat", "KUBE-SERVICES", "172.18.0.200")], "KP-SVC-013", "172.18.0.200", id="external IP not caught"),
        pytest.param([put(N1, "nat", "KUBE-SERVICES", FOREIGN)], "KP-SVC-014", "10.96.55.55", id="no such Service"),
        pytest.param([cut(N1, "nat", NODE_PORT_EXT, "MARK-MASQ")], "KP-SVC-015", "web-nodeport", id="outside: no masquerade"),
        pytest.param([cut(N1, "nat", NODE_PORT_EXT, "-j KUBE-SVC")], "KP-SVC-015", "web-nodeport", id="outside: leads nowhere"),
        pytest.param([put(N1, "nat", "KUBE-FW-AKPB56V6DIC5CJT2", "-s 192.0.2.0/24 -j KUBE-EXT-AKPB56V6DIC5CJT2")], "KP-SVC-016", "web-lb", id="another source range"),
        pytest.param([put(N1, "nat", "PREROUTING", "-p tcp -m tcp --dport 80 -j REDIRECT --to-ports 15001")], "KP-SVC-017", "15001", id="stolen before"),
    ],
)  # fmt: skip
def test_a_difference_is_found_alone(changes: Sequence[Change], code: str, mentions: str) -> None:
    found = _check(broken(*changes))
    assert [suspicion.code for suspicion in found] == [code]
    assert mentions in found[0].message


REMEDIED = [
    "KP-SVC-001",
    "KP-SVC-002",
    "KP-SVC-003",
    "KP-SVC-004",
    "KP-SVC-005",
    "KP-SVC-006",
    "KP-SVC-007",
    "KP-SVC-008",
]
REMEDIED += [
    "KP-SVC-009",
    "KP-SVC-010",
    "KP-SVC-011",
    "KP-SVC-012",
    "KP-SVC-013",
    "KP-SVC-014",
    "KP-SVC-015",
    "KP-SVC-020",
]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([cut(N1, "nat", "KUBE-SERVICES", "-d 10.96.10.1/32")], id="cluster IP"),
        pytest.param([cut(N1, "nat", SVC, WEB1)], id="backend"),
        pytest.param([cut(N1, "nat", SVC, WEB1), cut(N1, "nat", _sep(WEB1), "DNAT")], id="backend and its chain"),
        pytest.param(MOVED, id="wrong address"),
        pytest.param([cut(N1, "nat", SVC, "MARK-MASQ")], id="outside"),
        pytest.param([cut(N1, "nat", "KUBE-POSTROUTING", "MASQUERADE")], id="masquerade"),
        pytest.param([cut(N1, "nat", "KUBE-MARK-MASQ", "MARK")], id="mark"),
        pytest.param([cut(N1, "nat", "OUTPUT", "KUBE-SERVICES")], id="jump"),
        pytest.param([cut(N1, "filter", "KUBE-SERVICES", "10.96.10.6")], id="refusal"),
        pytest.param([REFUSED], id="refused in vain"),
        pytest.param([cut(N1, "nat", "KUBE-NODEPORTS", "30080")], id="node port"),
        pytest.param([cut(N1, "nat", NODE_PORT_EXT, "MARK-MASQ")], id="outside chain"),
    ],
)
def test_the_remedies_leave_nothing_to_find(changes: Sequence[Change]) -> None:
    state = broken(*changes)
    for suspicion in _check(state):
        assert suspicion.code in REMEDIED
        assert suspicion.remedy is not None and suspicion.remedy.changes and suspicion.remedy.commands
        state = apply(state, suspicion.remedy.changes)
    assert _check(state) == ()


def _with_objects(**changes: object) -> ClusterState:
    return replace(healthy(), objects=replace(healthy().objects, **changes))


def _web_slices(keep: int) -> tuple[EndpointSlice, ...]:
    return tuple(
        replace(piece, endpoints=piece.endpoints[:keep]) if piece.service == "web" else piece
        for piece in healthy().objects.endpoint_slices
    )


def test_a_backend_that_left_the_service_is_stale_and_its_removal_evens_the_rest() -> None:
    state = _with_objects(endpoint_slices=_web_slices(2))
    found = _check(state)
    assert [suspicion.code for suspicion in found] == ["KP-SVC-003"]
    assert found[0].remedy is not None
    assert _check(apply(state, found[0].remedy.changes)) == ()


def test_a_backend_that_came_new_is_missing_and_gets_its_whole_chain() -> None:
    present = _check(_with_objects(endpoint_slices=_web_slices(1)))
    assert {suspicion.code for suspicion in present} == {"KP-SVC-003"}
    pieces = tuple(
        replace(piece, endpoints=(*piece.endpoints, replace(piece.endpoints[0], addresses=(Ip("10.244.1.77"),))))
        if piece.service == "web"
        else piece
        for piece in healthy().objects.endpoint_slices
    )
    state = _with_objects(endpoint_slices=pieces)
    found = _check(state)
    assert [suspicion.code for suspicion in found] == ["KP-SVC-002"]
    assert found[0].remedy is not None
    assert _check(apply(state, found[0].remedy.changes)) == ()


def test_probabilities_that_do_not_add_up_are_found() -> None:
    line = rules(N1, "nat", SVC)[1]
    state = broken(cut(N1, "nat", SVC, WEB1), put(N1, "nat", SVC, line.replace("0.33333333349", "0.90000000000"), 2))
    assert [suspicion.code for suspicion in _check(state)] == ["KP-SVC-020"]


def test_a_check_can_be_limited_to_some_services() -> None:
    state = broken(cut(N1, "nat", SVC, WEB1), cut(N1, "nat", "KUBE-NODEPORTS", "30080"))
    proxy = KubeProxy(IPCache(state))
    codes = [found.code for found in proxy.validate(NodeName("n1"), services={"shop/web"})]
    assert codes == ["KP-SVC-002"]
    assert proxy.validate(NodeName("n1"), services={"shop/api"}) == ()


def _second_back_end(netns: NetNS) -> NetNS:
    """Give the node a stale set of rules in the nft back end as well: the Service's last backend is missing there."""
    nat = next(table for table in netns.tables if table.name == "nat" and table.family == 4)
    chains = tuple(replace(chain, rules=chain.rules[:-1]) if chain.name == SVC else chain for chain in nat.chains)
    return replace(netns, tables=(*netns.tables, replace(nat, backend=Backend.NFT, chains=chains)))


def test_rules_in_both_back_ends_are_found_and_the_stale_set_is_named() -> None:
    state = edited(N1, _second_back_end)
    found = _check(state)
    assert [suspicion.code for suspicion in found] == ["KP-NF-004"]
    assert "iptables-nft fit the Services less" in found[0].message
    assert found[0].remedy is not None
    assert {command.split()[0] for _, command in found[0].remedy.commands} == {"iptables-nft"}


def _stranger(dst: str) -> Callable[[NetNS], NetNS]:
    """Return the edit that puts a DNAT rule for an address into the back end that kube-proxy does not use."""
    rule = RuleReader().rule(f"-d {dst} -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.1.99:8080")
    table = XTable(backend=Backend.NFT, family=4, name="nat", chains=(Chain("PREROUTING", "ACCEPT", (rule,)),))
    return lambda netns: replace(netns, tables=(*netns.tables, table))


def test_a_left_over_rule_for_a_service_in_the_other_back_end_is_found_and_mended() -> None:
    state = edited(N1, _stranger("10.96.10.1/32"))
    found = _check(state)
    assert [suspicion.code for suspicion in found] == ["KP-SVC-017"]
    assert found[0].remedy is not None
    assert _check(apply(state, found[0].remedy.changes)) == ()
    assert _check(edited(N1, _stranger("192.0.2.1/32"))) == ()


def test_a_node_without_any_proxy_is_found_where_others_have_one() -> None:
    state = edited(N1, lambda netns: replace(netns, tables=()))
    assert [(found.code, found.level) for found in _check(state)] == [("KP-SVC-019", "critical")]


def test_other_modes_are_said_not_to_be_checked() -> None:
    assert [found.code for found in _check(recorded("nf-healthy"))] == ["KP-SVC-018"]


def test_both_families_are_compared_each_with_its_own_rules() -> None:
    dual = Service(
        namespace="shop",
        name="six",
        cluster_ips=("10.96.44.1", "fd96::1"),
        ports=(ServicePort(port=80, name="http"),),
        load_balancer_source_ranges=(Net("::/0"),),
    )
    state = _with_objects(services=(dual,))
    found = [suspicion for suspicion in _check(state) if suspicion.code == "KP-SVC-010"]
    assert {"10.96.44.1" in suspicion.message for suspicion in found} == {True, False}
