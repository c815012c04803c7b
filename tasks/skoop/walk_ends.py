"""Why did this walk end where it did, and which change would let it go on?

Turns the end of each failing walk (its reason and place, as the simulator found them) into a suspicion, whether or not an
assertion knows the fault. The remedy is the nearest change at that very place; whether it helps is for `causes` to find out.
What kube-proxy drops or refuses on purpose gets no remedy here: the cause of that is a Service, not a rule.
"""

from collections.abc import Callable, Iterator, Mapping

from msgspec import Struct

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.assertions.rules import lost_its_match
from tasks.skoop.model.addr import Ip, Net, ip_version, is_loopback
from tasks.skoop.model.diagnosis import Diagnosis, FlowOutcome
from tasks.skoop.model.ids import NodeName, node_netns
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import NetNS, Socket
from tasks.skoop.model.suspicion import (
    AcceptConnections,
    AddRoute,
    AddSocket,
    Change,
    DeletePolicyRule,
    DeleteRoute,
    DeleteRule,
    Level,
    SetFdb,
    SetLink,
    SetNeighbour,
    SetPolicy,
    SetSysctl,
    Suspicion,
)
from tasks.skoop.model.trace import Outcome, Place, Reason, Stage, View, Walk
from tasks.skoop.model.xtables import Rule
from tasks.skoop.netstack.ipvs import service_name
from tasks.skoop.network import Network
from tasks.skoop.plugins.podlink import PodLinks

ON_PURPOSE = ("KUBE-", "cali-", "KUBE_", "CILIUM_", "ANTREA-")
"""How chains begin whose drops follow from objects, not from the rules themselves."""

ETHERNET_MTU = 1500
HOOK_CODES = {"FORWARD": "KP-NF-002", "INPUT": "KP-NF-003", "OUTPUT": "KP-NF-005"}


class Ended(Struct, frozen=True, kw_only=True):
    """A walk that failed: the place and reason of its end, and which leg of the connection it was."""

    walk: Walk
    place: Place
    leg: str
    probability: float


def failing_walks(diagnosis: Diagnosis) -> Iterator[Ended]:
    """Yield the walk that failed of each outcome that is not good, likeliest first."""
    for outcome in sorted(diagnosis.outcomes, key=lambda outcome: -outcome.probability):
        found = _failing(outcome)
        if found is not None and found[0].place is not None:
            yield Ended(walk=found[0], place=found[0].place, leg=found[1], probability=outcome.probability)


def _failing(outcome: FlowOutcome) -> tuple[Walk, str] | None:
    if outcome.stalls and outcome.data is not None:
        return outcome.data, "data"
    if outcome.client_sees == View.CONNECTED:
        return None
    if outcome.forward.outcome != Outcome.DELIVERED:
        return outcome.forward, "forward"
    return None if outcome.reply is None else (outcome.reply, "reply")


def suspicions_from_walks(network: Network, diagnosis: Diagnosis) -> tuple[Suspicion, ...]:
    """Return a suspicion for each place where a failing walk ended, likeliest first, each place once."""
    found: dict[tuple[Reason, str, str], Suspicion] = {}
    for ended in failing_walks(diagnosis):
        key = (ended.walk.reason, str(ended.place), ended.place.text)
        if key not in found:
            found[key] = _explain(network, ended)
    return tuple(found.values())


def _explain(network: Network, ended: Ended) -> Suspicion:
    netns = network.state.netns.get(ended.place.netns)
    handler = HANDLERS.get(ended.walk.reason)
    finding = handler(network, netns, ended) if handler is not None and netns is not None else None
    if finding is None:
        finding = _Finding(_leg_code(ended))
    if ended.place.netns.startswith("host/"):
        finding = _Finding(finding.code)  # what is right for a host outside the cluster is not known
    leg = {"forward": "", "reply": "the answer: ", "data": "full-size segments: "}[ended.leg]
    return suspect(
        finding.code,
        f"{leg}{ended.walk.detail or ended.walk.reason} ({ended.place})",
        subject=ended.place.netns,
        place=ended.place,
        line=ended.place.text,
        seen=str(ended.walk.packet) if ended.walk.packet is not None else "",
        changes=finding.changes,
        advice=finding.advice,
        level=Level.FATAL,
    )


