"""How does a planned cluster come to stand in network namespaces?

One process, raw netlink, interface indexes chosen beforehand, so that a cluster of three nodes is there in a fraction of a
second. What each kind gets is what its network plugin would have made; sysctls are set the way kube-proxy and kubelet leave
them, and beyond that only where a default would hide what happened (rate limits of ICMP errors, seconds of ARP retries,
segmentation offload that passes MTUs by).
"""

import time
from collections.abc import Iterator
from pathlib import Path

from lab import rtnl
from lab.cnirules import add_plugin_rules
from lab.errors import LabFailed
from lab.kubeproxy import Config, render
from lab.netns import Netns, write_sysctl
from lab.objects import all_objects
from lab.plan import POD_NETS, UNDERLAY_MTU, Backend, ClusterPlan, HostPlan, Kind, NodePlan, PodPlan, by_family
from lab.ruletext import Tables

ETH0, VTEP, BRIDGE, FIRST_VETH = 2, {4: 3, 6: 4}, 5, 10
VTEP_NAME = {4: "flannel.1", 6: "flannel-v6.1"}
VXLAN_PORT = 8472
ARP_RETRY_MS = 20

_QUIET = (
    ("ipv4/conf/{}/rp_filter", 0),
    ("ipv4/conf/{}/arp_ignore", 0),
    ("ipv4/conf/{}/arp_announce", 0),
    ("ipv4/conf/{}/accept_local", 0),
    ("ipv4/conf/{}/proxy_arp", 0),
    ("ipv6/conf/{}/accept_dad", 0),
    ("ipv6/conf/{}/accept_ra", 0),
    ("ipv6/conf/{}/router_solicitations", 0),
    ("ipv6/conf/{}/disable_ipv6", 0),
)
_EVERYWHERE = (
    ("ipv4/icmp_ratelimit", 0),
    ("ipv4/icmp_ratemask", 0),
    ("ipv6/icmp/ratelimit", 0),
    ("ipv4/ping_group_range", "0 0"),
)
_NODE = (
    ("ipv4/ip_forward", 1),
    ("ipv6/conf/all/forwarding", 1),
    ("ipv4/conf/all/route_localnet", 1),
    ("bridge/bridge-nf-call-iptables", 1),
    ("bridge/bridge-nf-call-ip6tables", 1),
    ("netfilter/nf_conntrack_acct", 0),
)
_ROUTER_OFF = (("ipv4/ip_forward", 0), ("ipv6/conf/all/forwarding", 0), ("ipv4/conf/all/route_localnet", 0))
_FABRIC = (
    ("bridge/bridge-nf-call-iptables", 0),
    ("bridge/bridge-nf-call-ip6tables", 0),
    ("bridge/bridge-nf-call-arptables", 0),
)


def make_namespaces(plan: ClusterPlan) -> dict[str, Netns]:
    """Make every namespace of a plan, empty: id → namespace, in the order hosts, nodes, pods."""
    made: dict[str, Netns] = {}
    try:
        for thing in plan.machines:
            made[thing.netns] = Netns(thing.netns)
    except OSError:
        for netns in made.values():
            netns.close()
        raise
    return made


def build(plan: ClusterPlan, spaces: dict[str, Netns], *, lock: Path) -> None:
    """Build the cluster in its namespaces and wait until every link forwards. Raises LabFailed, NetlinkError."""
    for name, netns in spaces.items():
        _first_sysctls(name, netns)
    fabric = spaces["host/fabric"]
    _fabric(plan, fabric, spaces)
    for host in plan.hosts[1:]:
        _host(host, spaces[host.netns], plan)
    for node in plan.nodes:
        _node(plan, node, spaces)
    for pod in plan.pods:
        _pod(plan, pod, spaces[pod.netns])
    for node in plan.nodes:
        program(plan, node, spaces[node.netns], lock=lock)
    for netns in spaces.values():
        quick_neighbours(netns)
    wait_ready(spaces)


def _first_sysctls(name: str, netns: Netns) -> None:
    more: tuple[tuple[str, int], ...] = _NODE if name.startswith("node/") else _ROUTER_OFF
    if name == "host/fabric":
        more += _FABRIC
    six = Path("/proc/sys/net/ipv6").exists()
    settings = [(key.format(scope), value) for scope in ("all", "default") for key, value in _QUIET]
    with netns.inside():
        for key, value in (*settings, *_EVERYWHERE, *more):
            if six or not key.startswith("ipv6/"):
                write_sysctl(key, value)


def quick_neighbours(netns: Netns) -> None:
    """Let a neighbour that does not answer fail after 60 ms instead of three seconds, on every interface there is now."""
    with netns.inside():
        for entry in Path("/proc/sys/net").glob("ipv[46]/neigh/*"):
            if entry.name not in ("lo", "default"):
                write_sysctl(f"{entry.parts[4]}/neigh/{entry.name}/retrans_time_ms", ARP_RETRY_MS)


