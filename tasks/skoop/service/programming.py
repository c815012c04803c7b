"""What would kube-proxy program for a Service if certain pods were its ready endpoints? As changes, to test such a claim.

A Service without endpoints is refused by rules that follow from objects; that it would work with the pods ready can only be
shown in a state in which kube-proxy has done its part. Iptables mode, on every node of a small cluster.
"""

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from tasks.skoop.assertions.rules import TableView, dport, plain, tables_of
from tasks.skoop.model.addr import ip_version
from tasks.skoop.model.cluster import ClusterState, PodMeta, Service, ServicePort
from tasks.skoop.model.ids import node_netns
from tasks.skoop.model.suspicion import AddChain, Change
from tasks.skoop.service import iptables_names as names
from tasks.skoop.service.iptables_chain import delete_rule, insert_rule
from tasks.skoop.service.selection import Backend, PortName, port_name

MAX_NODES = 16
"""In larger clusters the claim is not tested: the changes would be too many."""
ALIKE = 0.6
"""How alike a label must be to be taken for a misspelt one (SequenceMatcher's ratio)."""


def programmed(state: ClusterState, service: Service, pods: Sequence[PodMeta]) -> tuple[Change, ...]:
    """Return the changes that kube-proxy would make on all nodes if these pods became the endpoints of the Service.

    Empty where there are no pods, too many nodes, or no node in iptables mode.
    """
    if not pods or len(state.objects.nodes) > MAX_NODES:
        return ()
    changes: list[Change] = []
    for node in state.objects.nodes:
        netns = state.netns.get(node_netns(node.name))
        for family in (4, 6):
            nat = (
                next((view for view in tables_of(netns, "nat", family) if names.SERVICES in view.chains), None)
                if netns
                else None
            )
            if netns is None or nat is None:
                continue
            filters = next((view for view in tables_of(netns, "filter", family) if view.backend == nat.backend), None)
            for port in service.ports:
                backends = _backends(pods, port, family)
                if backends:
                    changes += _refusals(filters, service, port) if filters is not None else ()
                    changes += _port(nat, service, port, backends)
    return tuple(changes)


def candidates(state: ClusterState, service: Service) -> tuple[PodMeta, ...]:
    """Return the pods that the Service selects but that are not ready; if it selects none, those it seems to mean."""
    own = [
        pod for pod in state.objects.pods if pod.namespace == service.namespace and pod.ips and pod.phase == "Running"
    ]
    wanted = service.selector
    if not wanted:
        return ()
    selected = [pod for pod in own if all(pod.labels.get(key) == value for key, value in wanted.items())]
    if selected:
        return tuple(pod for pod in selected if not pod.ready)
    return tuple(pod for pod in own if all(_alike(pod.labels.get(key, ""), value) for key, value in wanted.items()))


def _alike(have: str, want: str) -> bool:
    """Say whether a label may be what was meant: the same letters but for a few, in whatever order two of them stand."""
    return SequenceMatcher(a=have, b=want).ratio() >= ALIKE or (bool(have) and sorted(have) == sorted(want))


def _backends(pods: Sequence[PodMeta], port: ServicePort, family: int) -> list[Backend]:
    found = []
    for pod in pods:
        number = _target_port(pod, port)
        ip = next((ip for ip in pod.ips if ip_version(ip) == family), None)
        if number and ip is not None:
            found.append(Backend(ip=ip, port=number, node=pod.node_name, pod=pod.key))
    return sorted(found, key=lambda backend: backend.text)


def _target_port(pod: PodMeta, port: ServicePort) -> int:
    if not port.target:
        return port.port
    if port.target.isdigit():
        return int(port.target)
    return next((known.port for known in pod.ports if known.name == port.target), 0)


def _refusals(filters: TableView, service: Service, port: ServicePort) -> Iterator[Change]:
    """Yield the deletion of the rules that refuse the port, from the last to the first of each chain."""
    addresses = {*service.cluster_ips, *service.external_ips, *service.load_balancer_ips}
    for chain in (names.SERVICES, names.EXTERNAL):
        for position, rule in reversed(list(filters.numbered(chain))):
            if rule.target.name not in ("REJECT", "DROP") or plain(rule, "proto") != port.protocol:
                continue
            ip = (plain(rule, "dst") or "").partition("/")[0]
            mine = ip in addresses and dport(rule) == port.port
            if mine or (not ip and port.node_port and dport(rule) == port.node_port):
                yield delete_rule(filters, chain, position, rule.raw)


def _port(nat: TableView, service: Service, port: ServicePort, backends: list[Backend]) -> Iterator[Change]:
    """Yield the chains and rules of one port."""
    name = port_name(service, port)
    chains = names.chains_of(name)
    yield from _chain(nat, chains.cluster)
    for index, backend in enumerate(backends):
        own = names.endpoint_chain(name, backend)
        yield from _chain(nat, own)
        yield insert_rule(nat, own, 0, names.own_traffic_rule(name, backend))
        yield insert_rule(nat, own, 0, names.dnat_rule(name, backend))
        yield insert_rule(nat, chains.cluster, 0, names.balance_rule(name, backend, 1 / (len(backends) - index)))
    for ip in service.cluster_ips:
        if ip not in ("", "None") and ip_version(ip) == nat.family:
            rule = names.dispatch_rule(name, ip, port.port, "cluster IP", chains.cluster)
            yield insert_rule(nat, names.SERVICES, 1, rule)
    if port.node_port and names.NODEPORTS in nat.chains:
        yield from _outside(nat, name, port)


def _outside(nat: TableView, name: PortName, port: ServicePort) -> Iterator[Change]:
    chains = names.chains_of(name)
    yield from _chain(nat, chains.external)
    yield insert_rule(nat, chains.external, 0, f"-j {names.MARK_CHAIN}")
    yield insert_rule(nat, chains.external, 0, f"-j {chains.cluster}")
    yield insert_rule(nat, names.NODEPORTS, 0, names.node_port_rule(name, port.node_port, chains.external))


def _chain(nat: TableView, name: str) -> Iterator[Change]:
    if name not in nat.chains:
        yield AddChain(netns=nat.netns, backend=nat.backend, family=nat.family, table=nat.name, chain=name)
