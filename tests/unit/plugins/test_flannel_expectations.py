"""flannel on the healthy cluster with one thing changed: it is found, and its remedy mends it."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from tasks.skoop.ipcache import IPCache
from tasks.skoop.model.addr import Ip, Mac, Net
from tasks.skoop.model.cluster import ClusterState, NodeMeta
from tasks.skoop.model.ids import NetnsId, NodeName, PodKey
from tasks.skoop.model.netnode import NetNodeType
from tasks.skoop.model.state import FdbEntry, NeighbourState, NetNS, NextHop, PolicyRule, Route
from tasks.skoop.model.suspicion import Level, Suspicion
from tasks.skoop.network import Network
from tasks.skoop.plugins.flannel import Flannel
from tasks.skoop.plugins.flannel_config import read_flannel
from tasks.skoop.plugins.protocol import Plugin
from tasks.skoop.remedy import apply
from tests.unit.clusters import N1, N2, edited, healthy, host_end, ip_of, pod, with_link

VTEP2, VTEP3 = Mac("9a:7c:10:24:40:02"), Mac("9a:7c:10:24:40:03")
OTHER_MAC = Mac("02:00:00:00:00:99")
CLIENT = pod("client-", "n1")
VETH = host_end("client-", "n1")
ANNOTATION = "flannel.alpha.coreos.com/"


def _plugin(state: ClusterState) -> Plugin:
    return Network(state).plugin


def _check(state: ClusterState) -> list[Suspicion]:
    return [item for item in _plugin(state).suspicions() if item.level != Level.INFO]


def _route(dst: str, **changes: object) -> Callable[[NetNS], NetNS]:
    """Return the edit that changes the route of a prefix; `gone` removes it."""

    def edit(netns: NetNS) -> NetNS:
        mine = [route for route in netns.routes if route.dst == dst]
        rest = tuple(route for route in netns.routes if route.dst != dst)
        assert mine
        return replace(
            netns, routes=rest if "gone" in changes else (*rest, *(replace(route, **changes) for route in mine))
        )

    return edit


def _added(*routes: Route) -> Callable[[NetNS], NetNS]:
    return lambda netns: replace(netns, routes=(*netns.routes, *routes))


def _neighbour(ip: str, **changes: object) -> Callable[[NetNS], NetNS]:
    def edit(netns: NetNS) -> NetNS:
        kept = (
            replace(entry, **changes) if entry.ip == ip else entry
            for entry in netns.neighbours
            if entry.ip != ip or "gone" not in changes
        )
        return replace(netns, neighbours=tuple(kept))

    return edit


def _fdb(mac: Mac, **changes: object) -> Callable[[NetNS], NetNS]:
    def edit(netns: NetNS) -> NetNS:
        kept = (
            replace(entry, **changes) if entry.mac == mac else entry
            for entry in netns.fdb
            if entry.mac != mac or "gone" not in changes
        )
        return replace(netns, fdb=tuple(kept))

    return edit


def _vxlan(**changes: object) -> Callable[[NetNS], NetNS]:
    def edit(netns: NetNS) -> NetNS:
        link = netns.interface("flannel.1")
        assert link is not None and link.vxlan is not None
        return with_link(netns, "flannel.1", vxlan=replace(link.vxlan, **changes))

    return edit


def _port(**changes: object) -> Callable[[NetNS], NetNS]:
    def edit(netns: NetNS) -> NetNS:
        link = netns.interface(VETH)
        assert link is not None and link.port is not None
        return with_link(netns, VETH, port=replace(link.port, **changes))

    return edit


def _without(name: str) -> Callable[[NetNS], NetNS]:
    return lambda netns: replace(netns, interfaces=tuple(link for link in netns.interfaces if link.name != name))


def _link(name: str, **changes: object) -> Callable[[NetNS], NetNS]:
    return lambda netns: with_link(netns, name, **changes)


UNDERLAY_HOP = (NextHop(dev="eth0", via=Ip("172.18.0.12")),)
DIVERTED = Route(dst=Net("10.244.2.0/24"), table=50, nexthops=UNDERLAY_HOP)
RULE = PolicyRule(family=4, priority=10, table=50, src=Net("10.244.1.0/24"))

MENDED = [
    pytest.param(N1, _route("10.244.2.0/24", gone=True), "KP-ROUTE-001", id="route missing"),
    pytest.param(N1, _route("10.244.2.0/24", nexthops=UNDERLAY_HOP), "KP-ROUTE-002", id="route over the underlay"),
    pytest.param(N1, _route("10.244.2.0/24", type="blackhole", nexthops=()), "KP-ROUTE-005", id="route turned blackhole"),
    pytest.param(N1, _added(Route(dst=Net("10.244.2.0/25"), nexthops=UNDERLAY_HOP)), "KP-ROUTE-010", id="narrower route elsewhere"),
    pytest.param(N1, lambda ns: replace(_added(DIVERTED)(ns), rules=(RULE, *ns.rules)), "KP-ROUTE-006", id="ip rule to another table"),
    pytest.param(N1, _neighbour("10.244.2.0", gone=True), "KP-VXLAN-009", id="neighbour missing"),
    pytest.param(N1, _neighbour("10.244.2.0", mac=OTHER_MAC), "KP-VXLAN-009", id="neighbour with another MAC"),
    pytest.param(N1, _neighbour("10.244.2.0", state=NeighbourState.FAILED), "KP-VXLAN-009", id="neighbour failed"),
    pytest.param(N1, _fdb(VTEP2, gone=True), "KP-VXLAN-008", id="forwarding entry missing"),
    pytest.param(N1, _fdb(VTEP2, dst=Ip("172.18.0.13")), "KP-VXLAN-008", id="forwarding entry to another node"),
    pytest.param(N1, _link("cni0", up=False), "KP-LINK-005", id="bridge down"),
    pytest.param(N1, _route("10.244.1.0/24", gone=True), "KP-ROUTE-008", id="route to own pods missing"),
    pytest.param(N1, _link(VETH, master=None, port=None), "KP-LINK-004", id="host end off the bridge"),
    pytest.param(N1, _link(VETH, up=False), "KP-LINK-003", id="host end down"),
    pytest.param(N1, _link(VETH, mtu=1400), "KP-LINK-008", id="host end with another MTU"),
    pytest.param(N1, _port(hairpin=False), "KP-LINK-007", id="hairpin off"),
    pytest.param(N1, _port(isolated=True), "KP-LINK-011", id="port isolated"),
    pytest.param(N1, _port(state="blocking"), "KP-LINK-006", id="port blocking"),
    pytest.param(N1, _added(Route(dst=Net(f"{CLIENT.ips[0]}/32"), nexthops=UNDERLAY_HOP)), "KP-ROUTE-010", id="left-over route of a pod"),
    pytest.param(CLIENT.netns, _link("eth0", up=False), "KP-LINK-001", id="pod's interface down"),
    pytest.param(CLIENT.netns, _link("eth0", mtu=9000), "KP-LINK-008", id="pod with another MTU"),
    pytest.param(CLIENT.netns, _route("0.0.0.0/0", gone=True), "KP-ROUTE-003", id="pod without default route"),
    pytest.param(CLIENT.netns, _link("eth0", addresses=()), "KP-ADDR-002", id="pod without its address"),
]  # fmt: skip

NO_REMEDY = [
    pytest.param(N1, _without("flannel.1"), {"KP-VXLAN-001"}, id="vxlan device missing"),
    pytest.param(N1, _vxlan(vni=2), {"KP-VXLAN-003"}, id="another VNI"),
    pytest.param(N1, _vxlan(port=4789), {"KP-VXLAN-004"}, id="another UDP port"),
    pytest.param(N1, _vxlan(local=Ip("172.18.0.99")), {"KP-VXLAN-005"}, id="another local address"),
    pytest.param(N1, _link("flannel.1", addresses=()), {"KP-VXLAN-012"}, id="vxlan device without address"),
    pytest.param(N1, _without("cni0"), {"KP-LINK-015", "KP-ROUTE-004"}, id="bridge missing"),
    pytest.param(N1, _fdb(Mac("c2:33:88:79:a0:54"), gone=True), {"KP-LINK-012"}, id="bridge does not know itself"),
    pytest.param(CLIENT.netns, _without("eth0"), {"KP-LINK-013"}, id="pod without interface"),
    pytest.param(CLIENT.netns, _route("0.0.0.0/0", nexthops=(NextHop(dev="eth0", via=Ip("10.244.1.3")),)), {"KP-ROUTE-004"}, id="gateway is a pod"),
]  # fmt: skip


@pytest.mark.parametrize(("netns", "edit", "code"), MENDED)
def test_a_fault_is_found_and_mended(netns: NetnsId, edit: Callable[[NetNS], NetNS], code: str) -> None:
    state = edited(netns, edit)
    found = _check(state)
    assert [item.code for item in found] == [code]
    remedy = found[0].remedy
    assert remedy is not None and remedy.changes and remedy.commands
    assert _check(apply(state, remedy.changes)) == []


@pytest.mark.parametrize(("netns", "edit", "codes"), NO_REMEDY)
def test_a_fault_is_found(netns: NetnsId, edit: Callable[[NetNS], NetNS], codes: set[str]) -> None:
    assert {item.code for item in _check(edited(netns, edit))} == codes


def test_a_mac_that_changed_after_it_was_announced_is_found_on_the_node_and_mended_at_its_peers() -> None:
    state = edited(N2, _link("flannel.1", mac=OTHER_MAC))
    found = _check(state)
    assert {item.code: item.subject for item in found if item.code == "KP-VXLAN-006"} == {"KP-VXLAN-006": N2}
    entries = [item for item in found if item.code in ("KP-VXLAN-008", "KP-VXLAN-009")]
    assert sorted({item.subject for item in entries}) == ["node/n1", "node/n3"]
    for item in entries:
        assert item.remedy is not None
        state = apply(state, item.remedy.changes)
    assert [item.code for item in _check(state)] == ["KP-VXLAN-006"]


def test_a_small_underlay_is_found_on_the_node_that_differs() -> None:
    found = _check(edited(N2, _link("eth0", mtu=1400)))
    assert [(item.code, item.subject) for item in found] == [("KP-LINK-014", N2), ("KP-VXLAN-007", N2)]


def test_a_vxlan_device_larger_than_the_underlay_is_found() -> None:
    found = _check(edited(N1, _link("flannel.1", mtu=1500)))
    assert [item.code for item in found] == ["KP-VXLAN-007"]


def test_a_bridge_left_over_from_another_subnet_is_found() -> None:
    bridge = healthy().netns[N1].interface("cni0")
    assert bridge is not None
    moved = tuple(
        replace(known, ip=Ip("10.244.9.1")) if known.ip == "10.244.1.1" else known for known in bridge.addresses
    )
    assert "KP-ADDR-003" in {item.code for item in _check(edited(N1, _link("cni0", addresses=moved)))}


def test_an_entry_for_a_node_that_is_gone_is_only_information() -> None:
    gone = FdbEntry(mac=OTHER_MAC, dev="flannel.1", dst=Ip("172.18.0.77"), permanent=True)
    state = edited(N1, lambda ns: replace(ns, fdb=(*ns.fdb, gone)))
    assert _check(state) == []
    assert "KP-VXLAN-011" in {item.code for item in _plugin(state).suspicions()}


def test_no_masquerade_for_pods_is_found_and_mended() -> None:
    def edit(netns: NetNS) -> NetNS:
        tables = (
            replace(
                table,
                chains=tuple(
                    replace(chain, rules=()) if chain.name == "FLANNEL-POSTRTG" else chain for chain in table.chains
                ),
            )
            for table in netns.tables
        )
        return replace(netns, tables=tuple(tables))

    state = edited(N1, edit)
    found = _check(state)
    assert [item.code for item in found] == ["KP-NF-007"]
    assert found[0].remedy is not None
    assert _check(apply(state, found[0].remedy.changes)) == []


def test_without_configuration_the_other_nodes_show_whether_pods_are_masqueraded() -> None:
    objects = replace(healthy().objects, config={})
    plain = replace(healthy(), objects=objects)
    assert _check(plain) == []
    bare = edited(N1, lambda ns: replace(ns, tables=tuple(t for t in ns.tables if t.name != "nat")), plain)
    assert [(item.code, item.subject) for item in _check(bare)] == [("KP-NF-007", N1)]


# --- what nodes announce ---------------------------------------------------------------------------------------------


def _announcing(name: str, **notes: str | None) -> ClusterState:
    """Return the healthy cluster with annotations of one node changed (None: removed)."""

    def changed(node: NodeMeta) -> NodeMeta:
        if node.name != name:
            return node
        merged = {**node.annotations, **{ANNOTATION + key.replace("_", "-"): value for key, value in notes.items()}}
        return replace(node, annotations={key: value for key, value in merged.items() if value is not None})

    objects = healthy().objects
    return replace(healthy(), objects=replace(objects, nodes=tuple(changed(node) for node in objects.nodes)))


@pytest.mark.parametrize(
    ("notes", "code"),
    [
        pytest.param({"public_ip": "172.18.0.11"}, "KP-FLANNEL-001", id="two nodes with one public address"),
        pytest.param({"backend_type": None}, "KP-FLANNEL-002", id="not announced"),
        pytest.param({"backend_type": "host-gw"}, "KP-FLANNEL-003", id="another backend"),
        pytest.param({"public_ip": "192.0.2.1"}, "KP-FLANNEL-006", id="address that the node does not have"),
    ],
)
def test_a_wrong_announcement_is_found(notes: dict[str, str | None], code: str) -> None:
    assert code in {item.code for item in _check(_announcing("n2", **notes))}


def test_a_subnet_that_differs_from_the_pod_cidr_is_found() -> None:
    objects = healthy().objects
    config = {
        **objects.config,
        "node/n2/subnet.env": objects.config["node/n2/subnet.env"].replace("10.244.2.1", "10.244.7.1"),
    }
    found = _check(replace(healthy(), objects=replace(objects, config=config)))
    assert [item.code for item in found] == ["KP-FLANNEL-005"]


# --- what flannel would set ------------------------------------------------------------------------------------------


def test_flannel_knows_the_route_neighbour_and_entry_it_sets() -> None:
    plugin = _plugin(healthy())
    node = NodeName("n1")
    route = plugin.route_to(node, ip_of("web-", "n3"))
    assert route is not None
    present = [known for known in healthy().netns[N1].routes if known.dst == route.dst]
    assert [known.nexthops for known in present] == [route.nexthops]
    neighbour = plugin.neighbour_for(node, Ip("10.244.3.0"))
    assert neighbour is not None and neighbour.mac == VTEP3
    entry = plugin.forwarding_for(node, Ip("10.244.3.0"))
    assert entry in healthy().netns[N1].fdb
    assert plugin.route_to(node, Ip("192.0.2.1")) is None


def test_netnodes_carry_what_looks_wrong_there() -> None:
    plugin = _plugin(edited(CLIENT.netns, _link("eth0", mtu=9000)))
    node = plugin.create_pod(CLIENT.key)
    assert (node.type, node.id, node.netns) == (NetNodeType.POD, CLIENT.netns, CLIENT.netns)
    assert [item.code for item in node.suspicions] == ["KP-LINK-008"]
    assert plugin.create_node(NodeName("n1")).suspicions == ()
    with pytest.raises(KeyError):
        plugin.create_pod(PodKey("shop/nobody"))
    with pytest.raises(KeyError):
        plugin.create_node(NodeName("n9"))


# --- host-gw ---------------------------------------------------------------------------------------------------------


def _host_gw(state: ClusterState) -> ClusterState:
    """Turn the cluster into one of the host-gw backend: routes through the peers' addresses, no vxlan device."""
    peers = {"10.244.1.0/24": "172.18.0.11", "10.244.2.0/24": "172.18.0.12", "10.244.3.0/24": "172.18.0.13"}

    def hop(route: Route) -> Route:
        over = bool(route.nexthops) and route.nexthops[0].dev == "flannel.1" and route.dst in peers
        return replace(route, nexthops=(NextHop(dev="eth0", via=Ip(peers[route.dst])),)) if over else route

    netns = {
        key: replace(_without("flannel.1")(value), routes=tuple(hop(route) for route in value.routes), fdb=value.fdb)
        if key.startswith("node/")
        else value
        for key, value in state.netns.items()
    }
    nodes = tuple(
        replace(
            node,
            annotations={
                **node.annotations,
                ANNOTATION + "backend-type": "host-gw",
                ANNOTATION + "backend-data": "null",
            },
        )
        for node in state.objects.nodes
    )
    return replace(state, netns=netns, objects=replace(state.objects, nodes=nodes))