def _fabric(plan: ClusterPlan, fabric: Netns, spaces: dict[str, Netns]) -> None:
    link = fabric.rtnl
    link.queue(rtnl.RTM_SETLINK, rtnl.set_link(1, up=True), 0, "lo up")
    link.queue(rtnl.RTM_NEWLINK, rtnl.link("br0", "bridge", index=2, mac=plan.hosts[0].mac), context="br0")
    for ip in plan.hosts[0].ips:
        link.queue(rtnl.RTM_NEWADDR, rtnl.address(2, _with_length(ip)), context=ip)
    members: list[tuple[str, str, str]] = [(node.name, node.netns, node.mac) for node in plan.nodes]
    members += [(host.name, host.netns, host.mac) for host in plan.hosts[1:]]
    for index, (name, netns, mac) in enumerate(members, 10):
        peer = rtnl.veth_peer("eth0", index=ETH0, netns_fd=spaces[netns].fd, mtu=UNDERLAY_MTU, mac=mac, gso_max_segs=1)
        body = rtnl.link(name, "veth", index=index, data=peer, master=2, mtu=UNDERLAY_MTU, gso_max_segs=1)
        link.queue(rtnl.RTM_NEWLINK, body, context=f"underlay port {name}")
    link.flush()


def _with_length(ip: str) -> str:
    return f"{ip}/64" if ":" in ip else f"{ip}/24"


def _default(family: int) -> str:
    return "::/0" if family == 6 else "0.0.0.0/0"


def _first_links(netns: Netns, addresses: tuple[str, ...]) -> None:
    for index in (1, ETH0):
        netns.rtnl.queue(rtnl.RTM_SETLINK, rtnl.set_link(index, up=True), 0, f"link {index} up in {netns.name}")
    for cidr in addresses:
        netns.rtnl.queue(rtnl.RTM_NEWADDR, rtnl.address(ETH0, cidr), context=f"{cidr} in {netns.name}")


def _route(netns: Netns, prefix: str, *, via: str = "", dev: int = 0, onlink: bool = False) -> None:
    body = rtnl.route(prefix, via=via, dev=dev, onlink=onlink)
    netns.rtnl.queue(rtnl.RTM_NEWROUTE, body, context=f"route {prefix} in {netns.name}")


def _host(host: HostPlan, netns: Netns, plan: ClusterPlan) -> None:
    _first_links(netns, tuple(_with_length(ip) for ip in host.ips))
    for family in plan.families:
        _route(netns, _default(family), via=by_family(plan.hosts[0].ips, family), dev=ETH0)
    for prefix, via in host.routes:
        _route(netns, prefix, via=via, dev=ETH0)
    netns.rtnl.flush()


def _node(plan: ClusterPlan, node: NodePlan, spaces: dict[str, Netns]) -> None:
    netns, mtu = spaces[node.netns], plan.kind.pod_mtu_bytes
    _first_links(netns, tuple(_with_length(ip) for ip in node.ips))
    if plan.kind is Kind.FLANNEL_VXLAN:
        for family in plan.families:
            _vtep(node, family, netns)
    bridge = rtnl.link(plan.bridge, "bridge", index=BRIDGE, mtu=mtu, mac=node.bridge_mac)
    netns.rtnl.queue(rtnl.RTM_NEWLINK, bridge, context=plan.bridge)
    for gateway in node.gateways:
        netns.rtnl.queue(rtnl.RTM_NEWADDR, rtnl.address(BRIDGE, _with_length(gateway)), context=gateway)
    for family in plan.families:
        _route(netns, _default(family), via=by_family(plan.hosts[0].ips, family), dev=ETH0)
    for peer in plan.nodes:
        if peer is not node:
            for family in plan.families:
                _peer(plan, peer, family, netns)
    for pod in plan.pods_on(node.name):
        index = FIRST_VETH + pod.ordinal
        peer_end = rtnl.veth_peer(
            "eth0", index=ETH0, netns_fd=spaces[pod.netns].fd, mtu=mtu, mac=pod.mac, gso_max_segs=1
        )
        body = rtnl.link(pod.veth, "veth", index=index, data=peer_end, master=BRIDGE, mtu=mtu, gso_max_segs=1)
        netns.rtnl.queue(rtnl.RTM_NEWLINK, body, context=f"veth of {pod.key}")
        netns.rtnl.queue(rtnl.RTM_NEWLINK, rtnl.set_hairpin(index), 0, f"hairpin of {pod.key}")
    netns.rtnl.flush()


