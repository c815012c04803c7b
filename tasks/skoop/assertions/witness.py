"""Which packets of a healthy cluster does a rule stop? Sample packets, run through the real rule engine.

A rule is not judged by its text: for each of its conditions a packet is made that the cluster really sends and that the rule
asks for, and the whole table decides. So a DROP behind an ACCEPT, or one that no pod's packet can meet, is no finding.
"""

from collections.abc import Iterator

from msgspec import Struct

from tasks.skoop.assertions.rules import TableView, dport, network, option, plain
from tasks.skoop.assertions.scene import Scene
from tasks.skoop.model.addr import Ip, Net, bounds, contains, ip_version
from tasks.skoop.model.packet import CtState, Packet, Protocol, TcpFlags
from tasks.skoop.model.trace import Place
from tasks.skoop.model.xtables import Rule
from tasks.skoop.netstack.xtables.api import Hook, HookContext, TableResult, Verdict

STOPS = frozenset((Verdict.DROP, Verdict.REJECT))
SAMPLE_PORT = {Protocol.TCP: 8080, Protocol.UDP: 53}
OTHER_PORT = 45678


class Sample(Struct, frozen=True, kw_only=True):
    """A packet that the cluster sends, where it crosses a hook of one namespace."""

    hook: Hook
    packet: Packet
    in_dev: str = ""
    out_dev: str = ""
    what: str = ""


def forwarded(scene: Scene, family: int) -> Iterator[Sample]:
    """Yield what a node forwards for its pods: to and from pods of other nodes, and to the outside."""
    bridge = scene.pod_bridge()
    own = _addresses(scene, family)
    if scene.node is None or bridge is None or not own:
        return
    for peer in scene.peers():
        theirs = _addresses(peer, family)
        if theirs:
            out = _way_out(scene, theirs[0], own[0], bridge.name)
            yield _sample(Hook.FORWARD, own[0], theirs[0], bridge.name, out, f"pods to pods of {peer.name}")
            yield _sample(Hook.FORWARD, theirs[0], own[0], out, bridge.name, f"pods of {peer.name} to pods")
            break
    if len(own) > 1:
        yield _sample(Hook.FORWARD, own[0], own[1], bridge.name, bridge.name, "pods to pods of the same node")
    outside = Ip("192.0.2.1" if family == 4 else "2001:db8::1")
    out = _way_out(scene, outside, own[0], bridge.name)
    if out:
        yield _sample(Hook.FORWARD, own[0], outside, bridge.name, out, "pods to the outside")


def overlay_arrivals(scene: Scene) -> Iterator[Sample]:
    """Yield the vxlan packets that other nodes send to this one, as they come in."""
    for link in scene.netns.interfaces:
        if link.vxlan is None or scene.node is None:
            continue
        for peer in scene.peers():
            own = link.vxlan.local or next(iter(scene.node.ips), None)
            sender = (
                next((ip for ip in peer.node.ips if own and ip_version(ip) == ip_version(own)), None)
                if peer.node
                else None
            )
            if own is None or sender is None:
                continue
            packet = Packet(
                src=sender,
                dst=own,
                protocol=Protocol.UDP,
                sport=OTHER_PORT,
                dport=link.vxlan.port,
                ct_state=CtState.NEW,
            )
            found = scene.lookup(sender)
            dev = found.legs[0].dev if found is not None and found.legs else ""
            yield Sample(hook=Hook.INPUT, packet=packet, in_dev=dev, what=f"vxlan from {peer.name}")


def own_traffic(scene: Scene, family: int) -> Iterator[Sample]:
    """Yield what programs in this namespace send and get: a connection to and from a pod elsewhere."""
    mine = next(iter(scene.pod.ips if scene.pod else scene.node.ips if scene.node else ()), None)
    if mine is None or ip_version(mine) != family:
        return
    for pod in scene.cluster.ipcache.pods_by_netns.values():
        other = next((ip for ip in pod.ips if ip_version(ip) == family and ip != mine), None)
        if other is not None:
            dev = _way_out(scene, other, mine, "")
            yield _sample(Hook.OUTPUT, mine, other, "", dev, "its own connections to pods")
            yield _sample(Hook.INPUT, other, mine, dev, "", "connections from pods")
            return