def test_host_gw_is_recognised_and_checked() -> None:
    state = _host_gw(healthy())
    assert "host-gw" in _plugin(state).description
    assert _check(state) == []
    missing = edited(N1, _route("10.244.2.0/24", gone=True), state)
    found = _check(missing)
    assert [item.code for item in found] == ["KP-ROUTE-001"]
    assert found[0].remedy is not None
    assert found[0].remedy.commands == (("n1", "ip route replace 10.244.2.0/24 via 172.18.0.12 dev eth0"),)


def test_host_gw_across_subnets_is_found() -> None:
    state = _host_gw(_announcing("n2", public_ip="192.0.2.12"))
    assert "KP-FLANNEL-004" in {item.code for item in _check(state)}


# --- recognition -----------------------------------------------------------------------------------------------------


def test_the_configuration_is_read_from_what_flannel_leaves_behind() -> None:
    config = read_flannel(healthy())
    assert config is not None
    assert (config.backend, config.port, config.network, config.device(1)) == (
        "vxlan",
        8472,
        "10.244.0.0/16",
        "flannel.1",
    )
    assert config.nodes[NodeName("n2")].vtep_mac == VTEP2
    assert read_flannel(healthy(), 6) is None


def test_a_cluster_without_traces_of_flannel_gets_the_generic_plugin() -> None:
    objects = replace(
        healthy().objects, config={}, nodes=tuple(replace(node, annotations={}) for node in healthy().objects.nodes)
    )
    bare = {key: _without("flannel.1")(netns) for key, netns in healthy().netns.items()}
    assert _plugin(replace(healthy(), objects=objects, netns=bare)).name == "generic"
    assert isinstance(_plugin(replace(healthy(), objects=objects)), Flannel)


