import pytest
from msgspec.structs import replace

from tasks.skoop.infra.generic import GenericInfra
from tasks.skoop.ipcache import IPCache
from tasks.skoop.model.addr import Ip
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.ids import NodeName
from tasks.skoop.model.packet import Packet
from tests.unit.clusters import N1, edited, healthy

A, B = NodeName("n1"), NodeName("n2")


def _packet(src: str, dst: str) -> Packet:
    return Packet(src=Ip(src), dst=Ip(dst))


def _far() -> ClusterState:
    """Return the cluster with n2 behind a router."""
    nodes = tuple(
        replace(node, addresses=(("InternalIP", "198.51.100.2"),)) if node.name == B else node
        for node in healthy().objects.nodes
    )
    return replace(healthy(), objects=replace(healthy().objects, nodes=nodes))


BETWEEN = _packet("172.18.0.11", "172.18.0.12")


def test_nodes_in_one_subnet_are_connected_and_nothing_is_said() -> None:
    shim = GenericInfra(IPCache(healthy()))
    assert shim.carries(A, B) is True
    assert shim.node_to_node(A, B, BETWEEN) == ()


def test_behind_a_router_it_is_not_known() -> None:
    shim = GenericInfra(IPCache(_far()))
    assert shim.carries(A, B) is None
    assert [item.code for item in shim.node_to_node(A, B, BETWEEN)] == ["KP-INFRA-002"]


def test_without_a_route_the_nodes_are_not_connected() -> None:
    state = edited(N1, lambda ns: replace(ns, routes=tuple(r for r in ns.routes if r.dst != "0.0.0.0/0")), _far())
    assert [item.code for item in GenericInfra(IPCache(state)).node_to_node(A, B, BETWEEN)] == ["KP-INFRA-001"]


@pytest.mark.parametrize(
    ("other", "codes"),
    [
        pytest.param("172.18.0.100", [], id="a collected host"),
        pytest.param("172.18.0.77", [], id="somebody on the node's link"),
        pytest.param("192.0.2.1", ["KP-INFRA-002"], id="the world"),
    ],
)
def test_to_and_from_outside(other: str, codes: list[str]) -> None:
    shim = GenericInfra(IPCache(healthy()))
    assert [item.code for item in shim.node_to_external(A, _packet("172.18.0.11", other))] == codes
    assert [item.code for item in shim.external_to_node(A, _packet(other, "172.18.0.11"))] == codes


def test_a_load_balancer_is_never_known() -> None:
    shim = GenericInfra(IPCache(healthy()))
    found = shim.external_to_load_balancer(_packet("192.0.2.1", "172.18.0.210"))
    assert [item.code for item in found] == ["KP-INFRA-002"]


def test_what_was_not_collected_is_not_judged() -> None:
    shim = GenericInfra(IPCache(replace(healthy(), netns={})))
    assert shim.node_to_node(A, B, BETWEEN) == ()
    assert shim.carries(A, B) is None
