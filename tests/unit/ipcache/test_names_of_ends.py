import pytest

from tasks.skoop.errors import RequestError
from tasks.skoop.ipcache import IPCache
from tasks.skoop.model.addr import Ip
from tasks.skoop.model.cluster import (
    ClusterObjects,
    ClusterState,
    ContainerPort,
    EndpointSlice,
    NodeMeta,
    PodMeta,
    Service,
    ServicePort,
    SliceEndpoint,
    SlicePort,
)
from tasks.skoop.model.ids import NodeName, pod_key
from tasks.skoop.naming import AmbiguousNameError, NoAddressError, PortError, UnknownNameError
from tests.unit.clusters import healthy


def _pod(name: str, *ips: str, namespace: str = "shop", owner: str = "", port: str = "") -> PodMeta:
    return PodMeta(
        namespace=namespace,
        name=name,
        ips=tuple(Ip(ip) for ip in ips),
        node_name=NodeName("n1"),
        owner=owner,
        ports=(ContainerPort(port=8080, name=port),) if port else (),
    )


WEB_OWNER = "ReplicaSet/web-776fb8b5b9"
STATE = ClusterState(
    objects=ClusterObjects(
        nodes=(NodeMeta(name=NodeName("n1"), addresses=(("InternalIP", "172.18.0.11"), ("Hostname", "n1"))),),
        pods=(
            _pod("web-776fb8b5b9-aaaaa", "10.0.1.2", "fd00::2", owner=WEB_OWNER, port="http"),
            _pod("web-776fb8b5b9-bbbbb", "10.0.1.3", "fd00::3", owner=WEB_OWNER, port="http"),
            _pod("web-sticky-5dd4b8c7f-ccccc", "10.0.1.4", owner="ReplicaSet/web-sticky-5dd4b8c7f"),
            _pod("db-0", "10.0.1.5", owner="StatefulSet/db"),
            _pod("only6", "fd00::9"),
            _pod("agent-x", "172.18.0.11", namespace="kube-system", owner="DaemonSet/agent"),
        ),
        services=(
            Service(
                namespace="shop",
                name="web",
                cluster_ips=("10.96.0.1", "fd96::1"),
                ports=(ServicePort(port=80, name="http"),),
            ),
            Service(
                namespace="shop",
                name="api",
                cluster_ips=("10.96.0.2",),
                ports=(ServicePort(port=80, name="http"), ServicePort(port=9090, name="grpc")),
            ),
            Service(namespace="shop", name="db", cluster_ips=("None",), ports=(ServicePort(port=5432),)),
            Service(namespace="shop", name="alias", type="ExternalName", external_name="web.shop.svc.cluster.local"),
            Service(namespace="shop", name="away", type="ExternalName", external_name="example.com"),
        ),
        endpoint_slices=(
            EndpointSlice(
                namespace="shop",
                name="db-1",
                service="db",
                endpoints=(SliceEndpoint(addresses=(Ip("10.0.1.5"),), pod=pod_key("shop", "db-0")),),
                ports=(SlicePort(port=5432),),
            ),
        ),
    )
)


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        pytest.param("shop/db-0", ["10.0.1.5:0"], id="namespace and pod"),
        pytest.param("pod/shop/db-0", ["10.0.1.5:0"], id="kind, namespace and pod"),
        pytest.param("shop/web-sticky", ["10.0.1.4:0"], id="unique beginning"),
        pytest.param("deploy/shop/web", ["10.0.1.2:0", "10.0.1.3:0"], id="deployment: each of its pods"),
        pytest.param("deploy/shop/web:http", ["10.0.1.2:8080", "10.0.1.3:8080"], id="container port by name"),
        pytest.param("deploy/shop/web-sticky", ["10.0.1.4:0"], id="a name that begins another's"),
        pytest.param("sts/shop/db", ["10.0.1.5:0"], id="stateful set"),
        pytest.param("ds/kube-system/agent", ["172.18.0.11:0"], id="daemon set on the host's network"),
        pytest.param("svc/shop/web", ["10.96.0.1:80"], id="service: its only port"),
        pytest.param("svc/shop/api:grpc", ["10.96.0.2:9090"], id="service port by name"),
        pytest.param("svc/shop/api:80", ["10.96.0.2:80"], id="service port by number"),
        pytest.param("svc/shop/api", ["10.96.0.2:0"], id="service with a choice of ports"),
        pytest.param("svc/shop/db", ["10.0.1.5:5432"], id="headless service: its pods"),
        pytest.param("svc/shop/alias", ["10.96.0.1:80"], id="alias inside the cluster"),
        pytest.param("web.shop.svc.cluster.local:80", ["10.96.0.1:80"], id="DNS name"),
        pytest.param("web.shop.svc", ["10.96.0.1:80"], id="short DNS name"),
        pytest.param("web.shop", ["10.96.0.1:80"], id="service and namespace"),
        pytest.param("db-0.db.shop.svc.cluster.local", ["10.0.1.5:0"], id="pod of a headless service"),
        pytest.param("10-0-1-3.shop.pod.cluster.local", ["10.0.1.3:0"], id="pod's DNS name"),
        pytest.param("node/n1", ["172.18.0.11:0"], id="node"),
        pytest.param("n1", ["172.18.0.11:0"], id="bare name of a node"),
        pytest.param("db-0", ["10.0.1.5:0"], id="bare name of a pod, anywhere"),
        pytest.param("api", ["10.96.0.2:0"], id="bare name of a service, anywhere"),
        pytest.param("10.0.1.3", ["10.0.1.3:0"], id="address"),
        pytest.param("192.0.2.1:443", ["192.0.2.1:443"], id="unknown address with port"),
        pytest.param("[fd00::2]:8080", ["fd00::2:8080"], id="IPv6 address with port"),
        pytest.param("fd00::2", ["fd00::2:0"], id="IPv6 address"),
        pytest.param("shop/only6", ["fd00::9:0"], id="IPv6 where there is nothing else"),
        pytest.param(" svc/shop/web ", ["10.96.0.1:80"], id="spaces around"),
    ],
)
def test_a_name_means(text: str, ends: list[str]) -> None:
    assert [f"{end.ip}:{end.port}" for end in IPCache(STATE).resolve(text)] == ends


