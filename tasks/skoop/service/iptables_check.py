"""Is a node's iptables programmed as its Services ask?

Compares by effect: which address and port is caught, and to which backends its chain leads. Chain names are computed as
kube-proxy computes them, but only to tell whose a chain is; how rules are grouped between releases does not matter. What
depends on kube-proxy's settings (which traffic counts as outside) is judged against the other Services of the same node.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.assertions.rules import TableView, dport, network, plain, tables_of
from tasks.skoop.model.addr import host_net, ip_version, parse_ip
from tasks.skoop.model.cluster import ClusterState, NodeMeta, Service, ServicePort
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import NetNS
from tasks.skoop.model.suspicion import Change, Suspicion
from tasks.skoop.model.xtables import Rule
from tasks.skoop.service import iptables_names as names
from tasks.skoop.service.iptables_backends import BackendCheck, Outside
from tasks.skoop.service.iptables_chain import delete_rule, insert_rule
from tasks.skoop.service.iptables_frame import frame_suspicions, stealing_suspicions
from tasks.skoop.service.selection import Categories, Endpoints, PortName, categorize, is_external, port_name

Key = tuple[str, str, int]
"""Address ("" for any), protocol, port."""


class IptablesCheck:
    """The comparison of one node's rules with the Services."""

    def __init__(
        self,
        state: ClusterState,
        endpoints: Endpoints,
        netns: NetNS,
        node: NodeMeta,
        service_addresses: Collection[str],
    ) -> None:
        self.state = state
        self._endpoints = endpoints
        self.netns = netns
        self.node = node
        self._addresses = service_addresses

    def run(self, services: Collection[str] | None) -> tuple[Suspicion, ...]:
        """Return what differs; `services` limits it to Services of these keys."""
        found: list[Suspicion] = []
        for family in (4, 6):
            programmed = [
                TableCheck(self, nat, self._filter_of(nat), services)
                for nat in tables_of(self.netns, "nat", family)
                if names.SERVICES in nat.chains
            ]
            results = sorted((check.run() for check in programmed), key=len)
            if len(results) > 1:
                found.append(self._two_back_ends(programmed, results))
            if results:
                found += results[0]
                for nat in tables_of(self.netns, "nat", family):
                    found += stealing_suspicions(nat, self.node.name, self._addresses)
        return tuple(found)

    def _filter_of(self, nat: TableView) -> TableView | None:
        same = (view for view in tables_of(self.netns, "filter", nat.family) if view.backend == nat.backend)
        return next(same, None)

    def _two_back_ends(self, checks: list["TableCheck"], results: list[tuple[Suspicion, ...]]) -> Suspicion:
        """Report kube-proxy's chains in both back ends; the one that fits worse is the stale one."""
        worst = max(checks, key=lambda check: len(check.run()))
        stale = worst.nat
        at = next((at for at, rule in stale.numbered("PREROUTING") if rule.target.name == names.SERVICES), 0)
        changes: list[Change] = []
        for hook in ("OUTPUT", "PREROUTING"):
            for position, rule in reversed(list(stale.numbered(hook))):
                if rule.target.name == names.SERVICES:
                    changes.append(delete_rule(stale, hook, position, rule.raw))
        return suspect(
            "KP-NF-004",
            f"{self.node.name} holds kube-proxy's rules in iptables-legacy and in iptables-nft; "
            f"those in iptables-{stale.backend} fit the Services less ({len(results[-1])} differences)",
            subject=self.netns.id,
            place=stale.place("PREROUTING", at, hook="PREROUTING"),
            seen=f"{names.SERVICES} in both back ends",
            expected="in one back end only",
            changes=changes,
        )

    def ports(self, family: int, services: Collection[str] | None) -> Iterator[tuple[Service, ServicePort, Categories]]:
        """Yield every Service port that has a cluster IP of the family, with its endpoints as this node should use them."""
        for service in self.state.objects.services:
            if services is not None and service.key not in services:
                continue
            if any(ip not in ("", "None") and ip_version(ip) == family for ip in service.cluster_ips):
                for port in service.ports:
                    ends = self._endpoints.of(port_name(service, port), family)
                    yield service, port, categorize(service, port, ends, self.node)


