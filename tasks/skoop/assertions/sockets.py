"""Does somebody listen where traffic is sent? Target ports of Services, accept queues."""

from collections.abc import Iterator, Mapping

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.assertions.scene import Cluster, Scene
from tasks.skoop.model.addr import Ip, is_loopback
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import NetNS, Section, Socket
from tasks.skoop.model.suspicion import AddSocket, Suspicion
from tasks.skoop.model.trace import Place, Stage

LISTENING = frozenset((Protocol.TCP, Protocol.UDP))
"""Protocols whose sockets are collected."""


def queue_suspicions(scene: Scene) -> Iterator[Suspicion]:
    """Yield listeners whose accept queue is full (tcp_v4_syn_recv_sock: more than the backlog)."""
    for socket in scene.netns.sockets:
        if socket.protocol == Protocol.TCP and socket.state == "LISTEN" and 0 < socket.backlog < socket.recv_queue:
            yield suspect(
                "KP-SOCK-003",
                f"the accept queue of {socket.ip}:{socket.port} in {scene.name} is full ({socket.process or 'its program'} "
                "does not accept connections)",
                subject=scene.id,
                place=_place(scene.id, socket.protocol, socket.port),
                seen=f"{socket.recv_queue} waiting",
                expected=f"at most {socket.backlog}",
            )


def target_suspicions(cluster: Cluster) -> Iterator[Suspicion]:
    """Yield, for each target port of a Service that a ready pod does not serve on its address, why."""
    for (netns_id, ip, port, protocol), services in _targets(cluster).items():
        netns = cluster.state.netns.get(netns_id)
        if netns is None or netns.lacks(Section.SOCKETS) is not None or protocol not in LISTENING:
            continue
        sockets = [known for known in netns.sockets if (known.protocol, known.port) == (protocol, port)]
        waiting = [known for known in sockets if known.peer_port == 0]
        if not any(_takes(known, ip) for known in waiting):
            yield _unserved(netns, ip, port, protocol, services, waiting)


def _targets(cluster: Cluster) -> Mapping[tuple[NetnsId, Ip, int, Protocol], list[str]]:
    """Return (namespace, address, port, protocol) of every ready endpoint that is a pod's, with the Services it serves."""
    found: dict[tuple[NetnsId, Ip, int, Protocol], list[str]] = {}
    for piece in cluster.state.objects.endpoint_slices:
        for endpoint in piece.endpoints:
            for ip in endpoint.addresses if endpoint.ready else ():
                owner = cluster.ipcache.lookup(ip)
                if owner is None or owner.netns is None or not owner.netns.startswith("pod/"):
                    continue
                for port in piece.ports:
                    key = (owner.netns, ip, port.port, port.protocol)
                    services = found.setdefault(key, [])
                    name = f"{piece.namespace}/{piece.service}"
                    if port.port and name not in services:
                        services.append(name)
    return {key: services for key, services in found.items() if services}


def _takes(socket: Socket, ip: Ip) -> bool:
    """Say whether a socket takes connections to an address."""
    if socket.ip == ip:
        return True
    if socket.ip == "0.0.0.0":
        return ":" not in ip
    return socket.ip == "::" and (":" in ip or not socket.v6only)


def _unserved(
    netns: NetNS, ip: Ip, port: int, protocol: Protocol, services: list[str], waiting: list[Socket]
) -> Suspicion:
    name = netns.id.removeprefix("pod/")
    place = _place(netns.id, protocol, port)
    wanted = AddSocket(
        netns=netns.id, socket=Socket(protocol=protocol, ip=Ip("::" if ":" in ip else "0.0.0.0"), port=port)
    )
    serves = f"{', '.join(services)} {'sends' if len(services) == 1 else 'send'} connections to {ip}:{port}"
    if waiting and all(is_loopback(socket.ip) for socket in waiting):
        return suspect(
            "KP-SOCK-001",
            f"{name} listens on {waiting[0].ip}:{port} only, but {serves}",
            subject=netns.id,
            place=place,
            seen=f"{protocol} {waiting[0].ip}:{port} {waiting[0].process}".rstrip(),
            expected=f"{protocol} {wanted.socket.ip}:{port}",
            changes=(wanted,),
        )
    if waiting and all(socket.v6only for socket in waiting):
        return suspect(
            "KP-SOCK-004",
            f"{name} listens on port {port} for IPv6 only, but {serves}",
            subject=netns.id,
            place=place,
            seen=f"{protocol} [::]:{port} v6only",
            changes=(wanted,),
        )
    others = sorted({socket.port for socket in netns.sockets if socket.protocol == protocol and not socket.peer_port})
    return suspect(
        "KP-K8S-004",
        f"nobody listens on {protocol} port {port} in {name}, but {serves}",
        subject=netns.id,
        place=place,
        seen=f"listening {protocol} ports: {', '.join(map(str, others)) or 'none'}",
        expected=f"{protocol} {wanted.socket.ip}:{port}",
        changes=(wanted,),
    )


def _place(netns: NetnsId, protocol: Protocol, port: int) -> Place:
    return Place(netns=netns, stage=Stage.SOCKET, key=f"{protocol}/{port}")
