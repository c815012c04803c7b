"""Does every address have one owner? Pods', nodes' and gateways' addresses, by object and by interface."""

from collections.abc import Iterator

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.assertions.scene import Cluster
from tasks.skoop.model.addr import Ip, contains, ip_version
from tasks.skoop.model.endpoint import Endpoint, EndpointType
from tasks.skoop.model.ids import NodeName, node_netns
from tasks.skoop.model.suspicion import Suspicion


def address_suspicions(cluster: Cluster) -> Iterator[Suspicion]:
    """Yield addresses with two owners, podCIDRs of two nodes, and pods outside their node's podCIDR."""
    for ip, owners in cluster.ipcache.duplicates.items():
        if _matters(cluster, ip, owners):
            yield _duplicate(cluster, ip, owners)
    yield from _networks(cluster)
    yield from _outside(cluster)


def _matters(cluster: Cluster, ip: Ip, owners: tuple[Endpoint, ...]) -> bool:
    """Say whether packets for the address are sent between namespaces: many hosts have a docker0 with the same one."""
    if ip in cluster.ipcache.services_by_ip:
        return False  # addresses of Services stand on every node with IPVS, or float
    if any(owner.type == EndpointType.POD for owner in owners):
        return True
    return any(ip in node.ips for node in cluster.state.objects.nodes) or cluster.ipcache.network_of(ip) is not None


def _duplicate(cluster: Cluster, ip: Ip, owners: tuple[Endpoint, ...]) -> Suspicion:
    names = [f"{owner.type} {owner.name}" for owner in owners]
    intruders = [owner for owner in owners if not _by_right(cluster, ip, owner)]
    pods = not intruders and all(owner.type == EndpointType.POD for owner in owners)
    nodes = all(owner.type == EndpointType.NODE for owner in owners)
    return suspect(
        "KP-K8S-007" if pods else "KP-INFRA-003" if nodes else "KP-ADDR-001",
        f"{ip} belongs to {' and to '.join(names)}",
        subject=(intruders or owners)[0].netns or "",
        seen=", ".join(names),
        expected="one owner",
    )


def _by_right(cluster: Cluster, ip: Ip, owner: Endpoint) -> bool:
    """Say whether Kubernetes knows the address as the owner's, or as one of its node's pod network."""
    if owner.netns is None:
        return True
    pod = cluster.ipcache.pods_by_netns.get(owner.netns)
    if pod is not None:
        return ip in pod.ips
    node = cluster.ipcache.nodes.get(NodeName(owner.name))
    return node is not None and (ip in node.ips or any(contains(net, ip) for net in node.pod_cidrs))


def _networks(cluster: Cluster) -> Iterator[Suspicion]:
    seen: dict[str, str] = {}
    for node, networks in cluster.pod_networks.items():
        for net in networks:
            if net in seen:
                yield suspect(
                    "KP-K8S-006",
                    f"{seen[net]} and {node} both have the podCIDR {net}",
                    subject=node_netns(node),
                    seen=net,
                    expected="one for each node",
                )
            seen.setdefault(net, node)
            inside = [ip for ip in cluster.ipcache.services_by_ip if contains(net, ip)]
            if inside:
                yield suspect(
                    "KP-K8S-010",
                    f"{len(inside)} addresses of Services ({inside[0]} …) lie in the podCIDR {net} of {node}",
                    subject=node_netns(node),
                    seen=inside[0],
                )


def _outside(cluster: Cluster) -> Iterator[Suspicion]:
    """Report pods outside their node's podCIDR, where most pods are inside theirs (else addresses are given out otherwise)."""
    outside, inside = [], 0
    for pod in cluster.ipcache.pods_by_netns.values():
        networks = cluster.pod_networks.get(pod.node_name, ())
        for ip in pod.ips:
            fitting = [net for net in networks if ip_version(net) == ip_version(ip)]
            if not fitting:
                continue
            if any(contains(net, ip) for net in fitting):
                inside += 1
            else:
                outside.append((pod, ip, fitting[0]))
    if len(outside) >= inside:
        return
    for pod, ip, net in outside:
        yield suspect(
            "KP-ADDR-004",
            f"{pod.key} has the address {ip}, its node {pod.node_name} has the podCIDR {net}",
            subject=pod.netns,
            seen=ip,
            expected=f"an address in {net}",
        )
