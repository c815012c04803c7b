"""The snapshot as a folder: HEAD and `objects/<sha256>.zst`.

Saving over an older snapshot keeps the objects that both have; the switch is the rename of HEAD, so that a reader, or a
machine that stops half way, finds one whole snapshot or the other.
"""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from tasks.skoop.snapshot.atomic import sync_folder, write_file, write_folder
from tasks.skoop.snapshot.errors import CorruptSnapshot, NotASnapshot, SaveRefused, SnapshotTooLarge
from tasks.skoop.snapshot.layout import HEAD, HEAD_BYTES, OBJECTS, ZSTD_LEVEL, Limits

_ZST = ".zst"


def write_directory(path: Path, head: bytes, objects: dict[str, bytes]) -> None:
    """Write a snapshot; `objects` are uncompressed, by hexadecimal digest. Raises OSError, SaveRefused."""
    if is_directory_snapshot(path):
        _replace(path, head, objects)
        return
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SaveRefused(path, "something else is there, and it is not overwritten")
    write_folder(path, lambda folder: _fill(folder, head, objects))


def is_directory_snapshot(path: Path) -> bool:
    """Say whether the folder has the shape of a snapshot."""
    return (path / HEAD).is_file() and (path / OBJECTS).is_dir()


def _fill(folder: Path, head: bytes, objects: dict[str, bytes]) -> None:
    (folder / OBJECTS).mkdir()
    for name, data in objects.items():
        _write(folder / OBJECTS / (name + _ZST), _compress(data))
    _write(folder / HEAD, head)


def _replace(folder: Path, head: bytes, objects: dict[str, bytes]) -> None:
    store = folder / OBJECTS
    written: list[Path] = []
    try:
        for name, data in objects.items():
            target = store / (name + _ZST)
            if not target.exists():
                written.append(target)
                _write(target, _compress(data))
        sync_folder(store)
        _write(folder / HEAD, head)
    except BaseException:
        for target in written:
            target.unlink(missing_ok=True)
        raise
    for stale in store.iterdir():
        if stale.suffix == _ZST and stale.stem not in objects:
            stale.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    def fill(file: BinaryIO) -> None:
        file.write(data)

    write_file(path, fill)


def _compress(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True).compress(data)


def read_directory_head(path: Path) -> bytes:
    """Return HEAD as it is. Raises NotASnapshot, CorruptSnapshot."""
    try:
        return _read(path / HEAD, HEAD_BYTES, path)
    except FileNotFoundError:
        raise NotASnapshot(path, "the folder has no HEAD") from None


def read_directory_objects(path: Path, names: tuple[str, ...], limits: Limits) -> Iterator[tuple[str, bytes]]:
    """Yield (hexadecimal digest, content) of the named objects, unchecked. Raises CorruptSnapshot, SnapshotTooLarge."""
    stored = total = 0
    for name in names:
        try:
            data = _read(path / OBJECTS / (name + _ZST), limits.object_bytes, path)
        except FileNotFoundError:
            raise CorruptSnapshot(path, f"object {name[:12]} is missing") from None
        stored += len(data)
        room = min(limits.object_bytes, limits.content_bytes(stored) - total)
        content = _decompress(data, name, room, path)
        total += len(content)
        yield name, content


def _read(file: Path, limit: int, path: Path) -> bytes:
    # A folder that a stranger packed may hold links and pipes: only plain files are opened.
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise CorruptSnapshot(path, f"{file.name} is not a plain file")
    if status.st_size > limit:
        raise SnapshotTooLarge(path, f"{file.name} is too large", limit)
    return file.read_bytes()


def _decompress(data: bytes, name: str, limit: int, path: Path) -> bytes:
    try:
        size = zstandard.get_frame_parameters(data).content_size
        # Also true of a frame that does not say its size: ours always do.
        if size > limit:
            raise SnapshotTooLarge(path, f"object {name[:12]} unpacks to more than is allowed", limit)
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise CorruptSnapshot(path, f"object {name[:12]} cannot be unpacked ({error})") from error
