"""Collects this machine: every network namespace on it, without asking a container runtime.

Namespaces are found by the processes in them (/proc/PID/ns/net) and by the files that hold them open (nsfs mounts, as
`ip netns` and CNI make them). Whose they are, the cgroup of a process says: the kubelet puts a pod's UID into its path.
The pod's name comes from the Kubernetes objects if they are given, else from the kubelet's log folders, which are named
`namespace_pod_uid`. What is neither the host nor a pod is a host beside the cluster.
"""

import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from tasks.skoop.collect.manager import CollectorManager
from tasks.skoop.collect.messages import Place
from tasks.skoop.collect.namespace import processes_by_netns
from tasks.skoop.collect.protocol import Progress, Report
from tasks.skoop.collect.topology import default_workers, nearest_first, read_objects
from tasks.skoop.collect.workers import TIMEOUT_S, WorkerPool, collect_places
from tasks.skoop.model.cluster import ClusterObjects, ClusterState, NodeNetworkStackDump, PodMeta
from tasks.skoop.model.ids import NetnsId, NodeName, host_netns, node_netns, pod_netns

POD_LOGS = Path("/var/log/pods")
SUBNET_ENV = Path("/run/flannel/subnet.env")
_POD_UID = re.compile(
    r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})(?![0-9a-f])"
)
_NSFS_ROOT = re.compile(r"net:\[(\d+)\]")


class Space(Struct, frozen=True, kw_only=True):
    """One network namespace of this machine: its inode, how it is entered, who lives in it, the name it is held by."""

    inode: int
    path: str
    pids: tuple[int, ...] = ()
    name: str = ""


def pod_uid(cgroup: str) -> str | None:
    """Return the pod's UID in the text of /proc/PID/cgroup; None for a process of no pod.

    The systemd driver of the kubelet writes it with underscores, cgroupfs with dashes; a static pod's is a hash of 32 digits.
    """
    found = _POD_UID.search(cgroup)
    return found.group(1).replace("_", "-") if found else None


def find_spaces(mountinfo: Iterable[str], processes: Mapping[int, Sequence[int]]) -> tuple[Space, ...]:
    """Return the namespaces of processes (inode → PIDs) and of the nsfs mounts in the lines of a mountinfo."""
    held: dict[int, str] = {}
    for line in mountinfo:
        words = line.split()
        root = _NSFS_ROOT.fullmatch(words[3]) if len(words) > 4 else None
        if root is not None:
            held.setdefault(int(root.group(1)), words[4].replace("\\040", " "))
    inodes = sorted({*held, *processes})
    return tuple(
        Space(
            inode=inode,
            path=f"/proc/{min(processes[inode])}/ns/net" if inode in processes else held[inode],
            pids=tuple(sorted(processes.get(inode, ()))),
            name=Path(held[inode]).name if inode in held else "",
        )
        for inode in inodes
    )


