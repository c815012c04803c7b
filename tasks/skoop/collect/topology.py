"""Collects what a topology file names: network namespaces of nodes, pods and hosts, and a folder of Kubernetes objects.

    version: 1
    name: flannel-vxlan
    nodes: {n1: {netns: /proc/4711/ns/net}, …}              # a path, or a name that `ip netns list` shows
    pods: {shop/web-1: {netns: …, node: n1}, …}
    hosts: {ext: {netns: …}}                                # hosts beside the cluster, optional
    objects: k8s                                            # folder of `kubectl get KIND -A -o json` files, optional
    enter: {pid: 4711}                                      # optional: enter this process's user namespace first

Made by the lab; anyone's own test bed can write one. A pod with hostNetwork has no entry: it lives in its node's.
"""

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import yaml

from tasks.skoop.collect.enter import NAMED_NETNS, netns_path
from tasks.skoop.collect.manager import CollectorManager
from tasks.skoop.collect.messages import Place
from tasks.skoop.collect.protocol import Progress, Report
from tasks.skoop.collect.workers import TIMEOUT_S, WorkerPool, collect_places
from tasks.skoop.errors import RequestError
from tasks.skoop.model.cluster import ClusterObjects, ClusterState, NodeNetworkStackDump
from tasks.skoop.model.ids import NetnsId, NodeName, host_netns, node_netns, pod_netns
from tasks.skoop.parse.kube import parse_objects

VERSION = 1


class TopologyError(RequestError):
    """A topology file is not what it should be: where in it, what is wrong, what to do."""

    def __init__(self, file: Path, key: str, problem: str, hint: str) -> None:
        self.file = file
        self.key = key
        self.problem = problem
        self.hint = hint
        place = f"{file}: {key}" if key else str(file)
        super().__init__(f"{place}: {problem}; {hint}")


class _Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    netns: str


