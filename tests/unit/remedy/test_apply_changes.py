import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tasks.skoop.model.addr import Ip, Mac, Net
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import (
    Address,
    ConntrackEntry,
    FdbEntry,
    Interface,
    NeighbourState,
    NetNS,
    NextHop,
    PolicyRule,
    Route,
    RouteException,
    Socket,
    Tuple,
    Vxlan,
)
from tasks.skoop.model.suspicion import (
    AddAddress,
    AddChain,
    AddRoute,
    AddSocket,
    Change,
    DeletePolicyRule,
    DeleteRoute,
    DeleteRule,
    FlushConntrack,
    ForgetPathMtu,
    InsertRule,
    SetFdb,
    SetLink,
    SetNeighbour,
    SetPolicy,
    SetSysctl,
)
from tasks.skoop.model.xtables import Backend, Chain, Rule, XTable
from tasks.skoop.remedy import RemedyError, apply, in_order

N = NetnsId("node/n")
P = NetnsId("pod/a/web")
ACCEPT_IT = "-s 10.0.0.0/8 -j ACCEPT"
DROP_IT = "-p tcp -m tcp --dport 22 -j DROP"


def _rule(raw: str) -> Rule:
    return Rule(raw)


TABLES = (
    XTable(
        backend=Backend.LEGACY,
        family=4,
        name="filter",
        chains=(Chain("FORWARD", "DROP", (_rule(ACCEPT_IT), _rule(DROP_IT))), Chain("MINE")),
    ),
)
CONNECTED = Route(
    dst=Net("10.0.1.0/24"), nexthops=(NextHop(dev="cni0"),), prefsrc=Ip("10.0.1.1"), scope="link", protocol="kernel"
)
STATIC = Route(dst=Net("10.0.2.0/24"), nexthops=(NextHop(dev="cni0", via=Ip("10.0.1.9")),))
LOCAL = Route(
    dst=Net("10.0.1.1/32"),
    table=255,
    type="local",
    nexthops=(NextHop(dev="cni0"),),
    scope="host",
    prefsrc=Ip("10.0.1.1"),
    protocol="kernel",
)
BRIDGE = Interface(
    index=3,
    name="cni0",
    kind="bridge",
    mac=Mac("02:00:00:00:00:01"),
    addresses=(Address(ip=Ip("10.0.1.1"), prefixlen=24),),
)
VETH = Interface(index=4, name="veth1", kind="veth", mac=Mac("02:00:00:00:00:02"), mtu=1450, peer=(P, "eth0"))
ETH0 = Interface(
    index=2,
    name="eth0",
    kind="veth",
    mtu=1450,
    peer=(N, "veth1"),
    addresses=(Address(ip=Ip("10.0.1.5"), prefixlen=24),),
)
UNDER = Interface(index=2, name="eth0", mtu=1500)
OVERLAY = Interface(
    index=5, name="flannel.1", kind="vxlan", mtu=1450, vxlan=Vxlan(vni=1, local=Ip("172.18.0.1"), link="eth0")
)


def _state(**changes: object) -> ClusterState:
    node = NetNS(
        id=N,
        interfaces=(UNDER, BRIDGE, VETH, OVERLAY),
        routes=(CONNECTED, STATIC, LOCAL),
        rules=(PolicyRule(family=4, priority=100, table=7), PolicyRule(family=4, priority=32766, table=254)),
        sysctls={
            "net/ipv4/ip_forward": "0",
            "net/ipv4/conf/all/forwarding": "0",
            "net/ipv4/conf/cni0/forwarding": "0",
        },
        tables=TABLES,
    )
    return ClusterState(netns={N: replace(node, **changes), P: NetNS(id=P, interfaces=(ETH0,))})


def _after(*changes: Change, state: ClusterState | None = None) -> NetNS:
    return apply(state or _state(), changes).netns[N]


def _forward(netns: NetNS) -> list[str]:
    return [rule.raw for rule in netns.tables[0].chains[0].rules]


def _delete(position: int, raw: str) -> DeleteRule:
    return DeleteRule(netns=N, backend="legacy", family=4, table="filter", chain="FORWARD", rule=position, raw=raw)


def _insert(position: int, raw: str, chain: str = "FORWARD", table: str = "filter") -> InsertRule:
    return InsertRule(netns=N, backend="legacy", family=4, table=table, chain=chain, rule=position, raw=raw)


