"""What does kube-proxy's IPVS mode program on a node for these Services and EndpointSlices?

Pure: objects in; iptables rules, ipsets, virtual servers, addresses of kube-ipvs0 and sysctls out, each in the words of the tool
that takes them. Follows syncProxyRules, writeIptablesRules and ipset.go of pkg/proxy/ipvs (v1.28) with its defaults: scheduler
rr, masquerade bit 14, node ports on every address of the node, cluster CIDR as local detector. Left out: strict ARP, SCTP.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from lab.kubeproxy import MASQUERADE_MARK, Backend, Config, Json, ServicePort, prefer_ready, service_ports
from lab.ruletext import Tables

DUMMY = "kube-ipvs0"
SYSCTLS = (
    ("ipv4/vs/conntrack", 1),
    ("ipv4/vs/conn_reuse_mode", 1),
    ("ipv4/vs/expire_nodest_conn", 1),
    ("ipv4/vs/expire_quiescent_template", 1),
)
SETS = {
    "KUBE-LOOP-BACK": ("hash:ip,port,ip", "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose"),
    "KUBE-CLUSTER-IP": ("hash:ip,port", "Kubernetes service cluster ip + port for masquerade purpose"),
    "KUBE-EXTERNAL-IP": ("hash:ip,port", "Kubernetes service external ip + port for masquerade and filter purpose"),
    "KUBE-EXTERNAL-IP-LOCAL": (
        "hash:ip,port",
        "Kubernetes service external ip + port with externalTrafficPolicy=local",
    ),
    "KUBE-LOAD-BALANCER": ("hash:ip,port", "Kubernetes service lb portal"),
    "KUBE-LOAD-BALANCER-LOCAL": (
        "hash:ip,port",
        "Kubernetes service load balancer ip + port with externalTrafficPolicy=local",
    ),
    "KUBE-LOAD-BALANCER-FW": (
        "hash:ip,port",
        "Kubernetes service load balancer ip + port for load balancer with sourceRange",
    ),
    "KUBE-LOAD-BALANCER-SOURCE-IP": (
        "hash:ip,port,ip",
        "Kubernetes service load balancer ip + port + source IP for packet filter purpose",
    ),
    "KUBE-LOAD-BALANCER-SOURCE-CIDR": (
        "hash:ip,port,net",
        "Kubernetes service load balancer ip + port + source cidr for packet filter purpose",
    ),
    "KUBE-NODE-PORT-TCP": ("bitmap:port", "Kubernetes nodeport TCP port for masquerade purpose"),
    "KUBE-NODE-PORT-LOCAL-TCP": ("bitmap:port", "Kubernetes nodeport TCP port with externalTrafficPolicy=local"),
    "KUBE-NODE-PORT-UDP": ("bitmap:port", "Kubernetes nodeport UDP port for masquerade purpose"),
    "KUBE-NODE-PORT-LOCAL-UDP": ("bitmap:port", "Kubernetes nodeport UDP port with externalTrafficPolicy=local"),
    "KUBE-HEALTH-CHECK-NODE-PORT": ("bitmap:port", "Kubernetes health check node port"),
    "KUBE-IPVS-IPS": ("hash:ip", "Kubernetes IPVS virtual addresses"),
}
"""Name (IPv4) → type and the comment that rules about it carry."""

_RULES = (
    ("KUBE-LOOP-BACK", "nat", "KUBE-POSTROUTING", "MASQUERADE", "dst,dst,src", ""),
    ("KUBE-LOAD-BALANCER", "nat", "KUBE-SERVICES", "KUBE-LOAD-BALANCER", "dst,dst", ""),
    ("KUBE-LOAD-BALANCER-LOCAL", "nat", "KUBE-LOAD-BALANCER", "RETURN", "dst,dst", ""),
    ("KUBE-NODE-PORT-LOCAL-TCP", "nat", "KUBE-NODE-PORT", "RETURN", "dst", "-p tcp "),
    ("KUBE-NODE-PORT-TCP", "nat", "KUBE-NODE-PORT", "KUBE-MARK-MASQ", "dst", "-p tcp "),
    ("KUBE-NODE-PORT-LOCAL-UDP", "nat", "KUBE-NODE-PORT", "RETURN", "dst", "-p udp "),
    ("KUBE-NODE-PORT-UDP", "nat", "KUBE-NODE-PORT", "KUBE-MARK-MASQ", "dst", "-p udp "),
    ("KUBE-LOAD-BALANCER-FW", "filter", "KUBE-PROXY-FIREWALL", "KUBE-SOURCE-RANGES-FIREWALL", "dst,dst", ""),
    ("KUBE-LOAD-BALANCER-SOURCE-CIDR", "filter", "KUBE-SOURCE-RANGES-FIREWALL", "RETURN", "dst,dst,src", ""),
    ("KUBE-LOAD-BALANCER-SOURCE-IP", "filter", "KUBE-SOURCE-RANGES-FIREWALL", "RETURN", "dst,dst,src", ""),
)
"""Set, table, chain, target, how it is matched, protocol: written where the set is not empty (ipsetWithIptablesChain)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualServer:
    """One virtual server with its real servers' `address:port` texts."""

    protocol: str
    ip: str
    port: int
    persistent_s: int
    servers: tuple[str, ...]

    @property
    def text(self) -> str:
        """`address:port`."""
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


