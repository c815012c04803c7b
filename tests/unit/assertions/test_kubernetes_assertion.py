"""KubernetesAssertion on small sets of objects: each fault alone, and its healthy twin."""

import pytest
from msgspec.structs import replace

from tasks.skoop.assertions.kubernetes import KubernetesAssertion
from tasks.skoop.assertions.scene import Cluster
from tasks.skoop.ipcache import IPCache
from tasks.skoop.model.addr import Ip, Net
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
from tasks.skoop.model.ids import NodeName, node_netns, pod_key
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import Address, Interface, NetNS, Socket
from tasks.skoop.model.suspicion import AddSocket, Level, Suspicion

N1, N2 = NodeName("n1"), NodeName("n2")


def _node(name: NodeName, number: int) -> NodeMeta:
    return NodeMeta(
        name=name, addresses=(("InternalIP", f"172.18.0.{number}"),), pod_cidrs=(Net(f"10.244.{number}.0/24"),)
    )


def _pod(name: str, ip: str, node: NodeName = N1, **changes: object) -> PodMeta:
    meta = PodMeta(
        namespace="shop",
        name=name,
        node_name=node,
        ips=(Ip(ip),),
        labels={"app": "web"},
        ports=(ContainerPort(port=8080, name="http"),),
    )
    return replace(meta, **changes)


def _netns(pod: PodMeta, *sockets: Socket) -> NetNS:
    link = Interface(index=2, name="eth0", addresses=tuple(Address(ip=ip, prefixlen=24) for ip in pod.ips))
    return NetNS(id=pod.netns, interfaces=(link,), sockets=sockets)


LISTENER = Socket(protocol=Protocol.TCP, ip=Ip("0.0.0.0"), port=8080)
WEB1, WEB2 = _pod("web-1", "10.244.1.5"), _pod("web-2", "10.244.2.5", N2)
SERVICE = Service(
    namespace="shop",
    name="web",
    cluster_ips=("10.96.0.1",),
    selector={"app": "web"},
    ports=(ServicePort(port=80, name="http", target="http"),),
)


def _end(pod: PodMeta, **changes: object) -> SliceEndpoint:
    end = SliceEndpoint(addresses=pod.ips, node_name=pod.node_name, pod=pod_key(pod.namespace, pod.name))
    return replace(end, **changes)


SLICE = EndpointSlice(
    namespace="shop",
    name="web-x",
    service="web",
    endpoints=(_end(WEB1), _end(WEB2)),
    ports=(SlicePort(port=8080, name="http"),),
)


def _state(*pods: PodMeta, sockets: tuple[Socket, ...] = (LISTENER,), **objects: object) -> ClusterState:
    pods = pods or (WEB1, WEB2)
    base = ClusterObjects(nodes=(_node(N1, 1), _node(N2, 2)), pods=pods, services=(SERVICE,), endpoint_slices=(SLICE,))
    own = {pod.netns: _netns(pod, *sockets) for pod in pods if not pod.host_network}
    return ClusterState(objects=replace(base, **objects), netns=own)


def _check(state: ClusterState) -> tuple[Suspicion, ...]:
    return KubernetesAssertion(Cluster(IPCache(state))).check()


def _listening(ip: str, **changes: object) -> ClusterState:
    return _state(sockets=(replace(Socket(protocol=Protocol.TCP, ip=Ip(ip), port=8080), **changes),))


UNREADY1, UNREADY2 = replace(WEB1, ready=False), replace(WEB2, ready=False)
NO_END = replace(SLICE, endpoints=(_end(WEB1, ready=False, serving=False), _end(WEB2, ready=False, serving=False)))
LOCAL = replace(
    SERVICE, external_traffic_policy="Local", ports=(ServicePort(port=80, name="http", target="http", node_port=30080),)
)
RANGED = replace(SERVICE, load_balancer_ips=(Ip("172.18.0.210"),), load_balancer_source_ranges=(Net("172.18.0.0/24"),))
HOST_PORT = (ContainerPort(port=8080, name="http", host_port=80),)