def test_the_state_before_stays_as_it_was() -> None:
    before = _state()
    assert apply(before, [_delete(1, ACCEPT_IT)]) != before
    assert before == _state()


# --- rules -----------------------------------------------------------------------------------------------------------


def test_a_rule_is_deleted_by_position_and_text() -> None:
    assert _forward(_after(_delete(2, DROP_IT))) == [ACCEPT_IT]


@pytest.mark.parametrize(
    ("position", "raw"),
    [
        pytest.param(1, DROP_IT, id="another rule stands there"),
        pytest.param(3, DROP_IT, id="past the end"),
        pytest.param(0, DROP_IT, id="not a position"),
    ],
)
def test_a_rule_that_is_not_there_is_not_deleted(position: int, raw: str) -> None:
    with pytest.raises(RemedyError, match="rule"):
        _after(_delete(position, raw))


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        pytest.param(1, ["-j MINE", ACCEPT_IT, DROP_IT], id="first"),
        pytest.param(2, [ACCEPT_IT, "-j MINE", DROP_IT], id="between"),
        pytest.param(3, [ACCEPT_IT, DROP_IT, "-j MINE"], id="after the last"),
        pytest.param(0, [ACCEPT_IT, DROP_IT, "-j MINE"], id="0 appends"),
    ],
)
def test_a_rule_is_inserted_before_the_position(position: int, expected: list[str]) -> None:
    assert _forward(_after(_insert(position, "-j MINE"))) == expected


def test_an_inserted_rule_is_read_as_a_dump_is() -> None:
    rule = _after(_insert(1, DROP_IT)).tables[0].chains[0].rules[0]
    assert (rule.target.name, [match.name for match in rule.matches]) == ("DROP", ["proto", "tcp"])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_insert(4, "-j MINE"), id="position past the end"),
        pytest.param(_insert(1, "-j MINE", chain="NOBODY"), id="no such chain"),
        pytest.param(_insert(1, "-p"), id="not a rule"),
        pytest.param(
            _delete(1, ACCEPT_IT).__class__(
                netns=N, backend="nft", family=4, table="filter", chain="FORWARD", rule=1, raw=ACCEPT_IT
            ),
            id="the other back end",
        ),
    ],
)
def test_what_iptables_would_refuse_is_refused(change: Change) -> None:
    with pytest.raises(RemedyError):
        _after(change)


def test_a_table_is_made_when_a_rule_is_put_into_it() -> None:
    after = _after(_insert(0, "-j MASQUERADE", chain="POSTROUTING", table="nat"))
    nat = after.tables[1]
    assert [chain.name for chain in nat.chains] == ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]
    assert nat.chains[3].rules[0].target.name == "MASQUERADE"


def test_a_policy_is_set_on_a_built_in_chain_only() -> None:
    policy = SetPolicy(netns=N, backend="legacy", family=4, table="filter", chain="FORWARD", policy="ACCEPT")
    assert _after(policy).tables[0].chains[0].policy == "ACCEPT"
    with pytest.raises(RemedyError, match="user's chain"):
        _after(replace(policy, chain="MINE"))


def test_a_chain_is_made_once() -> None:
    chain = AddChain(netns=N, backend="legacy", family=4, table="filter", chain="NEW")
    assert [known.name for known in _after(chain, chain).tables[0].chains] == ["FORWARD", "MINE", "NEW"]


@given(st.integers(1, 3), st.sampled_from([DROP_IT, "-j MINE"]))
def test_deleting_what_was_inserted_gives_the_state_back(position: int, raw: str) -> None:
    before = _state()
    assert apply(before, [_insert(position, raw), _delete(position, raw)]) == before


def test_changes_of_several_remedies_do_not_move_each_others_rules() -> None:
    remedies: list[list[Change]] = [[_insert(1, "-j MINE")], [_delete(1, ACCEPT_IT)], [_delete(2, DROP_IT)]]
    assert _forward(_after(*in_order(remedies))) == ["-j MINE"]


def test_one_remedys_changes_keep_their_order_and_doubles_go() -> None:
    swap: list[Change] = [_insert(3, "-j MINE"), _delete(1, ACCEPT_IT)]
    assert in_order([swap, [_delete(1, ACCEPT_IT)]]) == (_delete(1, ACCEPT_IT), swap[0])
    assert in_order([swap]) == tuple(swap)


