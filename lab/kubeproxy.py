"""Which rules does kube-proxy's iptables mode write on a node for these Services and EndpointSlices?

Pure: objects of `kubectl get -o json` in, rules in iptables-save's words out. Follows syncProxyRules of
pkg/proxy/iptables/proxier.go (v1.28) with its defaults: masquerade bit 14, node ports on every address, cluster CIDR as
local detector. Services are taken in order of their names (kube-proxy takes them in the order of a Go map). Left out:
topology hints, the shorter form without comments above 1,000 endpoints, and NodePort addresses.
"""

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address, ip_network
from typing import Any

from lab.ruletext import Tables

Json = dict[str, Any]
MASQUERADE_MARK = "0x4000/0x4000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One usable endpoint of a Service port: `address:port` text, and whether it is on this node."""

    ip: str
    port: int
    local: bool
    ready: bool
    terminating: bool

    @property
    def text(self) -> str:
        """`10.244.1.2:8080` or `[fd00::2]:8080`."""
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePort:
    """One port of a Service in one family, as kube-proxy sees it (ServicePortName plus ServiceInfo)."""

    name: str
    protocol: str
    cluster_ip: str
    port: int
    node_port: int
    external_ips: tuple[str, ...]
    lb_ips: tuple[str, ...]
    source_ranges: tuple[str, ...]
    affinity_s: int
    internal_local: bool
    external_local: bool
    external: bool
    health_port: int
    backends: tuple[Backend, ...]

    def _chain(self, prefix: str) -> str:
        return prefix + chain_hash(self.name, self.protocol)

    @property
    def cluster_chain(self) -> str:
        """KUBE-SVC-…: any endpoint."""
        return self._chain("KUBE-SVC-")

    @property
    def local_chain(self) -> str:
        """KUBE-SVL-…: endpoints of this node."""
        return self._chain("KUBE-SVL-")

    @property
    def external_chain(self) -> str:
        """KUBE-EXT-…: what comes by NodePort, external or load-balancer address."""
        return self._chain("KUBE-EXT-")

    @property
    def firewall_chain(self) -> str:
        """KUBE-FW-…: load-balancer traffic when source ranges are set."""
        return self._chain("KUBE-FW-")

    def endpoint_chain(self, backend: Backend) -> str:
        """KUBE-SEP-…: one endpoint."""
        return "KUBE-SEP-" + chain_hash(self.name, self.protocol, backend.text)


def chain_hash(*parts: str) -> str:
    """Return the sixteen characters that end a chain's name: base32 of sha256 over the parts."""
    return base64.b32encode(sha256("".join(parts).encode()).digest()).decode()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What kube-proxy on this node was started with. `node_ips` are the node's own addresses."""

    node: str
    node_ips: tuple[str, ...]
    cluster_cidrs: tuple[str, ...]
    masquerade_all: bool = False


def render(services: Iterable[Json], slices: Iterable[Json], config: Config, family: int) -> Tables:
    """Return the filter, nat and mangle rules of one node and family."""
    tables = Tables()
    ports = service_ports(services, slices, config.node, family)
    cidr = next((c for c in config.cluster_cidrs if (":" in c) == (family == 6)), "")
    _base_chains(tables)
    for port in ports:
        _Writer(tables, port, config, cidr).write()
    nodeports = '-m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain"'
    loopback = "! -d ::1/128 " if family == 6 else ""
    tables.add("nat", "KUBE-SERVICES", f"{loopback}{nodeports} -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")
    _fixed_rules(tables, family)
    return tables


def service_ports(services: Iterable[Json], slices: Iterable[Json], node: str, family: int) -> tuple[ServicePort, ...]:
    """Return every Service port that has a cluster IP of the family, with its endpoints sorted as kube-proxy sorts them."""
    by_service: dict[tuple[str, str], list[Json]] = {}
    for item in slices:
        labels = item["metadata"].get("labels") or {}
        if item["addressType"] == f"IPv{family}":
            key = (item["metadata"]["namespace"], labels.get("kubernetes.io/service-name", ""))
            by_service.setdefault(key, []).append(item)
    found = []
    for service in services:
        spec = service["spec"]
        ips = [ip for ip in spec.get("clusterIPs") or [] if ip != "None" and (":" in ip) == (family == 6)]
        if spec["type"] == "ExternalName" or not ips:
            continue
        meta = service["metadata"]
        own = by_service.get((meta["namespace"], meta["name"]), [])
        found += [_service_port(service, ips[0], port, own, node) for port in spec["ports"]]
    return tuple(sorted(found, key=lambda port: (port.name, port.protocol)))


