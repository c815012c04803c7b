"""Do a node's rules lead the host ports of its pods to them? Whatever writes the rules (portmap, a proxy), by their effect."""

from collections.abc import Iterator

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.assertions.rules import TableView, dport, plain, tables_of, target_option
from tasks.skoop.assertions.scene import Scene
from tasks.skoop.ipcache import NO_ADDRESS_PHASES
from tasks.skoop.model.addr import Ip, ip_version
from tasks.skoop.model.cluster import ContainerPort, PodMeta
from tasks.skoop.model.state import Section
from tasks.skoop.model.suspicion import InsertRule, Suspicion
from tasks.skoop.model.xtables import Rule


def host_port_suspicions(scene: Scene) -> Iterator[Suspicion]:
    """Yield host ports of a node's pods that no nat rule translates (unless something listens there, or nftables may do it)."""
    if scene.node is None or scene.netns.lacks(Section.IPTABLES) is not None:
        return
    if any(kind == "nat" for table in scene.netns.nft for _, kind, _, _, _ in table.hooks):
        return
    for pod in scene.cluster.pods_on(scene.node.name):
        for port in pod.ports:
            if port.host_port and pod.phase not in NO_ADDRESS_PHASES and not _listens(scene, port):
                for ip in pod.ips:
                    yield from _port(scene, pod, port, ip)


def _port(scene: Scene, pod: PodMeta, port: ContainerPort, ip: Ip) -> Iterator[Suspicion]:
    views = tables_of(scene.netns, "nat", ip_version(ip))
    to = f"[{ip}]:{port.port}" if ":" in ip else f"{ip}:{port.port}"
    if any(_leads(view, port, to) for view in views):
        return
    proto = port.protocol
    raw = f"-p {proto} -m addrtype --dst-type LOCAL -m {proto} --dport {port.host_port} -j DNAT --to-destination {to}"
    changes = [
        InsertRule(
            netns=scene.id, backend=view.backend, family=view.family, table="nat", chain="PREROUTING", rule=1, raw=raw
        )
        for view in views[:1]
    ]
    yield suspect(
        "KP-NF-009",
        f"no rule on {scene.name} leads {proto} port {port.host_port} to {pod.key} ({to})",
        subject=scene.id,
        place=views[0].place("PREROUTING", hook="PREROUTING") if views else None,
        seen="no DNAT to it after PREROUTING",
        expected=f"-A PREROUTING {raw}",
        changes=changes,
    )


def _leads(view: TableView, port: ContainerPort, to: str) -> bool:
    """Say whether a rule that is reached from PREROUTING asks for the host port and translates to the pod, or jumps to where."""
    for _, _, rule in view.reachable("PREROUTING"):
        if not _asks_for(rule, port.host_port):
            continue
        if rule.target.name == "DNAT" and target_option(rule, "to-destination") == to:
            return True
        inner = view.reachable(rule.target.name)
        if any(known.target.name == "DNAT" and target_option(known, "to-destination") == to for _, _, known in inner):
            return True
    return False


def _asks_for(rule: Rule, port: int) -> bool:
    several = plain(rule, "multiport", "dports") or ""
    return dport(rule) == port or str(port) in several.split(",")


def _listens(scene: Scene, port: ContainerPort) -> bool:
    wanted = (port.protocol, port.host_port)
    return any((socket.protocol, socket.port) == wanted for socket in scene.netns.sockets if not socket.peer_port)