# --- sysctls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding"])
def test_forwarding_is_copied_to_every_interface_when_it_changes(key: str) -> None:
    after = _after(SetSysctl(netns=N, key=key, value="1")).sysctls
    copied = [after[f"net/ipv4/conf/{name}/forwarding"] for name in ("all", "default", "cni0", "flannel.1", "eth0")]
    assert (after["net/ipv4/ip_forward"], copied) == ("1", ["1"] * 5)


def test_writing_the_same_forwarding_again_does_not_reset_an_interface() -> None:
    on = _after(SetSysctl(netns=N, key="net/ipv4/ip_forward", value="1"))
    state = ClusterState(netns={N: replace(on, sysctls={**on.sysctls, "net/ipv4/conf/cni0/forwarding": "0"})})
    again = _after(SetSysctl(netns=N, key="net/ipv4/ip_forward", value="1"), state=state)
    assert again.sysctls["net/ipv4/conf/cni0/forwarding"] == "0"


# --- links -----------------------------------------------------------------------------------------------------------


def test_a_device_that_goes_down_loses_its_routes_but_not_its_own_addresses() -> None:
    assert _after(SetLink(netns=N, dev="cni0", up=False)).routes == (LOCAL,)


def test_a_device_that_comes_up_gets_its_connected_routes_back_and_no_static_ones() -> None:
    down = apply(_state(), [SetLink(netns=N, dev="cni0", up=False)])
    assert _after(SetLink(netns=N, dev="cni0", up=True), state=down).routes == (LOCAL, CONNECTED)


def test_a_leg_of_a_multipath_route_dies_with_its_device() -> None:
    both = Route(
        dst=Net("10.9.0.0/16"),
        nexthops=(NextHop(dev="cni0", via=Ip("10.0.1.9")), NextHop(dev="eth0", via=Ip("1.2.3.4"))),
    )
    state = _state(routes=(both,))
    after = apply(state, [SetLink(netns=N, dev="cni0", up=False)]).netns[N]
    assert [hop.dead for hop in after.routes[0].nexthops] == [True, False]


def test_both_ends_of_a_veth_lose_and_regain_carrier_together() -> None:
    down = apply(_state(), [SetLink(netns=N, dev="veth1", up=False)])
    inside = down.netns[P].interface("eth0")
    assert inside is not None
    assert (inside.up, inside.carrier) == (True, False)
    up = apply(down, [SetLink(netns=N, dev="veth1", up=True)])
    assert [link.carrier for link in up.netns[P].interfaces] == [True]


def test_a_port_joins_a_bridge_forwarding_with_its_mac_known() -> None:
    after = _after(SetLink(netns=N, dev="veth1", master="cni0", hairpin=True))
    port = after.interface("veth1")
    assert port is not None and port.port is not None
    assert (port.master, port.port.hairpin, port.port.state) == ("cni0", True, "forwarding")
    assert after.fdb == (FdbEntry(mac=VETH.mac, dev="veth1", master="cni0", permanent=True),)
    left = _after(SetLink(netns=N, dev="veth1", master=""), state=ClusterState(netns={N: after}))
    assert (left.interface("veth1"), left.fdb) == (VETH, ())


def test_ports_stop_and_start_with_their_bridge() -> None:
    joined = apply(_state(), [SetLink(netns=N, dev="veth1", master="cni0")])

    def port_state(*changes: Change) -> str:
        link = _after(*changes, state=joined).interface("veth1")
        assert link is not None and link.port is not None
        return link.port.state

    down, up = SetLink(netns=N, dev="cni0", up=False), SetLink(netns=N, dev="cni0", up=True)
    assert [port_state(down), port_state(down, up)] == ["disabled", "forwarding"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(SetLink(netns=N, dev="flannel.1", mtu=1451), "1450 bytes over eth0", id="vxlan larger than fits"),
        pytest.param(SetLink(netns=N, dev="veth1", hairpin=True), "on no bridge", id="port flag without bridge"),
        pytest.param(SetLink(netns=N, dev="veth1", master="eth0"), "not a bridge", id="master that is none"),
        pytest.param(SetLink(netns=N, dev="gone", up=True), "no interface gone", id="no such device"),
        pytest.param(SetLink(netns=NetnsId("node/x"), dev="eth0", up=True), "not collected", id="no such namespace"),
    ],
)
def test_what_the_kernel_would_refuse_of_a_link_is_refused(change: Change, says: str) -> None:
    with pytest.raises(RemedyError, match=says):
        _after(change)