@dataclass(slots=True)
class Programming:
    """Everything for one node and family."""

    family: int
    tables: Tables = field(default_factory=Tables)
    sets: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in SETS})
    servers: list[VirtualServer] = field(default_factory=list)

    @property
    def addresses(self) -> tuple[str, ...]:
        """What kube-ipvs0 carries."""
        return tuple(dict.fromkeys(self.sets["KUBE-IPVS-IPS"]))

    def set_name(self, name: str) -> str:
        """Return a set's name in this family: IPv6 has KUBE-6- for KUBE-, and no more than the kernel's 31 characters."""
        return name.replace("KUBE-", "KUBE-6-", 1)[:31] if self.family == 6 else name

    def ipset_restore(self) -> str:
        """Return the text for `ipset restore`."""
        lines = []
        for name, (kind, _) in SETS.items():
            options = "range 0-65535" if kind == "bitmap:port" else f"family inet{'6' if self.family == 6 else ''}"
            lines.append(f"create {self.set_name(name)} {kind} {options}")
            lines += [f"add {self.set_name(name)} {entry}" for entry in dict.fromkeys(self.sets[name])]
        return "\n".join(lines) + "\n"

    def ipvsadm_restore(self) -> str:
        """Return the text for `ipvsadm -R`."""
        lines = []
        for server in self.servers:
            option = "-u" if server.protocol == "udp" else "-t"
            sticky = f" -p {server.persistent_s}" if server.persistent_s else ""
            lines.append(f"-A {option} {server.text} -s rr{sticky}")
            lines += [f"-a {option} {server.text} -r {real} -m -w 1" for real in server.servers]
        return "\n".join(lines) + "\n"


def render_ipvs(
    services: Iterable[Json], slices: Iterable[Json], config: Config, family: int, local_ips: tuple[str, ...]
) -> Programming:
    """Return what one node is programmed with; `local_ips` are all its own addresses but kube-ipvs0's and loopback."""
    made = Programming(family)
    own = tuple(ip for ip in local_ips if (":" in ip) == (family == 6))
    for port in service_ports(services, slices, config.node, family):
        _program(made, port, config, own)
    _chains(made.tables)
    cidr = next((c for c in config.cluster_cidrs if (":" in c) == (family == 6)), "")
    _rules(made, config, cidr)
    return made


# --- sets and servers ------------------------------------------------------------------------------------------------