@pytest.mark.parametrize(
    ("state", "codes"),
    [
        pytest.param(_state(), [], id="healthy"),
        pytest.param(_state(nodes=(_node(N1, 1), replace(_node(N2, 2), ready=False))), ["KP-K8S-005"], id="node not ready"),
        pytest.param(_state(UNREADY1, WEB2), ["KP-K8S-001"], id="pod not ready"),
        pytest.param(_state(replace(WEB1, ready=False, deleting=True), WEB2), [], id="pod on its way out"),
        pytest.param(_state(WEB1, WEB2, _pod("new", "10.244.1.9", ips=())), ["KP-K8S-017"], id="pod without address"),
        pytest.param(_state(WEB1, _pod("web-3", "10.244.1.5", labels={}), endpoint_slices=()), ["KP-K8S-007", "KP-K8S-003"], id="two pods with one address"),
        pytest.param(_state(nodes=(_node(N1, 1), replace(_node(N2, 2), pod_cidrs=(Net("10.244.1.0/24"), Net("10.244.2.0/24"))))), ["KP-K8S-006"], id="two nodes with one podCIDR"),
        pytest.param(_state(WEB1, WEB2, _pod("x", "10.244.9.9", labels={})), ["KP-ADDR-004"], id="pod outside its node's podCIDR"),
        pytest.param(_state(nodes=(_node(N1, 1), _node(N2, 2), replace(_node(NodeName("n3"), 3), pod_cidrs=(Net("10.96.0.0/24"),)))), ["KP-K8S-010"], id="podCIDR over the Services"),
        pytest.param(_state(replace(WEB1, ports=HOST_PORT), _pod("y", "10.244.1.6", ports=HOST_PORT, labels={}), endpoint_slices=(replace(SLICE, endpoints=(_end(WEB1),)),)), ["KP-K8S-008"], id="host port twice on a node"),
        pytest.param(_state(replace(WEB1, ports=HOST_PORT), replace(WEB2, ports=HOST_PORT)), [], id="host port on two nodes"),
        pytest.param(_state(services=(replace(SERVICE, selector={"app": "wbe"}),), endpoint_slices=()), ["KP-K8S-002"], id="selector matches nothing"),
        pytest.param(_state(UNREADY1, UNREADY2, endpoint_slices=(NO_END,)), ["KP-K8S-001", "KP-K8S-001", "KP-K8S-003"], id="no ready endpoint"),
        pytest.param(_state(endpoint_slices=(replace(SLICE, endpoints=(_end(WEB1, ready=False, terminating=True),)),)), [], id="a terminating endpoint serves on"),
        pytest.param(_state(services=(replace(SERVICE, ports=(ServicePort(port=80, name="http", target="https"),)),)), ["KP-K8S-009"], id="named port nobody declares"),
        pytest.param(_state(services=(RANGED,)), ["KP-K8S-012"], id="source ranges leave out the pods"),
        pytest.param(_state(services=(LOCAL,), endpoint_slices=(replace(SLICE, endpoints=(_end(WEB1),)),)), ["KP-K8S-011"], id="policy Local, a node without endpoint"),
        pytest.param(_state(services=(LOCAL,)), [], id="policy Local, all nodes have one"),
        pytest.param(_state(endpoint_slices=(replace(SLICE, endpoints=(_end(WEB1, addresses=(Ip("10.244.1.77"),)), _end(WEB2))),)), ["KP-K8S-014"], id="endpoint is not its pod's address"),
        pytest.param(_state(endpoint_slices=(replace(SLICE, ports=(SlicePort(port=81, name="http"),)),)), ["KP-K8S-004"], id="nobody listens on the target port"),
        pytest.param(_listening("127.0.0.1"), ["KP-SOCK-001", "KP-SOCK-001"], id="listens on loopback only"),
        pytest.param(_listening("::", v6only=True), ["KP-SOCK-004", "KP-SOCK-004"], id="listens on IPv6 only"),
        pytest.param(_listening("::"), [], id="listens on both families"),
        pytest.param(_listening("0.0.0.0", peer=Ip("10.0.0.9"), peer_port=4000), ["KP-K8S-004"], id="a connected socket is no listener"),
        pytest.param(replace(_state(), netns={}), [], id="sockets not collected"),
        pytest.param(_state(services=(replace(SERVICE, type="ExternalName", external_name="x", selector={}),)), [], id="ExternalName"),
    ],
)  # fmt: skip
def test_what_looks_wrong_in_objects(state: ClusterState, codes: list[str]) -> None:
    assert [item.code for item in _check(state)] == codes


