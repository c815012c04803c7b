"""What a source of collected state is: the `Collector` interface, and what it tells while it works.

A *machine* is what is collected in one go: a node with the pods on it, or a host beside the cluster. It is named by the id
of its own network namespace (`node/n1`, `host/ext`).
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from tasks.skoop.errors import KubeprobeError
from tasks.skoop.model.cluster import ClusterObjects, NodeNetworkStackDump
from tasks.skoop.model.ids import NetnsId


class CollectProgress(Struct, frozen=True, kw_only=True):
    """One namespace is done: `done` of `total`; `error` says why there is nothing of it ("" if there is)."""

    netns: NetnsId
    done: int
    total: int
    error: str = ""


Progress = Callable[[CollectProgress], None]
"""Is called once per namespace, from any thread, never twice at a time."""
Report = Callable[[NetnsId, str], None]
"""Tells that a namespace is done; the text is why there is nothing of it, or ""."""


class Collector(Protocol):
    """Reads one cluster's state from somewhere."""

    @property
    def source(self) -> str:
        """What is collected, for people: `topology flannel-vxlan`."""
        ...

    def namespaces(self) -> dict[NetnsId, Sequence[NetnsId]]:
        """Return each machine with the namespaces on it, its own first."""
        ...

    def objects(self) -> ClusterObjects:
        """Return the Kubernetes objects; what could not be read is in `missing`."""
        ...

    def collect(self, machine: NetnsId, report: Report) -> NodeNetworkStackDump:
        """Return the state of a machine's namespaces. What fails is in `failed`; raises KubeprobeError if all is lost."""
        ...

    def close(self) -> None:
        """Let go of processes and connections."""
        ...


class NothingCollected(KubeprobeError):
    """Not one namespace could be read."""

    def __init__(self, source: str, failed: dict[NetnsId, str]) -> None:
        self.source = source
        self.failed = failed
        name, reason = next(iter(failed.items()), ("", "there is none"))
        super().__init__(
            f"nothing could be collected from {source}: {name}{': ' if name else ''}{reason}; "
            "entering network namespaces needs root, or the user namespace that owns them"
        )