def test_the_family_is_ipv4_unless_asked_for() -> None:
    cache = IPCache(STATE)
    assert [end.ip for end in cache.resolve("svc/shop/web", family=6)] == ["fd96::1"]
    assert [[end.ip for end in target.endpoints] for target in cache.targets("deploy/shop/web")] == [
        ["10.0.1.2", "fd00::2"],
        ["10.0.1.3", "fd00::3"],
    ]


def test_a_port_may_be_given_beside_the_name() -> None:
    assert [end.port for end in IPCache(STATE).resolve("svc/shop/web", port=8443)] == [8443]
    assert [end.port for end in IPCache(STATE).resolve("svc/shop/web:80", port=80)] == [80]


def test_a_bare_name_means_the_default_namespaces_object_first() -> None:
    objects = ClusterObjects(pods=(_pod("web", "10.0.0.1", namespace="a"), _pod("web", "10.0.0.2", namespace="b")))
    cache = IPCache(ClusterState(objects=objects))
    assert [end.ip for end in cache.resolve("web", default_namespace="b")] == ["10.0.0.2"]
    with pytest.raises(AmbiguousNameError):
        cache.resolve("web")


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        pytest.param("shop/web-776", AmbiguousNameError, "shop/web-776fb8b5b9-bbbbb", id="beginning of two pods"),
        pytest.param("shop/db-1", UnknownNameError, "shop/db-0", id="a letter wrong: the nearest is named"),
        pytest.param("svc/shop/wb", UnknownNameError, "svc/shop/web", id="unknown service"),
        pytest.param("deploy/shop/wbe", UnknownNameError, "deploy/shop/web", id="unknown deployment"),
        pytest.param("node/n9", UnknownNameError, "node/n1", id="unknown node"),
        pytest.param("nothing", UnknownNameError, "names look like", id="nothing near"),
        pytest.param("", UnknownNameError, "empty", id="empty"),
        pytest.param("shop/", AmbiguousNameError, "shop/only6", id="namespace alone: its pods are listed"),
        pytest.param("gone.shop.svc.cluster.local", UnknownNameError, "no such Service", id="DNS name of no service"),
        pytest.param("svc/shop/api:ssh", PortError, "grpc, http", id="unknown port name"),
        pytest.param("10.0.1.3:70000", PortError, "65535", id="port out of range"),
        pytest.param("10.0.1.3:x", PortError, "not a number", id="port that is no number"),
        pytest.param("svc/shop/away", NoAddressError, "example.com", id="alias for the outside"),
    ],
)
def test_a_bad_name_is_refused_with_what_to_do(text: str, error: type[RequestError], says: str) -> None:
    with pytest.raises(error, match=says.replace(".", r"\.")) as caught:
        IPCache(STATE).resolve(text)
    assert caught.value.exit_status == 2


def test_a_family_that_is_not_there_is_refused() -> None:
    with pytest.raises(NoAddressError, match="no IPv6"):
        IPCache(STATE).resolve("shop/db-0", family=6)


def test_two_ports_that_differ_are_refused() -> None:
    with pytest.raises(PortError, match="both 80 and 81"):
        IPCache(STATE).resolve("svc/shop/web:80", port=81)


def test_names_of_a_recorded_cluster() -> None:
    cache = IPCache(healthy())
    assert {end.netns for end in cache.resolve("host/ext")} == {"host/ext"}
    assert len(cache.resolve("deploy/shop/web")) == 3
    assert len(cache.resolve("svc/shop/api-headless:9090")) == 2
