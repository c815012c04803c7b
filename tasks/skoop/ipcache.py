"""Whose address is this? Every address that the collected state knows, and the names people give to its owners.

Addresses come from Kubernetes' objects and from the interfaces of every collected namespace; where both speak, they agree on
one owner. An address may have several owners (a fault, or a host-network pod and its node); `owners` lists them all,
`lookup` gives the one that a packet would reach. Names are resolved in `naming`. Nothing is asked of a cluster.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property

from msgspec.structs import replace

from tasks.skoop.model.addr import Ip, Net, bounds, ip_int, ip_version, is_link_local, is_loopback, is_multicast
from tasks.skoop.model.cluster import ClusterState, NodeMeta, PodMeta, Service
from tasks.skoop.model.endpoint import Endpoint, EndpointType
from tasks.skoop.model.ids import NetnsId, NodeName, node_netns
from tasks.skoop.naming import Naming, Target

RANKS = {
    EndpointType.POD: 0,
    EndpointType.NODE: 1,
    EndpointType.SERVICE: 2,
    EndpointType.LOADBALANCER: 3,
    EndpointType.EXTERNAL: 4,
}
"""Which owner `lookup` prefers: a namespace that has the address before a rule that translates it."""

NO_ADDRESS_PHASES = frozenset(("Succeeded", "Failed"))
"""Phases of pods whose address, if still recorded, may be another pod's by now."""


class IPCache:
    """Owners of addresses and names of one collected state."""

    def __init__(self, state: ClusterState) -> None:
        self.state = state

    # --- addresses -----------------------------------------------------------------------------------------------

    def lookup(self, ip: str) -> Endpoint | None:
        """Return the owner of an address, or None if nobody in the state has it."""
        found = self._owners.get(Ip(ip))
        return found[0] if found else None

    def owners(self, ip: str) -> tuple[Endpoint, ...]:
        """Return every owner of an address, the one that `lookup` gives first."""
        return self._owners.get(Ip(ip), ())

    def network_of(self, ip: str) -> NodeName | None:
        """Return the node in whose podCIDR the address lies, whether or not a pod has it."""
        version, number = ip_version(ip), ip_int(Ip(ip))
        for net, node in self._pod_networks:
            box = bounds(net)
            if box.version == version and box.first <= number <= box.last:
                return node
        return None

    def endpoint(self, ip: str, port: int = 0) -> Endpoint:
        """Return the end of a connection at an address; somebody unknown is external."""
        known = self.lookup(ip) or Endpoint(ip=Ip(ip))
        return replace(known, port=port)

    @cached_property
    def duplicates(self) -> Mapping[Ip, tuple[Endpoint, ...]]:
        """Addresses that more than one namespace has, with their owners."""
        return {
            ip: shared
            for ip, owners in self._owners.items()
            if len(shared := tuple(owner for owner in owners if owner.netns is not None)) > 1
        }

    @cached_property
    def pods_by_netns(self) -> Mapping[NetnsId, PodMeta]:
        """Pods that have a namespace of their own, by its id."""
        return {pod.netns: pod for pod in self.state.objects.pods if not pod.host_network}

    @cached_property
    def nodes(self) -> Mapping[NodeName, NodeMeta]:
        """Nodes by name."""
        return {node.name: node for node in self.state.objects.nodes}

    @cached_property
    def services(self) -> Mapping[str, Service]:
        """Services by `namespace/name`."""
        return {service.key: service for service in self.state.objects.services}

    @cached_property
    def services_by_ip(self) -> Mapping[Ip, tuple[Service, ...]]:
        """Services by every address that they answer at (cluster, external, load balancer)."""
        table: dict[Ip, tuple[Service, ...]] = {}
        for service in self.state.objects.services:
            for ip in {*service.cluster_ips, *service.external_ips, *service.load_balancer_ips} - {"None", ""}:
                table[Ip(ip)] = (*table.get(Ip(ip), ()), service)
        return table

    @cached_property
    def _owners(self) -> Mapping[Ip, tuple[Endpoint, ...]]:
        table: dict[Ip, list[Endpoint]] = {}
        for owner in (*self._object_owners(), *self._interface_owners()):
            known = table.setdefault(owner.ip, [])
            if not any((other.type, other.name) == (owner.type, owner.name) for other in known):
                known.append(owner)
        return {ip: tuple(sorted(found, key=lambda owner: RANKS[owner.type])) for ip, found in table.items()}

    def _object_owners(self) -> Iterable[Endpoint]:
        objects = self.state.objects
        for pod in objects.pods:
            if not pod.host_network and pod.phase not in NO_ADDRESS_PHASES:
                for ip in pod.ips:
                    yield Endpoint(ip=ip, type=EndpointType.POD, name=pod.key, netns=pod.netns)
        for node in objects.nodes:
            for ip in node.ips:
                yield Endpoint(ip=ip, type=EndpointType.NODE, name=node.name, netns=node_netns(node.name))
        for ip, services in self.services_by_ip.items():
            for service in services:
                kind = EndpointType.LOADBALANCER if ip in service.load_balancer_ips else EndpointType.SERVICE
                yield Endpoint(ip=ip, type=kind, name=service.key)

    def _interface_owners(self) -> Iterable[Endpoint]:
        """Yield what interfaces have: not loopback and link-local addresses, nor a Service's that IPVS put on a dummy."""
        types = {"pod": EndpointType.POD, "node": EndpointType.NODE}
        for netns in self.state.netns.values():
            kind, _, name = netns.id.partition("/")
            for link in netns.interfaces:
                for address in link.addresses:
                    ip = address.ip
                    if is_loopback(ip) or is_link_local(ip) or is_multicast(ip):
                        continue
                    if link.kind == "dummy" and ip in self.services_by_ip:
                        continue
                    yield Endpoint(ip=ip, type=types.get(kind, EndpointType.EXTERNAL), name=name, netns=netns.id)

    @cached_property
    def _pod_networks(self) -> tuple[tuple[Net, NodeName], ...]:
        return tuple((net, node.name) for node in self.state.objects.nodes for net in node.pod_cidrs)

    # --- names ---------------------------------------------------------------------------------------------------

    @cached_property
    def _naming(self) -> Naming:
        return Naming(self.state, self.lookup)

    def targets(self, text: str, *, default_namespace: str = "default") -> tuple[Target, ...]:
        """Return what a name means: one target per object, each with its endpoint in every family, IPv4 first.

        Raises a RequestError of `naming`: unknown (with near matches), ambiguous (with the candidates), malformed.
        """
        return self._naming.targets(text, default_namespace=default_namespace)

    def resolve(
        self, text: str, *, port: int | None = None, default_namespace: str = "default", family: int | None = None
    ) -> tuple[Endpoint, ...]:
        """Return one endpoint for each object that a name means (several for a Deployment or a headless Service).

        The names: `ns/pod`, `pod/ns/name`, `deploy/ns/name` (also `sts/ ds/ rs/ job/`), `svc/ns/name[:port or port's name]`,
        `node/name`, `host/name`, `name.ns.svc[.cluster.local]`, an address with or without `:port`, a unique beginning of
        a pod's name. `port` holds where the text names none. IPv4 is taken where an object has it, unless `family` asks.
        Raises RequestError: see `targets`; also for a port or family that the object does not have.
        """
        return self._naming.resolve(text, port=port, default_namespace=default_namespace, family=family)