def logged_pods(folder: Path = POD_LOGS) -> dict[str, tuple[str, str]]:
    """Return pod UID → (namespace, name), as the kubelet's log folders tell."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 -- names are all that is wanted
    except OSError:
        return {}
    split = (name.split("_") for name in names)
    return {parts[2]: (parts[0], parts[1]) for parts in split if len(parts) == 3}


class HostCollector:
    """Collects this machine as one node; a `Collector`."""

    def __init__(
        self, *, node: str, objects: ClusterObjects, workers: int, timeout_s: float = TIMEOUT_S, logs: Path = POD_LOGS
    ) -> None:
        self._machine = node_netns(node)
        self._pool = WorkerPool(workers, timeout_s=timeout_s)
        pods = {
            uid: PodMeta(namespace=namespace, name=name, uid=uid)
            for uid, (namespace, name) in logged_pods(logs).items()
        }
        pods |= {pod.uid: pod for pod in objects.pods if pod.uid}
        self._given = objects
        self._found: dict[NetnsId, PodMeta] = {}
        self._places = self._name(_spaces(), pods)

    @property
    def source(self) -> str:
        """`host <name>`."""
        return f"host {self._machine.partition('/')[2]}"

    def namespaces(self) -> dict[NetnsId, Sequence[NetnsId]]:
        """Return this machine with its namespaces, its own first."""
        return {self._machine: [place.id for place in self._places]}

    def objects(self) -> ClusterObjects:
        """Return the given objects, with the pods that were found here and are not among them, and flannel's settings."""
        node = self._machine.partition("/")[2]
        known = {pod.key for pod in self._given.pods}
        pods = tuple(replace(pod, node_name=NodeName(node)) for pod in self._found.values() if pod.key not in known)
        config = dict(self._given.config)
        with suppress(OSError):  # where there is no flannel
            config[f"node/{node}/subnet.env"] = SUBNET_ENV.read_text()
        return replace(self._given, pods=(*self._given.pods, *pods), config=config)

    def collect(self, machine: NetnsId, report: Report) -> NodeNetworkStackDump:
        """Return the state of this machine's namespaces."""
        node = NodeName(machine.partition("/")[2])
        others = {machine: self._places}
        dump = collect_places(self._pool, node, self._places, lambda place: nearest_first(others, place), report)
        for one in dump.netns:
            pod = self._found.get(one.id)
            if pod is not None and not pod.ips:
                found = (address for link in one.interfaces if link.kind != "loopback" for address in link.addresses)
                self._found[one.id] = replace(pod, ips=tuple(item.ip for item in found if item.scope == "global"))
        return dump

    def close(self) -> None:
        """End the collecting processes."""
        self._pool.close()

    def _name(self, spaces: Sequence[Space], pods: Mapping[str, PodMeta]) -> tuple[Place, ...]:
        """Return the places of the namespaces under the ids that they get, this machine's own first."""
        own = _own_inode()
        named: dict[NetnsId, Place] = {}
        for space in sorted(spaces, key=lambda space: space.inode != own):
            pod = None if space.inode == own else _pod_of(space, pods)
            if space.inode == own:
                name = self._machine
            elif pod is not None:
                name = pod_netns(pod.key)
                self._found[name] = pod
            else:
                name = host_netns(space.name or _named_by_process(space))
            if name in named:
                name = NetnsId(f"{name}-{space.inode}")
            named[name] = Place(name, space.path)
        return tuple(named.values())


def _spaces() -> tuple[Space, ...]:
    lines: list[str] = []
    for pid in ("1", "self"):
        try:
            lines += Path("/proc", pid, "mountinfo").read_text().splitlines()
        except OSError:
            continue  # the first process is not ours to look at; our own view remains
    return find_spaces(lines, processes_by_netns())


def _own_inode() -> int:
    """Return the inode of the host's namespace: the first process's, or ours where that is hidden from us."""
    for pid in ("1", "self"):
        try:
            return Path("/proc", pid, "ns/net").stat().st_ino
        except OSError:
            continue
    return 0


def _pod_of(space: Space, pods: Mapping[str, PodMeta]) -> PodMeta | None:
    """Return the pod whose processes live in a namespace; one by its UID alone if nothing tells its name."""
    for uid in _uids(space.pids):
        known = pods.get(uid)
        return known if known is not None else PodMeta(namespace="unknown", name=uid, uid=uid)
    return None


def _uids(pids: Iterable[int]) -> Iterator[str]:
    for pid in pids:
        try:
            uid = pod_uid(Path("/proc", str(pid), "cgroup").read_text())
        except OSError:
            continue
        if uid is not None:
            yield uid


def _named_by_process(space: Space) -> str:
    if not space.pids:
        return str(space.inode)
    try:
        return f"{Path('/proc', str(space.pids[0]), 'comm').read_text().strip()}-{space.pids[0]}".replace("/", "_")
    except OSError:
        return str(space.inode)


def collect_host(
    *,
    node: str | None = None,
    objects: Path | None = None,
    workers: int | None = None,
    timeout_s: float = TIMEOUT_S,
    progress: Progress | None = None,
) -> ClusterState:
    """Return the state of this machine, all its network namespaces, collected now.

    `node` is its name as a node (None: its host name); `objects` a folder of `kubectl get KIND -A -o json` files, without
    which pods are named as the kubelet's log folders do. Raises ParseError, NothingCollected.
    """
    collector = HostCollector(
        node=node or socket.gethostname(),
        objects=read_objects(objects),
        workers=workers or default_workers(),
        timeout_s=timeout_s,
    )
    with CollectorManager(collector, progress=progress) as manager:
        return manager.collect()
