"""Kubernetes objects, as far as a diagnosis needs them, and the collected cluster as a whole."""

from msgspec import Struct

from tasks.skoop.model.addr import Ip, Net
from tasks.skoop.model.ids import NetnsId, NodeName, PodKey, node_netns, pod_key, pod_netns
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import NetNS


class ContainerPort(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A port that a container declares; `host_port` 0 = none."""

    port: int
    name: str = ""
    protocol: Protocol = Protocol.TCP
    host_port: int = 0
    host_ip: str = ""


class PodMeta(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A pod object."""

    namespace: str
    name: str
    uid: str = ""
    node_name: NodeName = NodeName("")
    host_network: bool = False
    ips: tuple[Ip, ...] = ()
    labels: dict[str, str] = {}
    phase: str = "Running"
    ready: bool = True
    deleting: bool = False
    ports: tuple[ContainerPort, ...] = ()
    owner: str = ""
    """`Kind/name` of the controller, e.g. `ReplicaSet/web-776fb8b5b9`."""

    @property
    def key(self) -> PodKey:
        """`namespace/name`."""
        return pod_key(self.namespace, self.name)

    @property
    def netns(self) -> NetnsId:
        """The id of the network namespace this pod lives in."""
        return node_netns(self.node_name) if self.host_network else pod_netns(self.key)


class NodeMeta(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A node object. `addresses` are (type, address): InternalIP, ExternalIP, Hostname."""

    name: NodeName
    addresses: tuple[tuple[str, str], ...] = ()
    pod_cidrs: tuple[Net, ...] = ()
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    ready: bool = True
    provider_id: str = ""
    kernel_version: str = ""
    os_image: str = ""
    kubelet_version: str = ""

    @property
    def ips(self) -> tuple[Ip, ...]:
        """InternalIP and ExternalIP addresses, in order."""
        return tuple(Ip(address) for kind, address in self.addresses if kind in ("InternalIP", "ExternalIP"))


class ServicePort(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One port of a Service; `target` is a number or a container port's name."""

    port: int
    name: str = ""
    protocol: Protocol = Protocol.TCP
    target: str = ""
    node_port: int = 0


class Service(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A Service object."""

    namespace: str
    name: str
    type: str = "ClusterIP"
    cluster_ips: tuple[str, ...] = ()
    """Addresses, or ("None",) for a headless Service."""
    external_ips: tuple[Ip, ...] = ()
    load_balancer_ips: tuple[Ip, ...] = ()
    load_balancer_ip_modes: tuple[str, ...] = ()
    load_balancer_source_ranges: tuple[Net, ...] = ()
    external_name: str = ""
    ports: tuple[ServicePort, ...] = ()
    selector: dict[str, str] = {}
    session_affinity: str = "None"
    affinity_timeout_s: int = 10800
    external_traffic_policy: str = "Cluster"
    internal_traffic_policy: str = "Cluster"
    health_check_node_port: int = 0
    publish_not_ready: bool = False
    annotations: dict[str, str] = {}

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


class SliceEndpoint(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One endpoint of an EndpointSlice; conditions as Kubernetes defaults them."""

    addresses: tuple[Ip, ...]
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node_name: NodeName = NodeName("")
    pod: PodKey | None = None
    zone: str = ""
    hints: tuple[str, ...] = ()


class SlicePort(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One port of an EndpointSlice; 0 = all ports."""

    port: int = 0
    name: str = ""
    protocol: Protocol = Protocol.TCP


class EndpointSlice(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """An EndpointSlice object; `service` is the name in its kubernetes.io/service-name label."""

    namespace: str
    name: str
    service: str = ""
    address_type: str = "IPv4"
    endpoints: tuple[SliceEndpoint, ...] = ()
    ports: tuple[SlicePort, ...] = ()


class Namespace(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A namespace object."""

    name: str
    labels: dict[str, str] = {}


class ClusterObjects(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """The objects of one cluster. `network_policies` are kept as the JSON text of each object until the policy engine reads them.

    `policies` holds the same of other policy APIs, by kind (parse.kube_policies.POLICY_KINDS); a kind that a cluster does not have is absent.
    `config` holds what the plugin and kube-proxy were configured with where it is known: `flannel/net-conf.json`,
    `kube-proxy/config.conf`, `node/<name>/subnet.env` … → text.
    """

    nodes: tuple[NodeMeta, ...] = ()
    pods: tuple[PodMeta, ...] = ()
    services: tuple[Service, ...] = ()
    endpoint_slices: tuple[EndpointSlice, ...] = ()
    namespaces: tuple[Namespace, ...] = ()
    network_policies: tuple[str, ...] = ()
    policies: dict[str, tuple[str, ...]] = {}
    config: dict[str, str] = {}
    missing: dict[str, str] = {}
    """Kind → why it could not be read."""


class ClusterState(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A whole collected network: Kubernetes' objects and the state of every network namespace.

    `hosts` names namespaces of hosts outside the cluster that were collected as well. `taken_at` is RFC 3339 or "".
    """

    objects: ClusterObjects = ClusterObjects()
    netns: dict[NetnsId, NetNS] = {}
    taken_at: str = ""
    source: str = ""
    uncollected: dict[NetnsId, str] = {}
    """Namespaces that should be here but are not, and why."""
    tools: dict[str, str] = {}
    """Program that the collector ran → the version it gives of itself; `linux` is the kernel's."""


class Pod(Struct, frozen=True, gc=False, kw_only=True):
    """A pod with its network state (None: not collected)."""

    meta: PodMeta
    netns: NetNS | None = None


class NodeInfo(Struct, frozen=True, gc=False, kw_only=True):
    """A node with its own network state and that of the pods on it."""

    meta: NodeMeta
    netns: NetNS | None = None
    pods: tuple[Pod, ...] = ()


class NodeNetworkStackDump(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """What a collector brings home from one node: the state of each namespace it could enter, and what it could not."""

    node: NodeName
    netns: tuple[NetNS, ...] = ()
    failed: dict[NetnsId, str] = {}
    tools: dict[str, str] = {}
    """As in ClusterState."""


def node_info(state: ClusterState, name: str) -> NodeInfo | None:
    """Return a node with its pods, or None if the cluster has no node of that name."""
    meta = next((node for node in state.objects.nodes if node.name == name), None)
    if meta is None:
        return None
    pods = tuple(Pod(meta=pod, netns=state.netns.get(pod.netns)) for pod in state.objects.pods if pod.node_name == name)
    return NodeInfo(meta=meta, netns=state.netns.get(node_netns(name)), pods=pods)