def test_annotations_that_are_garbage_do_not_stop_the_reading() -> None:
    state = _announcing("n2", backend_data="{", public_ip="not an address")
    config = read_flannel(state)
    assert config is not None
    assert (config.nodes[NodeName("n2")].vtep_mac, config.nodes[NodeName("n2")].public_ip) == (None, "172.18.0.12")


def test_ipv6_has_its_own_device_addresses_and_headroom() -> None:
    node = NodeMeta(
        name=NodeName("n1"),
        addresses=(("InternalIP", "fd00::11"),),
        pod_cidrs=(Net("10.244.1.0/24"), Net("fd42:1::/64")),
        annotations={
            ANNOTATION + "backend-type": "vxlan",
            ANNOTATION + "backend-v6-data": '{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}',
            ANNOTATION + "public-ipv6": "fd00::11",
        },
    )
    state = replace(healthy(), objects=replace(healthy().objects, nodes=(node,), config={}), netns={})
    config = read_flannel(state, 6)
    assert config is not None
    own = config.nodes[NodeName("n1")]
    assert (config.device(1), config.headroom) == ("flannel-v6.1", 70)
    assert (own.gateway, own.public_ip, own.vtep_mac) == ("fd42:1::", "fd00::11", "02:00:00:00:00:01")


def test_the_plugin_needs_no_collected_namespace() -> None:
    assert _check(replace(healthy(), netns={})) == []
    assert IPCache(replace(healthy(), netns={})).lookup("172.18.0.11") is not None