class _Finding(Struct, frozen=True):
    code: str
    changes: tuple[Change, ...] = ()
    advice: str = ""


def _leg_code(ended: Ended) -> str:
    return {"forward": "KP-WALK-001", "reply": "KP-WALK-002", "data": "KP-WALK-003"}[ended.leg]


def _node(netns: NetNS) -> NodeName | None:
    kind, _, name = netns.id.partition("/")
    return NodeName(name) if kind == "node" else None


# --- netfilter -------------------------------------------------------------------------------------------------------


def _netfilter(network: Network, netns: NetNS, ended: Ended) -> _Finding:
    del network
    place = ended.place
    native = " " in place.table
    if not place.backend or (native and (place.rule == 0 or place.hook in ("INGRESS", "EGRESS"))):
        return _Finding("KP-NF-006")
    if place.rule == 0:
        policy = SetPolicy(
            netns=netns.id,
            backend=place.backend,
            family=place.family,
            table=place.table,
            chain=place.chain,
            policy="ACCEPT",
        )
        return _Finding("KP-NF-001", (policy,)) if place.hook == "FORWARD" else _Finding("KP-NF-003", (policy,))
    rule = _rule_at(netns, place)
    bare = rule is not None and lost_its_match(place.chain, rule)
    if place.chain.startswith(ON_PURPOSE) and not bare:
        return _Finding(*_purpose(ended))
    changes: tuple[Change, ...] = ()
    if rule is not None:
        delete = DeleteRule(
            netns=netns.id,
            backend=place.backend,
            family=place.family,
            table=place.table,
            chain=place.chain,
            rule=place.rule,
            raw=rule.raw,
        )
        changes = (delete,)
    packet = ended.walk.packet
    tunnel = packet is not None and packet.encap is not None
    return _Finding("KP-VXLAN-010" if tunnel else HOOK_CODES.get(place.hook, _leg_code(ended)), changes)


def _purpose(ended: Ended) -> tuple[str, tuple[Change, ...], str]:
    """Return what a drop by kube-proxy means, told by the comment it writes."""
    text = ended.place.text
    if "has no endpoints" in text:
        return "KP-K8S-003", (), "Give the Service a ready pod: see its selector, and the readiness of the pods."
    if "has no local endpoints" in text:
        return "KP-K8S-011", (), "Ask a node that runs a backend, or use traffic policy Cluster."
    if "traffic not accepted by KUBE-FW" in text:
        return "KP-K8S-012", (), "Add the client's network to loadBalancerSourceRanges."
    if "INVALID" in text:
        return (
            _leg_code(ended),
            (),
            "The connection was not seen whole on this node: look for asymmetric routes or NOTRACK.",
        )
    return _leg_code(ended), (), "The rule follows from an object of the cluster; change that."


def _rule_at(netns: NetNS, place: Place) -> Rule | None:
    for table in netns.tables:
        if (table.backend, table.family, table.name) == (place.backend, place.family, place.table):
            for chain in table.chains:
                if chain.name == place.chain and 0 < place.rule <= len(chain.rules):
                    return chain.rules[place.rule - 1]
    return None


# --- sysctls ---------------------------------------------------------------------------------------------------------


def _reverse_path(network: Network, netns: NetNS, ended: Ended) -> _Finding:
    del network
    dev = ended.place.dev
    if "no route back" in ended.walk.detail:
        off = tuple(
            SetSysctl(netns=netns.id, key=f"net/ipv4/conf/{name}/rp_filter", value="0") for name in ("all", dev)
        )
        return _Finding("KP-SYSCTL-002", off)
    return _Finding("KP-SYSCTL-002", (SetSysctl(netns=netns.id, key=f"net/ipv4/conf/{dev}/rp_filter", value="2"),))


