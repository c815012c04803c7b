import pytest
from msgspec.structs import replace

from tasks.skoop.ipcache import IPCache
from tasks.skoop.model.addr import Ip
from tasks.skoop.model.cluster import ClusterObjects, ClusterState, PodMeta, Service
from tasks.skoop.model.endpoint import Endpoint, EndpointType
from tasks.skoop.model.ids import NetnsId, NodeName
from tasks.skoop.model.state import Address, Interface, NetNS
from tests.unit.clusters import N1, edited, healthy, ip_of, pod, with_link


@pytest.mark.parametrize(
    ("ip", "kind", "name", "netns"),
    [
        pytest.param("172.18.0.12", "node", "n2", "node/n2", id="node's own address, not one of its host-network pods"),
        pytest.param("10.244.1.1", "node", "n1", "node/n1", id="bridge"),
        pytest.param("10.244.3.0", "node", "n3", "node/n3", id="vxlan device"),
        pytest.param("10.96.10.1", "service", "shop/web", None, id="cluster IP"),
        pytest.param("172.18.0.200", "service", "shop/web-external-ip", None, id="external IP"),
        pytest.param("172.18.0.210", "loadbalancer", "shop/web-lb", None, id="load balancer"),
        pytest.param("172.18.0.100", "external", "ext", "host/ext", id="host outside the cluster"),
    ],
)
def test_the_owner_of_an_address_is(ip: str, kind: str, name: str, netns: str | None) -> None:
    assert IPCache(healthy()).lookup(ip) == Endpoint(
        ip=Ip(ip), type=EndpointType(kind), name=name, netns=NetnsId(netns) if netns else None
    )


def test_a_pod_owns_its_address() -> None:
    web = pod("web-", "n1")
    owner = IPCache(healthy()).lookup(web.ips[0])
    assert owner is not None
    assert (owner.type, owner.name, owner.netns) == (EndpointType.POD, web.key, web.netns)


@pytest.mark.parametrize("ip", ["192.0.2.7", "127.0.0.1", "10.244.1.200"])
def test_nobody_owns(ip: str) -> None:
    assert IPCache(healthy()).lookup(ip) is None


def test_an_address_without_owner_still_lies_in_a_nodes_pod_network() -> None:
    cache = IPCache(healthy())
    assert cache.network_of("10.244.1.200") == "n1"
    assert cache.network_of("172.18.0.11") is None
    assert cache.network_of("fd00::1") is None


def test_an_unknown_address_is_an_external_endpoint_with_the_port_asked_for() -> None:
    assert IPCache(healthy()).endpoint("192.0.2.7", 443) == Endpoint(ip=Ip("192.0.2.7"), port=443)


def test_a_healthy_cluster_has_no_duplicates() -> None:
    assert not IPCache(healthy()).duplicates


def test_both_owners_of_a_duplicate_are_listed_the_pod_first() -> None:
    taken = ip_of("web-", "n2")
    state = edited(
        N1,
        lambda netns: with_link(netns, "eth0", addresses=(*_addresses(netns, "eth0"), Address(ip=taken, prefixlen=24))),
    )
    cache = IPCache(state)
    assert [owner.name for owner in cache.owners(taken)] == [pod("web-", "n2").key, "n1"]
    assert list(cache.duplicates) == [taken]


def _addresses(netns: NetNS, name: str) -> tuple[Address, ...]:
    link = netns.interface(name)
    assert link is not None
    return link.addresses


def test_a_finished_pods_old_address_is_not_its_own_any_more() -> None:
    done = PodMeta(namespace="a", name="job", phase="Succeeded", ips=(Ip("10.1.0.5"),), node_name=NodeName("n"))
    live = PodMeta(namespace="a", name="web", ips=(Ip("10.1.0.5"),), node_name=NodeName("n"))
    cache = IPCache(ClusterState(objects=ClusterObjects(pods=(done, live))))
    assert [owner.name for owner in cache.owners("10.1.0.5")] == ["a/web"]


def test_every_address_of_a_pod_counts_in_both_families() -> None:
    both = PodMeta(namespace="a", name="web", ips=(Ip("10.1.0.5"), Ip("fd00::5")), node_name=NodeName("n"))
    second = Interface(index=3, name="net1", addresses=(Address(ip=Ip("10.9.0.5"), prefixlen=24),))
    state = ClusterState(
        objects=ClusterObjects(pods=(both,)), netns={both.netns: NetNS(id=both.netns, interfaces=(second,))}
    )
    cache = IPCache(state)
    assert {cache.endpoint(ip).name for ip in ("10.1.0.5", "fd00::5", "10.9.0.5")} == {"a/web"}


def test_a_services_address_on_the_dummy_of_ipvs_stays_the_services() -> None:
    service = Service(namespace="a", name="web", cluster_ips=("10.96.0.5",))
    dummy = Interface(index=4, name="kube-ipvs0", kind="dummy", addresses=(Address(ip=Ip("10.96.0.5"), prefixlen=32),))
    state = ClusterState(objects=ClusterObjects(services=(service,)), netns={N1: NetNS(id=N1, interfaces=(dummy,))})
    owners = IPCache(state).owners("10.96.0.5")
    assert [(owner.type, owner.name) for owner in owners] == [(EndpointType.SERVICE, "a/web")]


def test_the_same_state_gives_the_same_owners() -> None:
    assert IPCache(healthy()).owners("172.18.0.11") == IPCache(replace(healthy())).owners("172.18.0.11")
