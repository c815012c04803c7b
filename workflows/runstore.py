"""Where run records are kept: in this process, or in a folder with one file of JSON lines for each run.

A store moves a run by compare-and-set: `append` takes a change only if it follows the version that the writer has seen. In a
folder the writers of several processes are kept apart by a lock on the file; a line that a dying writer left half-written is
cut off by the next one and never seen by readers.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import IO, Protocol

import msgspec

from workflows.blobs import usable
from workflows.errors import RunExists, RunNotFound, RunUnreadable
from workflows.runs import FORMAT, Change, Run, fold

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class RunStore(Protocol):
    """Runs by id."""

    def create(self, run: Run) -> None:
        """Store a new run, version 0. Raises RunExists, StoreUnusable."""
        ...

    def append(self, run_id: str, change: Change) -> bool:
        """Append a change if its version is the stored one plus 1; say whether it was. Raises RunNotFound, StoreUnusable."""
        ...

    def load(self, run_id: str) -> Run:
        """Return the run as it is now. Raises RunNotFound, RunUnreadable, StoreUnusable."""
        ...

    def changes(self, run_id: str, after: int) -> list[Change]:
        """Return the changes after that version, in order. Raises as `load`."""
        ...

    def ids(self) -> list[str]:
        """Return the ids of all runs, sorted."""
        ...

    def remove(self, run_id: str) -> None:
        """Forget a run. Raises RunNotFound, StoreUnusable."""
        ...


class MemoryRuns:
    """Runs in this process, gone with it."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._changes: dict[str, list[Change]] = {}
        self._lock = Lock()

    def create(self, run: Run) -> None:
        """Store a new run; see RunStore."""
        with self._lock:
            if run.id in self._runs:
                raise RunExists(run.id)
            self._runs[run.id] = run
            self._changes[run.id] = []

    def append(self, run_id: str, change: Change) -> bool:
        """Append a change; see RunStore."""
        with self._lock:
            known = self._known(run_id)
            if change.version != len(known) + 1:
                return False
            known.append(change)
            return True

    def load(self, run_id: str) -> Run:
        """Return the run; see RunStore."""
        changes = self.changes(run_id, 0)
        return fold(self._runs[run_id], changes)

    def changes(self, run_id: str, after: int) -> list[Change]:
        """Return the changes after a version; see RunStore."""
        with self._lock:
            return self._known(run_id)[after:]

    def ids(self) -> list[str]:
        """Return the ids of all runs; see RunStore."""
        return sorted(self._runs)

    def remove(self, run_id: str) -> None:
        """Forget a run; see RunStore."""
        with self._lock:
            self._known(run_id)
            del self._runs[run_id], self._changes[run_id]

    def _known(self, run_id: str) -> list[Change]:
        if run_id not in self._changes:
            raise RunNotFound(run_id, "this process's memory")
        return self._changes[run_id]


class DirectoryRuns:
    """Runs in a folder: `<id>.jsonl`, the header in the first line and a change in each further one."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen: dict[str, tuple[int, int]] = {}
        self._encoder = msgspec.json.Encoder()
        self._header = msgspec.json.Decoder(Run)
        self._change = msgspec.json.Decoder(Change)

    def create(self, run: Run) -> None:
        """Store a new run; see RunStore. It is written aside and linked into place: there whole or not at all."""
        path = self._path(run.id)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        with usable(self._root):
            self._root.mkdir(parents=True, exist_ok=True)
            try:
                aside.write_bytes(self._encoder.encode(run) + b"\n")
                path.hardlink_to(aside)
            except FileExistsError:
                raise RunExists(run.id) from None
            finally:
                aside.unlink(missing_ok=True)

    def append(self, run_id: str, change: Change) -> bool:
        """Append a change; see RunStore."""
        with self._open(run_id, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size, version = self._tail(run_id, file)
            if change.version != version + 1:
                return False
            line = self._encoder.encode(change) + b"\n"
            file.seek(size)
            file.truncate()
            file.write(line)
            file.flush()
            self._seen[run_id] = (size + len(line), change.version)
            return True

    def load(self, run_id: str) -> Run:
        """Return the run; see RunStore."""
        header, *changes = self._lines(run_id)
        try:
            if (stored := msgspec.json.decode(header).get("format", FORMAT)) != FORMAT:
                raise RunUnreadable(run_id, f"it has format {stored}, this program reads {FORMAT}")
            return fold(self._header.decode(header), [self._change.decode(line) for line in changes])
        except (msgspec.MsgspecError, AttributeError) as error:
            raise RunUnreadable(run_id, str(error)) from error

    def changes(self, run_id: str, after: int) -> list[Change]:
        """Return the changes after a version; see RunStore."""
        try:
            return [self._change.decode(line) for line in self._lines(run_id)[1 + after :]]
        except msgspec.MsgspecError as error:
            raise RunUnreadable(run_id, str(error)) from error

    def ids(self) -> list[str]:
        """Return the ids of all runs; see RunStore."""
        return sorted(path.stem for path in self._root.glob("*.jsonl") if not path.name.startswith("."))

    def remove(self, run_id: str) -> None:
        """Forget a run; see RunStore."""
        with usable(self._root):
            try:
                self._path(run_id).unlink()
            except FileNotFoundError:
                raise RunNotFound(run_id, str(self._root)) from None
        self._seen.pop(run_id, None)

    def _path(self, run_id: str) -> Path:
        if not _RUN_ID.fullmatch(run_id):
            raise RunNotFound(run_id, str(self._root))
        return self._root / f"{run_id}.jsonl"

    @contextmanager
    def _open(self, run_id: str, mode: str) -> Iterator[IO[bytes]]:
        path = self._path(run_id)
        with usable(self._root):
            try:
                file = path.open(mode)
            except FileNotFoundError:
                raise RunNotFound(run_id, str(self._root)) from None
            with file:
                yield file

    def _lines(self, run_id: str) -> list[bytes]:
        with self._open(run_id, "rb") as file:
            return file.read().split(b"\n")[:-1] or [b""]

    def _tail(self, run_id: str, file: IO[bytes]) -> tuple[int, int]:
        """Return the size of all whole lines and the last version; reads only what came since this store looked last."""
        size, version = self._seen.get(run_id, (0, -1))
        if file.seek(0, os.SEEK_END) < size:
            size, version = 0, -1
        file.seek(size)
        fresh = file.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        return size + len(whole), version + whole.count(b"\n")