def _forwarding(network: Network, netns: NetNS, ended: Ended) -> _Finding:
    del network
    key = ended.place.key
    code = "KP-SYSCTL-001" if key.endswith("ip_forward") else "KP-SYSCTL-007"
    code = "KP-SYSCTL-008" if key.startswith("net/ipv6") else code
    value = "0" if key.endswith("disable_ipv6") else "1"
    code = "KP-SYSCTL-005" if key.endswith("disable_ipv6") else code
    if _node(netns) is None:
        return _Finding(_leg_code(ended), (), "The packet is not for this namespace: see how it came here.")
    return _Finding(code, (SetSysctl(netns=netns.id, key=key, value=value),))


def _localnet(network: Network, netns: NetNS, ended: Ended) -> _Finding:
    del network
    dev = ended.place.key.removeprefix("net/ipv4/conf/").removesuffix("/route_localnet") or ended.place.dev
    change = SetSysctl(netns=netns.id, key=f"net/ipv4/conf/{dev}/route_localnet", value="1")
    return _Finding("KP-SYSCTL-004", (change,) if dev else ())


def _echo(network: Network, netns: NetNS, ended: Ended) -> _Finding:
    del network
    return _Finding("KP-SYSCTL-006", (SetSysctl(netns=netns.id, key=ended.place.key, value="0"),))


# --- routes ----------------------------------------------------------------------------------------------------------


def _no_route(network: Network, netns: NetNS, ended: Ended) -> _Finding | None:
    packet = ended.walk.packet
    if packet is None:
        return None
    node = _node(netns)
    if node is not None:
        route = network.plugin.route_to(node, packet.dst)
        return _Finding(
            "KP-ROUTE-001" if route else "KP-ROUTE-007", (AddRoute(netns=netns.id, route=route),) if route else ()
        )
    pod = network.ipcache.pods_by_netns.get(netns.id)
    if pod is None:
        return None
    route = PodLinks(network.ipcache).default_route(pod, ip_version(packet.dst))
    return _Finding("KP-ROUTE-003", (AddRoute(netns=netns.id, route=route),) if route else ())


def _stopping_route(network: Network, netns: NetNS, ended: Ended) -> _Finding | None:
    packet = ended.walk.packet
    scene = network.cluster.scene(netns.id)
    if packet is None or scene is None:
        return None
    found = scene.lookup(packet.dst, src=packet.src)
    if found is not None and found.route is None:
        rule = found.rule
        change = DeletePolicyRule(netns=netns.id, family=rule.family, priority=rule.priority, table=rule.table)
        return _Finding("KP-ROUTE-006", (change,))
    routes = [route for route in netns.routes if route.dst == Net(ended.place.key) and not route.nexthops]
    if found is not None and found.route is not None and found.errno:
        routes = [found.route]
    changes: list[Change] = [DeleteRoute(netns=netns.id, route=route) for route in routes]
    node = _node(netns)
    wanted = network.plugin.route_to(node, packet.dst) if node is not None else None
    if wanted is not None and not any(route.dst == wanted.dst and route.nexthops for route in netns.routes):
        changes.append(AddRoute(netns=netns.id, route=wanted))
    return _Finding("KP-ROUTE-005", tuple(changes))


# --- links, neighbours, forwarding -----------------------------------------------------------------------------------


def _neighbour(network: Network, netns: NetNS, ended: Ended) -> _Finding:
    node = _node(netns)
    entry = network.plugin.neighbour_for(node, Ip(ended.place.key)) if node is not None else None
    if entry is not None and entry.mac is not None:
        change = SetNeighbour(netns=netns.id, ip=entry.ip, dev=entry.dev, mac=entry.mac)
        return _Finding("KP-VXLAN-009", (change,))
    return _Finding("KP-NEIGH-002", (), "See who should have this address, and his link to this one.")


