"""NetstackAssertion: what looks wrong in the collected state of one network namespace, whatever plugin set it up."""

from collections.abc import Callable, Iterable

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.assertions.conntrack import conntrack_suspicions
from tasks.skoop.assertions.filters import filter_suspicions
from tasks.skoop.assertions.hostports import host_port_suspicions
from tasks.skoop.assertions.links import link_suspicions
from tasks.skoop.assertions.neighbours import neighbour_suspicions
from tasks.skoop.assertions.routes import route_suspicions
from tasks.skoop.assertions.scene import Cluster, Scene
from tasks.skoop.assertions.sockets import queue_suspicions
from tasks.skoop.assertions.sysctls import sysctl_suspicions
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.suspicion import Suspicion

CHECKS: tuple[Callable[[Scene], Iterable[Suspicion]], ...] = (
    link_suspicions,
    sysctl_suspicions,
    route_suspicions,
    neighbour_suspicions,
    filter_suspicions,
    host_port_suspicions,
    conntrack_suspicions,
    queue_suspicions,
)
"""All checks of one namespace, in the order of the report."""


class NetstackAssertion:
    """Checks namespaces of one collected cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def check(self, netns: NetnsId) -> tuple[Suspicion, ...]:
        """Return what looks wrong in a namespace; of one that was not collected, that it was not."""
        scene = self._cluster.scene(netns)
        if scene is None:
            why = self._cluster.state.uncollected.get(netns, "it is not in the snapshot")
            return (suspect("KP-K8S-016", f"{netns} was not collected: {why}", subject=netns),)
        return tuple(found for check in CHECKS for found in check(scene))

    def check_all(self) -> tuple[Suspicion, ...]:
        """Return what looks wrong in any namespace of the cluster, those that are missing included.

        Hosts outside the cluster are not judged: what is right for them is not known.
        """
        objects = self._cluster.state.objects
        wanted = dict.fromkeys(
            (
                *(netns for netns in self._cluster.state.netns if not netns.startswith("host/")),
                *(pod.netns for pod in objects.pods if pod.phase == "Running" and pod.node_name),
                *self._cluster.state.uncollected,
            )
        )
        return tuple(found for netns in wanted for found in self.check(netns))
