"""Does somebody listen where traffic is sent? Target ports of Services, accept queues."""

from collections.abc import Iterator, Mapping

from msgspec import Struct

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.assertions.scene import Cluster, Scene
from tasks.skoop.model.addr import Ip, is_loopback
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import Section, Socket
from tasks.skoop.model.suspicion import AcceptConnections, AddSocket, Suspicion
from tasks.skoop.model.trace import Place, Stage

LISTENING = frozenset((Protocol.TCP, Protocol.UDP))
"""Protocols whose sockets are collected."""


def queue_suspicions(scene: Scene) -> Iterator[Suspicion]:
    """Yield listeners whose accept queue is full (tcp_v4_syn_recv_sock: more than the backlog)."""
    for socket in scene.netns.sockets:
        if socket.protocol == Protocol.TCP and socket.state == "LISTEN" and socket.recv_queue > socket.backlog:
            yield suspect(
                "KP-SOCK-003",
                f"the accept queue of {socket.ip}:{socket.port} in {scene.name} is full ({socket.process or 'its program'} "
                "does not accept connections)",
                subject=scene.id,
                place=_place(scene.id, socket.protocol, socket.port),
                seen=f"{socket.recv_queue} waiting",
                expected=f"at most {socket.backlog}",
                changes=(AcceptConnections(netns=scene.id, port=socket.port),),
            )


class Served(Struct, frozen=True):
    """Where a Service port sends connections: a namespace with an address, port and protocol."""

    netns: NetnsId
    ip: Ip
    port: int
    protocol: Protocol


def target_suspicions(cluster: Cluster) -> Iterator[Suspicion]:
    """Yield target ports that are not served: of a whole Service where no ready pod serves it, else pod by pod."""
    targets = _targets(cluster)
    unserved = {target: waiting for target in targets if (waiting := _waiting_elsewhere(cluster, target)) is not None}
    services: dict[tuple[str, str], list[Served]] = {}
    for target, names in targets.items():
        for name in names:
            services.setdefault(name, []).append(target)
    told: set[Served] = set()
    for (service, _), ends in services.items():
        if all(unserved.get(end) == [] for end in ends):
            told |= set(ends)
            yield _wrong_port(cluster, service, ends)
    pods: dict[tuple[NetnsId, int, Protocol], list[Served]] = {}
    for target in unserved:
        if target not in told:
            pods.setdefault((target.netns, target.port, target.protocol), []).append(target)
    for ends in pods.values():
        served = list(dict.fromkeys(service for end in ends for service, _ in targets[end]))
        yield _unserved(cluster, ends, served, unserved[ends[0]])


def _targets(cluster: Cluster) -> Mapping[Served, list[tuple[str, str]]]:
    """Return every ready endpoint that is a pod's, with the (Service, port name) pairs that it serves."""
    found: dict[Served, list[tuple[str, str]]] = {}
    for piece in cluster.state.objects.endpoint_slices:
        for endpoint in piece.endpoints:
            for ip in endpoint.addresses if endpoint.ready else ():
                owner = cluster.ipcache.lookup(ip)
                if owner is None or owner.netns is None or not owner.netns.startswith("pod/"):
                    continue
                for port in piece.ports:
                    services = found.setdefault(Served(owner.netns, ip, port.port, port.protocol), [])
                    name = (f"{piece.namespace}/{piece.service}", port.name)
                    if name not in services:
                        services.append(name)
    return {target: services for target, services in found.items() if target.port}


def _waiting_elsewhere(cluster: Cluster, target: Served) -> list[Socket] | None:
    """Return the sockets of that port which do not take such connections; None if one does, or it is not known."""
    netns = cluster.state.netns.get(target.netns)
    if netns is None or netns.lacks(Section.SOCKETS) is not None or target.protocol not in LISTENING:
        return None
    wanted = (target.protocol, target.port, 0)
    waiting = [known for known in netns.sockets if (known.protocol, known.port, known.peer_port) == wanted]
    return None if any(_takes(known, target.ip) for known in waiting) else waiting


def _takes(socket: Socket, ip: Ip) -> bool:
    """Say whether a socket takes connections to an address."""
    if socket.ip == ip:
        return True
    if socket.ip == "0.0.0.0":
        return ":" not in ip
    return socket.ip == "::" and (":" in ip or not socket.v6only)


def _listener(target: Served) -> AddSocket:
    wildcard = Ip("::" if ":" in target.ip else "0.0.0.0")
    return AddSocket(netns=target.netns, socket=Socket(protocol=target.protocol, ip=wildcard, port=target.port))


def _listening(cluster: Cluster, target: Served) -> str:
    netns = cluster.state.netns[target.netns]
    ports = {known.port for known in netns.sockets if known.protocol == target.protocol and not known.peer_port}
    return f"listening {target.protocol} ports: {', '.join(map(str, sorted(ports))) or 'none'}"


def _wrong_port(cluster: Cluster, service: str, ends: list[Served]) -> Suspicion:
    first = ends[0]
    pods = list(dict.fromkeys(end.netns.removeprefix("pod/") for end in ends))
    return suspect(
        "KP-K8S-004",
        f"Service {service} sends connections to {first.protocol} port {first.port}, where nobody listens in {pods[0]}"
        + (f" and {len(pods) - 1} more pods" if len(pods) > 1 else ""),
        subject=f"svc/{service}",
        place=_place(first.netns, first.protocol, first.port),
        seen=_listening(cluster, first),
        expected=f"{first.protocol} port {first.port}",
        changes=[_listener(end) for end in ends],
    )


def _unserved(cluster: Cluster, ends: list[Served], services: list[str], waiting: list[Socket]) -> Suspicion:
    """Return why one pod does not serve a port on its addresses, while others of the Service do."""
    target = ends[0]
    name = target.netns.removeprefix("pod/")
    serves = (
        f"{', '.join(services)} {'sends' if len(services) == 1 else 'send'} connections to {target.ip}:{target.port}"
    )
    if waiting and all(is_loopback(socket.ip) for socket in waiting):
        code, message = "KP-SOCK-001", f"{name} listens on {waiting[0].ip}:{target.port} only, but {serves}"
    elif waiting and all(socket.v6only for socket in waiting):
        code, message = "KP-SOCK-004", f"{name} listens on port {target.port} for IPv6 only, but {serves}"
    else:
        code, message = "KP-K8S-004", f"nobody listens on {target.protocol} port {target.port} in {name}, but {serves}"
    return suspect(
        code,
        message,
        subject=target.netns,
        place=_place(target.netns, target.protocol, target.port),
        seen=", ".join(f"{s.ip}:{s.port} {s.process}".rstrip() for s in waiting) or _listening(cluster, target),
        expected=f"{target.protocol} {_listener(target).socket.ip}:{target.port}",
        changes=[_listener(end) for end in ends],
    )


def _place(netns: NetnsId, protocol: Protocol, port: int) -> Place:
    return Place(netns=netns, stage=Stage.SOCKET, key=f"{protocol}/{port}")
