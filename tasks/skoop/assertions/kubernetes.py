"""KubernetesAssertion: what looks wrong in Kubernetes' objects, by themselves and against what the pods really do."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from tasks.skoop.assertions.addresses import address_suspicions
from tasks.skoop.assertions.codes import suspect
from tasks.skoop.assertions.rules import tables_of
from tasks.skoop.assertions.scene import Cluster
from tasks.skoop.assertions.sockets import target_suspicions
from tasks.skoop.ipcache import NO_ADDRESS_PHASES
from tasks.skoop.model.addr import contains
from tasks.skoop.model.cluster import EndpointSlice, PodMeta, Service
from tasks.skoop.model.ids import node_netns
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import NetNS, Section
from tasks.skoop.model.suspicion import Level, Suspicion

ENFORCERS = ("cali-", "KUBE-NWPLCY-", "KUBE-ROUTER-", "WEAVE-NPC", "ANTREA-", "CILIUM_")
"""How chains begin that enforce policies."""


def service_subject(key: str) -> str:
    """Return what a suspicion about a Service names as its subject."""
    return f"svc/{key}"


def pod_suspicions(cluster: Cluster) -> Iterator[Suspicion]:
    """Yield pods that are not ready, have no address, or want a host port that another has."""
    ports: dict[tuple[str, str, int, str], PodMeta] = {}
    for pod in cluster.state.objects.pods:
        if pod.phase in NO_ADDRESS_PHASES or not pod.node_name:
            continue
        if not pod.ready and not pod.deleting:
            yield suspect("KP-K8S-001", f"{pod.key} is not ready ({pod.phase})", subject=pod.netns)
        if not pod.ips and not pod.host_network and pod.phase == "Running":
            yield suspect("KP-K8S-017", f"{pod.key} runs on {pod.node_name} but has no address", subject=pod.netns)
        for port in pod.ports:
            if port.host_port:
                key = (pod.node_name, port.host_ip, port.host_port, port.protocol)
                if key in ports and ports[key].key != pod.key:
                    yield suspect(
                        "KP-K8S-008",
                        f"{ports[key].key} and {pod.key} both want {port.protocol} port {port.host_port} of {pod.node_name}",
                        subject=node_netns(pod.node_name),
                    )
                ports.setdefault(key, pod)


def node_suspicions(cluster: Cluster) -> Iterator[Suspicion]:
    """Yield nodes that are not ready."""
    for node in cluster.state.objects.nodes:
        if not node.ready:
            yield suspect("KP-K8S-005", f"{node.name} is not ready", subject=node_netns(node.name))


def service_suspicions(cluster: Cluster) -> Iterator[Suspicion]:
    """Yield Services that lead nowhere, and why: selector, readiness, target port, policies."""
    slices: dict[str, list[EndpointSlice]] = {}
    for piece in cluster.state.objects.endpoint_slices:
        slices.setdefault(f"{piece.namespace}/{piece.service}", []).append(piece)
    for service in cluster.state.objects.services:
        if service.type == "ExternalName":
            continue
        selected = [pod for pod in cluster.state.objects.pods if _selects(service, pod)]
        yield from _endpoints(service, selected, slices.get(service.key, []))
        yield from _named_ports(service, selected)
        yield from _source_ranges(cluster, service)
        yield from _health_check(cluster, service, slices.get(service.key, []))


def _selects(service: Service, pod: PodMeta) -> bool:
    if not service.selector or pod.namespace != service.namespace or pod.phase in NO_ADDRESS_PHASES:
        return False
    return all(pod.labels.get(key) == value for key, value in service.selector.items())


def _endpoints(service: Service, selected: list[PodMeta], pieces: list[EndpointSlice]) -> Iterator[Suspicion]:
    usable = [end for piece in pieces for end in piece.endpoints if end.ready or (end.serving and end.terminating)]
    if usable:
        return
    if service.selector and not selected:
        wanted = ",".join(f"{key}={value}" for key, value in sorted(service.selector.items()))
        yield suspect(
            "KP-K8S-002",
            f"Service {service.key} selects {wanted}, which no pod in {service.namespace} carries",
            subject=service_subject(service.key),
            seen="no pod selected",
        )
        return
    unready = [pod.key for pod in selected if not pod.ready]
    detail = f": {', '.join(unready[:3])} {'is' if len(unready) == 1 else 'are'} not ready" if unready else ""
    if selected or not service.selector:
        yield suspect(
            "KP-K8S-003",
            f"Service {service.key} has no ready endpoint{detail}",
            subject=service_subject(service.key),
            seen=f"{len(selected)} pods selected, 0 ready endpoints",
        )


def _named_ports(service: Service, selected: list[PodMeta]) -> Iterator[Suspicion]:
    for port in service.ports:
        if not port.target or port.target.isdigit() or not selected:
            continue
        having = [
            pod
            for pod in selected
            if any((known.name, known.protocol) == (port.target, port.protocol) for known in pod.ports)
        ]
        if len(having) < len(selected):
            lacking = next(pod for pod in selected if pod not in having)
            yield suspect(
                "KP-K8S-009",
                f"Service {service.key} names the target port {port.target!r}, which {len(selected) - len(having)} of "
                f"{len(selected)} pods do not declare ({lacking.key})",
                subject=service_subject(service.key),
            )


def _source_ranges(cluster: Cluster, service: Service) -> Iterator[Suspicion]:
    ranges = service.load_balancer_source_ranges
    if not ranges or not service.load_balancer_ips:
        return
    pods = next((pod for pod in cluster.ipcache.pods_by_netns.values() if pod.ips), None)
    if pods is not None and not any(contains(net, pods.ips[0]) for net in ranges):
        yield suspect(
            "KP-K8S-012",
            f"pods may not use the load balancer address of {service.key}: its source ranges leave them out",
            subject=service_subject(service.key),
            seen=", ".join(ranges),
        )


def _health_check(cluster: Cluster, service: Service, pieces: list[EndpointSlice]) -> Iterator[Suspicion]:
    """Report nodes without local endpoint under policy Local (as information), and health check ports nobody serves."""
    if service.external_traffic_policy != "Local" or not any(port.node_port for port in service.ports):
        return
    local = Counter(end.node_name for piece in pieces for end in piece.endpoints if end.ready)
    without = [node.name for node in cluster.state.objects.nodes if not local[node.name]]
    if without and local:
        yield suspect(
            "KP-K8S-011",
            f"{', '.join(without[:5])} {'has' if len(without) == 1 else 'have'} no local endpoint of {service.key} "
            "(externalTrafficPolicy Local)",
            subject=service_subject(service.key),
        )
    if not service.health_check_node_port:
        return
    for node in cluster.state.objects.nodes:
        netns = cluster.state.netns.get(node_netns(node.name))
        if netns is None or not netns.sockets or netns.lacks(Section.SOCKETS) is not None:
            continue
        if not _listens(netns, service.health_check_node_port):
            yield suspect(
                "KP-K8S-013",
                f"nobody on {node.name} serves the health check port {service.health_check_node_port} of {service.key}",
                subject=netns.id,
            )


def _listens(netns: NetNS, port: int) -> bool:
    return any((socket.protocol, socket.port) == (Protocol.TCP, port) for socket in netns.sockets)


def endpoint_suspicions(cluster: Cluster) -> Iterator[Suspicion]:
    """Yield endpoints whose address is not their pod's."""
    pods: Mapping[str, PodMeta] = {pod.key: pod for pod in cluster.state.objects.pods}
    for piece in cluster.state.objects.endpoint_slices:
        for endpoint in piece.endpoints:
            pod = pods.get(endpoint.pod or "")
            if endpoint.pod and pods and endpoint.ready and (pod is None or not set(endpoint.addresses) & set(pod.ips)):
                has = ", ".join(pod.ips) if pod is not None else "nothing: it does not exist"
                yield suspect(
                    "KP-K8S-014",
                    f"{piece.namespace}/{piece.service} counts {endpoint.pod} as {endpoint.addresses[0]}, but it has {has}",
                    subject=service_subject(f"{piece.namespace}/{piece.service}"),
                )


