"""Runs collection: every machine in parallel, each once per run, failures recorded while the rest goes on."""

import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from types import TracebackType

from msgspec.structs import replace

from tasks.skoop.collect.protocol import Collector, CollectProgress, NothingCollected, Progress
from tasks.skoop.collect.standins import with_standins
from tasks.skoop.errors import KubeprobeError
from tasks.skoop.model.cluster import ClusterObjects, ClusterState, NodeNetworkStackDump
from tasks.skoop.model.ids import NetnsId, NodeName

MACHINES_AT_ONCE = 8


class CollectorManager:
    """Collects through one Collector and keeps what it brought for the rest of the run."""

    def __init__(
        self, collector: Collector, *, machines_at_once: int = MACHINES_AT_ONCE, progress: Progress | None = None
    ) -> None:
        self._collector = collector
        self._progress = progress
        self._namespaces = collector.namespaces()
        self._total = sum(map(len, self._namespaces.values()))
        self._done = 0
        self._lock = threading.Lock()
        self._told = threading.Lock()
        self._futures: dict[NetnsId, Future[NodeNetworkStackDump]] = {}
        self._threads = ThreadPoolExecutor(max_workers=machines_at_once, thread_name_prefix="collect")

    def __enter__(self) -> "CollectorManager":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._collector.close()

    def machines(self) -> tuple[NetnsId, ...]:
        """Return the ids of the machines: nodes, and hosts beside the cluster."""
        return tuple(self._namespaces)

    def dump(self, machine: NetnsId) -> NodeNetworkStackDump:
        """Return what was collected from a machine, collecting it if this run has not yet. Raises KeyError if unknown."""
        return self._start(machine).result()

    def collect(self) -> ClusterState:
        """Return the whole state. Raises NothingCollected, and what the reader of the Kubernetes objects raises."""
        futures = [self._start(machine) for machine in self._namespaces]
        dumps = [future.result() for future in futures]
        state = assemble(self._collector.objects(), dumps, source=self._collector.source)
        if not state.netns:
            raise NothingCollected(self._collector.source, state.uncollected)
        return state

    def _start(self, machine: NetnsId) -> Future[NodeNetworkStackDump]:
        with self._lock:
            future = self._futures.get(machine)
            if future is None:
                future = self._futures[machine] = self._threads.submit(self._run, machine, self._namespaces[machine])
            return future

    def _run(self, machine: NetnsId, namespaces: Iterable[NetnsId]) -> NodeNetworkStackDump:
        try:
            return self._collector.collect(machine, self._report)
        except KubeprobeError as error:
            node = NodeName(machine.partition("/")[2])
            return NodeNetworkStackDump(node=node, failed=dict.fromkeys(namespaces, str(error)))

    def _report(self, netns: NetnsId, error: str) -> None:
        with self._told:
            self._done += 1
            if self._progress is not None:
                self._progress(CollectProgress(netns=netns, done=self._done, total=self._total, error=error))


def assemble(objects: ClusterObjects, dumps: Iterable[NodeNetworkStackDump], *, source: str) -> ClusterState:
    """Return the state that machines' dumps and the Kubernetes objects make, taken now.

    A running pod or a node that Kubernetes has and no machine brought is in `uncollected`; a namespace that Kubernetes does
    not know gets an object made of what was seen in it (`standins`).
    """
    dumps = tuple(dumps)
    netns = {one.id: one for dump in dumps for one in dump.netns}
    failed = {name: reason for dump in dumps for name, reason in dump.failed.items()}
    state = ClusterState(
        objects=objects,
        netns=netns,
        taken_at=datetime.now(UTC).isoformat(timespec="seconds"),
        source=source,
        uncollected={**_unseen(objects, netns, source), **failed},
        tools=_tools(dumps),
    )
    return replace(state, objects=with_standins(state))


def _unseen(objects: ClusterObjects, netns: Mapping[NetnsId, object], source: str) -> dict[NetnsId, str]:
    """Return the namespaces that Kubernetes' objects speak of and nobody collected."""
    wanted = [NetnsId(f"node/{node.name}") for node in objects.nodes]
    wanted += [pod.netns for pod in objects.pods if pod.node_name and pod.phase == "Running" and not pod.host_network]
    return {name: f"Kubernetes has it, {source} does not" for name in wanted if name not in netns}


def _tools(dumps: Iterable[NodeNetworkStackDump]) -> dict[str, str]:
    """Return the versions of all machines' programs; where machines differ, each version with who has it."""
    said: dict[str, dict[str, list[str]]] = {}
    for dump in dumps:
        for name, version in dump.tools.items():
            said.setdefault(name, {}).setdefault(version, []).append(dump.node)
    return {
        name: next(iter(versions))
        if len(versions) == 1
        else "; ".join(
            f"{version} ({', '.join(nodes[:3])}{' …' if len(nodes) > 3 else ''})" for version, nodes in versions.items()
        )
        for name, versions in said.items()
    }
