"""kube-proxy as the service Processor: what it should do with a packet, and whether each node is programmed so.

Expected backends follow the Services and EndpointSlices alone (`selection`) and hold for every mode. The mode is found by
what a node holds: KUBE-SVC chains, an nftables table of its name, IPVS virtual servers. Rules are compared in iptables mode
(`iptables_check`); for the other modes `validate` says that it does not.
"""

from collections.abc import Collection
from functools import cached_property

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.assertions.rules import tables_of
from tasks.skoop.ipcache import IPCache
from tasks.skoop.model.addr import contains, ip_version, is_loopback
from tasks.skoop.model.cluster import Service, ServicePort
from tasks.skoop.model.endpoint import EndpointType
from tasks.skoop.model.ids import NodeName, node_netns
from tasks.skoop.model.packet import Packet
from tasks.skoop.model.state import NetNS, Section
from tasks.skoop.model.suspicion import Level, Suspicion
from tasks.skoop.service.iptables_check import IptablesCheck
from tasks.skoop.service.processor import Expected, Frontend, Mode, Refusal
from tasks.skoop.service.selection import Categories, Endpoints, categorize, port_name

NFT_TABLE = "kube-proxy"


def mode_of(netns: NetNS) -> Mode:
    """Return which mode of kube-proxy a node's state shows."""
    if any(table.name == NFT_TABLE and table.family in ("ip", "ip6") for table in netns.nft):
        return Mode.NFTABLES
    if netns.ipvs:
        return Mode.IPVS
    for family in (4, 6):
        for view in tables_of(netns, "nat", family):
            if "KUBE-SERVICES" in view.chains:
                return Mode.IPTABLES
    return Mode.NONE


