import pytest

from tasks.skoop.ipcache import IPCache
from tasks.skoop.model.addr import Ip
from tasks.skoop.model.ids import NodeName
from tasks.skoop.model.packet import Packet, Protocol
from tasks.skoop.service.kubeproxy import KubeProxy
from tasks.skoop.service.processor import Expected, Frontend, Mode, Refusal
from tests.unit.clusters import healthy, ip_of, recorded

POD1 = "10.244.1.4"
EXT = "172.18.0.100"
WEB = ["n1", "n2", "n3"]
API = ["n1", "n2"]


def _ask(src: str, dst: str, port: int, node: str, protocol: str = "tcp") -> Expected | None:
    packet = Packet(src=Ip(src), dst=Ip(dst), dport=port, sport=40000, protocol=Protocol(protocol))
    return KubeProxy(IPCache(healthy())).backends(packet, NodeName(node))


@pytest.mark.parametrize(
    ("src", "dst", "port", "node", "frontend", "nodes", "refusal", "masquerade"),
    [
        pytest.param(POD1, "10.96.10.1", 80, "n1", "cluster ip", WEB, "", False, id="cluster IP"),
        pytest.param(EXT, "10.96.10.1", 80, "n1", "cluster ip", WEB, "", None, id="cluster IP from outside"),
        pytest.param(POD1, "10.96.10.10", 80, "n2", "cluster ip", ["n2"], "", False, id="internal policy Local"),
        pytest.param(POD1, "10.96.10.10", 80, "n3", "cluster ip", [], "drop", False, id="internal policy Local, none here"),
        pytest.param(POD1, "10.96.10.6", 80, "n1", "cluster ip", [], "reject", False, id="no endpoints"),
        pytest.param(POD1, "10.96.10.9", 80, "n1", "cluster ip", [], "reject", False, id="no ready endpoints"),
        pytest.param(EXT, "172.18.0.11", 30080, "n1", "node port", WEB, "", True, id="node port"),
        pytest.param("172.18.0.11", "127.0.0.1", 30080, "n1", "node port", WEB, "", True, id="node port on loopback"),
        pytest.param(EXT, "172.18.0.11", 30081, "n1", "node port", ["n1"], "", False, id="external policy Local"),
        pytest.param(EXT, "172.18.0.13", 30081, "n3", "node port", [], "drop", False, id="external policy Local, none here"),
        pytest.param(POD1, "172.18.0.11", 30081, "n1", "node port", API, "", False, id="policy Local: pods go anywhere"),
        pytest.param("172.18.0.11", "172.18.0.11", 30081, "n1", "node port", API, "", True, id="policy Local: the node too"),
        pytest.param("172.18.0.12", "172.18.0.11", 30081, "n1", "node port", ["n1"], "", False, id="policy Local: another node not"),
        pytest.param(EXT, "172.18.0.200", 80, "n1", "external ip", WEB, "", True, id="external IP"),
        pytest.param(EXT, "172.18.0.210", 80, "n2", "load balancer", WEB, "", True, id="load balancer, in its ranges"),
        pytest.param(POD1, "172.18.0.210", 80, "n1", "load balancer", [], "drop", True, id="load balancer, outside of them"),
    ],
)  # fmt: skip
def test_a_packet_goes_to(
    src: str, dst: str, port: int, node: str, frontend: str, nodes: list[str], refusal: str, masquerade: bool | None
) -> None:
    expected = _ask(src, dst, port, node)
    assert expected is not None
    assert sorted(backend.node for backend in expected.backends) == nodes
    assert (expected.frontend, expected.refusal, expected.masquerade) == (
        Frontend(frontend),
        Refusal(refusal),
        masquerade,
    )


@pytest.mark.parametrize(
    ("dst", "port", "protocol"),
    [
        pytest.param("10.96.10.1", 81, "tcp", id="another port"),
        pytest.param("10.96.10.1", 80, "udp", id="another protocol"),
        pytest.param("10.244.1.2", 80, "tcp", id="a pod"),
        pytest.param("172.18.0.12", 30080, "tcp", id="another node's node port"),
    ],
)
def test_a_packet_is_not_for_a_service(dst: str, port: int, protocol: str) -> None:
    assert _ask(POD1, dst, port, "n1", protocol) is None


def test_target_port_and_affinity_come_with_the_backends() -> None:
    dns = _ask(POD1, "10.96.0.10", 53, "n1", "udp")
    assert dns is not None
    assert {backend.text for backend in dns.backends} == {f"{ip_of('coredns', node)}:53" for node in ("n1", "n2")}
    sticky = _ask(POD1, "10.96.10.5", 80, "n1")
    assert sticky is not None
    assert sticky.affinity_s == 600


def test_the_mode_is_told_by_what_the_node_holds() -> None:
    assert KubeProxy(IPCache(healthy())).mode(NodeName("n1")) == Mode.IPTABLES
    assert KubeProxy(IPCache(recorded("nf-healthy"))).mode(NodeName("n1")) == Mode.NFTABLES
    assert KubeProxy(IPCache(healthy())).mode(NodeName("nobody")) == Mode.NONE