def _other_host(network: Network, netns: NetNS, ended: Ended) -> _Finding:
    """The receiver does not have this MAC: somebody before it holds a wrong neighbour entry."""
    mac = ended.place.key
    for sender in network.state.netns.values():
        for entry in sender.neighbours:
            owner = network.ipcache.lookup(entry.ip)
            if entry.mac != mac or owner is None or owner.netns != netns.id:
                continue
            holder = next((link for link in netns.interfaces if any(a.ip == entry.ip for a in link.addresses)), None)
            if holder is not None and holder.mac != mac:
                right = SetNeighbour(netns=sender.id, ip=entry.ip, dev=entry.dev, mac=holder.mac, state=entry.state)
                return _Finding("KP-NEIGH-001", (right,))
    return _Finding("KP-NEIGH-001")


def _link_down(network: Network, netns: NetNS, ended: Ended) -> _Finding:
    dev = ended.place.dev
    pod = network.ipcache.pods_by_netns.get(netns.id)
    if pod is not None and dev != "lo":  # the plugin knows what else the pod lost with it
        for known in PodLinks(network.ipcache).pod_suspicions(pod):
            if known.code == "KP-LINK-001" and known.remedy is not None:
                return _Finding("KP-LINK-001", known.remedy.changes)
    return _Finding("KP-LINK-002" if dev == "lo" else "KP-LINK-001", (SetLink(netns=netns.id, dev=dev, up=True),))


def _bridge_state(network: Network, netns: NetNS, ended: Ended) -> _Finding:
    del network
    bridge = netns.interface(ended.place.key)
    if bridge is not None and not bridge.up:
        return _Finding("KP-LINK-005", (SetLink(netns=netns.id, dev=bridge.name, up=True),))
    return _Finding("KP-LINK-006", (SetLink(netns=netns.id, dev=ended.place.dev, port_state="forwarding"),))


def _bridge_forward(network: Network, netns: NetNS, ended: Ended) -> _Finding:
    del network
    dev, why = ended.place.dev, ended.walk.detail
    if "hairpin" in why:
        return _Finding("KP-LINK-007", (SetLink(netns=netns.id, dev=dev, hairpin=True),))
    if "isolated" in why:
        return _Finding("KP-LINK-011", (SetLink(netns=netns.id, dev=dev, isolated=False),))
    if "down" in why:
        return _Finding("KP-LINK-003", (SetLink(netns=netns.id, dev=dev, up=True),))
    return _Finding("KP-LINK-006", (SetLink(netns=netns.id, dev=dev, port_state="forwarding"),))


def _no_target(network: Network, netns: NetNS, ended: Ended) -> _Finding:
    node = _node(netns)
    if ended.place.stage == Stage.TUNNEL and node is not None:
        for peer in network.ipcache.nodes:
            for net in network.cluster.pod_networks.get(peer, ()):
                entry = network.plugin.forwarding_for(node, Ip(net.partition("/")[0]))
                if entry is not None and entry.mac == ended.place.key:
                    return _Finding("KP-VXLAN-008", (SetFdb(netns=netns.id, entry=entry),))
        return _Finding("KP-VXLAN-008")
    return _Finding("KP-LINK-004")


def _too_big(network: Network, netns: NetNS, ended: Ended) -> _Finding:
    del network
    packet, link = ended.walk.packet, netns.interface(ended.place.dev)
    if packet is None or link is None or packet.length <= link.mtu:
        return _Finding(_leg_code(ended))
    if _node(netns) is None:
        return _Finding("KP-LINK-009", (SetLink(netns=netns.id, dev=link.name, mtu=packet.length),))
    mtu = max(packet.length, ETHERNET_MTU)
    return _Finding("KP-LINK-014", (SetLink(netns=netns.id, dev=link.name, mtu=mtu),))


# --- sockets ---------------------------------------------------------------------------------------------------------


