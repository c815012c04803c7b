"""Who is at the ends of a connection, as a policy sees them: a pod, a node, or somebody outside?

A pod on the host's network is its node to every policy: it is not selected, and pod selectors do not find it (NetworkPolicy,
"hostNetwork pods": the reading in which its traffic cannot be told from the node's). Labels of a namespace hold
`kubernetes.io/metadata.name` even where the namespace could not be read, as the API server sets it on every one.
"""

from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property

from msgspec import Struct

from tasks.skoop.model.addr import Ip, contains, ip_version
from tasks.skoop.model.cluster import ClusterObjects, NodeMeta, PodMeta
from tasks.skoop.model.endpoint import Endpoint, EndpointType
from tasks.skoop.policy.selectors import Labels

NAMESPACE_NAME = "kubernetes.io/metadata.name"
ENDED = frozenset(("Succeeded", "Failed"))
"""Phases in which a pod's recorded address may be another's."""


class PartyKind(StrEnum):
    """What an end is to a policy. UNKNOWN: it may be a pod that was not listed."""

    POD = "pod"
    NODE = "node"
    OUTSIDE = "outside"
    UNKNOWN = "unknown"


class Party(Struct, frozen=True, kw_only=True):
    """One end. `node` is where it runs ("" outside); `ip` "" = an address not known yet; `gap` says why it is UNKNOWN."""

    kind: PartyKind
    name: str
    ip: Ip = Ip("")
    namespace: str = ""
    node: str = ""
    pod: PodMeta | None = None
    labels: Labels = Labels()
    namespace_labels: Labels = Labels()
    gap: str = ""

    @property
    def key(self) -> tuple[PartyKind, str, Ip]:
        """What tells it from others."""
        return self.kind, self.name, self.ip


class World:
    """The ends that the objects know."""

    def __init__(self, objects: ClusterObjects) -> None:
        self.objects = objects

    def party(self, end: Endpoint) -> Party:
        """Return who an endpoint is: by the object it names, else by its address. Services are to be translated before."""
        if end.type is EndpointType.POD and end.name in self.pods:
            return self.pod(self.pods[end.name], end.ip)
        if end.type is EndpointType.NODE and end.name in self.nodes:
            return self.node(self.nodes[end.name], end.ip)
        if end.type is EndpointType.NODE:
            return Party(
                kind=PartyKind.NODE,
                name=end.name or end.ip,
                ip=end.ip,
                node=end.name,
                labels=Labels(gap=f"node {end.name or end.ip} was not listed"),
            )
        return self.at(end.ip)

    def at(self, ip: str) -> Party:
        """Return who has an address."""
        if ip in self.pods_by_ip:
            return self.pod(self.pods_by_ip[Ip(ip)], ip)
        if ip in self.nodes_by_ip:
            return self.node(self.nodes_by_ip[Ip(ip)], ip)
        gap = self._may_be_unlisted(Ip(ip))
        kind = PartyKind.UNKNOWN if gap else PartyKind.OUTSIDE
        return Party(kind=kind, name=ip, ip=Ip(ip), gap=gap)

    def pod(self, pod: PodMeta, ip: str = "") -> Party:
        """Return a pod, at one of its addresses (the first unless given); on the host's network it is its node."""
        address = Ip(ip or (pod.ips[0] if pod.ips else ""))
        if pod.host_network:
            meta = self.nodes.get(pod.node_name)
            if meta is not None:
                return self.node(meta, address)
            gap = Labels(gap=f"node {pod.node_name} was not listed")
            return Party(kind=PartyKind.NODE, name=pod.node_name, ip=address, node=pod.node_name, labels=gap)
        return Party(
            kind=PartyKind.POD,
            name=pod.key,
            ip=address,
            namespace=pod.namespace,
            node=pod.node_name,
            pod=pod,
            labels=self.pod_labels(pod.key),
            namespace_labels=self.namespace_labels(pod.namespace),
        )

    def node(self, node: NodeMeta, ip: str = "") -> Party:
        """Return a node, at one of its addresses (the first unless given)."""
        address = Ip(ip or (node.ips[0] if node.ips else ""))
        return Party(kind=PartyKind.NODE, name=node.name, ip=address, node=node.name, labels=Labels(values=node.labels))

    def namespace_labels(self, namespace: str) -> Labels:
        """Return a namespace's labels, or what is known of them."""
        known = self._namespaces.get(namespace)
        if known is None:
            gap = self.objects.missing.get("namespaces", "")
            why = f"namespaces could not be read ({gap})" if gap else f"namespace {namespace} was not listed"
            return Labels(values={NAMESPACE_NAME: namespace}, gap=why)
        return known

    @cached_property
    def pods(self) -> Mapping[str, PodMeta]:
        """Pods by `namespace/name`."""
        return {pod.key: pod for pod in self.objects.pods}

    @cached_property
    def nodes(self) -> Mapping[str, NodeMeta]:
        """Nodes by name."""
        return {str(node.name): node for node in self.objects.nodes}

    @cached_property
    def pods_by_ip(self) -> Mapping[Ip, PodMeta]:
        """Pods with a network of their own, by each address."""
        pods = (pod for pod in self.objects.pods if not pod.host_network and pod.phase not in ENDED)
        return {ip: pod for pod in pods for ip in pod.ips}

    @cached_property
    def nodes_by_ip(self) -> Mapping[Ip, NodeMeta]:
        """Nodes by each address."""
        return {ip: node for node in self.objects.nodes for ip in node.ips}

    @cached_property
    def _namespaces(self) -> Mapping[str, Labels]:
        return {one.name: Labels(values={NAMESPACE_NAME: one.name, **one.labels}) for one in self.objects.namespaces}

    def pod_labels(self, key: str) -> Labels:
        """Return the labels of a pod that the objects name; none of another."""
        found = self._labels.get(key)
        if found is None:
            found = self._labels[key] = Labels(values=self.pods[key].labels if key in self.pods else {})
        return found

    @cached_property
    def _labels(self) -> dict[str, Labels]:
        return {}

    def _may_be_unlisted(self, ip: Ip) -> str:
        """Return why the owner of an address may be a pod or node that the objects do not name, or ""."""
        for kind in ("pods", "nodes"):
            if kind in self.objects.missing:
                return f"{kind} could not be read ({self.objects.missing[kind]})"
        for node in self.objects.nodes:
            for net in node.pod_cidrs:
                if ip_version(net) == ip_version(ip) and contains(net, ip):
                    return f"{ip} lies in the pod network of {node.name}, but no pod that was listed has it"
        return ""