class TableCheck:
    """The comparison for one back end and family."""

    def __init__(
        self, check: IptablesCheck, nat: TableView, filters: TableView | None, services: Collection[str] | None
    ) -> None:
        self._check = check
        self._services = services
        self._found: tuple[Suspicion, ...] | None = None
        self.nat = nat
        self.filters = filters
        self.node = check.node.name
        self.subject = check.netns.id

    def run(self) -> tuple[Suspicion, ...]:
        """Return what differs (computed once)."""
        if self._found is None:
            found = list(frame_suspicions(self.nat, self.filters, self.node))
            for service, port, ends in self._check.ports(self.nat.family, self._services):
                found += self._port(service, port, ends)
            if self._services is None:
                found += self._strangers()
            self._found = tuple(found)
        return self._found

    # --- what the rules catch ------------------------------------------------------------------------------------

    @cached_property
    def _dispatch(self) -> Mapping[Key, tuple[int, Rule]]:
        return _catches(self.nat, names.SERVICES)

    @cached_property
    def _node_ports(self) -> Mapping[Key, tuple[int, Rule]]:
        return {("", proto, number): rule for (_, proto, number), rule in _catches(self.nat, names.NODEPORTS).items()}

    @cached_property
    def _refusals(self) -> Mapping[Key, tuple[str, int, Rule]]:
        """Key → (chain, position, rule) of the filter rules that refuse a Service."""
        found: dict[Key, tuple[str, int, Rule]] = {}
        if self.filters is not None:
            for chain in (names.EXTERNAL, names.SERVICES):
                for key, (position, rule) in _catches(self.filters, chain).items():
                    if rule.target.name in ("REJECT", "DROP"):
                        found[key] = (chain, position, rule)
        return found

    @cached_property
    def _outside(self) -> Outside:
        """How this node's kube-proxy writes the rule for traffic from outside, by what most chains have."""
        habits = Counter(
            habit
            for chain in self.nat.chains.values()
            if chain.name.startswith(("KUBE-SVC-", "KUBE-SVL-"))
            for habit in [_outside_habit(chain.rules)]
        )
        if not habits:
            return Outside(text=None)
        habit, count = habits.most_common(1)[0]
        return Outside(text=habit if count * 2 > habits.total() else None)

    # --- one port ------------------------------------------------------------------------------------------------

    def _port(self, service: Service, port: ServicePort, ends: Categories) -> Iterator[Suspicion]:
        name = port_name(service, port)
        backends = BackendCheck(self.nat, self.node, service, port, ends, self._outside)
        ips = [str(parse_ip(ip)) for ip in service.cluster_ips if ip not in ("", "None")]
        internal = ends.local if service.internal_traffic_policy == "Local" else ends.cluster
        for ip in ips:
            if ip_version(ip) == self.nat.family:
                yield from self._address(service, port, ip, "cluster IP", bool(internal), ends)
        if internal:
            yield from backends.cluster_ip(self._target(name, ips, port))
        if not is_external(service, port) or not ends.usable_anywhere:
            return
        for ip, what in self._external_addresses(service):
            yield from self._address(service, port, ip, what, True, ends)
        if port.node_port:
            yield from self._node_port(name, port)
        yield from self._source_ranges(service, name)
        yield from backends.external(self._external_chain(name, port))

    def _target(self, name: PortName, ips: list[str], port: ServicePort) -> str:
        """Return the chain to which the Service's cluster IP of this family leads ("" if it leads nowhere)."""
        for ip in ips:
            caught = self._dispatch.get((ip, str(name.protocol), port.port))
            if caught is not None:
                return caught[1].target.name
        return ""

    def _external_addresses(self, service: Service) -> Iterator[tuple[str, str]]:
        modes = service.load_balancer_ip_modes
        for ip in service.external_ips:
            if ip_version(ip) == self.nat.family:
                yield ip, "external IP"
        for index, ip in enumerate(service.load_balancer_ips):
            if ip_version(ip) == self.nat.family and (index >= len(modes) or modes[index] != "Proxy"):
                yield ip, "loadbalancer IP"

    def _external_chain(self, name: PortName, port: ServicePort) -> str:
        """Return the chain that traffic from outside enters, past a firewall chain ("" if there is none)."""
        chains = names.chains_of(name)
        if chains.external in self.nat.chains:
            return chains.external
        caught = self._node_ports.get(("", name.protocol, port.node_port)) if port.node_port else None
        return caught[1].target.name if caught else ""

    def _address(
        self, service: Service, port: ServicePort, ip: str, what: str, has_backends: bool, ends: Categories
    ) -> Iterator[Suspicion]:
        """Check that an address is caught when it has backends, and refused when not."""
        name = port_name(service, port)
        key = (ip, str(name.protocol), port.port)
        caught, refused = self._dispatch.get(key), self._refusals.get(key)
        chains = names.chains_of(name)
        if has_backends and caught is None:
            target = next((chain for chain in (chains.cluster, chains.local) if chain in self.nat.chains), "")
            target = target if what == "cluster IP" else chains.external
            code = "KP-SVC-001" if what == "cluster IP" else "KP-SVC-013"
            yield suspect(
                code,
                f"{self.node} does not catch {ip}:{port.port} ({what} of {name})",
                subject=self.subject,
                place=self.nat.place(names.SERVICES),
                seen="no rule for it in KUBE-SERVICES",
                expected=f"-A {names.SERVICES} {names.dispatch_rule(name, ip, port.port, what, target or chains.cluster)}",
                changes=self._insert_dispatch(name, ip, port.port, what, target),
            )
        elsewhere = what != "cluster IP" and service.external_traffic_policy == "Local" and not ends.local
        if has_backends and refused is not None and not elsewhere:
            yield self._refused_in_vain(name, refused, ends)
        if not has_backends and what == "cluster IP" and refused is None and self.filters is not None:
            rule = names.reject_rule(name, ip, port.port)
            exists = names.SERVICES in self.filters.chains and not ends.usable_anywhere
            yield suspect(
                "KP-SVC-010",
                f"{name} has no backend for {self.node}, but connections to {ip}:{port.port} are not refused there",
                subject=self.subject,
                place=self.filters.place(names.SERVICES),
                expected=f"-A {names.SERVICES} {rule}",
                changes=(insert_rule(self.filters, names.SERVICES, 1, rule),) if exists else (),
            )

    def _insert_dispatch(self, name: PortName, ip: str, number: int, what: str, target: str) -> tuple[Change, ...]:
        if target not in self.nat.chains:
            return ()
        return (insert_rule(self.nat, names.SERVICES, 1, names.dispatch_rule(name, ip, number, what, target)),)

    def _refused_in_vain(self, name: PortName, refused: tuple[str, int, Rule], ends: Categories) -> Suspicion:
        chain, position, rule = refused
        assert self.filters is not None, "it holds the rule"
        return suspect(
            "KP-SVC-011",
            f"{self.node} refuses {name}, which has {len(ends.cluster or ends.local)} backends",
            subject=self.subject,
            place=self.filters.place(chain, position),
            line=f"-A {chain} {rule.raw}",
            expected="no such rule",
            changes=(delete_rule(self.filters, chain, position, rule.raw),),
        )

    def _node_port(self, name: PortName, port: ServicePort) -> Iterator[Suspicion]:
        if ("", str(name.protocol), port.node_port) in self._node_ports:
            return
        chains = names.chains_of(name)
        rule = names.node_port_rule(name, port.node_port, chains.external)
        present = chains.external in self.nat.chains and names.NODEPORTS in self.nat.chains
        yield suspect(
            "KP-SVC-012",
            f"{self.node} does not catch node port {port.node_port} of {name}",
            subject=self.subject,
            place=self.nat.place(names.NODEPORTS),
            expected=f"-A {names.NODEPORTS} {rule}",
            changes=(insert_rule(self.nat, names.NODEPORTS, 0, rule),) if present else (),
        )

    def _source_ranges(self, service: Service, name: PortName) -> Iterator[Suspicion]:
        """Check that the firewall chain lets in what loadBalancerSourceRanges names, and nobody else but the address itself."""
        chain = names.chains_of(name).firewall
        ranges = {net for net in service.load_balancer_source_ranges if ip_version(net) == self.nat.family}
        if chain not in self.nat.chains or not ranges:
            return
        addresses = {host_net(ip) for ip in service.load_balancer_ips}
        allowed = {network(rule, "src") for rule in self.nat.rules(chain) if rule.target.name.startswith("KUBE-")}
        if not ranges <= allowed or allowed - ranges - addresses:
            shown = ", ".join(sorted(str(net) for net in allowed - addresses))
            yield suspect(
                "KP-SVC-016",
                f"{self.node} lets other clients reach the load balancer address of {name} than its source ranges name",
                subject=self.subject,
                place=self.nat.place(chain),
                seen=shown or "nobody",
                expected=", ".join(sorted(ranges)),
            )

    def _strangers(self) -> Iterator[Suspicion]:
        """Report addresses and ports that are caught for no Service."""
        wanted = {
            (ip, str(port.protocol), port.port)
            for service in self._check.state.objects.services
            for ip in (*service.cluster_ips, *service.external_ips, *service.load_balancer_ips)
            for port in service.ports
        }
        for key, (position, rule) in self._dispatch.items():
            if key not in wanted and rule.target.name.startswith(("KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-")):
                yield suspect(
                    "KP-SVC-014",
                    f"{self.node} still translates {key[0]}:{key[2]}/{key[1]}, which belongs to no Service",
                    subject=self.subject,
                    place=self.nat.place(names.SERVICES, position),
                    line=f"-A {names.SERVICES} {rule.raw}",
                    changes=(delete_rule(self.nat, names.SERVICES, position, rule.raw),),
                )


def _catches(view: TableView, chain: str) -> dict[Key, tuple[int, Rule]]:
    """Return the rules of a chain that ask for an exact protocol and port, by (address or "", protocol, port)."""
    found: dict[Key, tuple[int, Rule]] = {}
    for position, rule in view.numbered(chain):
        number, proto = dport(rule), plain(rule, "proto")
        if number is not None and proto is not None and rule.target.name:
            address = (plain(rule, "dst") or "").partition("/")[0]
            found.setdefault((address, str(Protocol(proto)) if proto in _KNOWN else proto, number), (position, rule))
    return found


_KNOWN = frozenset(protocol.value for protocol in Protocol)


def _outside_habit(rules: tuple[Rule, ...]) -> str | None:
    """Return `! -s NET ` or "" of the chain's rule that marks traffic from outside, None if it has none."""
    for rule in rules:
        if rule.target.name == names.MARK_CHAIN:
            return rule.raw.partition("-d ")[0]
    return None
