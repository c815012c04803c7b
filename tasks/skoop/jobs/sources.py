"""How the state of a network comes out of a source, and in and out of the blob store.

A recorded source (dumps, a snapshot) is read whole; a live one (a topology) machine by machine, by collecting processes that
all steps of a run in this process share. In the blob store a state is one `.kps` file, so that it can be taken out and mailed.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from tasks.skoop.context import CollectSettings, Context
from tasks.skoop.model.cluster import ClusterObjects, ClusterState
from tasks.skoop.specs import SourceKind, SourceSpec

if TYPE_CHECKING:
    from tasks.skoop.collect.topology import TopologyCollector

_UNFOLDS = 20
"""How many times the size of its `.kps` file a state takes in memory, roughly."""


def machines(source: SourceSpec) -> tuple[str, ...]:
    """Return the machines of a live source (`node/n1`, `host/ext`), none for a recorded one. Raises TopologyError."""
    if source.kind is not SourceKind.TOPOLOGY:
        return ()
    from tasks.skoop.collect.topology import read_topology

    return tuple(read_topology(Path(source.path)).machines)


def objects_of(source: SourceSpec, context: Context) -> ClusterObjects:
    """Return a source's Kubernetes objects. Raises what its reader raises."""
    if source.kind is not SourceKind.TOPOLOGY:
        return load_state(recorded(source, context), context).objects
    from tasks.skoop.collect.topology import read_objects, read_topology

    return read_objects(read_topology(Path(source.path)).objects)


def recorded(source: SourceSpec, context: Context) -> str:
    """Return the digest under which the state of a recorded source is in the blob store; a run reads it once."""
    key = ("recorded", context.run.run_id, source.kind, source.path)
    return context.memory.recall(key, lambda: (_read(source, context), 0))


def store_state(state: ClusterState, context: Context) -> str:
    """Put a state into the blob store, redacted, and return its digest: equal states have equal digests."""
    from tasks.skoop.snapshot import redact, save

    with tempfile.TemporaryDirectory(prefix="kubeprobe-") as folder:
        file = Path(folder) / "state.kps"
        save(state, file)
        return _store_file(file.read_bytes(), redact(state), context)


def load_state(digest: str, context: Context) -> ClusterState:
    """Return the state that is stored under a digest; this process remembers it. Raises as `snapshot.load`."""

    def read() -> tuple[ClusterState, int]:
        from tasks.skoop.snapshot import load

        content = context.blobs.get(digest)
        with tempfile.TemporaryDirectory(prefix="kubeprobe-") as folder:
            file = Path(folder) / "state.kps"
            file.write_bytes(content)
            return load(file), len(content) * _UNFOLDS

    return context.memory.recall(("state", digest), read)


def _read(source: SourceSpec, context: Context) -> str:
    path = Path(source.path)
    if source.kind is SourceKind.DUMPS:
        from tasks.skoop.collect.dumps import load_dumps

        return store_state(load_dumps(path), context)
    from tasks.skoop.snapshot import load

    state = load(path)
    return _store_file(path.read_bytes(), state, context) if path.is_file() else store_state(state, context)


def _store_file(content: bytes, state: ClusterState, context: Context) -> str:
    """Put a `.kps` file into the blob store; this process remembers the state that it holds."""
    digest = context.blobs.put(content)
    context.memory.keep(("state", digest), state, len(content) * _UNFOLDS)
    return digest


@contextmanager
def collector_of(source: SourceSpec, context: Context) -> "Iterator[TopologyCollector]":
    """Give the collector of a live source: one for all steps that want it at the same time, closed by the last of them."""
    shared: _Shared = context.memory.recall(("collector", source.path), lambda: (_Shared(source, context), 0))
    collector = shared.enter()
    try:
        yield collector
    finally:
        shared.leave()


class _Shared:
    """One collector with the number of those who use it."""

    def __init__(self, source: SourceSpec, context: Context) -> None:
        self._file = Path(source.path)
        self._workers = context.settings.of(CollectSettings).workers
        self._lock = Lock()
        self._users = 0
        self._collector: TopologyCollector | None = None

    def enter(self) -> "TopologyCollector":
        from tasks.skoop.collect.topology import TopologyCollector, default_workers, read_topology

        with self._lock:
            if self._collector is None:
                workers = self._workers or default_workers()
                self._collector = TopologyCollector(read_topology(self._file), workers=workers)
            self._users += 1
            return self._collector

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._collector is not None:
                self._collector.close()
                self._collector = None
