"""How does a BPF object get into the kernel and its ring buffer into this process: libbpf by ctypes, and nothing more of it.

The ring buffer is read as the kernel lays it out (kernel/bpf/ringbuf.c): a page with the consumer's position, one with the
producer's, then the data twice over, so that what runs past the end goes on without a seam.
"""

import ctypes
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path

NAMES_OF_REASONS = "skb_drop_reason"
_ENUM = 6
_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_POINTERS = (
    "bpf_object__open_file",
    "bpf_object__next_program",
    "bpf_program__attach",
    "btf__load_vmlinux_btf",
    "btf__type_by_id",
)


class BpfError(OSError):
    """The kernel or libbpf refused; `context` says at which step, `said` what libbpf printed meanwhile."""

    def __init__(self, code: int, context: str, said: str = "") -> None:
        super().__init__(code, f"{context}: {os.strerror(code)}" + (f"\n{said}" if said else ""))


class Library:
    """libbpf.so.1. Raises OSError if it is not there."""

    def __init__(self) -> None:
        self.lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
        for name in _POINTERS:
            getattr(self.lib, name).restype = ctypes.c_void_p
        self.lib.btf__name_by_offset.restype = ctypes.c_char_p
        self.lib.bpf_program__name.restype = ctypes.c_char_p
        self.lib.libbpf_get_error.restype = ctypes.c_long
        self._quiet = _PRINT(lambda _level, _format, _arguments: 0)
        self.lib.libbpf_set_print(self._quiet)

    def reasons(self) -> dict[int, str]:
        """Return number → name (`NETFILTER_DROP`) of the running kernel's reasons to drop a packet."""
        btf = ctypes.c_void_p(self.lib.btf__load_vmlinux_btf())
        if not btf:
            raise BpfError(ctypes.get_errno(), "reading the kernel's types")
        try:
            index = self.lib.btf__find_by_name_kind(btf, NAMES_OF_REASONS.encode(), _ENUM)
            if index < 0:
                raise BpfError(-index, f"finding enum {NAMES_OF_REASONS}")
            at = self.lib.btf__type_by_id(btf, ctypes.c_uint32(index))
            _, info, _ = struct.unpack("=III", ctypes.string_at(at, 12))
            found = {}
            for name, value in struct.iter_unpack("=Ii", ctypes.string_at(at + 12, 8 * (info & 0xFFFF))):
                text = self.lib.btf__name_by_offset(btf, ctypes.c_uint32(name)).decode()
                found[value] = text.removeprefix("SKB_DROP_REASON_").removeprefix("SKB_")
            return found
        finally:
            self.lib.btf__free(btf)


class BpfObject:
    """A loaded and attached object file. Closing it takes its programs off again."""

    def __init__(self, library: Library, path: Path) -> None:
        self._lib = library.lib
        self._links: list[ctypes.c_void_p] = []
        self._object = ctypes.c_void_p(self._lib.bpf_object__open_file(str(path).encode(), None))
        if not self._object:
            raise BpfError(ctypes.get_errno(), f"opening {path}")
        code = self._lib.bpf_object__load(self._object)
        if code:
            self.close()
            raise BpfError(-code, f"loading {path}")

    def attach(self) -> None:
        """Attach every program."""
        program = ctypes.c_void_p(None)
        while True:
            program = ctypes.c_void_p(self._lib.bpf_object__next_program(self._object, program))
            if not program:
                return
            link = ctypes.c_void_p(self._lib.bpf_program__attach(program))
            if not link:
                code = ctypes.get_errno()
                raise BpfError(code, f"attaching {self._lib.bpf_program__name(program).decode()}")
            self._links.append(link)

    def close(self) -> None:
        """Take it out of the kernel."""
        for link in self._links:
            self._lib.bpf_link__destroy(link)
        self._links = []
        if self._object:
            self._lib.bpf_object__close(self._object)
            self._object = ctypes.c_void_p(None)

    def map_fd(self, name: str) -> int:
        """Return the descriptor of a map; it belongs to the object."""
        fd: int = self._lib.bpf_object__find_map_fd_by_name(self._object, name.encode())
        if fd < 0:
            raise BpfError(-fd, f"finding map {name}")
        return fd

    def put(self, name: str, entries: Mapping[bytes, bytes]) -> None:
        """Set entries of a map."""
        fd = self.map_fd(name)
        for key, value in entries.items():
            if self._lib.bpf_map_update_elem(fd, key, value, ctypes.c_uint64(0)):
                raise BpfError(ctypes.get_errno(), f"setting an entry of {name}")

    def take_out(self, name: str, key: bytes) -> None:
        """Delete an entry of a map, if it is there."""
        self._lib.bpf_map_delete_elem(self.map_fd(name), key)

    def number(self, name: str, index: int = 0) -> int:
        """Return an element of an array of u64."""
        value = ctypes.c_uint64()
        key = ctypes.c_uint32(index)
        if self._lib.bpf_map_lookup_elem(self.map_fd(name), ctypes.byref(key), ctypes.byref(value)):
            raise BpfError(ctypes.get_errno(), f"reading {name}")
        return value.value


class RingBuffer:
    """The consumer's side of a ring buffer whose records all have one size. Not for several threads."""

    def __init__(self, fd: int, size: int, record: int) -> None:
        """`size` is the map's max_entries, `record` the bytes of a record without the header of eight bytes."""
        assert record % 8 == 0, "records are padded to eight bytes"
        page = mmap.PAGESIZE
        self.fd = fd
        self._mask = size - 1
        self._stride = record + 8
        self._consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._position = ctypes.c_uint64.from_buffer(self._consumer)
        self._page = page

    def close(self) -> None:
        """Let go of the memory; the descriptor belongs to the object."""
        del self._position
        self._consumer.close()
        self._producer.close()

    def take(self) -> bytes:
        """Return the records that are complete, each with its header, and hand their room back."""
        done = self._position.value
        (produced,) = struct.unpack_from("=Q", self._producer, 0)
        if produced == done:
            return b""
        start = self._page + (done & self._mask)
        data = self._producer[start : start + produced - done]
        for at in range(0, len(data), self._stride):  # a record may still be being written on another CPU
            if data[at + 3] & 0x80:
                data = data[:at]
                break
        self._position.value = done + len(data)
        return data
