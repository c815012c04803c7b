"""Do the chains of one Service port lead to the backends that it has?

A Service's chain is a list of jumps with probabilities; an endpoint's chain marks the endpoint's own traffic and translates.
"""

from collections.abc import Iterator

from msgspec import Struct

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.assertions.rules import TableView, conditions, has_match, plain, probability, target_option
from tasks.skoop.model.cluster import Service, ServicePort
from tasks.skoop.model.ids import NodeName
from tasks.skoop.model.suspicion import AddChain, Change, Suspicion
from tasks.skoop.model.xtables import Rule
from tasks.skoop.service import iptables_names as names
from tasks.skoop.service.iptables_chain import Line, delete_rule, edits, insert_rule
from tasks.skoop.service.selection import Backend, Categories, port_name

CLOSE = 1e-4
"""Probabilities nearer than this are the same (the kernel rounds them to 1/2^31)."""


class Outside(Struct, frozen=True):
    """How this node's chains begin: `! -s NET ` before the mark, "" to mark everything, None: they do not mark."""

    text: str | None


class BackendCheck:
    """The comparison of the chains of one Service port on one node."""

    def __init__(
        self,
        nat: TableView,
        node: NodeName,
        service: Service,
        port: ServicePort,
        ends: Categories,
        outside: Outside,
    ) -> None:
        self._nat = nat
        self._node = node
        self._service = service
        self._port = port
        self._name = port_name(service, port)
        self._ends = ends
        self._outside = outside
        self._checked: set[str] = set()

    def cluster_ip(self, chain: str) -> Iterator[Suspicion]:
        """Check the chain that the cluster IP leads to."""
        local = self._service.internal_traffic_policy == "Local"
        backends = self._ends.local if local else self._ends.cluster
        chain = chain or self._own_chain(local=local)
        if chain in self._nat.chains:
            yield from self._marks_outside(chain)
            yield from self._balance(chain, backends)

    def external(self, chain: str) -> Iterator[Suspicion]:
        """Check the chain that traffic from outside enters: the masquerade, and where it goes on."""
        if chain not in self._nat.chains:
            return
        local = self._service.external_traffic_policy == "Local"
        backends = self._ends.local if local else self._ends.cluster
        own = self._own_chain(local=local)
        rules = self._nat.rules(chain)
        if not local and not any(rule.target.name == names.MARK_CHAIN and not conditions(rule) for rule in rules):
            mark = f'-m comment --comment "masquerade traffic for {self._name} external destinations" -j {names.MARK_CHAIN}'
            yield self._incomplete(chain, f"-A {chain} {mark}", (insert_rule(self._nat, chain, 1, mark),))
        if backends and not any(rule.target.name == own and not conditions(rule) for rule in rules):
            changes = (insert_rule(self._nat, chain, 0, f"-j {own}"),) if own in self._nat.chains else ()
            yield self._incomplete(chain, f"-A {chain} -j {own}", changes)
        if backends and own in self._nat.chains and own not in self._checked:
            yield from self._balance(own, backends)

    def _own_chain(self, *, local: bool) -> str:
        chains = names.chains_of(self._name)
        return chains.local if local else chains.cluster

    def _incomplete(self, chain: str, expected: str, changes: tuple[Change, ...]) -> Suspicion:
        return suspect(
            "KP-SVC-015",
            f"traffic from outside for {self._name} is not handled as it should be on {self._node}",
            subject=self._nat.netns,
            place=self._nat.place(chain),
            seen="the rule is missing",
            expected=expected,
            changes=changes,
        )

    def _marks_outside(self, chain: str) -> Iterator[Suspicion]:
        """Check the mark for traffic from outside, if the chains of this node usually have it."""
        ip = next((ip for ip in self._service.cluster_ips if (":" in ip) == (self._nat.family == 6)), "")
        if self._outside.text is None or not ip:
            return
        if not any(rule.target.name == names.MARK_CHAIN for rule in self._nat.rules(chain)):
            rule = names.outside_masquerade_rule(self._name, ip, self._port.port, self._outside.text)
            yield suspect(
                "KP-SVC-006",
                f"traffic from outside the pods to {self._name} is not masqueraded on {self._node}, unlike other Services'",
                subject=self._nat.netns,
                place=self._nat.place(chain),
                expected=f"-A {chain} {rule}",
                changes=(insert_rule(self._nat, chain, 1, rule),),
            )

    # --- the balance ---------------------------------------------------------------------------------------------

    def _balance(self, chain: str, backends: tuple[Backend, ...]) -> Iterator[Suspicion]:
        """Check a chain's jumps against the backends, then the chains that they lead to."""
        self._checked.add(chain)
        present = [
            Line((rule.target.name, _share(rule)), rule.raw, position)
            for position, rule in self._nat.numbered(chain)
            if rule.target.name in self._nat.chains
            and rule.target.name != names.MARK_CHAIN
            and not has_match(rule, "recent")
        ]
        wanted = self._wanted(backends)
        known = {line.key[0]: backend for line, backend in zip(wanted, backends, strict=True)}
        there = {line.key[0] for line in present}
        missing = [backend for name, backend in known.items() if name not in there]
        extra = [line for line in present if line.key[0] not in known]
        changes = (*self._endpoint_chains(missing), *edits(self._nat, chain, present, wanted))
        for backend in missing:
            yield self._missing(chain, backend, present, changes)
        for line in extra:
            yield self._extra(chain, line, changes)
        if not missing and not extra and [line.key for line in present] != [line.key for line in wanted]:
            yield self._uneven(chain, present, wanted, changes)
        for name, backend in known.items():
            if name in self._nat.chains:
                yield from self._endpoint(name, backend)

    def _wanted(self, backends: tuple[Backend, ...]) -> list[Line]:
        lines = []
        for index, backend in enumerate(backends):
            share = 1 / (len(backends) - index)
            chain = names.endpoint_chain(self._name, backend)
            lines.append(Line((chain, round(share, 4)), names.balance_rule(self._name, backend, share)))
        return lines

    def _endpoint_chains(self, missing: list[Backend]) -> tuple[Change, ...]:
        """Return the changes that make the chains of endpoints that have none."""
        changes: list[Change] = []
        for backend in missing:
            chain = names.endpoint_chain(self._name, backend)
            if chain not in self._nat.chains:
                nat = self._nat
                changes += [
                    AddChain(netns=nat.netns, backend=nat.backend, family=nat.family, table=nat.name, chain=chain),
                    insert_rule(nat, chain, 0, names.own_traffic_rule(self._name, backend)),
                    insert_rule(nat, chain, 0, self._dnat(backend)),
                ]
        return tuple(changes)

    def _dnat(self, backend: Backend) -> str:
        return names.dnat_rule(self._name, backend, affinity=self._service.session_affinity == "ClientIP")

    def _missing(self, chain: str, backend: Backend, present: list[Line], changes: tuple[Change, ...]) -> Suspicion:
        who = f" ({backend.pod} on {backend.node})" if backend.pod else ""
        return suspect(
            "KP-SVC-002",
            f"{self._node} sends nothing of {self._name} to its backend {backend.text}{who}",
            subject=self._nat.netns,
            place=self._nat.place(chain),
            seen=f"{len(present)} backends in {chain}",
            expected=f"a jump to {names.endpoint_chain(self._name, backend)} for {backend.text}",
            changes=changes,
        )

    def _extra(self, chain: str, line: Line, changes: tuple[Change, ...]) -> Suspicion:
        to = next(
            (
                target_option(rule, "to-destination") or ""
                for rule in self._nat.rules(line.key[0])
                if rule.target.name == "DNAT"
            ),
            "",
        )
        return suspect(
            "KP-SVC-003",
            f"{self._node} sends connections of {self._name} to {to or line.key[0]}, which is no usable endpoint of it",
            subject=self._nat.netns,
            place=self._nat.place(chain, line.position),
            line=f"-A {chain} {line.raw}",
            expected="no such backend",
            changes=changes,
        )

    def _uneven(self, chain: str, present: list[Line], wanted: list[Line], changes: tuple[Change, ...]) -> Suspicion:
        return suspect(
            "KP-SVC-020",
            f"the backends of {self._name} on {self._node} do not get equal shares",
            subject=self._nat.netns,
            place=self._nat.place(chain, present[0].position if present else 0),
            seen=", ".join(f"{line.key[1]:g}" for line in present),
            expected=", ".join(f"{line.key[1]:g}" for line in wanted),
            changes=changes,
        )

    # --- one endpoint's chain ------------------------------------------------------------------------------------

    def _endpoint(self, chain: str, backend: Backend) -> Iterator[Suspicion]:
        rules = self._nat.rules(chain)
        dnat = next(((at, rule) for at, rule in enumerate(rules, 1) if rule.target.name == "DNAT"), None)
        right = dnat is not None and _translates(dnat[1], backend, self._name.protocol)
        if not right:
            changes: list[Change] = []
            if dnat is not None:
                changes.append(delete_rule(self._nat, chain, dnat[0], dnat[1].raw))
            changes.append(insert_rule(self._nat, chain, 0, self._dnat(backend)))
            yield suspect(
                "KP-SVC-004",
                f"the chain of {self._name}'s backend {backend.text} on {self._node} does not translate to it",
                subject=self._nat.netns,
                place=self._nat.place(chain, dnat[0] if dnat else 0),
                seen=f"-A {chain} {dnat[1].raw}" if dnat else "no DNAT rule",
                expected=f"-A {chain} {self._dnat(backend)}",
                changes=changes,
            )
        if not any(rule.target.name == names.MARK_CHAIN for rule in rules):
            rule = names.own_traffic_rule(self._name, backend)
            yield suspect(
                "KP-SVC-005",
                f"{backend.text} cannot reach itself through {self._name} on {self._node}: its traffic is not masqueraded",
                subject=self._nat.netns,
                place=self._nat.place(chain),
                expected=f"-A {chain} {rule}",
                changes=(insert_rule(self._nat, chain, 1, rule),),
            )


def _share(rule: Rule) -> float:
    """Return the chance of a jump among what reaches it."""
    chance = probability(rule)
    return 1.0 if chance is None else round(chance, 4)


def _translates(rule: Rule, backend: Backend, protocol: str) -> bool:
    """Say whether a DNAT rule sends the protocol to the backend."""
    return target_option(rule, "to-destination") == backend.text and plain(rule, "proto") in (None, protocol)