def test_a_health_check_port_that_nobody_serves_is_found_where_sockets_were_collected() -> None:
    service = replace(LOCAL, health_check_node_port=31000)
    state = _state(services=(service,))
    node = NetNS(id=node_netns(N1), sockets=(replace(LISTENER, port=10250),))
    state = replace(state, netns={**state.netns, node.id: node})
    assert [(item.code, item.subject) for item in _check(state)] == [("KP-K8S-013", node.id)]
    served = replace(node, sockets=(replace(LISTENER, port=31000),))
    assert _check(replace(state, netns={**state.netns, node.id: served})) == ()


def test_policies_that_nobody_enforces_are_information() -> None:
    state = _state(network_policies=("{}",))
    node = NetNS(id=node_netns(N1))
    found = _check(replace(state, netns={**state.netns, node.id: node}))
    assert [(item.code, item.level) for item in found] == [("KP-K8S-015", Level.INFO)]
    assert _check(state) == ()


def test_the_remedy_for_a_wrong_target_port_is_a_claim_that_can_be_tried() -> None:
    found = _check(_state(endpoint_slices=(replace(SLICE, ports=(SlicePort(port=81, name="http"),)),)))
    assert found[0].remedy is not None
    assert found[0].subject == "svc/shop/web"
    assert [
        (change.netns, change.socket.port) for change in found[0].remedy.changes if isinstance(change, AddSocket)
    ] == [
        (WEB1.netns, 81),
        (WEB2.netns, 81),
    ]
    assert found[0].remedy.commands == ()


def test_one_pod_that_does_not_serve_is_named_itself() -> None:
    state = _state()
    state = replace(state, netns={**state.netns, WEB2.netns: replace(state.netns[WEB2.netns], sockets=())})
    assert [(item.code, item.subject) for item in _check(state)] == [("KP-K8S-004", WEB2.netns)]


def test_the_intruder_of_two_owners_is_named() -> None:
    other = _pod("x", "10.244.1.9", labels={})
    thief = Interface(index=3, name="eth1", addresses=(Address(ip=Ip("10.244.2.5"), prefixlen=24),))
    state = _state(WEB1, WEB2, other)
    own = state.netns[other.netns]
    clash = replace(state, netns={**state.netns, other.netns: replace(own, interfaces=(*own.interfaces, thief))})
    assert [(item.code, item.subject) for item in _check(clash)] == [("KP-ADDR-001", other.netns)]


def test_many_hosts_have_a_bridge_with_the_same_address() -> None:
    docker = Interface(index=9, name="docker0", kind="bridge", addresses=(Address(ip=Ip("172.17.0.1"), prefixlen=16),))
    state = _state()
    nodes = {node_netns(name): NetNS(id=node_netns(name), interfaces=(docker,)) for name in (N1, N2)}
    assert _check(replace(state, netns={**state.netns, **nodes})) == ()
    underlay = replace(docker, addresses=(Address(ip=Ip("172.18.0.2"), prefixlen=24),))
    clash = {key: replace(netns, interfaces=(underlay,)) for key, netns in nodes.items()}
    assert [item.code for item in _check(replace(state, netns={**state.netns, **clash}))] == ["KP-INFRA-003"]


def test_a_pods_address_on_a_node_is_a_clash() -> None:
    taken = Interface(index=9, name="eth9", addresses=(Address(ip=Ip("10.244.2.5"), prefixlen=24),))
    state = _state()
    node = NetNS(id=node_netns(N1), interfaces=(taken,))
    assert [item.code for item in _check(replace(state, netns={**state.netns, node.id: node}))] == ["KP-ADDR-001"]