def _service_port(service: Json, cluster_ip: str, port: Json, slices: list[Json], node: str) -> ServicePort:
    spec, meta = service["spec"], service["metadata"]
    six = ":" in cluster_ip

    def own_family(items: Iterable[str]) -> tuple[str, ...]:
        return tuple(item for item in items if (":" in item) == six)

    ingress = (service.get("status") or {}).get("loadBalancer", {}).get("ingress") or []
    lb_ips = own_family(entry["ip"] for entry in ingress if entry.get("ip") and entry.get("ipMode", "VIP") == "VIP")
    external_ips = own_family(spec.get("externalIPs") or [])
    node_port = port.get("nodePort", 0)
    external = bool(node_port or lb_ips or external_ips)
    name = f"{meta['namespace']}/{meta['name']}" + (f":{port['name']}" if port.get("name") else "")
    sticky = spec.get("sessionAffinity") == "ClientIP"
    return ServicePort(
        name=name,
        protocol=port.get("protocol", "TCP").lower(),
        cluster_ip=cluster_ip,
        port=port["port"],
        node_port=node_port,
        external_ips=external_ips,
        lb_ips=lb_ips if spec["type"] == "LoadBalancer" else (),
        source_ranges=own_family(spec.get("loadBalancerSourceRanges") or []),
        affinity_s=(spec.get("sessionAffinityConfig") or {}).get("clientIP", {}).get("timeoutSeconds", 10800)
        if sticky
        else 0,
        internal_local=spec.get("internalTrafficPolicy") == "Local",
        external_local=spec.get("externalTrafficPolicy") == "Local",
        external=external,
        health_port=spec.get("healthCheckNodePort", 0),
        backends=_backends(slices, port, node),
    )


def _backends(slices: list[Json], port: Json, node: str) -> tuple[Backend, ...]:
    found = {}
    for item in slices:
        for slice_port in item.get("ports") or []:
            same = slice_port.get("name", "") == port.get("name", "")
            if not same or slice_port.get("protocol", "TCP") != port.get("protocol", "TCP"):
                continue
            for endpoint in item.get("endpoints") or []:
                conditions = endpoint.get("conditions") or {}
                ready = conditions.get("ready") is not False
                terminating = bool(conditions.get("terminating"))
                serving = conditions.get("serving", ready) is not False
                if not (ready or (serving and terminating)):
                    continue
                backend = Backend(
                    ip=endpoint["addresses"][0],
                    port=slice_port["port"],
                    local=endpoint.get("nodeName") == node,
                    ready=ready,
                    terminating=terminating,
                )
                found[backend.text] = backend
    return tuple(found[text] for text in sorted(found))


def prefer_ready(backends: Iterable[Backend]) -> tuple[Backend, ...]:
    """Ready endpoints, or the terminating ones that still serve if none is ready (CategorizeEndpoints)."""
    given = tuple(backends)
    return tuple(backend for backend in given if backend.ready) or given