# --- the rest --------------------------------------------------------------------------------------------------------


def test_an_address_comes_with_its_routes() -> None:
    after = _after(AddAddress(netns=N, dev="eth0", address=Address(ip=Ip("172.18.0.1"), prefixlen=24)))
    assert [(route.dst, route.table) for route in after.routes[3:]] == [("172.18.0.1/32", 255), ("172.18.0.0/24", 254)]


def test_a_route_replaces_the_one_of_the_same_prefix() -> None:
    other = Route(dst=Net("10.0.2.0/24"), nexthops=(NextHop(dev="flannel.1", via=Ip("10.0.2.0"), onlink=True),))
    after = _after(AddRoute(netns=N, route=other))
    assert (STATIC in after.routes, other in after.routes, len(after.routes)) == (False, True, 3)


def test_no_route_goes_over_a_device_that_is_down() -> None:
    down = SetLink(netns=N, dev="flannel.1", up=False)
    with pytest.raises(RemedyError, match="down"):
        _after(down, AddRoute(netns=N, route=Route(dst=Net("10.3.0.0/16"), nexthops=(NextHop(dev="flannel.1"),))))


def test_a_route_is_deleted_only_as_it_is() -> None:
    assert STATIC not in _after(DeleteRoute(netns=N, route=STATIC)).routes
    with pytest.raises(RemedyError, match="no route"):
        _after(DeleteRoute(netns=N, route=replace(STATIC, metric=5)))


def test_a_policy_rule_is_deleted_by_preference_and_table() -> None:
    assert [rule.priority for rule in _after(DeletePolicyRule(netns=N, family=4, priority=100, table=7)).rules] == [
        32766
    ]
    with pytest.raises(RemedyError, match="preference 100"):
        _after(DeletePolicyRule(netns=N, family=4, priority=100, table=8))


def test_neighbours_are_replaced_and_removed() -> None:
    one = SetNeighbour(netns=N, ip="10.0.1.5", dev="cni0", mac="02:00:00:00:00:05", state=NeighbourState.STALE)
    two = replace(one, mac="02:00:00:00:00:06")
    assert [entry.mac for entry in _after(one, two).neighbours] == ["02:00:00:00:00:06"]
    assert _after(one, replace(one, mac=None)).neighbours == ()


def test_forwarding_entries_are_replaced_and_removed() -> None:
    entry = FdbEntry(mac=Mac("02:00:00:00:00:09"), dev="flannel.1", dst=Ip("172.18.0.9"), permanent=True)
    moved = replace(entry, dst=Ip("172.18.0.8"))
    assert _after(SetFdb(netns=N, entry=entry), SetFdb(netns=N, entry=moved)).fdb == (moved,)
    assert _after(SetFdb(netns=N, entry=entry), SetFdb(netns=N, entry=moved, remove=True)).fdb == ()


def test_sockets_connections_and_path_mtus() -> None:
    listener = Socket(protocol=Protocol.TCP, ip=Ip("0.0.0.0"), port=80)
    assert _after(AddSocket(netns=N, socket=listener)).sockets == (listener,)

    def entry(port: int) -> ConntrackEntry:
        ends = Tuple(Ip("10.0.1.5"), Ip("10.96.0.10"), 40000, port)
        return ConntrackEntry(protocol=Protocol.UDP, original=ends, reply=ends)

    state = _state(
        conntrack=(entry(53), entry(54)),
        route_exceptions=(
            RouteException(dst=Ip("10.0.2.5"), mtu=1350),
            RouteException(dst=Ip("10.0.2.6"), via=Ip("10.0.1.7")),
        ),
    )
    after = _after(FlushConntrack(netns=N, dst="10.96.0.10", dport=53), ForgetPathMtu(netns=N), state=state)
    assert [kept.original.dport for kept in after.conntrack] == [54]
    assert [kept.dst for kept in after.route_exceptions] == ["10.0.2.6"]
