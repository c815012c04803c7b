"""What a lab's cluster consists of: nodes, pods, hosts and Services with every address, name and number, decided beforehand.

Pure. The plan is a value; building it (`build`), describing it to Kubernetes' readers (`objects`) and programming its
Services (`kubeproxy`) all start from here. The cast is a small shop: web, api and db behind Services of every kind that
kube-proxy treats differently.
"""

from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from ipaddress import ip_network

POD_NETS = {4: "10.244.0.0/16", 6: "fd00:10:244::/48"}
SERVICE_NETS = {4: "10.96.0.0/12", 6: "fd00:10:96::/112"}
UNDERLAY_NETS = {4: "172.18.0.0/24", 6: "fd00:172:18::/64"}
UNDERLAY_MTU = 1500


class Kind(StrEnum):
    """How pods on different nodes reach each other."""

    FLANNEL_VXLAN = "flannel-vxlan"
    FLANNEL_HOST_GW = "flannel-host-gw"
    BRIDGE = "bridge"

    @property
    def is_flannel(self) -> bool:
        """Whether flannel's rules and annotations belong to it."""
        return self is not Kind.BRIDGE

    @property
    def pod_mtu_bytes(self) -> int:
        """MTU of pods and of the bridge: flannel takes 50 off for vxlan over IPv4."""
        return UNDERLAY_MTU - 50 if self is Kind.FLANNEL_VXLAN else UNDERLAY_MTU


class Backend(StrEnum):
    """Which iptables the cluster's rules are written with."""

    LEGACY = "legacy"
    NFT = "nft"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A server's socket: protocol (tcp, udp), port, and the address it binds ("" = any)."""

    protocol: str
    port: int
    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodPlan:
    """One pod. `ips` has one address per family of the lab; `veth` is its end on the node, `ordinal` counts on the node."""

    namespace: str
    name: str
    app: str
    node: str
    ordinal: int
    ips: tuple[str, ...]
    mac: str
    veth: str
    labels: tuple[tuple[str, str], ...]
    ports: tuple[tuple[str, str, int], ...] = ()
    """(name, protocol, number) of the container ports."""
    listeners: tuple[Listener, ...] = ()
    ready: bool = True
    host_port: int = 0

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def netns(self) -> str:
        """The id of its network namespace."""
        return f"pod/{self.key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """One node: underlay addresses, pod prefixes and gateway addresses, one per family of the lab, and MACs."""

    name: str
    number: int
    ips: tuple[str, ...]
    pod_cidrs: tuple[str, ...]
    gateways: tuple[str, ...]
    mac: str
    bridge_mac: str
    vtep_macs: dict[int, str]
    listeners: tuple[Listener, ...] = ()

    @property
    def netns(self) -> str:
        """The id of its network namespace."""
        return f"node/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPlan:
    """A host beside the cluster on the underlay; `routes` are (prefix, via)."""

    name: str
    ips: tuple[str, ...]
    mac: str
    routes: tuple[tuple[str, str], ...] = ()
    listeners: tuple[Listener, ...] = ()

    @property
    def netns(self) -> str:
        """The id of its network namespace."""
        return f"host/{self.name}"


Machine = NodePlan | PodPlan | HostPlan
"""Whatever has a network namespace of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PortPlan:
    """A Service's port; `target` is a number or the name of a container port."""

    name: str
    port: int
    target: str
    protocol: str = "TCP"
    node_port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePlan:
    """A Service. `number` gives its cluster IPs (10.96.<number>, last 16 bits in IPv6); 0 = headless or ExternalName."""

    name: str
    ports: tuple[PortPlan, ...]
    number: int = 0
    namespace: str = "shop"
    type: str = "ClusterIP"
    selector: tuple[tuple[str, str], ...] = ()
    endpoints: tuple[str, ...] = ()
    """Addresses of a Service without selector."""
    affinity_s: int = 0
    external_local: bool = False
    internal_local: bool = False
    external_ips: tuple[str, ...] = ()
    lb_ips: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()
    health_port: int = 0
    external_name: str = ""

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    def cluster_ips(self, families: tuple[int, ...]) -> tuple[str, ...]:
        """Return its cluster IPs, one per family."""
        high, low = divmod(self.number, 256)
        texts = {4: f"10.96.{high}.{low}", 6: f"fd00:10:96::{self.number:x}"}
        return tuple(texts[family] for family in families)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """The whole cluster."""

    kind: Kind
    backend: Backend
    families: tuple[int, ...]
    nodes: tuple[NodePlan, ...]
    pods: tuple[PodPlan, ...]
    hosts: tuple[HostPlan, ...]
    services: tuple[ServicePlan, ...]

    @property
    def bridge(self) -> str:
        """Name of the bridge on each node."""
        return "cni0"

    @property
    def machines(self) -> tuple[Machine, ...]:
        """Everything with a network namespace: hosts, nodes, pods."""
        return (*self.hosts, *self.nodes, *self.pods)

    def node(self, name: str) -> NodePlan:
        """Return a node by name. Raises KeyError."""
        return {node.name: node for node in self.nodes}[name]

    def pods_on(self, node: str) -> tuple[PodPlan, ...]:
        """Return the pods of a node."""
        return tuple(pod for pod in self.pods if pod.node == node)


