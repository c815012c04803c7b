"""Which backends does kube-proxy use for a port of a Service, seen from one node?

Follows CategorizeEndpoints and the EndpointSlice cache of kube-proxy (pkg/proxy/topology.go, endpointslicecache.go, v1.28):
ready endpoints, or where there are none the terminating ones that still serve; local ones for policy Local; zone hints where
the Service asks for them. Session affinity only narrows the choice per client and is left to the reader of `affinity_s`.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property

from msgspec import Struct

from tasks.skoop.model.addr import Ip, ip_version
from tasks.skoop.model.cluster import ClusterState, NodeMeta, Service, ServicePort, SliceEndpoint
from tasks.skoop.model.ids import NodeName, PodKey
from tasks.skoop.model.packet import Protocol

ZONE_LABEL = "topology.kubernetes.io/zone"
TOPOLOGY_ANNOTATIONS = ("service.kubernetes.io/topology-mode", "service.kubernetes.io/topology-aware-hints")


class Backend(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One endpoint of a Service port: where connections are sent."""

    ip: Ip
    port: int
    node: NodeName = NodeName("")
    pod: PodKey | None = None
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    zones: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """`address:port` as kube-proxy writes it into rules and comments."""
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


class PortName(Struct, frozen=True, array_like=True):
    """Which port of which Service (ServicePortName of kube-proxy)."""

    namespace: str
    name: str
    port: str
    protocol: Protocol

    @property
    def service(self) -> str:
        """`namespace/name` of the Service."""
        return f"{self.namespace}/{self.name}"

    def __str__(self) -> str:
        return f"{self.service}:{self.port}" if self.port else self.service


class Categories(Struct, frozen=True, kw_only=True):
    """What kube-proxy makes of a port's endpoints on one node.

    `cluster` serves traffic policy Cluster, `local` policy Local. `usable_anywhere` says whether any node has a usable
    endpoint: without one clients are refused, with one elsewhere only they are dropped under policy Local.
    """

    cluster: tuple[Backend, ...]
    local: tuple[Backend, ...]
    usable_anywhere: bool


class Endpoints:
    """Endpoints of every Service port, from the EndpointSlices of one state."""

    def __init__(self, state: ClusterState) -> None:
        self._state = state

    def of(self, port: PortName, family: int) -> tuple[Backend, ...]:
        """Return all endpoints of a port in one IP family, ready or not, in kube-proxy's order (by `address:port`)."""
        return self._table.get((port, family), ())

    @cached_property
    def _table(self) -> Mapping[tuple[PortName, int], tuple[Backend, ...]]:
        found: dict[tuple[PortName, int], dict[str, Backend]] = {}
        for piece in self._state.objects.endpoint_slices:
            for port in piece.ports:
                name = PortName(piece.namespace, piece.service, port.name, port.protocol)
                for endpoint in piece.endpoints:
                    if endpoint.addresses and port.port:
                        backend = _backend(endpoint, port.port)
                        found.setdefault((name, ip_version(backend.ip)), {}).setdefault(backend.text, backend)
        return {key: tuple(backends[text] for text in sorted(backends)) for key, backends in found.items()}


def _backend(endpoint: SliceEndpoint, port: int) -> Backend:
    return Backend(
        ip=endpoint.addresses[0],
        port=port,
        node=endpoint.node_name,
        pod=endpoint.pod,
        ready=endpoint.ready,
        serving=endpoint.serving,
        terminating=endpoint.terminating,
        zones=endpoint.hints,
    )


def port_name(service: Service, port: ServicePort) -> PortName:
    """Return the identity of a Service's port."""
    return PortName(service.namespace, service.name, port.name, port.protocol)


def is_external(service: Service, port: ServicePort) -> bool:
    """Say whether the port can be reached from outside the cluster network at all (externallyAccessible)."""
    return bool(port.node_port or service.external_ips or service.load_balancer_ips)


def categorize(service: Service, port: ServicePort, endpoints: Iterable[Backend], node: NodeMeta) -> Categories:
    """Return which endpoints a node uses (CategorizeEndpoints, pkg/proxy/topology.go)."""
    known = tuple(endpoints)
    internal_local = service.internal_traffic_policy == "Local"
    external_local = service.external_traffic_policy == "Local"
    external = is_external(service, port)
    usable = False
    cluster: tuple[Backend, ...] = ()
    if not internal_local or external:  # policy Local needs them as well: pods and the node itself take a short cut
        zone = _zone(service, known, node)
        cluster = tuple(end for end in known if end.ready and (not zone or zone in end.zones))
        if not cluster:
            cluster = tuple(end for end in known if end.serving and end.terminating)
        usable = bool(cluster)
    local: tuple[Backend, ...] = ()
    if internal_local or (external and external_local):
        usable = usable or any(end.ready or (end.serving and end.terminating) for end in known)
        here = tuple(end for end in known if end.node == node.name)
        local = tuple(end for end in here if end.ready)
        if not local:
            local = tuple(end for end in here if end.serving and end.terminating)
    return Categories(cluster=cluster, local=local, usable_anywhere=usable)


def _zone(service: Service, endpoints: tuple[Backend, ...], node: NodeMeta) -> str:
    """Return the node's zone if the endpoints are to be filtered by it, else "" (canUseTopology)."""
    asked = next((service.annotations[key] for key in TOPOLOGY_ANNOTATIONS if key in service.annotations), "")
    zone = node.labels.get(ZONE_LABEL, "")
    ready = [end for end in endpoints if end.ready]
    if asked in ("", "Disabled", "disabled") or not zone or not all(end.zones for end in ready):
        return ""
    return zone if any(zone in end.zones for end in ready) else ""