def _base_chains(tables: Tables) -> None:
    tables.built_in("mangle", "PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
    tables.chain("mangle", "KUBE-PROXY-CANARY")
    tables.built_in("filter", "INPUT", "FORWARD", "OUTPUT")
    for name in ("EXTERNAL-SERVICES", "FIREWALL", "FORWARD", "NODEPORTS", "PROXY-CANARY", "PROXY-FIREWALL", "SERVICES"):
        tables.chain("filter", f"KUBE-{name}")
    tables.built_in("nat", "PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")
    for name in ("MARK-MASQ", "NODEPORTS", "POSTROUTING", "PROXY-CANARY", "SERVICES"):
        tables.chain("nat", f"KUBE-{name}")
    new = "-m conntrack --ctstate NEW "

    def jump(table: str, chain: str, comment: str, target: str, match: str = "") -> None:
        tables.add(table, chain, f'{match}-m comment --comment "kubernetes {comment}" -j {target}')

    for chain in ("INPUT", "FORWARD", "OUTPUT"):
        if chain != "FORWARD":
            tables.add("filter", chain, "-j KUBE-FIREWALL")
        jump("filter", chain, "load balancer firewall", "KUBE-PROXY-FIREWALL", new)
        if chain == "INPUT":
            jump("filter", chain, "health check service ports", "KUBE-NODEPORTS")
        if chain == "FORWARD":
            jump("filter", chain, "forwarding rules", "KUBE-FORWARD")
        if chain != "INPUT":
            jump("filter", chain, "service portals", "KUBE-SERVICES", new)
        if chain != "OUTPUT":
            jump("filter", chain, "externally-visible service portals", "KUBE-EXTERNAL-SERVICES", new)
    jump("nat", "PREROUTING", "service portals", "KUBE-SERVICES")
    jump("nat", "OUTPUT", "service portals", "KUBE-SERVICES")
    jump("nat", "POSTROUTING", "postrouting rules", "KUBE-POSTROUTING")


def _fixed_rules(tables: Tables, family: int) -> None:
    if family == 4:
        localnet = '! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections"'
        states = "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
        tables.add("filter", "KUBE-FIREWALL", f"{localnet} {states}")
    forward = '-m comment --comment "kubernetes forwarding'
    tables.add("filter", "KUBE-FORWARD", "-m conntrack --ctstate INVALID -j DROP")
    tables.add("filter", "KUBE-FORWARD", f'{forward} rules" -m mark --mark {MASQUERADE_MARK} -j ACCEPT')
    tables.add(
        "filter", "KUBE-FORWARD", f'{forward} conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT'
    )
    tables.add("nat", "KUBE-MARK-MASQ", f"-j MARK --set-xmark {MASQUERADE_MARK}")
    tables.add("nat", "KUBE-POSTROUTING", f"-m mark ! --mark {MASQUERADE_MARK} -j RETURN")
    tables.add("nat", "KUBE-POSTROUTING", "-j MARK --set-xmark 0x4000/0x0")
    snat = '-m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully'
    tables.add("nat", "KUBE-POSTROUTING", snat)


@dataclass(slots=True)
class _Writer:
    """Writes the rules of one Service port, in the order of syncProxyRules."""

    tables: Tables
    port: ServicePort
    config: Config
    cidr: str

    def write(self) -> None:
        port = self.port
        cluster = prefer_ready(port.backends) if not port.internal_local or port.external else ()
        wants_local = port.internal_local or (port.external_local and port.external)
        local = prefer_ready(backend for backend in port.backends if backend.local) if wants_local else ()
        usable = bool(port.backends)
        internal = bool(local) if port.internal_local else usable
        external = bool(local) if port.external_local else usable
        self._entry_points(usable, internal=internal, external=external)
        if not usable:
            return
        if internal:
            chain = port.local_chain if port.internal_local else port.cluster_chain
            self._masquerade_outsiders(chain)
        if port.external:
            self._external_chain(has_endpoints=external)
        if port.lb_ips and port.source_ranges:
            self._firewall_chain()
        if cluster:
            self._spread(port.cluster_chain, cluster)
        if local:
            self._spread(port.local_chain, local)
        for backend in {backend.text: backend for backend in (*cluster, *local)}.values():
            self._endpoint(backend)

    def _nat(self, chain: str, rule: str) -> None:
        self.tables.add("nat", chain, rule)

    def _to(self, ip: str, comment: str, target: str) -> str:
        port = self.port
        says = f'-m comment --comment "{port.name} {comment}"'
        where = f"-d {ip}/{128 if ':' in ip else 32} -p {port.protocol}"
        return f"{where} {says} -m {port.protocol} --dport {port.port} -j {target}"

    def _entry_points(self, usable: bool, *, internal: bool, external: bool) -> None:
        port = self.port
        filtered = "filter", "KUBE-EXTERNAL-SERVICES"
        six = "6" if ":" in port.cluster_ip else ""
        reject = f"REJECT --reject-with icmp{six}-port-unreachable"
        why, verdict = ("has no local endpoints", "DROP") if usable else ("has no endpoints", reject)
        if internal:
            chain = port.local_chain if port.internal_local else port.cluster_chain
            self._nat("KUBE-SERVICES", self._to(port.cluster_ip, "cluster IP", chain))
        else:
            self.tables.add("filter", "KUBE-SERVICES", self._to(port.cluster_ip, why, verdict))
        for ip in port.external_ips:
            if usable:
                self._nat("KUBE-SERVICES", self._to(ip, "external IP", port.external_chain))
            if not external:
                self.tables.add(*filtered, self._to(ip, why, verdict))
        firewalled = bool(usable and port.source_ranges)
        for ip in port.lb_ips:
            chain = port.firewall_chain if firewalled else port.external_chain
            if usable:
                self._nat("KUBE-SERVICES", self._to(ip, "loadbalancer IP", chain))
            if firewalled:
                denied = self._to(ip, f"traffic not accepted by {port.firewall_chain}", "DROP")
                self.tables.add("filter", "KUBE-PROXY-FIREWALL", denied)
            if not external:
                self.tables.add(*filtered, self._to(ip, why, verdict))
        if port.node_port:
            self._node_port(usable, external, why, verdict)
        if port.health_port:
            says = f'-m comment --comment "{port.name} health check node port"'
            accept = f"-p tcp {says} -m tcp --dport {port.health_port} -j ACCEPT"
            self.tables.add("filter", "KUBE-NODEPORTS", accept)

    def _node_port(self, usable: bool, external: bool, why: str, verdict: str) -> None:
        port = self.port
        tail = f"-m {port.protocol} --dport {port.node_port} -j"
        if usable:
            says = f'-m comment --comment "{port.name}"'
            self._nat("KUBE-NODEPORTS", f"-p {port.protocol} {says} {tail} {port.external_chain}")
        if not external:
            says = f'-m comment --comment "{port.name} {why}" -m addrtype --dst-type LOCAL'
            self.tables.add("filter", "KUBE-EXTERNAL-SERVICES", f"-p {port.protocol} {says} {tail} {verdict}")

    def _masquerade_outsiders(self, chain: str) -> None:
        rule = self._to(self.port.cluster_ip, "cluster IP", "KUBE-MARK-MASQ")
        if self.config.masquerade_all:
            self._nat(chain, rule)
        elif self.cidr:
            self._nat(chain, f"! -s {self.cidr} {rule}")

    def _external_chain(self, *, has_endpoints: bool) -> None:
        port, chain = self.port, self.port.external_chain

        def says(what: str) -> str:
            return f'-m comment --comment "{what} {port.name} external destinations"'

        self.tables.chain("nat", chain)
        if not port.external_local:
            self._nat(chain, f"{says('masquerade traffic for')} -j KUBE-MARK-MASQ")
        else:
            if self.cidr:
                self._nat(chain, f"-s {self.cidr} {says('pod traffic for')} -j {port.cluster_chain}")
            local = "-m addrtype --src-type LOCAL -j"
            self._nat(chain, f"{says('masquerade LOCAL traffic for')} {local} KUBE-MARK-MASQ")
            self._nat(chain, f"{says('route LOCAL traffic for')} {local} {port.cluster_chain}")
        if has_endpoints:
            self._nat(chain, f"-j {port.local_chain if port.external_local else port.cluster_chain}")

    def _firewall_chain(self) -> None:
        port, chain = self.port, self.port.firewall_chain
        says = f'-m comment --comment "{port.name} loadbalancer IP" -j {port.external_chain}'
        from_node = False
        for cidr in port.source_ranges:
            source = "" if ip_network(cidr).prefixlen == 0 else f"-s {cidr} "
            self._nat(chain, f"{source}{says}")
            from_node = from_node or any(ip_address(ip) in ip_network(cidr) for ip in self.config.node_ips)
        for ip in port.lb_ips if from_node else ():
            self._nat(chain, f"-s {ip}/{128 if ':' in ip else 32} {says}")
        other = f"other traffic to {port.name} will be dropped by KUBE-PROXY-FIREWALL"
        self._nat(chain, f'-m comment --comment "{other}"')

    def _spread(self, chain: str, backends: tuple[Backend, ...]) -> None:
        port = self.port

        def says(backend: Backend) -> str:
            return f'-m comment --comment "{port.name} -> {backend.text}"'

        if port.affinity_s:
            mask = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff" if ":" in port.cluster_ip else "255.255.255.255"
            for backend in backends:
                name = port.endpoint_chain(backend)
                recent = f"-m recent --rcheck --seconds {port.affinity_s} --reap --name {name} --mask {mask} --rsource"
                self._nat(chain, f"{says(backend)} {recent} -j {name}")
        for left, backend in zip(range(len(backends), 0, -1), backends, strict=True):
            chance = f"-m statistic --mode random --probability {_probability(left)} " if left > 1 else ""
            self._nat(chain, f"{says(backend)} {chance}-j {port.endpoint_chain(backend)}")

    def _endpoint(self, backend: Backend) -> None:
        port, chain = self.port, self.port.endpoint_chain(backend)
        says = f'-m comment --comment "{port.name}"'
        bits = 128 if ":" in backend.ip else 32
        mask = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff" if bits == 128 else "255.255.255.255"
        recent = f"-m recent --set --name {chain} --mask {mask} --rsource " if port.affinity_s else ""
        self._nat(chain, f"-s {backend.ip}/{bits} {says} -j KUBE-MARK-MASQ")
        dnat = f"-m {port.protocol} -j DNAT --to-destination {backend.text}"
        self._nat(chain, f"-p {port.protocol} {says} {recent}{dnat}")


def _probability(left: int) -> str:
    """1/left as the kernel keeps it (31 bits) and iptables prints it."""
    stored = round(float(f"{1 / left:0.10f}") * 0x80000000)
    return f"{stored / 0x80000000:.11f}"
