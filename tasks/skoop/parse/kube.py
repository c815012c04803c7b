"""What Kubernetes says there is: the JSON lists of `kubectl get KIND -A -o json` as the objects of `model.cluster`.

Follows the API types of Kubernetes 1.25 to 1.34, with the defaults that the API server or its readers apply (an endpoint
whose `ready` is not set is ready; `serving` not set is `ready`). Kinds that no diagnosis needs are passed over. Of
ConfigMaps only the network configuration of flannel and that of kube-proxy are taken; Secrets never, nor the annotation in
which kubectl keeps a copy of what was applied.
"""

from collections.abc import Iterable, Mapping

from msgspec import Raw, Struct, ValidationError, field
from msgspec.json import decode, encode
from msgspec.json import format as format_json
from msgspec.structs import replace

from tasks.skoop.model.addr import AddressError, Ip, Net, parse_ip, parse_net
from tasks.skoop.model.cluster import (
    ClusterObjects,
    ContainerPort,
    EndpointSlice,
    Namespace,
    NodeMeta,
    PodMeta,
    Service,
    ServicePort,
    SliceEndpoint,
    SlicePort,
)
from tasks.skoop.model.ids import NodeName, pod_key
from tasks.skoop.model.packet import Protocol
from tasks.skoop.parse import kube_types as k8s
from tasks.skoop.parse.errors import ParseError
from tasks.skoop.parse.jsontext import read_json
from tasks.skoop.parse.kube_policies import kept_as, other_policies

KINDS: Mapping[str, str] = {
    "Node": "nodes",
    "Pod": "pods",
    "Service": "services",
    "EndpointSlice": "endpointslices",
    "Namespace": "namespaces",
    "NetworkPolicy": "networkpolicies",
}
"""Kinds that a diagnosis needs → the name of their list, as kubectl takes it."""

_PROTOCOLS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
SERVICE_NAME = "kubernetes.io/service-name"
CONFIG: Mapping[tuple[str, str], str] = {
    ("kube-flannel-cfg", "net-conf.json"): "flannel/net-conf.json",
    ("kube-proxy", "config.conf"): "kube-proxy/config.conf",
}
"""(ConfigMap, key) → the name under which its text is kept."""


class _List(Struct):
    kind: str = "List"
    api_version: str = field(name="apiVersion", default="")
    items: list[Raw] | None = None


class _Head(Struct):
    kind: str = ""
    api_version: str = field(name="apiVersion", default="")


class _Policy(Struct, omit_defaults=True):
    """A NetworkPolicy as it is kept: who it is and what it says."""

    metadata: k8s.Named
    spec: Raw = Raw(b"{}")
    api_version: str = field(name="apiVersion", default="networking.k8s.io/v1")
    kind: str = "NetworkPolicy"


def parse_objects(files: Mapping[str, str]) -> ClusterObjects:
    """Return the objects of these texts, by name of their file (for errors): each a list, or one object.

    `missing` names each kind of KINDS that no text is about. Raises ParseError.
    """
    found: dict[str, list[Raw]] = {}
    seen: set[str] = set()
    for source, text in files.items():
        whole = read_json(text, _List, source)
        listed = kept_as(whole.api_version, whole.kind.removesuffix("List"))
        items = whole.items if whole.kind.endswith("List") else [Raw(text.encode())]
        seen.add(listed or _kind_of_file(source))
        for raw in items or ():
            head = _read(raw, _Head, source)
            kind = kept_as(head.api_version, head.kind) or listed
            seen.add(kind)
            found.setdefault(kind, []).append(raw)
    return _objects(found, {kind: f"no list of {name} given" for kind, name in KINDS.items() if kind not in seen})


def _kind_of_file(source: str) -> str:
    """Return the kind that an untyped list is of by the name of its file, as an empty list names none."""
    stem = source.rpartition("/")[2].partition(".")[0].lower()
    return next((kind for kind, name in KINDS.items() if name == stem), "")


def _objects(found: Mapping[str, list[Raw]], missing: Mapping[str, str]) -> ClusterObjects:
    def rows(kind: str, row: type[k8s.T]) -> list[k8s.T]:
        return [_read(raw, row, kind) for raw in found.get(kind, ())]

    try:
        return ClusterObjects(
            nodes=tuple(_node(row) for row in rows("Node", k8s.Node)),
            pods=tuple(_pod(row) for row in rows("Pod", k8s.Pod)),
            services=tuple(_service(row) for row in rows("Service", k8s.Service)),
            endpoint_slices=tuple(_slice(row) for row in rows("EndpointSlice", k8s.EndpointSlice)),
            namespaces=tuple(
                Namespace(name=row.metadata.name, labels=row.metadata.labels or {})
                for row in rows("Namespace", k8s.Object)
            ),
            network_policies=tuple(_policy(row) for row in rows("NetworkPolicy", _Policy)),
            policies=other_policies(found),
            config=_config(rows("ConfigMap", k8s.ConfigMap)),
            missing={KINDS[kind]: reason for kind, reason in missing.items()},
        )
    except AddressError as error:
        raise ParseError("kubectl", 0, 0, str(error)) from None


def _read(raw: Raw, row: type[k8s.T], source: str) -> k8s.T:
    try:
        return decode(raw, type=row)
    except (ValidationError, RecursionError) as error:
        raise ParseError(
            source, 0, 0, f"not an object of Kubernetes: {error}", "take it with kubectl get -o json"
        ) from None