def _program(made: Programming, port: ServicePort, config: Config, local_ips: tuple[str, ...]) -> None:
    def entry(ip: str) -> str:
        return f"{ip},{port.protocol}:{port.port}"

    for backend in port.backends:
        if backend.local and backend.ready:
            made.sets["KUBE-LOOP-BACK"].append(f"{backend.ip},{port.protocol}:{backend.port},{backend.ip}")
    made.sets["KUBE-CLUSTER-IP"].append(entry(port.cluster_ip))
    _serve(made, port, port.cluster_ip, port.port, only_local=port.internal_local)
    made.sets["KUBE-IPVS-IPS"].append(port.cluster_ip)
    for ip in port.external_ips:
        made.sets["KUBE-EXTERNAL-IP-LOCAL" if port.external_local else "KUBE-EXTERNAL-IP"].append(entry(ip))
        _serve(made, port, ip, port.port, only_local=port.external_local)
        made.sets["KUBE-IPVS-IPS"].append(ip)
    for ip in port.lb_ips:
        made.sets["KUBE-LOAD-BALANCER"].append(entry(ip))
        if port.external_local:
            made.sets["KUBE-LOAD-BALANCER-LOCAL"].append(entry(ip))
        _source_ranges(made, port, ip, config)
        _serve(made, port, ip, port.port, only_local=port.external_local)
        made.sets["KUBE-IPVS-IPS"].append(ip)
    if port.node_port:
        kind = port.protocol.upper()
        made.sets[f"KUBE-NODE-PORT-{kind}"].append(str(port.node_port))
        if port.external_local:
            made.sets[f"KUBE-NODE-PORT-LOCAL-{kind}"].append(str(port.node_port))
        for ip in local_ips:
            _serve(made, port, ip, port.node_port, only_local=port.external_local)
    if port.health_port:
        made.sets["KUBE-HEALTH-CHECK-NODE-PORT"].append(str(port.health_port))


def _source_ranges(made: Programming, port: ServicePort, ip: str, config: Config) -> None:
    if not port.source_ranges:
        return
    at = f"{ip},{port.protocol}:{port.port}"
    made.sets["KUBE-LOAD-BALANCER-FW"].append(at)
    from_node = False
    for cidr in port.source_ranges:
        halves = ip_network(cidr).subnets() if ip_network(cidr).prefixlen == 0 else (ip_network(cidr),)
        made.sets["KUBE-LOAD-BALANCER-SOURCE-CIDR"] += [f"{at},{half}" for half in halves]
        from_node = from_node or any(ip_address(own) in ip_network(cidr) for own in config.node_ips)
    if from_node:
        made.sets["KUBE-LOAD-BALANCER-SOURCE-IP"].append(f"{at},{ip}")


def _serve(made: Programming, port: ServicePort, ip: str, number: int, *, only_local: bool) -> None:
    servers: tuple[Backend, ...] = prefer_ready(port.backends)
    if only_local:
        local = prefer_ready(backend for backend in port.backends if backend.local)
        servers = local or (() if port.internal_local else servers)
    made.servers.append(
        VirtualServer(
            protocol=port.protocol,
            ip=ip,
            port=number,
            persistent_s=port.affinity_s,
            servers=tuple(backend.text for backend in servers),
        )
    )


# --- rules -----------------------------------------------------------------------------------------------------------