def _sample(hook: Hook, src: Ip, dst: Ip, in_dev: str, out_dev: str, what: str) -> Sample:
    packet = Packet(
        src=src,
        dst=dst,
        sport=OTHER_PORT,
        dport=SAMPLE_PORT[Protocol.TCP],
        tcp_flags=TcpFlags.SYN,
        ct_state=CtState.NEW,
        ttl=63,
        df=True,
    )
    return Sample(hook=hook, packet=packet, in_dev=in_dev, out_dev=out_dev, what=what)


def _addresses(scene: Scene, family: int) -> list[Ip]:
    if scene.node is None:
        return []
    pods = scene.cluster.pods_on(scene.node.name)
    return [ip for pod in pods for ip in pod.ips if ip_version(ip) == family]


def _way_out(scene: Scene, dst: Ip, src: Ip, iif: str) -> str:
    found = scene.lookup(dst, src=src, iif=iif)
    return found.legs[0].dev if found is not None and found.legs else ""


def evaluate(scene: Scene, view: TableView, sample: Sample) -> tuple[TableResult, ...]:
    """Return every way of a sample through one table."""
    family = sample.packet.version
    context = HookContext(
        netns=scene.id,
        hook=sample.hook,
        packet=sample.packet,
        facts=scene.compiled,
        in_dev=sample.in_dev,
        out_dev=sample.out_dev,
    )
    for table in scene.compiled.tables.tables.get((family, view.name), ()):
        if table.backend == view.backend:
            return table.evaluate(context)
    return ()


def stopped_at(results: tuple[TableResult, ...]) -> Place | None:
    """Return the place where the table stops a packet (on its likeliest way that does), None if it lets it through."""
    stops = [result for result in results if result.verdict in STOPS and result.steps]
    return max(stops, key=lambda result: result.probability).steps[-1].place if stops else None


def fitted(sample: Sample, rule: Rule) -> Sample | None:
    """Return the sample with the protocol and port that a rule asks for, None if the rule is not for new TCP or UDP flows."""
    packet = sample.packet
    protocol = plain(rule, "proto")
    if protocol is not None and protocol != packet.protocol:
        if protocol not in (Protocol.TCP, Protocol.UDP):
            return None
        tcp = protocol == Protocol.TCP
        packet = packet.with_(
            protocol=Protocol(protocol),
            dport=SAMPLE_PORT[Protocol(protocol)],
            tcp_flags=TcpFlags.SYN if tcp else TcpFlags.NONE,
        )
    port = dport(rule)
    if port is not None:
        packet = packet.with_(dport=port)
    state = option(rule, "conntrack", "ctstate") or option(rule, "state", "state")
    if state is not None and ("NEW" in state[1]) == state[0]:
        return None
    return Sample(hook=sample.hook, packet=packet, in_dev=sample.in_dev, out_dev=sample.out_dev, what=sample.what)


def narrowed(samples: list[Sample], rule: Rule, addresses: list[Ip]) -> Iterator[Sample]:
    """Yield samples that fit a rule; addresses of real pods are tried where the rule names a network."""
    source, target = network(rule, "src"), network(rule, "dst")
    for sample in samples:
        packet = sample.packet
        src = _inside(source, packet.src, addresses)
        dst = _inside(target, packet.dst, addresses)
        if src is None or dst is None or src == dst:
            continue
        moved = Sample(
            hook=sample.hook,
            packet=packet.with_(src=src, dst=dst),
            in_dev=sample.in_dev,
            out_dev=sample.out_dev,
            what=sample.what,
        )
        fit = fitted(moved, rule)
        if fit is not None:
            yield fit


def _inside(wanted: Net | None, ip: Ip, addresses: list[Ip]) -> Ip | None:
    """Return the address if the network holds it, else a pod's that it holds in the same podCIDR-sized block, else None."""
    if wanted is None or contains(wanted, ip):
        return ip
    if bounds(wanted).version != ip_version(ip):
        return None
    return next((known for known in addresses if contains(wanted, known)), None)