def by_family(addresses: tuple[str, ...], family: int) -> str:
    """Return the first address (or prefix) of a family, or ""."""
    return next((text for text in addresses if (":" in text) == (family == 6)), "")


def underlay_address(number: int, family: int) -> str:
    """Return the underlay address whose last part reads `number` in both families."""
    return f"172.18.0.{number}" if family == 4 else f"fd00:172:18::{number}"


def make_plan(
    kind: Kind, *, nodes: int = 3, backend: Backend = Backend.LEGACY, families: tuple[int, ...] = (4, 6)
) -> ClusterPlan:
    """Return the plan of a lab of 2 to 4 nodes. `families` holds 4, 6 or both, in order of preference."""
    node_plans = tuple(_node(number, families) for number in range(1, nodes + 1))
    pods = tuple(pod for node in node_plans for pod in _pods(node, nodes, families))
    return ClusterPlan(
        kind=kind,
        backend=backend,
        families=families,
        nodes=node_plans,
        pods=pods,
        hosts=_hosts(nodes, families),
        services=_services(families),
    )


def _node(number: int, families: tuple[int, ...]) -> NodePlan:
    cidrs = {4: f"10.244.{number}.0/24", 6: f"fd00:10:244:{number}::/64"}
    gateways = tuple(str(ip_network(cidrs[family])[1]) for family in families)
    return NodePlan(
        name=f"n{number}",
        number=number,
        ips=tuple(underlay_address(10 + number, family) for family in families),
        pod_cidrs=tuple(cidrs[family] for family in families),
        gateways=gateways,
        mac=f"02:42:ac:12:00:1{number}",
        bridge_mac=f"0a:58:0a:f4:{number:02x}:01",
        vtep_macs={4: f"9a:7c:10:24:40:{number:02x}", 6: f"9a:7c:10:24:60:{number:02x}"},
        listeners=(
            Listener(protocol="tcp", port=10250),
            Listener(protocol="tcp", port=10256),
            Listener(protocol="udp", port=10250),
            Listener(protocol="tcp", port=30090),
        ),
    )


_DNS_PORTS = (("dns", "UDP", 53), ("dns-tcp", "TCP", 53), ("metrics", "TCP", 9153))
_HTTP = (("http", "TCP", 8080),)
_CAST: dict[str, tuple[str, tuple[tuple[str, str, int], ...]]] = {
    "coredns": ("kube-system", _DNS_PORTS),
    "client": ("shop", ()),
    "web": ("shop", _HTTP),
    "api": ("shop", (("http", "TCP", 8080), ("grpc", "TCP", 9090))),
    "gateway": ("shop", _HTTP),
    "slow": ("shop", _HTTP),
    "db": ("shop", (("sql", "TCP", 5432),)),
}


def _apps_on(number: int, nodes: int) -> tuple[str, ...]:
    apps = ["coredns"] if number <= 2 else []
    apps += ["client", "web"]
    apps += ["api"] if number <= 2 else []
    apps += ["slow"] if number == 1 else []
    apps += ["gateway"] if number == 2 else []
    apps += ["db"] if number == nodes else []
    return tuple(apps)


def _pods(node: NodePlan, nodes: int, families: tuple[int, ...]) -> tuple[PodPlan, ...]:
    return tuple(_pod(app, ordinal, node, families) for ordinal, app in enumerate(_apps_on(node.number, nodes)))


def _pod(app: str, ordinal: int, node: NodePlan, families: tuple[int, ...]) -> PodPlan:
    namespace, ports = _CAST[app]
    single = app in ("slow", "gateway", "db")
    name = f"{app}-{1 if single else node.number}"
    digest = sha256(f"{namespace}/{name}".encode()).hexdigest()
    cidrs = dict(zip(families, node.pod_cidrs, strict=True))
    numbers = {(protocol, number) for _, protocol, number in ports} | {("TCP", 8080), ("UDP", 8080)}
    labels = [("app", app), ("pod-template-hash", sha256(app.encode()).hexdigest()[:10])]
    if app == "coredns":
        labels.append(("k8s-app", "kube-dns"))
    return PodPlan(
        namespace=namespace,
        name=name,
        app=app,
        node=node.name,
        ordinal=ordinal,
        ips=tuple(str(ip_network(cidrs[family])[2 + ordinal]) for family in families),
        mac=f"0a:58:0a:f4:{node.number:02x}:{2 + ordinal:02x}",
        veth=f"veth{digest[:8]}",
        labels=tuple(labels),
        ports=ports,
        listeners=tuple(Listener(protocol=protocol.lower(), port=number) for protocol, number in sorted(numbers)),
        ready=app != "slow",
        host_port=8088 if app == "gateway" else 0,
    )


