"""Where runs keep what is too large to travel: content-addressed, compressed, never half-written (a claim check).

`BlobStore` is the seam; a directory and an in-memory one stand behind it here. A digest is of the content as it was put, so
that equal content is stored once and running a step twice gives the same blob. Garbage goes by age, but for what is still
referred to.
"""

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Protocol

import zstandard

from workflows.errors import BlobDamaged, BlobMissing, BlobTooLarge, StoreUnusable

MAX_BLOB_BYTES = 512 << 20
"""A store takes blobs up to this size unless told otherwise."""

_LEVEL = 3
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class BlobStore(Protocol):
    """Values by the digest of their content."""

    def put(self, content: bytes) -> str:
        """Store the content and return `sha256:` and its hex digest. Raises BlobTooLarge, StoreUnusable."""
        ...

    def get(self, digest: str) -> bytes:
        """Return the content. Raises BlobMissing, BlobDamaged, StoreUnusable."""
        ...

    def has(self, digest: str) -> bool:
        """Say whether the blob is there."""
        ...

    def collect_garbage(self, older_than_s: float, keep: Collection[str] = ()) -> int:
        """Remove blobs last put longer ago than that, but for those in `keep`; return how many."""
        ...


def digest_of(content: bytes) -> str:
    """Return the digest under which content is stored."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


class MemoryBlobs:
    """Blobs in this process, for runs that leave nothing behind."""

    def __init__(self, *, max_bytes: int = MAX_BLOB_BYTES, clock: Callable[[], float] = time.time) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._blobs: dict[str, tuple[bytes, float]] = {}
        self._lock = Lock()

    def put(self, content: bytes) -> str:
        """Store the content; see BlobStore."""
        _check_size(len(content), self._max_bytes)
        digest = digest_of(content)
        known = self._blobs.get(digest)
        stored = known[0] if known else _compress(content)
        with self._lock:
            self._blobs[digest] = (stored, self._clock())
        return digest

    def get(self, digest: str) -> bytes:
        """Return the content; see BlobStore."""
        known = self._blobs.get(digest)
        if known is None:
            raise BlobMissing(digest, "this process's memory")
        return _restore(digest, known[0], self._max_bytes)

    def has(self, digest: str) -> bool:
        """Say whether the blob is there."""
        return digest in self._blobs

    def collect_garbage(self, older_than_s: float, keep: Collection[str] = ()) -> int:
        """Remove old blobs; see BlobStore."""
        limit = self._clock() - older_than_s
        with self._lock:
            old = [digest for digest, (_, put_at) in self._blobs.items() if put_at < limit and digest not in keep]
            for digest in old:
                del self._blobs[digest]
        return len(old)


class DirectoryBlobs:
    """Blobs in a folder: `sha256/ab/cdef….zst`, each written aside and renamed into place.

    A blob's age is its file's modification time, renewed by every put. Several processes may use one folder.
    """

    def __init__(self, root: Path, *, max_bytes: int = MAX_BLOB_BYTES, clock: Callable[[], float] = time.time) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._clock = clock

    def put(self, content: bytes) -> str:
        """Store the content; see BlobStore."""
        _check_size(len(content), self._max_bytes)
        digest = digest_of(content)
        path = self._path(digest)
        with usable(self._root):
            if not self._renew(path):
                self._write(path, _compress(content))
        return digest

    def get(self, digest: str) -> bytes:
        """Return the content; see BlobStore."""
        with usable(self._root):
            try:
                stored = self._path(digest).read_bytes()
            except FileNotFoundError:
                raise BlobMissing(digest, str(self._root)) from None
        return _restore(digest, stored, self._max_bytes)

    def has(self, digest: str) -> bool:
        """Say whether the blob is there."""
        return self._path(digest).is_file()

    def collect_garbage(self, older_than_s: float, keep: Collection[str] = ()) -> int:
        """Remove old blobs, and what writers that died left beside them; see BlobStore."""
        limit = self._clock() - older_than_s
        removed = 0
        for path in self._root.glob("sha256/*/*"):
            digest = f"sha256:{path.parent.name}{path.name.removesuffix('.zst')}"
            # Another process may have collected it meanwhile.
            with usable(self._root), suppress(FileNotFoundError):
                if path.stat().st_mtime < limit and digest not in keep:
                    path.unlink()
                    removed += path.suffix == ".zst"
        return removed

    def _path(self, digest: str) -> Path:
        match = _DIGEST.fullmatch(digest)
        if match is None:
            raise BlobMissing(digest, str(self._root))
        return self._root / "sha256" / match[1][:2] / f"{match[1][2:]}.zst"

    def _renew(self, path: Path) -> bool:
        now = self._clock()
        try:
            os.utime(path, (now, now))
        except FileNotFoundError:
            return False
        return True

    def _write(self, path: Path, stored: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=".put-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(stored)
            now = self._clock()
            os.utime(aside, (now, now))
            Path(aside).replace(path)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise BlobTooLarge(size, limit)


def _compress(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL).compress(content)


def _restore(digest: str, stored: bytes, limit: int) -> bytes:
    """Return the content of a frame, checked: neither larger than the store takes nor other than its digest says."""
    try:
        size = zstandard.frame_content_size(stored)
        if not 0 <= size <= limit:
            raise BlobDamaged(digest, f"it claims to hold {size} bytes")
        content = zstandard.ZstdDecompressor().decompress(stored, max_output_size=limit)
    except zstandard.ZstdError as error:
        raise BlobDamaged(digest, str(error)) from error
    if digest_of(content) != digest:
        raise BlobDamaged(digest, "the content has another digest")
    return content


@contextmanager
def usable(root: Path) -> Iterator[None]:
    """Turn what the file system refuses into StoreUnusable, with the folder of the store."""
    try:
        yield
    except OSError as error:
        raise StoreUnusable(str(root), error.strerror or str(error)) from error
