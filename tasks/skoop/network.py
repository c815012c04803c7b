"""The network of one collected cluster, put together: addresses, plugin, service processor, infrastructure, assertions.

Built from a state alone, each part on first use; who only walks packets pays for nothing else. `suspicions` is everything that
looks wrong without a question asked; `concerning` is what of it may matter to one question.
"""

from collections.abc import Collection, Iterable
from functools import cached_property

from msgspec.structs import replace

from tasks.skoop.assertions.kubernetes import KubernetesAssertion
from tasks.skoop.assertions.netstack import NetstackAssertion
from tasks.skoop.assertions.scene import Cluster
from tasks.skoop.infra.protocol import InfraShim
from tasks.skoop.ipcache import IPCache
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.endpoint import Question
from tasks.skoop.model.suspicion import Level, Suspicion
from tasks.skoop.plugins.protocol import Plugin
from tasks.skoop.providers.detect import detect
from tasks.skoop.providers.protocol import Provider, Recognised
from tasks.skoop.service.kubeproxy import KubeProxy
from tasks.skoop.service.programming import candidates, programmed

SEVERITY = {Level.FATAL: 0, Level.CRITICAL: 1, Level.WARNING: 2, Level.INFO: 3}
NO_ENDPOINTS = frozenset(("KP-K8S-002", "KP-K8S-003"))
"""Findings about Services that nobody serves."""
MANY_SERVICES = 500
"""With more Services than this, only those that a question is about are compared with the nodes' rules."""


class Network:
    """The parts that a diagnosis is made with, for one collected cluster."""

    def __init__(self, state: ClusterState) -> None:
        self.state = state
        self._found: dict[frozenset[str] | None, tuple[Suspicion, ...]] = {}

    @classmethod
    def build(cls, state: ClusterState) -> "Network":
        """Return the network of a state."""
        return cls(state)

    @cached_property
    def ipcache(self) -> IPCache:
        """Whose address is this?"""
        return IPCache(self.state)

    @cached_property
    def _detected(self) -> tuple[Provider, Recognised]:
        return detect(self.ipcache)

    @property
    def provider(self) -> Recognised:
        """Which environment this is, and how it was recognised."""
        return self._detected[1]

    @cached_property
    def plugin(self) -> Plugin:
        """The network plugin."""
        return self._detected[0].plugin(self.ipcache)

    @cached_property
    def infra(self) -> InfraShim:
        """What lies between the nodes."""
        return self._detected[0].infra(self.ipcache)

    @cached_property
    def services(self) -> KubeProxy:
        """The service processor."""
        return KubeProxy(self.ipcache)

    @cached_property
    def cluster(self) -> Cluster:
        """The compiled namespaces, for assertions."""
        return Cluster(self.ipcache)

    # --- what looks wrong ----------------------------------------------------------------------------------------

    @cached_property
    def _standing(self) -> tuple[Suspicion, ...]:
        """Everything but the comparison of Services with rules."""
        return (
            *self.plugin.suspicions(),
            *NetstackAssertion(self.cluster).check_all(),
            *(self._with_proof(found) for found in KubernetesAssertion(self.cluster).check()),
        )

    def _with_proof(self, found: Suspicion) -> Suspicion:
        """Give a finding about a Service without endpoints the changes by which it can be tested; nobody types those."""
        service = self.ipcache.services.get(found.subject.removeprefix("svc/"))
        if found.code not in NO_ENDPOINTS or service is None or found.remedy is None:
            return found
        changes = programmed(self.state, service, candidates(self.state, service))
        return replace(found, remedy=replace(found.remedy, changes=changes))

    def suspicions(self, *, services: Collection[str] | None = None) -> tuple[Suspicion, ...]:
        """Return everything that looks wrong, worst first; `services` limits the comparison of rules to these Services."""
        key = None if services is None else frozenset(services)
        if key not in self._found:
            self._found[key] = in_order((*self._standing, *self.services.validate_all(services=key)))
        return self._found[key]

    def concerning(self, question: Question) -> tuple[Suspicion, ...]:
        """Return what looks wrong and may matter to a question: rules are compared for its Service alone if there are many."""
        services = None
        if len(self.state.objects.services) > MANY_SERVICES:
            services = frozenset(self._services_of(question))
        return self.suspicions(services=services)

    def _services_of(self, question: Question) -> Iterable[str]:
        dst = question.dst
        for service in self.ipcache.services_by_ip.get(dst.ip, ()):
            yield service.key
        for service in self.state.objects.services:
            if dst.port and any(port.node_port == dst.port for port in service.ports):
                yield service.key


def in_order(suspicions: Iterable[Suspicion]) -> tuple[Suspicion, ...]:
    """Return suspicions worst first, without those that say the same of the same place."""
    kept: dict[tuple[str, str, str], Suspicion] = {}
    for item in suspicions:
        place = str(item.place) if item.place is not None else item.message
        kept.setdefault((item.code, item.subject, place + item.message), item)
    return tuple(sorted(kept.values(), key=lambda item: SEVERITY[item.level]))
