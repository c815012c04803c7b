"""What do policies see of a connection to a Service? Its ends after translation: the backend and its own port.

Egress is judged on the backend, as kube-proxy translates before any plugin filters. What ingress sees as the source depends on the
way in: the client itself for a ClusterIP; for a node port, external or load balancer address of a Service with policy Cluster the
address may be a node's (masquerade), with policy Local the client's. The Kubernetes documentation leaves open whether a policy is
applied before or after that: where it matters, the answer is unknown, with both readings. Kube-proxy's own choice of backends (Local,
topology) is the Service processor's matter: all ready endpoints are answered for.
"""

from collections.abc import Iterator
from typing import NamedTuple

from msgspec.structs import replace

from tasks.skoop.model.addr import Ip, ip_version
from tasks.skoop.model.cluster import ClusterObjects, EndpointSlice, Service, ServicePort
from tasks.skoop.model.endpoint import Endpoint, EndpointType
from tasks.skoop.model.packet import Protocol
from tasks.skoop.policy.engine import PolicyEngine
from tasks.skoop.policy.parties import Party, PartyKind
from tasks.skoop.policy.verdict import PolicyVerdict, Ruling, Side


class _Way(NamedTuple):
    """The Service's port that a destination leads to; `keeps_source` = nobody masquerades."""

    service: Service
    port: ServicePort
    keeps_source: bool


def verdicts(
    engine: PolicyEngine, src: Endpoint, dst: Endpoint, port: int, protocol: Protocol = Protocol.TCP
) -> tuple[PolicyVerdict, ...]:
    """Return what policies say of a connection, one verdict for each backend if it goes to a Service; else just one.

    Empty if the destination is a Service's that has no port like this or no ready endpoint: policies have nothing to say then.
    """
    ways = tuple(_ways(engine.objects, dst, port, protocol))
    if not ways:
        service = dst.type in (EndpointType.SERVICE, EndpointType.LOADBALANCER)
        return () if service else (engine.verdict(src, dst, port, protocol),)
    return tuple(found for way in ways for found in _through(engine, src, dst, way, protocol))


def _ways(objects: ClusterObjects, dst: Endpoint, port: int, protocol: Protocol) -> Iterator[_Way]:
    node_ips = {ip for node in objects.nodes for ip in node.ips}
    for service in objects.services:
        for one in service.ports:
            if one.protocol is not protocol:
                continue
            local = service.external_traffic_policy == "Local"
            outside = (*service.external_ips, *service.load_balancer_ips)
            by_node = dst.ip in node_ips and one.node_port and one.node_port == port
            if dst.ip in service.cluster_ips and one.port == port:
                yield _Way(service, one, keeps_source=True)
            elif by_node or (dst.ip in outside and one.port == port):
                yield _Way(service, one, keeps_source=local)


def _through(
    engine: PolicyEngine, src: Endpoint, dst: Endpoint, way: _Way, protocol: Protocol
) -> Iterator[PolicyVerdict]:
    for ip, port in _backends(engine.objects, way, ip_version(dst.ip)):
        backend = engine.world.at(ip)
        seen = f"{way.service.key}:{way.port.port} leads to {backend.name} port {port}"
        plain = engine.verdict(src, backend, port, protocol, seen=seen)
        if way.keeps_source:
            yield plain
            continue
        shown = [engine.verdict(src, backend, port, protocol, ingress_src=by) for by in _masks(engine, dst, backend)]
        yield _either(plain, shown)


def _masks(engine: PolicyEngine, dst: Endpoint, backend: Party) -> list[Party]:
    """Return who may stand in as the source: the node that was addressed, else any node (the backend's own is no peer)."""
    addressed = engine.world.at(dst.ip)
    if addressed.kind is PartyKind.NODE:
        return [addressed]
    return [engine.world.node(node) for node in engine.objects.nodes if node.name != backend.node]


def _either(plain: PolicyVerdict, shown: list[PolicyVerdict]) -> PolicyVerdict:
    """Return the verdict if the source is either the client or one of the nodes, which is not laid down."""
    rulings = {plain.ingress.ruling, *(one.ingress.ruling for one in shown)}
    if len(rulings) == 1:
        return plain
    other = next(one for one in shown if one.ingress.ruling is not plain.ingress.ruling)
    why = (
        f"as from {plain.src}: {plain.ingress.ruling} ({plain.ingress.why}); "
        f"after masquerade, as from a node: {other.ingress.ruling} ({other.ingress.why})"
    )
    ingress: Side = replace(
        plain.ingress,
        ruling=Ruling.UNKNOWN,
        why=why,
        allowed_by=(*plain.ingress.allowed_by, *other.ingress.allowed_by),
        denied_by=(*plain.ingress.denied_by, *other.ingress.denied_by),
        isolated_by=(*plain.ingress.isolated_by, *other.ingress.isolated_by),
        missing=("whether the plugin filters before or after the node's masquerade",),
    )
    return replace(plain, ingress=ingress)


def _backends(objects: ClusterObjects, way: _Way, version: int) -> Iterator[tuple[Ip, int]]:
    """Yield the ready endpoints of a Service's port, each once, with the port that they listen on."""
    seen: set[tuple[Ip, int]] = set()
    for piece in objects.endpoint_slices:
        if (piece.namespace, piece.service) != (way.service.namespace, way.service.name):
            continue
        for number in _numbers(piece, way.port):
            for endpoint in piece.endpoints:
                for ip in endpoint.addresses if endpoint.ready or way.service.publish_not_ready else ():
                    if ip_version(ip) == version and (ip, number) not in seen:
                        seen.add((ip, number))
                        yield ip, number


def _numbers(piece: EndpointSlice, port: ServicePort) -> list[int]:
    return [one.port for one in piece.ports if one.name == port.name and one.protocol is port.protocol and one.port]
