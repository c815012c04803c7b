"""What policies see of connections to Services: backends, target ports, and sources that may be masqueraded."""

import pytest

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.cluster import ClusterObjects, EndpointSlice, Service, ServicePort, SliceEndpoint, SlicePort
from tasks.skoop.model.endpoint import Endpoint, EndpointType
from tasks.skoop.policy.engine import PolicyEngine
from tasks.skoop.policy.translated import verdicts
from tests.unit.policy.world import ADDRESSES, UDP, end, labels, objects, policy

SERVICE = Endpoint(ip=Ip("10.96.0.10"), type=EndpointType.SERVICE, name="x/web")
BALANCER = Endpoint(ip=Ip("192.0.2.80"), type=EndpointType.LOADBALANCER, name="x/web")


def _world(*policies: object, traffic_policy: str = "Cluster", backends: tuple[str, ...] = ("x/b",)) -> ClusterObjects:
    service = Service(
        namespace="x",
        name="web",
        type="LoadBalancer",
        cluster_ips=("10.96.0.10",),
        load_balancer_ips=(Ip("192.0.2.80"),),
        ports=(ServicePort(port=8000, name="http", target="web", node_port=30080),),
        selector={"pod": "b"},
        external_traffic_policy=traffic_policy,
    )
    piece = EndpointSlice(
        namespace="x",
        name="web-1",
        service="web",
        endpoints=(
            *(SliceEndpoint(addresses=(Ip(ADDRESSES[key]),)) for key in backends),
            SliceEndpoint(addresses=(Ip(ADDRESSES["x/a"]),), ready=False),
        ),
        ports=(SlicePort(port=80, name="http"),),
    )
    return objects(*policies, services=(service,), endpoint_slices=(piece,))  # type: ignore[arg-type]


BLUE = policy(
    pods=labels(pod="b"), ingress=[{"from": [{"namespaceSelector": labels(team="blue")}], "ports": [{"port": 80}]}]
)
NODES = policy(pods=labels(pod="b"), ingress=[{"from": [{"ipBlock": {"cidr": "172.18.0.0/16"}}]}])
CLIENTS = policy(pods=labels(pod="b"), ingress=[{"from": [{"ipBlock": {"cidr": "198.51.100.0/24"}}]}])
OUT = policy(
    "out", "y", types=["Egress"], egress=[{"to": [{"namespaceSelector": labels(team="red")}], "ports": [{"port": 80}]}]
)
OUT_SERVICE = policy("out", "y", types=["Egress"], egress=[{"to": [{"ipBlock": {"cidr": "10.96.0.10/32"}}]}])
OUTSIDE = "198.51.100.7"


@pytest.mark.parametrize(
    ("policies", "src", "dst", "port", "traffic_policy", "ruling"),
    [
        pytest.param(
            (BLUE, OUT), "y/a", SERVICE, 8000, "Cluster", "allowed", id="the pod's port counts, not the Service's"
        ),
        pytest.param((BLUE,), "z/a", SERVICE, 8000, "Cluster", "denied", id="a cluster IP keeps the source"),
        pytest.param(
            (OUT_SERVICE,), "y/a", SERVICE, 8000, "Cluster", "denied", id="the cluster IP is not what egress sees"
        ),
        pytest.param((BLUE,), OUTSIDE, BALANCER, 8000, "Cluster", "denied", id="neither client nor node is allowed"),
        pytest.param(
            (NODES,), OUTSIDE, BALANCER, 8000, "Cluster", "unknown", id="nodes are allowed, the client is not"
        ),
        pytest.param(
            (CLIENTS,), OUTSIDE, BALANCER, 8000, "Cluster", "unknown", id="the client is allowed, nodes are not"
        ),
        pytest.param((CLIENTS, NODES), OUTSIDE, BALANCER, 8000, "Cluster", "allowed", id="both are allowed"),
        pytest.param((CLIENTS,), OUTSIDE, BALANCER, 8000, "Local", "allowed", id="Local keeps the source"),
        pytest.param(
            (NODES,), OUTSIDE, BALANCER, 8000, "Local", "denied", id="Local keeps the source, which is no node"
        ),
        pytest.param((NODES,), OUTSIDE, end("n1"), 30080, "Cluster", "unknown", id="a node port"),
        pytest.param((CLIENTS,), OUTSIDE, end("n1"), 30080, "Local", "allowed", id="a node port of a Local Service"),
        pytest.param((BLUE,), OUTSIDE, end("n1"), 22, "Cluster", "allowed", id="a node's own port"),
        pytest.param((), OUTSIDE, BALANCER, 8000, "Cluster", "allowed", id="no policies"),
    ],
)
def test_through_a_service(
    policies: tuple[object, ...], src: str, dst: Endpoint, port: int, traffic_policy: str, ruling: str
) -> None:
    engine = PolicyEngine(_world(*policies, traffic_policy=traffic_policy))
    (found,) = verdicts(engine, end(src), dst, port)
    assert found.ruling == ruling, found.why


def test_each_backend_has_its_verdict() -> None:
    engine = PolicyEngine(_world(BLUE, backends=("x/b", "x/c")))
    found = verdicts(engine, end("z/a"), SERVICE, 8000)
    assert [(one.dst, one.port, one.ruling) for one in found] == [("x/b", 80, "denied"), ("x/c", 80, "allowed")]
    assert found[0].seen == "x/web:8000 leads to x/b port 80"


def test_a_service_that_leads_nowhere_has_none() -> None:
    engine = PolicyEngine(_world(backends=()))
    assert verdicts(engine, end("z/a"), SERVICE, 8000) == ()
    assert verdicts(engine, end("z/a"), SERVICE, 8000, UDP) == ()


def test_a_pod_behind_its_own_service_is_not_policed() -> None:
    engine = PolicyEngine(_world(policy(types=["Ingress", "Egress"])))
    (found,) = verdicts(engine, end("x/b"), SERVICE, 8000)
    assert found.ruling == "allowed"
