"""What does the kernel itself say of every packet of a scenario: each device it crossed, and who threw it away and why.

A small BPF program on three tracepoints (kfree_skb, netif_receive_skb, net_dev_start_xmit) tells it into a ring buffer; only
packets of the given namespaces are told, so that several oracles can run beside each other. A packet crosses all namespaces
within the system call that sends it: when that returns, `drain` has it all. Needs root of the machine, clang and libbpf,
and a kernel with its own type information; `unavailable_because` says what is missing.
"""

import bisect
import hashlib
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.netns import Netns
from tests.kernel.oracle.events import RECORD_BYTES, Decoder, Event
from tests.kernel.oracle.libbpf import BpfObject, Library, RingBuffer

SOURCE = Path(__file__).with_name("watch.bpf.c")
RING_BYTES = 1 << 22
_TYPES = Path("/sys/kernel/btf/vmlinux")
_SYMBOLS = Path("/proc/kallsyms")


def unavailable_because() -> str:
    """Return why the kernel cannot be watched here, or ""."""
    if os.geteuid() != 0:
        return "watching the kernel needs root"
    if not _TYPES.exists():
        return "the kernel has no type information (CONFIG_DEBUG_INFO_BTF)"
    if shutil.which("clang") is None:
        return "clang is missing (package clang)"
    try:
        Library()
    except OSError:
        return "libbpf.so.1 is missing (package libbpf1)"
    try:
        Oracle({}).close()
    except OSError as error:
        return f"the kernel does not let itself be watched: {error}"
    return ""


def compiled(folder: Path | None = None) -> Path:
    """Return the program's object file, compiled at its first use and kept in the user's cache. Raises CalledProcessError."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kubeprobe" / "oracle"
    place = folder or cache
    made = place / f"watch-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.o"
    if not made.exists():
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as scratch:
            fresh = Path(scratch) / made.name
            argv = ["clang", "-target", "bpf", "-g", "-O2", "-Wall", "-Werror", "-c", str(SOURCE), "-o", str(fresh)]
            subprocess.run(argv, check=True, capture_output=True, text=True)
            fresh.rename(made)
    return made


def inum(netns: Netns) -> int:
    """Return the number by which the kernel knows a namespace."""
    return os.fstat(netns.fd).st_ino


class Symbols:
    """The kernel's functions, by address."""

    def __init__(self, listing: str) -> None:
        """`listing` is /proc/kallsyms."""
        lines = (line.split(None, 3)[:3] for line in listing.splitlines())
        code = sorted((int(start, 16), name) for start, kind, name in lines if kind in "tTwW")
        self._starts = [start for start, _ in code]
        self._names = [name for _, name in code]
        self._known: dict[int, str] = {}

    def at(self, address: int) -> str:
        """Return the function that holds an address, without what the compiler put behind its name; "" if none does."""
        name = self._known.get(address)
        if name is None:
            index = bisect.bisect_right(self._starts, address) - 1
            name = self._known[address] = self._names[index].partition(".")[0] if index >= 0 else ""
        return name


@cache
def _symbols() -> Symbols:
    """Read once a process: it takes some 200 ms, which a first drop should not wait for."""
    return Symbols(_SYMBOLS.read_text())


class Oracle:
    """Watches namespaces, given as the kernel's number of each → its name."""

    def __init__(self, namespaces: Mapping[int, str]) -> None:
        """Start watching. Raises BpfError, OSError, CalledProcessError (the compiler)."""
        self._namespaces = dict(namespaces)
        self._ring: RingBuffer | None = None
        library = Library()
        self._decoder = Decoder(self._namespaces, library.reasons(), _symbols().at)
        self._object = BpfObject(library, compiled())
        try:
            self._object.put("watched", {struct.pack("=I", number): b"\1" for number in self._namespaces})
            self._ring = RingBuffer(self._object.map_fd("told"), RING_BYTES, RECORD_BYTES)
            self._object.attach()
        except OSError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        self._object.close()

    @property
    def fd(self) -> int:
        """A descriptor that becomes readable when a packet has been dropped (for epoll)."""
        assert self._ring is not None, "closed"
        return self._ring.fd

    @property
    def lost(self) -> int:
        """How many events found no room since the start: drain more often."""
        return self._object.number("lost")

    def watch(self, namespaces: Mapping[int, str]) -> None:
        """Watch these namespaces from now on instead of those before."""
        for number in self._namespaces.keys() - namespaces.keys():
            self._object.take_out("watched", struct.pack("=I", number))
        self._object.put("watched", {struct.pack("=I", number): b"\1" for number in namespaces})
        self._namespaces.clear()
        self._namespaces.update(namespaces)

    def drain(self) -> list[Event]:
        """Return what happened since the last time, in the kernel's order."""
        assert self._ring is not None, "closed"
        return self._decoder.decode(self._ring.take())

    def forget(self) -> None:
        """Throw away what happened so far."""
        assert self._ring is not None, "closed"
        self._ring.take()