def _chains(tables: Tables) -> None:
    tables.built_in("mangle", "PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
    tables.built_in("filter", "INPUT", "FORWARD", "OUTPUT")
    for name in ("FORWARD", "NODE-PORT", "PROXY-FIREWALL", "SOURCE-RANGES-FIREWALL", "IPVS-FILTER"):
        tables.chain("filter", f"KUBE-{name}")
    tables.built_in("nat", "PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")
    for name in ("SERVICES", "POSTROUTING", "NODE-PORT", "LOAD-BALANCER", "MARK-MASQ"):
        tables.chain("nat", f"KUBE-{name}")
    for table, chain, target, comment in (
        ("filter", "INPUT", "KUBE-IPVS-FILTER", "kubernetes ipvs access filter"),
        ("filter", "INPUT", "KUBE-PROXY-FIREWALL", "kube-proxy firewall rules"),
        ("filter", "INPUT", "KUBE-NODE-PORT", "kubernetes health check rules"),
        ("filter", "FORWARD", "KUBE-PROXY-FIREWALL", "kube-proxy firewall rules"),
        ("filter", "FORWARD", "KUBE-FORWARD", "kubernetes forwarding rules"),
        ("nat", "PREROUTING", "KUBE-SERVICES", "kubernetes service portals"),
        ("nat", "OUTPUT", "KUBE-SERVICES", "kubernetes service portals"),
        ("nat", "POSTROUTING", "KUBE-POSTROUTING", "kubernetes postrouting rules"),
    ):
        tables.add(table, chain, f'-m comment --comment "{comment}" -j {target}')


def _rules(made: Programming, config: Config, cidr: str) -> None:
    tables = made.tables

    def match(name: str, how: str, *, comment: bool = True) -> str:
        says = f'-m comment --comment "{SETS[name][1]}" ' if comment else ""
        return f"{says}-m set --match-set {made.set_name(name)} {how}"

    for name, table, chain, target, how, protocol in _RULES:
        if made.sets[name]:
            tables.add(table, chain, f"{protocol}{match(name, how)} -j {target}")
    if made.sets["KUBE-CLUSTER-IP"]:
        outside, how = (
            ("", "dst,dst") if config.masquerade_all else (f"! -s {cidr} ", "dst,dst") if cidr else ("", "src,dst")
        )
        tables.add("nat", "KUBE-SERVICES", f"{outside}{match('KUBE-CLUSTER-IP', how)} -j KUBE-MARK-MASQ")
    for name in ("KUBE-EXTERNAL-IP", "KUBE-EXTERNAL-IP-LOCAL"):
        if made.sets[name]:
            if name == "KUBE-EXTERNAL-IP":
                tables.add("nat", "KUBE-SERVICES", f"{match(name, 'dst,dst')} -j KUBE-MARK-MASQ")
            external = "-m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL"
            tables.add("nat", "KUBE-SERVICES", f"{match(name, 'dst,dst')} {external} -j ACCEPT")
            tables.add("nat", "KUBE-SERVICES", f"{match(name, 'dst,dst')} -m addrtype --dst-type LOCAL -j ACCEPT")
    tables.add("nat", "KUBE-SERVICES", "-m addrtype --dst-type LOCAL -j KUBE-NODE-PORT")
    tables.add("nat", "KUBE-LOAD-BALANCER", "-j KUBE-MARK-MASQ")
    tables.add("filter", "KUBE-SOURCE-RANGES-FIREWALL", "-j DROP")
    for name in ("KUBE-CLUSTER-IP", "KUBE-LOAD-BALANCER"):
        if made.sets[name]:
            tables.add("nat", "KUBE-SERVICES", f"{match(name, 'dst,dst', comment=False)} -j ACCEPT")
    forwarding = '-m comment --comment "kubernetes forwarding'
    tables.add("filter", "KUBE-FORWARD", f'{forwarding} rules" -m mark --mark {MASQUERADE_MARK} -j ACCEPT')
    established = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    tables.add("filter", "KUBE-FORWARD", f'{forwarding} conntrack rule" {established}')
    tables.add("filter", "KUBE-NODE-PORT", f"{match('KUBE-HEALTH-CHECK-NODE-PORT', 'dst')} -j ACCEPT")
    _access_filter(made)
    tables.add("nat", "KUBE-POSTROUTING", f"-m mark ! --mark {MASQUERADE_MARK} -j RETURN")
    tables.add("nat", "KUBE-POSTROUTING", "-j MARK --set-xmark 0x4000/0x0")
    snat = '-m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully'
    tables.add("nat", "KUBE-POSTROUTING", snat)
    tables.add("nat", "KUBE-MARK-MASQ", f"-j MARK --set-xmark {MASQUERADE_MARK}")


def _access_filter(made: Programming) -> None:
    """KUBE-IPVS-FILTER: no way to the host's own ports by a virtual address."""
    for name, how in (
        ("KUBE-LOAD-BALANCER", "dst,dst"),
        ("KUBE-CLUSTER-IP", "dst,dst"),
        ("KUBE-EXTERNAL-IP", "dst,dst"),
        ("KUBE-EXTERNAL-IP-LOCAL", "dst,dst"),
        ("KUBE-HEALTH-CHECK-NODE-PORT", "dst"),
    ):
        made.tables.add("filter", "KUBE-IPVS-FILTER", f"-m set --match-set {made.set_name(name)} {how} -j RETURN")
    virtual = f"-m conntrack --ctstate NEW -m set --match-set {made.set_name('KUBE-IPVS-IPS')} dst"
    with_ = "icmp6-port-unreachable" if made.family == 6 else "icmp-port-unreachable"
    made.tables.add("filter", "KUBE-IPVS-FILTER", f"{virtual} -j REJECT --reject-with {with_}")
