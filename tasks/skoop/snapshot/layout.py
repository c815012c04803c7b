"""How a snapshot lies on disk: names, versions, bounds. The two physical forms (`directory`, `archive`) share all of it.

    HEAD                 JSON: format, version, the program that is needed, digest of the manifest, digests of the packs
    objects/<sha256>     the manifest (JSON), and the packs (`pack`); in a directory each is a zstd frame, `<sha256>.zst`

Every file but HEAD is named by the SHA-256 of its content, uncompressed. HEAD's shape never changes, so that any program
can tell that a snapshot is too new for it. A change of the schema that an older program would read wrongly (a new section,
a new field that decides) gets the next version and a line in `NEEDS`.
"""

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from tasks.skoop.snapshot.errors import CorruptSnapshot, NewerSnapshot, NotASnapshot

FORMAT = "kubeprobe-snapshot"
VERSION = 1
NEEDS = {1: "0.1.0"}
"""Format version → the first release of the program that reads it."""

HEAD = "HEAD"
OBJECTS = "objects"
SUFFIX = ".kps"
ZSTD_LEVEL = 3
HEAD_BYTES = 4 << 20
OBJECT_NAME = re.compile(r"objects/([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much of a stranger's snapshot is read before it is refused.

    `total_bytes` and `object_bytes` are uncompressed. `ratio` bounds how many times larger than the file its content may
    be, `ratio_floor_bytes` is allowed to every file: real snapshots compress 10 to 60 times, bombs over 1,000 times.
    """

    total_bytes: int = 4 << 30
    object_bytes: int = 1 << 30
    objects: int = 4096
    blobs: int = 20_000_000
    ratio: int = 250
    ratio_floor_bytes: int = 64 << 20

    def content_bytes(self, stored_bytes: int) -> int:
        """Return how many bytes a stored form of that size may unpack to."""
        return min(self.total_bytes, self.ratio_floor_bytes + self.ratio * stored_bytes)


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The content of HEAD; `manifest` and `packs` are hexadecimal digests."""

    format: str
    version: int
    needs: str = ""
    manifest: str = ""
    packs: tuple[str, ...] = ()


def new_head(manifest: str, packs: tuple[str, ...]) -> bytes:
    """Return HEAD for a snapshot written now."""
    head = Head(format=FORMAT, version=VERSION, needs=NEEDS[VERSION], manifest=manifest, packs=packs)
    return msgspec.json.encode(head) + b"\n"


def parse_head(data: bytes, path: Path) -> Head:
    """Return HEAD. Raises NotASnapshot, NewerSnapshot or CorruptSnapshot."""
    try:
        head = msgspec.json.decode(data, type=Head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptSnapshot(path, f"its HEAD cannot be read ({error})") from error
    if head.format != FORMAT:
        raise NotASnapshot(path, f"its HEAD says {head.format!r}")
    if head.version > VERSION:
        raise NewerSnapshot(path, head.version, VERSION, printable(head.needs) or "of its maker's version")
    if head.version not in NEEDS:
        raise CorruptSnapshot(path, f"its HEAD names format {head.version}, which never existed")
    for digest in (head.manifest, *head.packs):
        if not OBJECT_NAME.fullmatch(f"{OBJECTS}/{digest}"):
            raise CorruptSnapshot(path, "its HEAD names an object by something other than a digest")
    return head


def printable(text: str) -> str:
    """Return a stranger's text, short and without control characters."""
    return "".join(char for char in text[:80] if char.isprintable())


def program_version() -> str:
    """Return the version of the installed program, or "source tree" where it runs uninstalled."""
    try:
        return version("kubeprobe")
    except PackageNotFoundError:
        return "source tree"