def _no_socket(network: Network, netns: NetNS, ended: Ended) -> _Finding:
    """Let somebody listen, but not on a node for what should have been translated to a pod."""
    packet = ended.walk.packet
    if packet is None or packet.protocol not in (Protocol.TCP, Protocol.UDP) or packet.encap is not None:
        return _Finding("KP-VXLAN-002" if packet is not None and packet.encap is not None else "KP-SOCK-002")
    if "tunnel" in ended.walk.detail:
        return _Finding("KP-VXLAN-002")
    services = network.state.objects.services
    translated = any(port.node_port == packet.dport for service in services for port in service.ports)
    mapped = any(port.host_port == packet.dport for pod in network.state.objects.pods for port in pod.ports)
    if _node(netns) is not None and mapped:
        return _Finding("KP-NF-009")
    if _node(netns) is not None and (translated or packet.dst in network.ipcache.services_by_ip):
        return _Finding("KP-SVC-012" if translated else "KP-SVC-013")
    here = [known for known in netns.sockets if (known.protocol, known.port) == (packet.protocol, packet.dport)]
    local = bool(here) and all(is_loopback(known.ip) for known in here)
    wildcard = Ip("::" if packet.version == 6 else "0.0.0.0")
    wanted = Socket(protocol=packet.protocol, ip=wildcard, port=packet.dport)
    return _Finding("KP-SOCK-001" if local else "KP-SOCK-002", (AddSocket(netns=netns.id, socket=wanted),))


def _overflow(network: Network, netns: NetNS, ended: Ended) -> _Finding:
    del network
    packet = ended.walk.packet
    changes = (AcceptConnections(netns=netns.id, port=packet.dport),) if packet is not None else ()
    return _Finding("KP-SOCK-003", changes)


def _unexpected(network: Network, netns: NetNS, ended: Ended) -> _Finding:
    """An answer was not translated back: on a node whose bridge passes iptables by, that is why."""
    del ended
    pod = network.ipcache.pods_by_netns.get(netns.id)
    node = network.state.netns.get(node_netns(pod.node_name)) if pod is not None else None
    key = "net/bridge/bridge-nf-call-iptables"
    if node is not None and node.sysctls.get(key, "0") == "0":
        return _Finding("KP-SYSCTL-003", (SetSysctl(netns=node.id, key=key, value="1"),))
    return _Finding("KP-WALK-004")


def _no_real_server(network: Network, netns: NetNS, ended: Ended) -> _Finding:
    """A virtual server refused the connection: it has no real server, or none that takes new connections."""
    del network
    service = next((one for one in netns.ipvs if service_name(one) == ended.place.key), None)
    if service is None or service.destinations:
        return _Finding("KP-SVC-021")
    return _Finding("KP-K8S-003", (), "Give the Service a ready pod: see its selector, and the readiness of the pods.")


def _vni(network: Network, netns: NetNS, ended: Ended) -> _Finding:
    del network, netns, ended
    return _Finding("KP-VXLAN-003")


HANDLERS: Mapping[Reason, Callable[[Network, NetNS, Ended], _Finding | None]] = {
    Reason.NETFILTER_DROP: _netfilter,
    Reason.NETFILTER_REJECT: _netfilter,
    Reason.IP_RPFILTER: _reverse_path,
    Reason.IP_INADDRERRORS: _forwarding,
    Reason.IP_LOCALNET: _localnet,
    Reason.ECHO_IGNORED: _echo,
    Reason.IP_INNOROUTES: _no_route,
    Reason.ROUTE_BLACKHOLE: _stopping_route,
    Reason.ROUTE_UNREACHABLE: _stopping_route,
    Reason.ROUTE_PROHIBIT: _stopping_route,
    Reason.NEIGH_FAILED: _neighbour,
    Reason.OTHERHOST: _other_host,
    Reason.NO_SOCKET: _no_socket,
    Reason.NO_REAL_SERVER: _no_real_server,
    Reason.LISTEN_OVERFLOW: _overflow,
    Reason.LINK_DOWN: _link_down,
    Reason.BRIDGE_STATE: _bridge_state,
    Reason.BRIDGE_FORWARD: _bridge_forward,
    Reason.NO_TX_TARGET: _no_target,
    Reason.VXLAN_VNI_NOT_FOUND: _vni,
    Reason.PKT_TOO_BIG: _too_big,
    Reason.PEER_MTU: _too_big,
    Reason.UNEXPECTED_REPLY: _unexpected,
}
"""Reason of an end → what is to be suspected; reasons that are not here are reported with their place alone."""