def policy_suspicions(cluster: Cluster) -> Iterator[Suspicion]:
    """Yield a note where policies exist that nothing collected enforces."""
    if not cluster.state.objects.network_policies:
        return
    collected = [netns for key, netns in cluster.state.netns.items() if key.startswith("node/")]
    if not collected or any(netns.lacks(Section.IPTABLES) is not None for netns in collected):
        return
    chains = {chain for netns in collected for view in tables_of(netns, "filter") for chain in view.chains}
    native = {table.name for netns in collected for table in netns.nft} - {"kube-proxy"}
    if not any(chain.startswith(ENFORCERS) for chain in chains) and not native:
        count = len(cluster.state.objects.network_policies)
        yield suspect(
            "KP-K8S-015",
            f"{count} NetworkPolicies exist, but no chain or table on any node enforces policies",
            subject="cluster",
            level=Level.INFO,
        )


CHECKS: tuple[Callable[[Cluster], Iterable[Suspicion]], ...] = (
    node_suspicions,
    pod_suspicions,
    address_suspicions,
    service_suspicions,
    endpoint_suspicions,
    target_suspicions,
    policy_suspicions,
)
"""All checks of the objects, in the order of the report."""


class KubernetesAssertion:
    """Checks the objects of one collected cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def check(self) -> tuple[Suspicion, ...]:
        """Return what looks wrong; `subject` is a namespace's id, or `svc/namespace/name` for a Service."""
        return tuple(found for check in CHECKS for found in check(self._cluster))
