"""Network namespaces of a test's own: held by descriptors of this process, gone with it."""

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import yaml

from tasks.skoop.collect.enter import OWN_NETNS, inside

CLONE_NEWNET = 0x40000000
_Value = TypeVar("_Value")


class Space:
    """One network namespace, with `lo` up."""

    def __init__(self) -> None:
        self.fd = _in_thread(_new)
        self.path = f"/proc/{os.getpid()}/fd/{self.fd}"
        self.sh("ip link set lo up")

    def sh(self, script: str) -> str:
        """Run shell lines in it, each of which must succeed."""
        done = subprocess.run(
            ["nsenter", f"--net={self.path}", "sh", "-ec", script], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{script}: {done.stderr}"
        return done.stdout

    def call(self, work: Callable[[], _Value]) -> _Value:
        """Return what a function returns that runs in it, on a thread that ends with it."""

        def there() -> _Value:
            with inside(self.fd):
                return work()

        return _in_thread(there)

    def close(self) -> None:
        os.close(self.fd)


def _new() -> int:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    return os.open(OWN_NETNS, os.O_RDONLY | os.O_CLOEXEC)


def _in_thread(work: Callable[[], _Value]) -> _Value:
    """Run on a thread of its own, so that pytest's never leaves its namespace."""
    found: list[_Value] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:  # noqa: BLE001 -- handed to the caller
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


@contextmanager
def spaces(count: int) -> Iterator[list[Space]]:
    made: list[Space] = []
    try:
        for _ in range(count):
            made.append(Space())  # noqa: PERF401 -- what was made before a failure must be closed
        yield made
    finally:
        for space in made:
            space.close()


def write_topology(folder: Path, **content: object) -> Path:
    """Write a topology file; nodes, pods and hosts are given as they stand in it."""
    file = folder / "topology.yaml"
    file.write_text(yaml.safe_dump({"version": 1, **msgspec.to_builtins(content)}))
    return file
