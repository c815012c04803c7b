"""How is flannel set up here? Read from what it leaves behind: annotations, subnet.env, net-conf.json, interfaces.

Answers for a dual-stack cluster per IP family. What no source tells is left at flannel's own default, and `sources` says what
was read. Source: flannel's pkg/subnet/kube (annotations), pkg/backend/vxlan and pkg/backend/hostgw, v0.22.
"""

from collections.abc import Mapping
from ipaddress import ip_address

import msgspec
from msgspec import Struct

from tasks.skoop.model.addr import AddressError, Ip, Mac, Net, bounds, contains, ip_version, parse_ip, parse_net
from tasks.skoop.model.cluster import ClusterState, NodeMeta
from tasks.skoop.model.ids import NodeName, node_netns
from tasks.skoop.model.state import Interface, NetNS

PREFIX = "flannel.alpha.coreos.com/"
DEFAULT_PORT = 8472
BACKEND_KEYS = {4: "backend-data", 6: "backend-v6-data"}
PUBLIC_IP_KEYS = {4: ("public-ip-overwrite", "public-ip"), 6: ("public-ipv6-overwrite", "public-ipv6")}


class BackendData(Struct, rename={"vni": "VNI", "mac": "VtepMAC"}):
    """The annotation in which a node of the vxlan backend announces its device."""

    vni: int = 1
    mac: str = ""


