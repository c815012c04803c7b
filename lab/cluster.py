"""A running lab in this process: built, probed, broken and mended by plain method calls.

`with Lab(Kind.FLANNEL_VXLAN) as lab:` is what tests and the long-lived holder both use. Needs root (or the root of an own
user namespace) and leaves nothing behind: the namespaces die with the descriptors.
"""

import json
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from lab.build import build, make_namespaces
from lab.errors import BadRequest, LabFailed
from lab.faulting import Faulting
from lab.faults.fault import Break
from lab.netns import Netns
from lab.objects import all_objects
from lab.plan import Backend, ClusterPlan, Kind, make_plan
from lab.prober import Ask, Attempt, attempt_all
from lab.rtnl import NETLINK_NETFILTER, NetlinkError, Rtnl
from lab.servers import Servers
from lab.snapshot import forget_neighbours, forget_path_mtus
from lab.truth import Truth, find
from lab.watch import Watch
from tasks.skoop.model.trace import View

_CT_DELETE = (1 << 8) | 2


class Lab:
    """One cluster. `spaces` maps namespace ids to namespaces; `plan` is what was built."""

    def __init__(
        self,
        kind: Kind = Kind.FLANNEL_VXLAN,
        *,
        nodes: int = 3,
        backend: Backend = Backend.LEGACY,
        families: tuple[int, ...] = (4, 6),
        folder: Path | None = None,
        enter_pid: int | None = None,
    ) -> None:
        """Plan a lab; `up` builds it. `folder` is where the topology file goes (None: a temporary one).

        `enter_pid`: the process whose user namespace a collector must enter first, if that is not the machine's own.
        """
        self.plan: ClusterPlan = make_plan(kind, nodes=nodes, backend=backend, families=families)
        self.spaces: dict[str, Netns] = {}
        self.servers = Servers()
        self._watch: Watch | None = None
        self._faulting = Faulting(self)
        self._enter_pid = enter_pid
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="kubeprobe-lab-")
        self.folder = folder or Path(self._temporary.name if self._temporary else "")

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    @property
    def lock(self) -> Path:
        """The lock file that iptables shall use."""
        return self.folder / "xtables.lock"

    @property
    def topology(self) -> Path:
        """The topology file."""
        return self.folder / "topology.yaml"

    def up(self) -> None:
        """Build the cluster, open its servers and write topology file and objects. Raises LabFailed."""
        try:
            self.spaces = make_namespaces(self.plan)
            build(self.plan, self.spaces, lock=self.lock)
            self._open_servers()
            self.write_files()
        except NetlinkError as error:
            self.down()
            raise LabFailed("building the lab", str(error)) from error
        except (OSError, LabFailed):
            self.down()
            raise

    def down(self) -> None:
        """Close everything; the kernel then takes the namespaces away."""
        self.servers.close()
        if self._watch:
            self._watch.close()
        for netns in self.spaces.values():
            netns.close()
        self.spaces = {}
        if self._temporary:
            self._temporary.cleanup()

    def _open_servers(self) -> None:
        for thing in self.plan.machines:
            for listener in thing.listeners:
                self.servers.listen(self.spaces[thing.netns], listener, self.plan.families)

    def write_files(self) -> None:
        """Write topology.yaml and the folder of Kubernetes objects."""
        pid = os.getpid()

        def where(netns: str) -> dict[str, str]:
            return {"netns": f"/proc/{pid}/fd/{self.spaces[netns].fd}"}

        topology: dict[str, object] = {
            "version": 1,
            "name": str(self.plan.kind),
            "nodes": {node.name: where(node.netns) for node in self.plan.nodes},
            "pods": {pod.key: where(pod.netns) | {"node": pod.node} for pod in self.plan.pods},
            "hosts": {host.name: where(host.netns) for host in self.plan.hosts},
            "objects": "k8s",
        }
        if self._enter_pid is not None:
            topology["enter"] = {"pid": self._enter_pid}
        self.write_objects()
        self.topology.write_text(yaml.safe_dump(topology, sort_keys=False))

    def write_objects(self) -> None:
        """Write the Kubernetes objects of the plan as it is now."""
        folder = self.folder / "k8s"
        folder.mkdir(parents=True, exist_ok=True)
        for stem, listing in all_objects(self.plan).items():
            (folder / f"{stem}.json").write_text(json.dumps(listing, indent=1))

    def attempt(self, *asks: Ask) -> list[Attempt]:
        """Try connections for real, all at once. Raises BadRequest for a namespace that is not there."""
        for ask in asks:
            if ask.src not in self.spaces:
                raise BadRequest("source", ask.src, tuple(self.spaces))
        return attempt_all(asks, self.spaces, self.servers)

    def probe(self, ask: Ask, *, tries: int = 2) -> Truth:
        """Try one connection with every namespace watched, and say where it ended.

        A try that ends in silence is made `tries` times at most before it is believed (a busy machine may be late).
        """
        truth = self._watched(ask)
        for _ in range(tries - 1):
            if truth.attempt.view != View.TIMEOUT:
                break
            truth = self._watched(ask)
        return truth

    def _watched(self, ask: Ask) -> Truth:
        if self._watch is None:
            self._watch = Watch(self.plan, self.spaces)
        self._watch.start(6 if ":" in ask.dst else 4)
        (attempt,) = self.attempt(ask)
        return find(attempt, self._watch.stop(), self.plan)

    @property
    def broken(self) -> tuple[Break, ...]:
        """The faults that are in now."""
        return self._faulting.broken

    def break_(self, fault: str, on: str | None = None) -> Break:
        """Put a fault in (`on` a node or pod; default: the fault's own choice). Raises BadRequest, LabFailed."""
        return self._faulting.put(fault, on)

    def mend(self, fault: str | None = None) -> tuple[str, ...]:
        """Take a fault out, or all; return the ids of what was mended. Raises BadRequest, LabFailed."""
        return self._faulting.take_out(fault)

    def forget(self, *, connections: bool = True) -> None:
        """Forget learned neighbours, cached path MTUs and (unless told not to) tracked connections: the next try is the first.

        Below a user namespace the kernel keeps the switch for cached path MTUs to itself; they then live on.
        """
        for netns in self.spaces.values():
            forget_neighbours(netns)
            forget_path_mtus(netns)
            if connections:
                flush_conntrack(netns)


def flush_conntrack(netns: Netns) -> None:
    """Delete every tracked connection of a namespace (a delete without tuple, ctnetlink); nothing where there is none.

    The kernel looks through its whole table, of all namespaces, for it.
    """
    with netns.inside():
        try:
            count = os.open("/proc/sys/net/netfilter/nf_conntrack_count", os.O_RDONLY)
        except OSError:
            return
        try:
            if os.read(count, 32).strip() == b"0":
                return
        finally:
            os.close(count)
        tracker = Rtnl(NETLINK_NETFILTER)
    try:
        tracker.send(_CT_DELETE, bytes(4), 0, "conntrack flush")
    finally:
        tracker.close()