def _vtep(node: NodePlan, family: int, netns: Netns) -> None:
    data = rtnl.vxlan(1, by_family(node.ips, family), lower=ETH0, port=VXLAN_PORT)
    mtu = UNDERLAY_MTU - (50 if family == 4 else 70)
    index, name = VTEP[family], VTEP_NAME[family]
    body = rtnl.link(name, "vxlan", index=index, data=data, mtu=mtu, mac=node.vtep_macs[family])
    netns.rtnl.queue(rtnl.RTM_NEWLINK, body, context=name)
    address = f"{vtep_address(node, family)}/{32 if family == 4 else 128}"
    netns.rtnl.queue(rtnl.RTM_NEWADDR, rtnl.address(index, address), context=address)


def vtep_address(node: NodePlan, family: int) -> str:
    """Return the address flanneld gives a node's vxlan device: the first of its pod prefix."""
    return by_family(node.pod_cidrs, family).partition("/")[0]


def _peer(plan: ClusterPlan, peer: NodePlan, family: int, netns: Netns) -> None:
    cidr, ip = by_family(peer.pod_cidrs, family), by_family(peer.ips, family)
    if plan.kind is not Kind.FLANNEL_VXLAN:
        _route(netns, cidr, via=ip, dev=ETH0)
        return
    index, mac, vtep = VTEP[family], peer.vtep_macs[family], vtep_address(peer, family)
    netns.rtnl.queue(rtnl.RTM_NEWNEIGH, rtnl.neighbour(index, vtep, mac), context=f"neighbour {vtep}")
    flags = rtnl.NLM_F_CREATE | rtnl.NLM_F_APPEND
    netns.rtnl.queue(rtnl.RTM_NEWNEIGH, rtnl.fdb_entry(index, mac, ip), flags, f"fdb {mac}")
    _route(netns, cidr, via=vtep, dev=index, onlink=True)


def _pod(plan: ClusterPlan, pod: PodPlan, netns: Netns) -> None:
    _first_links(netns, tuple(_with_length(ip) for ip in pod.ips))
    gateways = plan.node(pod.node).gateways
    for family in plan.families:
        gateway = by_family(gateways, family)
        _route(netns, _default(family), via=gateway, dev=ETH0)
        if plan.kind.is_flannel:
            _route(netns, POD_NETS[family], via=gateway, dev=ETH0)
    netns.rtnl.flush()


def node_rules(plan: ClusterPlan, node: NodePlan, family: int, *, masquerade_all: bool = False) -> Tables:
    """Return all iptables rules of a node: kube-proxy's for the plan's objects, and the network plugin's."""
    lists = all_objects(plan)
    config = Config(
        node=node.name,
        node_ips=node.ips,
        cluster_cidrs=tuple(POD_NETS[f] for f in plan.families),
        masquerade_all=masquerade_all,
    )
    tables = render(lists["services"]["items"], lists["endpointslices"]["items"], config, family)
    add_plugin_rules(tables, plan, node, family)
    return tables


def restore_tool(backend: Backend, family: int, verb: str = "restore") -> str:
    """Return the name of the tool: `iptables-legacy-restore`, `ip6tables-nft-save` …."""
    return f"ip{'6' if family == 6 else ''}tables-{backend}-{verb}"


def program(plan: ClusterPlan, node: NodePlan, netns: Netns, *, lock: Path, masquerade_all: bool = False) -> None:
    """Write the whole rule set of a node, replacing what was there."""
    for family in plan.families:
        text = node_rules(plan, node, family, masquerade_all=masquerade_all).render()
        netns.run([restore_tool(plan.backend, family)], text, lock=lock)


def wait_ready(spaces: dict[str, Netns], timeout_s: float = 5.0) -> None:
    """Wait until every link that is up is operational and every bridge port forwards (linkwatch works in the background).

    Raises LabFailed with what is not ready.
    """
    deadline = time.monotonic() + timeout_s
    for netns in spaces.values():
        while late := tuple(_not_ready(netns)):
            if time.monotonic() > deadline:
                raise LabFailed("waiting for links", ", ".join(late))
            time.sleep(0.001)


def _not_ready(netns: Netns) -> Iterator[str]:
    for body in netns.rtnl.dump(rtnl.RTM_GETLINK, rtnl.ifinfo()):
        flags = int.from_bytes(body[8:12], "little")
        found = dict(rtnl.attributes(body[16:]))
        if not flags & rtnl.IFF_UP:
            continue
        name = found[3].rstrip(b"\0").decode()
        if found.get(16, b"\0")[0] not in (0, 6):
            yield f"{netns.name} {name} is not operational"
            continue
        info = dict(rtnl.attributes(found.get(18, b"")))
        if info.get(4, b"").startswith(b"bridge"):
            state = dict(rtnl.attributes(info.get(5, b""))).get(1)
            if state and state[0] != 3:
                yield f"{netns.name} {name} does not forward yet"
