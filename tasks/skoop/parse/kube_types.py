"""The fields of Kubernetes' API objects that are read, under their API names: nothing else gets past the decoder.

Follows k8s.io/api core/v1 and discovery/v1. What the API may leave out or set to null has a default here.
"""

from typing import TypeVar

from msgspec import Struct, field

T = TypeVar("T")


class Named(Struct, omit_defaults=True):
    """Who an object is."""

    name: str = ""
    namespace: str = ""
    labels: dict[str, str] | None = None


class Owner(Struct):
    """An entry of ownerReferences."""

    kind: str = ""
    name: str = ""
    controller: bool = False


class Metadata(Struct):
    """ObjectMeta."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owners: list[Owner] | None = field(name="ownerReferences", default=None)
    deleted: str | None = field(name="deletionTimestamp", default=None)


class Object(Struct):
    """An object of which only the metadata counts."""

    metadata: Metadata


class ConfigMap(Struct):
    """A ConfigMap."""

    metadata: Metadata
    data: dict[str, str] | None = None


class Condition(Struct):
    """A condition of a pod or node."""

    type: str = ""
    status: str = ""


class NodeSpec(Struct):
    """NodeSpec."""

    pod_cidr: str = field(name="podCIDR", default="")
    pod_cidrs: list[str] | None = field(name="podCIDRs", default=None)
    provider_id: str = field(name="providerID", default="")


class NodeAddress(Struct):
    """An address of a node."""

    type: str = ""
    address: str = ""


class NodeInfo(Struct, rename="camel"):
    """NodeSystemInfo."""

    kernel_version: str = ""
    os_image: str = field(name="osImage", default="")
    kubelet_version: str = ""


class NodeStatus(Struct):
    """NodeStatus."""

    addresses: list[NodeAddress] | None = None
    conditions: list[Condition] | None = None
    info: NodeInfo = field(name="nodeInfo", default_factory=NodeInfo)


class Node(Struct):
    """A Node."""

    metadata: Metadata
    spec: NodeSpec = field(default_factory=NodeSpec)
    status: NodeStatus = field(default_factory=NodeStatus)


class Port(Struct):
    """ContainerPort."""

    port: int = field(name="containerPort")
    name: str = ""
    protocol: str = "TCP"
    host_port: int = field(name="hostPort", default=0)
    host_ip: str = field(name="hostIP", default="")


class Container(Struct, rename="camel"):
    """Container."""

    ports: list[Port] | None = None
    restart_policy: str = ""


class PodSpec(Struct, rename="camel"):
    """PodSpec."""

    node_name: str = ""
    host_network: bool = False
    containers: list[Container] | None = None
    init_containers: list[Container] | None = None


class PodIP(Struct):
    """An entry of podIPs."""

    ip: str = ""


class PodStatus(Struct):
    """PodStatus."""

    phase: str = ""
    conditions: list[Condition] | None = None
    pod_ip: str = field(name="podIP", default="")
    pod_ips: list[PodIP] | None = field(name="podIPs", default=None)


class Pod(Struct):
    """A Pod."""

    metadata: Metadata
    spec: PodSpec = field(default_factory=PodSpec)
    status: PodStatus = field(default_factory=PodStatus)


class ClientIP(Struct):
    """ClientIPConfig."""

    timeout: int | None = field(name="timeoutSeconds", default=None)


class Affinity(Struct):
    """SessionAffinityConfig."""

    client_ip: ClientIP | None = field(name="clientIP", default=None)


class ServicePort(Struct):
    """A port of a Service."""

    port: int
    name: str = ""
    protocol: str = "TCP"
    target: int | str | None = field(name="targetPort", default=None)
    node_port: int = field(name="nodePort", default=0)


class ServiceSpec(Struct, rename="camel"):
    """ServiceSpec."""

    type: str = "ClusterIP"
    cluster_ip: str = field(name="clusterIP", default="")
    cluster_ips: list[str] | None = field(name="clusterIPs", default=None)
    external_ips: list[str] | None = field(name="externalIPs", default=None)
    source_ranges: list[str] | None = field(name="loadBalancerSourceRanges", default=None)
    external_name: str = ""
    ports: list[ServicePort] | None = None
    selector: dict[str, str] | None = None
    session_affinity: str = "None"
    affinity_config: Affinity | None = field(name="sessionAffinityConfig", default=None)
    external_traffic_policy: str = ""
    internal_traffic_policy: str | None = None
    health_check_node_port: int = 0
    publish_not_ready: bool = field(name="publishNotReadyAddresses", default=False)


class Ingress(Struct):
    """An ingress point of a load balancer."""

    ip: str = ""
    ip_mode: str = field(name="ipMode", default="VIP")


class LoadBalancer(Struct):
    """LoadBalancerStatus."""

    ingress: list[Ingress] | None = None


class ServiceStatus(Struct):
    """ServiceStatus."""

    load_balancer: LoadBalancer = field(name="loadBalancer", default_factory=LoadBalancer)


class Service(Struct):
    """A Service."""

    metadata: Metadata
    spec: ServiceSpec = field(default_factory=ServiceSpec)
    status: ServiceStatus = field(default_factory=ServiceStatus)


class SliceConditions(Struct):
    """EndpointConditions: None is not set."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Target(Struct):
    """ObjectReference."""

    kind: str = ""
    name: str = ""
    namespace: str = ""


class Zone(Struct):
    """ForZone."""

    name: str = ""


class Hints(Struct):
    """EndpointHints."""

    zones: list[Zone] | None = field(name="forZones", default=None)


class SliceEndpoint(Struct):
    """Endpoint of an EndpointSlice."""

    addresses: list[str] | None = None
    conditions: SliceConditions | None = None
    target: Target | None = field(name="targetRef", default=None)
    node_name: str | None = field(name="nodeName", default=None)
    zone: str | None = None
    hints: Hints | None = None


class SlicePort(Struct):
    """EndpointPort: None is not set."""

    port: int | None = None
    name: str | None = None
    protocol: str | None = None


class EndpointSlice(Struct):
    """An EndpointSlice."""

    metadata: Metadata
    address_type: str = field(name="addressType", default="IPv4")
    endpoints: list[SliceEndpoint] | None = None
    ports: list[SlicePort] | None = None