class _Pod(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    netns: str
    node: str


class _Enter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pid: int


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    nodes: dict[str, _Machine]
    name: str = ""
    pods: dict[str, _Pod] = {}
    hosts: dict[str, _Machine] = {}
    objects: str | None = None
    enter: _Enter | None = None


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    """A topology file, checked: each machine with its places (its own first), and the folder of objects (None: none)."""

    file: Path
    name: str
    machines: dict[NetnsId, tuple[Place, ...]]
    objects: Path | None = None
    enter_pid: int | None = None


def read_topology(file: Path) -> Topology:
    """Return a topology file's content. Raises TopologyError for what is misspelt, missing or gone."""
    raw = _load(file)
    enter_pid = raw.enter.pid if raw.enter is not None else None
    if enter_pid is not None and not Path("/proc", str(enter_pid)).exists():
        raise TopologyError(file, "enter.pid", f"there is no process {enter_pid}", "is the lab still up?")
    machines = {
        node_netns(name): [_place(file, f"nodes.{name}", node_netns(name), one.netns, enter_pid)]
        for name, one in raw.nodes.items()
    }
    for name, host in raw.hosts.items():
        machines[host_netns(name)] = [_place(file, f"hosts.{name}", host_netns(name), host.netns, enter_pid)]
    for key, pod in raw.pods.items():
        if key.count("/") != 1 or not all(key.split("/")):
            raise TopologyError(file, f"pods.{key}", "this is not the name of a pod", "write namespace/name")
        if pod.node not in raw.nodes:
            raise TopologyError(
                file, f"pods.{key}.node", f"there is no node {pod.node!r}", _nearest(pod.node, raw.nodes)
            )
        machines[node_netns(pod.node)].append(_place(file, f"pods.{key}", pod_netns(key), pod.netns, enter_pid))
    objects = file.parent / raw.objects if raw.objects is not None else None
    if objects is not None and not objects.is_dir():
        raise TopologyError(file, "objects", f"there is no folder {objects}", "the path is relative to the file")
    return Topology(
        file=file,
        name=raw.name or file.stem,
        machines={name: tuple(places) for name, places in machines.items()},
        objects=objects,
        enter_pid=enter_pid,
    )


def _load(file: Path) -> _File:
    try:
        content = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        raise TopologyError(
            file, "", "no such file", "give the path of a topology file, as `lab up` prints it"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise TopologyError(file, "", f"it cannot be read ({error})", "give the path of a topology file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it is not YAML"
        raise TopologyError(file, line, str(problem), "mend the YAML") from error
    if not isinstance(content, dict):
        raise TopologyError(file, "", "it holds no settings", "see the documentation of topology files")
    if content.get("version") != VERSION:
        found = content.get("version", "nothing")
        raise TopologyError(
            file, "version", f"{found!r} is not a version that this program knows", f"write version: {VERSION}"
        )
    try:
        return msgspec.convert(content, type=_File)
    except msgspec.ValidationError as error:
        raise _explained(file, str(error)) from error


def _explained(file: Path, text: str) -> TopologyError:
    """Turn msgspec's `Object contains unknown field `x` - at `$.nodes[...]`` into a sentence about a key."""
    problem, _, place = text.partition(" - at `$")
    key = place.rstrip("`").lstrip(".")
    hint = "see the documentation of topology files"
    if "unknown field" in problem:
        name = problem.split("`")[1]
        problem, hint = f"there is no setting {name!r}", _nearest(name, _settings(key))
    return TopologyError(file, key, problem[:1].lower() + problem[1:], hint)


def _settings(key: str) -> Sequence[str]:
    kinds: dict[str, type[msgspec.Struct]] = {"nodes": _Machine, "hosts": _Machine, "pods": _Pod, "enter": _Enter}
    return kinds.get(key.partition("[")[0], _File).__struct_fields__


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(sorted(known)) or 'none'}"


def _place(file: Path, key: str, netns: NetnsId, text: str, enter_pid: int | None) -> Place:
    path = netns_path(text, enter_pid=enter_pid)
    try:
        path.stat()
    except PermissionError:
        pass  # it may be open to the collecting process, which enters the user namespace first
    except OSError:
        raise TopologyError(file, f"{key}.netns", f"there is no network namespace {text}", _where(text, path)) from None
    return Place(netns, str(path))


def _where(text: str, path: Path) -> str:
    if "/" not in text:
        try:
            names = sorted(os.listdir(path.parent))  # noqa: PTH208 -- names are all that is wanted
        except OSError:
            names = []
        return _nearest(text, names) if names else f"no namespace has a name under {NAMED_NETNS}"
    return "has the process that held it ended? is the lab still up?" if text.startswith("/proc/") else "check the path"


class TopologyCollector:
    """Collects a topology; a `Collector`."""

    def __init__(self, topology: Topology, *, workers: int, timeout_s: float = TIMEOUT_S) -> None:
        self._topology = topology
        self._objects: ClusterObjects | None = None
        self._pool = WorkerPool(workers, enter_pid=topology.enter_pid, timeout_s=timeout_s)

    @property
    def source(self) -> str:
        """`topology <name>`."""
        return f"topology {self._topology.name}"

    def namespaces(self) -> dict[NetnsId, Sequence[NetnsId]]:
        """Return each machine with the namespaces on it, its own first."""
        return {name: [place.id for place in self._places(name)] for name in self._topology.machines}

    def objects(self) -> ClusterObjects:
        """Return the Kubernetes objects of the folder; all missing where the topology has none. Raises ParseError."""
        if self._objects is None:
            self._objects = read_objects(self._topology.objects)
        return self._objects

    def collect(self, machine: NetnsId, report: Report) -> NodeNetworkStackDump:
        """Return the state of a machine's namespaces."""
        node = NodeName(machine.partition("/")[2])
        return collect_places(self._pool, node, self._places(machine), self._others, report)

    def close(self) -> None:
        """End the collecting processes."""
        self._pool.close()

    def _places(self, machine: NetnsId) -> Sequence[Place]:
        shared = {pod_netns(pod.key) for pod in self.objects().pods if pod.host_network}
        return [place for place in self._topology.machines[machine] if place.id not in shared]

    def _others(self, place: Place) -> Sequence[Place]:
        return nearest_first(self._topology.machines, place)


def nearest_first(machines: Mapping[NetnsId, Sequence[Place]], place: Place) -> Sequence[Place]:
    """Return all other places: those of the same machine, then other machines' own, then the rest."""
    home = next((places for places in machines.values() if place in places), ())
    away = [places for places in machines.values() if places is not home]
    ordered = [*home, *(places[0] for places in away), *(one for places in away for one in places[1:])]
    return [one for one in ordered if one != place]


def read_objects(folder: Path | None) -> ClusterObjects:
    """Return the Kubernetes objects of a folder of JSON files (None: none). Raises ParseError, TopologyError."""
    if folder is None:
        return parse_objects({})
    try:
        return parse_objects({str(file): file.read_text() for file in sorted(folder.glob("*.json"))})
    except (OSError, UnicodeDecodeError) as error:
        raise TopologyError(folder, "", f"it cannot be read ({error})", "check the files in it") from error


def collect_machine(
    file: Path, machine: NetnsId, *, workers: int = 1, timeout_s: float = TIMEOUT_S, progress: Progress | None = None
) -> NodeNetworkStackDump:
    """Return the state of one machine of a topology (`node/n1` with its pods, or `host/ext`), collected now.

    `manager.assemble` puts machines together again. Raises TopologyError, also for a machine that is not in the file.
    """
    topology = read_topology(file)
    if machine not in topology.machines:
        raise TopologyError(file, "nodes", f"there is no {machine!r}", _nearest(machine, topology.machines))
    collector = TopologyCollector(topology, workers=workers, timeout_s=timeout_s)
    with CollectorManager(collector, progress=progress) as manager:
        return manager.dump(machine)


def default_workers() -> int:
    """Return how many collecting processes this machine can keep busy."""
    return min(8, len(os.sched_getaffinity(0)))


def collect_topology(
    file: Path, *, workers: int | None = None, timeout_s: float = TIMEOUT_S, progress: Progress | None = None
) -> ClusterState:
    """Return the state of the cluster that a topology file describes, collected now.

    `workers` is the number of collecting processes (None: one per processor, at most 8); `timeout_s` bounds each namespace.
    Raises TopologyError, ParseError for the Kubernetes objects, NothingCollected.
    """
    collector = TopologyCollector(read_topology(file), workers=workers or default_workers(), timeout_s=timeout_s)
    with CollectorManager(collector, progress=progress) as manager:
        return manager.collect()