class FlannelNode(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one node announces in one IP family. `public_ip` None: it announces nothing."""

    name: NodeName
    family: int
    pod_cidrs: tuple[Net, ...] = ()
    public_ip: Ip | None = None
    vtep_mac: Mac | None = None
    vni: int = 1
    backend: str = ""

    @property
    def gateway(self) -> Ip | None:
        """The address of the node's vxlan device: the first of its pod network."""
        return Ip(self.pod_cidrs[0].partition("/")[0]) if self.pod_cidrs else None


class FlannelConfig(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """flannel's configuration in one IP family, with what each node announces."""

    family: int
    backend: str
    port: int = DEFAULT_PORT
    direct_routing: bool = False
    network: Net | None = None
    masquerade: Mapping[NodeName, bool] = {}
    subnets: Mapping[NodeName, Net] = {}
    nodes: Mapping[NodeName, FlannelNode] = {}
    sources: tuple[str, ...] = ()

    def device(self, vni: int) -> str:
        """Return the name of the vxlan device."""
        return f"flannel-v6.{vni}" if self.family == 6 else f"flannel.{vni}"

    @property
    def headroom(self) -> int:
        """Bytes that the encapsulation adds."""
        return 70 if self.family == 6 else 50


class NetConf(Struct, rename="pascal", kw_only=True):
    """net-conf.json, as far as it decides about packets."""

    network: str = ""
    i_pv6_network: str = msgspec.field(default="", name="IPv6Network")
    backend: dict[str, object] = {}


def read_flannel(state: ClusterState, family: int = 4) -> FlannelConfig | None:
    """Return flannel's configuration in one IP family, or None if nothing shows that flannel runs this cluster."""
    nodes = {node.name: _node(state, node, family) for node in state.objects.nodes}
    conf = _net_conf(state)
    subnets, masquerade, networks = _subnet_env(state, family)
    backends = [node.backend for node in nodes.values() if node.backend]
    backend = backends[0] if backends else str(conf.backend.get("Type", "")) or _by_devices(state, family)
    sources = []
    if backends:
        sources.append(f"annotations {PREFIX}* of {len(backends)} nodes")
    if conf.network or conf.i_pv6_network:
        sources.append("net-conf.json")
    if subnets:
        sources.append(f"subnet.env of {len(subnets)} nodes")
    if not sources:
        if not backend:
            return None
        sources.append("interfaces named flannel")
    if not any(node.pod_cidrs for node in nodes.values()):
        return None
    text = conf.i_pv6_network if family == 6 else conf.network
    port = conf.backend.get("Port")
    return FlannelConfig(
        family=family,
        backend=backend or "vxlan",
        port=port if isinstance(port, int) and port > 0 else _port_by_devices(state, family),
        direct_routing=bool(conf.backend.get("DirectRouting", False)),
        network=_net(text) or (networks[0] if networks else None),
        masquerade=masquerade,
        subnets=subnets,
        nodes=nodes,
        sources=tuple(sources),
    )


def _node(state: ClusterState, meta: NodeMeta, family: int) -> FlannelNode:
    notes = meta.annotations
    data = BackendData()
    text = notes.get(PREFIX + BACKEND_KEYS[family], "")
    try:
        data = msgspec.json.decode(text, type=BackendData) if text else data
    except msgspec.DecodeError:
        data = BackendData()
    public = next((notes[PREFIX + key] for key in PUBLIC_IP_KEYS[family] if PREFIX + key in notes), "")
    return FlannelNode(
        name=meta.name,
        family=family,
        pod_cidrs=tuple(net for net in meta.pod_cidrs if ip_version(net) == family),
        public_ip=_ip(public) or _public_by_device(state, meta, family),
        vtep_mac=Mac(data.mac.lower()) if data.mac else None,
        vni=data.vni,
        backend=notes.get(PREFIX + "backend-type", ""),
    )


def _public_by_device(state: ClusterState, meta: NodeMeta, family: int) -> Ip | None:
    netns = state.netns.get(node_netns(meta.name))
    device = next(iter(_devices(netns, family)), None)
    if device is not None and device.vxlan is not None and device.vxlan.local is not None:
        return device.vxlan.local
    return next((ip for ip in meta.ips if ip_version(ip) == family), None)


def _devices(netns: NetNS | None, family: int) -> list[Interface]:
    start = "flannel-v6." if family == 6 else "flannel."
    links = netns.interfaces if netns else ()
    return [link for link in links if link.name.startswith(start) and link.vxlan is not None]


def _by_devices(state: ClusterState, family: int) -> str:
    nodes = (state.netns.get(node_netns(node.name)) for node in state.objects.nodes)
    return "vxlan" if any(_devices(netns, family) for netns in nodes) else ""


def _port_by_devices(state: ClusterState, family: int) -> int:
    """Return the port that most nodes' devices use, flannel's default without any."""
    ports = [
        link.vxlan.port
        for node in state.objects.nodes
        for link in _devices(state.netns.get(node_netns(node.name)), family)
        if link.vxlan is not None
    ]
    return max(sorted(set(ports)), key=ports.count) if ports else DEFAULT_PORT


def _net_conf(state: ClusterState) -> NetConf:
    text = state.objects.config.get("flannel/net-conf.json", "")
    try:
        return msgspec.json.decode(text, type=NetConf) if text else NetConf()
    except msgspec.MsgspecError:
        return NetConf()


def _subnet_env(state: ClusterState, family: int) -> tuple[dict[NodeName, Net], dict[NodeName, bool], list[Net]]:
    """Return what each node's subnet.env says: its subnet, whether flannel masquerades, and the whole network."""
    prefix = "FLANNEL_IPV6_" if family == 6 else "FLANNEL_"
    subnets: dict[NodeName, Net] = {}
    masquerade: dict[NodeName, bool] = {}
    networks: list[Net] = []
    for node in state.objects.nodes:
        text = state.objects.config.get(f"node/{node.name}/subnet.env")
        if text is None:
            continue
        values = dict(line.split("=", 1) for line in text.split() if "=" in line)
        subnet, network = _net(values.get(prefix + "SUBNET", "")), _net(values.get(prefix + "NETWORK", ""))
        if subnet is not None:
            subnets[node.name] = subnet
        if network is not None:
            networks.append(network)
        if "FLANNEL_IPMASQ" in values:
            masquerade[node.name] = values["FLANNEL_IPMASQ"] == "true"
    return subnets, masquerade, networks


def _net(text: str) -> Net | None:
    try:
        return parse_net(text) if text else None
    except AddressError:
        return None


def _ip(text: str) -> Ip | None:
    try:
        return parse_ip(text) if text else None
    except AddressError:
        return None


def underlay_device(netns: NetNS, public_ip: Ip | None, device: Interface | None = None) -> Interface | None:
    """Return the interface that carries the overlay: the one with the public address, else the one vxlan is bound to."""
    for link in netns.interfaces:
        if any(address.ip == public_ip for address in link.addresses):
            return link
    lower = device.vxlan.link if device is not None and device.vxlan is not None else None
    return netns.interface(lower) if lower else None


def same_subnet(netns: NetNS, ours: Ip, theirs: Ip) -> bool:
    """Say whether the other node's address is on the link of our own one."""
    for link in netns.interfaces:
        for address in link.addresses:
            if address.ip == ours:
                return contains(parse_net(f"{address.ip}/{address.prefixlen}"), theirs)
    return False


def first_host(net: Net) -> Ip:
    """Return an address of a pod network that a pod may have (the second after the network's own)."""
    base, _, _ = net.partition("/")
    step = 2 if bounds(net).last - bounds(net).first >= 2 else 0

    return Ip(str(ip_address(base) + step))
