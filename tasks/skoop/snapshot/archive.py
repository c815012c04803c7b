"""The snapshot as one file: a tar inside zstd, members HEAD, the manifest, the packs, in that order.

Written so that `tar --zstd` reads it; read by a reader of its own that takes only what we write (plain files by known
names, no extensions), because archives come from strangers. Nothing is ever unpacked to disk.
"""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import zstandard

from tasks.skoop.snapshot.atomic import write_file
from tasks.skoop.snapshot.errors import CorruptSnapshot, NotASnapshot, SaveRefused, SnapshotTooLarge
from tasks.skoop.snapshot.layout import HEAD, HEAD_BYTES, OBJECT_NAME, OBJECTS, ZSTD_LEVEL, Limits, printable

_BLOCK = 512
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_WINDOW = 1 << 27


def write_archive(path: Path, head: bytes, objects: dict[str, bytes]) -> None:
    """Write a snapshot; `objects` are uncompressed, by hexadecimal digest. Raises OSError, SaveRefused."""
    if path.exists() and (not path.is_file() or not _is_zstd(path)):
        raise SaveRefused(path, "something else is there, and it is not overwritten")

    def fill(file: BinaryIO) -> None:
        compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)
        with (
            compressor.stream_writer(file, closefd=False) as stream,
            tarfile.open(mode="w|", fileobj=stream, format=tarfile.USTAR_FORMAT) as tar,
        ):
            _add(tar, HEAD, head)
            for name, data in objects.items():
                _add(tar, f"{OBJECTS}/{name}", data)

    write_file(path, fill)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    tar.addfile(info, io.BytesIO(data))


def _is_zstd(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_ZSTD_MAGIC)) == _ZSTD_MAGIC


class _Stream(Protocol):
    def read(self, size: int) -> bytes: ...


def read_archive(path: Path, limits: Limits) -> Iterator[tuple[str, bytes]]:
    """Yield (member name, content): HEAD first, then objects by `objects/<digest>`, contents unchecked.

    Raises NotASnapshot, CorruptSnapshot, SnapshotTooLarge.
    """
    if not path.is_file():
        raise NotASnapshot(path, "no such file or folder" if not path.exists() else "neither a plain file nor a folder")
    if not _is_zstd(path):
        raise NotASnapshot(path, "the file is not compressed with zstd")
    room = limits.content_bytes(path.stat().st_size)
    with path.open("rb") as file:
        stream = zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(file)
        try:
            yield from _members(stream, path, limits, room)
        except zstandard.ZstdError as error:
            raise CorruptSnapshot(path, f"it cannot be unpacked ({error})") from error


def _members(stream: _Stream, path: Path, limits: Limits, room: int) -> Iterator[tuple[str, bytes]]:
    left = room
    for number in range(limits.objects + 2):
        header = _exactly(stream, _BLOCK, path)
        if header == bytes(_BLOCK):
            return
        name, size = _parse_header(header, path, is_first=number == 0)
        limit = HEAD_BYTES if number == 0 else min(limits.object_bytes, left)
        if size > limit:
            raise SnapshotTooLarge(path, f"its member {name[:20]} unpacks to {size} bytes", limit)
        left -= size
        data = _exactly(stream, size, path)
        _exactly(stream, -size % _BLOCK, path)
        yield name, data
    raise SnapshotTooLarge(path, "it has too many members", limits.objects)


def _parse_header(header: bytes, path: Path, *, is_first: bool) -> tuple[str, int]:
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        if is_first:
            raise NotASnapshot(path, "there is no tar archive in it") from error
        raise CorruptSnapshot(path, f"a member's header cannot be read ({error})") from error
    if not (info.name == HEAD if is_first else OBJECT_NAME.fullmatch(info.name)):
        shown = printable(info.name)
        if is_first:
            raise NotASnapshot(path, f"its first member is {shown!r}, not {HEAD}")
        raise CorruptSnapshot(path, f"it has a member named {shown!r}, which no snapshot has")
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise CorruptSnapshot(path, f"its member {info.name[:20]} is not a plain file")
    return info.name, info.size


def _exactly(stream: _Stream, size: int, path: Path) -> bytes:
    # Read in steps: what is set aside grows with what really arrives, not with what a header claims.
    parts: list[bytes] = []
    while size > 0:
        part = stream.read(min(size, 1 << 24))
        if not part:
            raise CorruptSnapshot(path, "it ends too early (cut off while it was copied?)")
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