class KubeProxy:
    """The Processor for kube-proxy."""

    def __init__(self, ipcache: IPCache) -> None:
        self._ipcache = ipcache
        self._state = ipcache.state
        self._endpoints = Endpoints(ipcache.state)

    def mode(self, node: NodeName) -> Mode:
        """Return how kube-proxy works on a node; NONE if its state was not collected or shows nothing."""
        netns = self._state.netns.get(node_netns(node))
        return Mode.NONE if netns is None else mode_of(netns)

    def backends(self, packet: Packet, node: NodeName) -> Expected | None:
        """Return what should become of a packet that this node sees first, None if it is not for a Service."""
        found = self._service_port(packet, node)
        meta = self._ipcache.nodes.get(node)
        if found is None or meta is None:
            return None
        service, port, frontend = found
        name = port_name(service, port)
        ends = categorize(service, port, self._endpoints.of(name, packet.version), meta)
        short_cut = self._is_inside(packet, node) if frontend != Frontend.CLUSTER_IP else False
        local = service.internal_traffic_policy == "Local"
        if frontend != Frontend.CLUSTER_IP:
            local = service.external_traffic_policy == "Local" and not short_cut
        chosen = ends.local if local else ends.cluster
        refusal = Refusal.NONE if chosen else _refusal(ends)
        if frontend == Frontend.LOAD_BALANCER and not _source_allowed(service, packet):
            chosen, refusal = (), Refusal.DROP
        return Expected(
            port=name,
            frontend=frontend,
            backends=chosen,
            refusal=refusal,
            masquerade=self._masquerade(packet, frontend, local=local, short_cut=short_cut),
            affinity_s=service.affinity_timeout_s if service.session_affinity == "ClientIP" else 0,
        )

    def validate(self, node: NodeName, *, services: Collection[str] | None = None) -> tuple[Suspicion, ...]:
        """Return where a node's programming differs from what its Services ask; `services` limits it to these keys."""
        netns = self._state.netns.get(node_netns(node))
        meta = self._ipcache.nodes.get(node)
        if netns is None or meta is None or not self._state.objects.services:
            return ()
        mode = mode_of(netns)
        if mode == Mode.IPTABLES:
            return IptablesCheck(self._state, self._endpoints, netns, meta, self._known_addresses).run(services)
        if mode == Mode.NONE:
            return self._no_proxy(netns)
        message = f"kube-proxy on {node} works in mode {mode}; its programming is not compared with the Services"
        return (suspect("KP-SVC-018", message, subject=netns.id),)

    def validate_all(self, *, services: Collection[str] | None = None) -> tuple[Suspicion, ...]:
        """Return what `validate` finds on every node."""
        return tuple(found for node in self._ipcache.nodes for found in self.validate(node, services=services))

    def _no_proxy(self, netns: NetNS) -> tuple[Suspicion, ...]:
        """Say that a node has no proxy: certain only if every place where it could be was collected."""
        gaps = [part for part in (Section.IPTABLES, Section.NFT, Section.IPVS) if netns.lacks(part) is not None]
        if Section.IPTABLES in gaps:
            return ()
        elsewhere = [name for name in self._ipcache.nodes if self.mode(name) != Mode.NONE]
        node = netns.id.removeprefix("node/")
        seen = "no KUBE-SERVICES chain, no nftables table kube-proxy, no IPVS virtual server"
        message = f"nothing on {node} was programmed by kube-proxy" + (f"; {elsewhere[0]} is" if elsewhere else "")
        level = Level.CRITICAL if elsewhere and not gaps else Level.INFO
        return (suspect("KP-SVC-019", message, subject=netns.id, seen=seen, level=level),)

    @cached_property
    def _known_addresses(self) -> frozenset[str]:
        return frozenset(self._ipcache.services_by_ip)

    # --- one packet ----------------------------------------------------------------------------------------------

    def _service_port(self, packet: Packet, node: NodeName) -> tuple[Service, ServicePort, Frontend] | None:
        for service in self._ipcache.services_by_ip.get(packet.dst, ()):
            for port in service.ports:
                if (port.port, port.protocol) == (packet.dport, packet.protocol):
                    return service, port, _frontend(service, packet)
        owner = self._ipcache.lookup(packet.dst)
        here = is_loopback(packet.dst) or (owner is not None and owner.netns == node_netns(node))
        if here and packet.dport:
            for service in self._state.objects.services:
                for port in service.ports:
                    if (port.node_port, port.protocol) == (packet.dport, packet.protocol):
                        return service, port, Frontend.NODE_PORT
        return None

    def _is_inside(self, packet: Packet, node: NodeName) -> bool:
        """Say whether a pod or this node itself sends: for them policy Local of outside addresses does not hold."""
        owner = self._ipcache.lookup(packet.src)
        if owner is None:
            return is_loopback(packet.src)
        return owner.type == EndpointType.POD or owner.netns == node_netns(node)

    def _masquerade(self, packet: Packet, frontend: Frontend, *, local: bool, short_cut: bool) -> bool | None:
        from_pod = self._ipcache.network_of(packet.src) is not None
        if frontend == Frontend.CLUSTER_IP:
            return False if from_pod else None
        if local:
            return False
        return not (short_cut and from_pod and self._policy_local(packet))

    def _policy_local(self, packet: Packet) -> bool:
        services = self._ipcache.services_by_ip.get(packet.dst, ()) or [
            service
            for service in self._state.objects.services
            if any(port.node_port == packet.dport for port in service.ports)
        ]
        return any(service.external_traffic_policy == "Local" for service in services)


def _refusal(ends: Categories) -> Refusal:
    return Refusal.DROP if ends.usable_anywhere else Refusal.REJECT


def _frontend(service: Service, packet: Packet) -> Frontend:
    if packet.dst in service.cluster_ips:
        return Frontend.CLUSTER_IP
    return Frontend.LOAD_BALANCER if packet.dst in service.load_balancer_ips else Frontend.EXTERNAL_IP


def _source_allowed(service: Service, packet: Packet) -> bool:
    ranges = [net for net in service.load_balancer_source_ranges if ip_version(net) == packet.version]
    return not ranges or packet.src == packet.dst or any(contains(net, packet.src) for net in ranges)