def _node(row: k8s.Node) -> NodeMeta:
    info = row.status.info
    return NodeMeta(
        name=NodeName(row.metadata.name),
        addresses=tuple((address.type, _canonical(address.address)) for address in row.status.addresses or ()),
        pod_cidrs=tuple(parse_net(text) for text in row.spec.pod_cidrs or filter(None, (row.spec.pod_cidr,))),
        labels=row.metadata.labels or {},
        annotations=_annotations(row.metadata),
        ready=_condition(row.status.conditions, "Ready"),
        provider_id=row.spec.provider_id,
        kernel_version=info.kernel_version,
        os_image=info.os_image,
        kubelet_version=info.kubelet_version,
    )


def _pod(row: k8s.Pod) -> PodMeta:
    sidecars = [container for container in row.spec.init_containers or () if container.restart_policy == "Always"]
    controller = next((owner for owner in row.metadata.owners or () if owner.controller), None)
    ips = [address.ip for address in row.status.pod_ips or ()] or [row.status.pod_ip]
    return PodMeta(
        namespace=row.metadata.namespace,
        name=row.metadata.name,
        uid=row.metadata.uid,
        node_name=NodeName(row.spec.node_name),
        host_network=row.spec.host_network,
        ips=tuple(parse_ip(ip) for ip in ips if ip),
        labels=row.metadata.labels or {},
        phase=row.status.phase,
        ready=_condition(row.status.conditions, "Ready"),
        deleting=row.metadata.deleted is not None,
        ports=tuple(
            ContainerPort(
                port=port.port,
                name=port.name,
                protocol=_protocol(port.protocol),
                host_port=port.host_port,
                host_ip=port.host_ip,
            )
            for container in (*(row.spec.containers or ()), *sidecars)
            for port in container.ports or ()
        ),
        owner=f"{controller.kind}/{controller.name}" if controller else "",
    )


def _service(row: k8s.Service) -> Service:
    spec = row.spec
    ingress = [entry for entry in row.status.load_balancer.ingress or () if entry.ip]
    cluster_ips = spec.cluster_ips or ([spec.cluster_ip] if spec.cluster_ip else [])
    return Service(
        namespace=row.metadata.namespace,
        name=row.metadata.name,
        type=spec.type,
        cluster_ips=tuple(_canonical(text) for text in cluster_ips),
        external_ips=tuple(parse_ip(text) for text in spec.external_ips or ()),
        load_balancer_ips=tuple(parse_ip(entry.ip) for entry in ingress),
        load_balancer_ip_modes=tuple(entry.ip_mode for entry in ingress),
        load_balancer_source_ranges=tuple(Net(parse_net(text.strip())) for text in spec.source_ranges or ()),
        external_name=spec.external_name,
        ports=tuple(
            ServicePort(
                port=port.port,
                name=port.name,
                protocol=_protocol(port.protocol),
                target=str(port.target) if port.target is not None else str(port.port),
                node_port=port.node_port,
            )
            for port in spec.ports or ()
        ),
        selector=spec.selector or {},
        session_affinity=spec.session_affinity,
        affinity_timeout_s=_affinity_timeout(spec),
        external_traffic_policy=spec.external_traffic_policy or "Cluster",
        internal_traffic_policy=spec.internal_traffic_policy or "Cluster",
        health_check_node_port=spec.health_check_node_port,
        publish_not_ready=spec.publish_not_ready,
        annotations=_annotations(row.metadata),
    )


def _affinity_timeout(spec: k8s.ServiceSpec) -> int:
    config = spec.affinity_config.client_ip if spec.affinity_config else None
    return config.timeout if config and config.timeout is not None else 10800


def _slice(row: k8s.EndpointSlice) -> EndpointSlice:
    return EndpointSlice(
        namespace=row.metadata.namespace,
        name=row.metadata.name,
        service=(row.metadata.labels or {}).get(SERVICE_NAME, ""),
        address_type=row.address_type,
        endpoints=tuple(_endpoint(endpoint, row.address_type) for endpoint in row.endpoints or ()),
        ports=tuple(
            SlicePort(port=port.port or 0, name=port.name or "", protocol=_protocol(port.protocol or "TCP"))
            for port in row.ports or ()
        ),
    )


def _endpoint(row: k8s.SliceEndpoint, address_type: str) -> SliceEndpoint:
    conditions = row.conditions or k8s.SliceConditions()
    ready = conditions.ready is not False
    target = row.target
    is_address = address_type in ("IPv4", "IPv6")
    return SliceEndpoint(
        addresses=tuple(parse_ip(text) if is_address else Ip(text) for text in row.addresses or ()),
        ready=ready,
        serving=ready if conditions.serving is None else conditions.serving,
        terminating=conditions.terminating is True,
        node_name=NodeName(row.node_name or ""),
        pod=pod_key(target.namespace, target.name) if target and target.kind == "Pod" else None,
        zone=row.zone or "",
        hints=tuple(zone.name for zone in row.hints.zones or ()) if row.hints else (),
    )


def _policy(row: _Policy) -> str:
    return encode(replace(row, spec=Raw(format_json(row.spec, indent=-1)))).decode()


def _config(maps: Iterable[k8s.ConfigMap]) -> dict[str, str]:
    return {
        CONFIG[row.metadata.name, key]: text
        for row in maps
        for key, text in (row.data or {}).items()
        if (row.metadata.name, key) in CONFIG
    }


def _annotations(metadata: k8s.Metadata) -> dict[str, str]:
    return {key: text for key, text in (metadata.annotations or {}).items() if key != LAST_APPLIED}


def _condition(conditions: Iterable[k8s.Condition] | None, kind: str) -> bool:
    return any(condition.type == kind and condition.status == "True" for condition in conditions or ())


def _protocol(text: str) -> Protocol:
    return _PROTOCOLS.get(text.upper(), Protocol.OTHER)


def _canonical(text: str) -> str:
    """Return an address in canonical form; anything else (a host name, "None") as it is."""
    try:
        return parse_ip(text)
    except AddressError:
        return text