def _hosts(nodes: int, families: tuple[int, ...]) -> tuple[HostPlan, ...]:
    def ips(number: int) -> tuple[str, ...]:
        return tuple(underlay_address(number, family) for family in families)

    last = 10 + nodes
    towards = {200: 11, 210: 12, 220: last}
    return (
        HostPlan(name="fabric", ips=ips(1), mac="02:42:ac:12:00:01"),
        HostPlan(name="cp", ips=ips(10), mac="02:42:ac:12:00:10", listeners=(Listener(protocol="tcp", port=6443),)),
        HostPlan(
            name="ext",
            ips=ips(100),
            mac="02:42:ac:12:00:64",
            routes=tuple(
                (f"{underlay_address(vip, family)}/{32 if family == 4 else 128}", underlay_address(node, family))
                for vip, node in towards.items()
                for family in families
            ),
            listeners=(Listener(protocol="tcp", port=8080), Listener(protocol="udp", port=8080)),
        ),
    )


def _services(families: tuple[int, ...]) -> tuple[ServicePlan, ...]:
    def at(number: int) -> tuple[str, ...]:
        return tuple(underlay_address(number, family) for family in families)

    def http(target: str = "http", node_port: int = 0) -> tuple[PortPlan, ...]:
        return (PortPlan(name="http", port=80, target=target, node_port=node_port),)

    web, api, db = (("app", "web"),), (("app", "api"),), (("app", "db"),)
    grpc = PortPlan(name="grpc", port=9090, target="grpc")
    sql = PortPlan(name="sql", port=5432, target="sql")
    ranges = tuple(UNDERLAY_NETS[family] for family in families) + tuple(POD_NETS[family] for family in families)
    dns = (
        PortPlan(name="dns", port=53, target="dns", protocol="UDP"),
        PortPlan(name="dns-tcp", port=53, target="dns-tcp"),
        PortPlan(name="metrics", port=9153, target="metrics"),
    )
    https = (PortPlan(name="https", port=443, target="6443"),)
    base = 10 * 256
    return (
        ServicePlan(name="kubernetes", namespace="default", number=1, ports=https, endpoints=at(10)[:1]),
        ServicePlan(
            name="kube-dns", namespace="kube-system", number=10, ports=dns, selector=(("k8s-app", "kube-dns"),)
        ),
        ServicePlan(name="web", number=base + 1, ports=http(), selector=web),
        ServicePlan(name="web-nodeport", number=base + 2, ports=http("8080", 30080), selector=web, type="NodePort"),
        ServicePlan(
            name="web-local",
            number=base + 3,
            ports=http("8080", 30081),
            selector=api,
            type="NodePort",
            external_local=True,
        ),
        ServicePlan(name="api", number=base + 4, ports=(*http(), grpc), selector=api),
        ServicePlan(name="api-headless", ports=(PortPlan(name="http", port=8080, target="http"), grpc), selector=api),
        ServicePlan(name="web-sticky", number=base + 5, ports=http(), selector=web, affinity_s=600),
        ServicePlan(
            name="orphan", number=base + 6, ports=http("8080", 30082), selector=(("app", "nobody"),), type="NodePort"
        ),
        ServicePlan(name="db", number=base + 7, ports=(sql,), selector=db),
        ServicePlan(
            name="db-wrongport", number=base + 8, ports=(PortPlan(name="sql", port=5432, target="5433"),), selector=db
        ),
        ServicePlan(name="slow", number=base + 9, ports=http(), selector=(("app", "slow"),)),
        ServicePlan(name="web-internal-local", number=base + 10, ports=http(), selector=api, internal_local=True),
        ServicePlan(name="web-external-ip", number=base + 11, ports=http(), selector=web, external_ips=at(200)),
        ServicePlan(
            name="web-lb",
            number=base + 12,
            ports=http("http", 30083),
            selector=web,
            type="LoadBalancer",
            lb_ips=at(210),
            source_ranges=ranges,
        ),
        ServicePlan(name="outside", number=base + 13, ports=http("8080"), endpoints=at(100)),
        ServicePlan(
            name="web-edge",
            number=base + 14,
            ports=http("http", 30084),
            selector=web,
            type="LoadBalancer",
            lb_ips=at(220),
            external_local=True,
            health_port=30090,
        ),
        ServicePlan(
            name="echo",
            number=base + 15,
            ports=(PortPlan(name="echo", port=80, target="8080", protocol="UDP"),),
            selector=web,
        ),
        ServicePlan(name="gateway", number=base + 16, ports=http(), selector=(("app", "gateway"),)),
        ServicePlan(name="alias", ports=(), type="ExternalName", external_name="web.shop.svc.cluster.local"),
    )
