"""Saves, loads and checks snapshots: the one door between a ClusterState in memory and its two forms on disk."""

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.snapshot.archive import read_archive, write_archive
from tasks.skoop.snapshot.atomic import refusing
from tasks.skoop.snapshot.blobs import Digest
from tasks.skoop.snapshot.bulk import without_gc
from tasks.skoop.snapshot.directory import read_directory_head, read_directory_objects, write_directory
from tasks.skoop.snapshot.errors import CorruptSnapshot, NotASnapshot, SaveRefused, SnapshotTooLarge
from tasks.skoop.snapshot.layout import OBJECTS, SUFFIX, Head, Limits, new_head, parse_head
from tasks.skoop.snapshot.pack import check_blobs, decode_pack, open_pack, pack_blobs
from tasks.skoop.snapshot.redact import redact
from tasks.skoop.snapshot.tree import BrokenTree, Manifest, join, split

DEFAULT_LIMITS = Limits()


def save(state: ClusterState, path: Path) -> str:
    """Write a snapshot and return the digest of its manifest (hexadecimal): equal states have equal digests.

    `path` ending in `.kps` makes one file, any other a folder; an older snapshot there is replaced. The state is redacted
    first (`redact`). Appears whole or not at all. Raises SaveRefused, SaveFailed.
    """
    tree = split(redact(state))
    manifest = msgspec.json.encode(tree.manifest, order="deterministic")
    name = _digest(manifest)
    packs = {_digest(pack): pack for kind in sorted(tree.blobs) for pack in pack_blobs(kind, tree.blobs[kind].items())}
    head = new_head(name, tuple(packs))
    objects = {name: manifest, **packs}
    with refusing(path):
        if not path.parent.is_dir():
            raise SaveRefused(path, f"there is no folder {path.parent}")
        if path.suffix == SUFFIX:
            write_archive(path, head, objects)
        else:
            write_directory(path, head, objects)
    return name


def load(path: Path, *, limits: Limits = DEFAULT_LIMITS) -> ClusterState:
    """Return the state that a snapshot holds; every object's digest is checked.

    Raises NotASnapshot, NewerSnapshot, CorruptSnapshot, SnapshotTooLarge (all RequestError).
    """
    with without_gc():
        manifest, values = load_values(path, limits=limits)
        try:
            return join(manifest, values)
        except (BrokenTree, ValueError) as error:
            raise CorruptSnapshot(path, f"its tree has a hole: {error}") from error


def load_values(
    path: Path, *, kinds: Collection[str] | None = None, limits: Limits = DEFAULT_LIMITS
) -> tuple[Manifest, dict[str, dict[Digest, Any]]]:
    """Return the manifest and the decoded blobs of some kinds (None: of all), by kind and digest. Raises as `load`."""
    _, manifest, packs = _open(path, limits)
    values: dict[str, dict[Digest, Any]] = {}
    left = limits.blobs
    for data in packs:
        header, body = open_pack(data, path, blobs_left=left)
        left -= len(header.digests) // 32
        if kinds is None or header.kind in kinds:
            values.setdefault(header.kind, {}).update(decode_pack(header, body, path))
    return manifest, values


def load_manifest(path: Path, *, limits: Limits = DEFAULT_LIMITS) -> tuple[str, Manifest]:
    """Return the digest (hexadecimal) and the manifest of a snapshot without reading the rest. Raises as `load`."""
    head, manifest, _ = _open(path, limits)
    return head.manifest, manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What a thorough check has seen: all of it sound."""

    manifest: str
    packs: int
    blobs: int
    content_bytes: int


def verify(path: Path, *, limits: Limits = DEFAULT_LIMITS) -> Verified:
    """Check every object, every blob in every pack and every reference. Raises as `load`."""
    head, _, packs = _open(path, limits)
    blobs = size = 0
    for data in packs:
        header, body = open_pack(data, path, blobs_left=limits.blobs - blobs)
        blobs += check_blobs(header, body, path)
        size += len(data)
    load(path, limits=limits)
    return Verified(manifest=head.manifest, packs=len(head.packs), blobs=blobs, content_bytes=size)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _open(path: Path, limits: Limits) -> tuple[Head, Manifest, Iterator[bytes]]:
    """Return HEAD, the manifest, and the packs to come, each checked against its digest."""
    try:
        head, objects = _open_directory(path, limits) if path.is_dir() else _open_archive(path, limits)
    except OSError as error:
        raise NotASnapshot(path, error.strerror or str(error)) from error
    if len(head.packs) > limits.objects:
        raise SnapshotTooLarge(path, "it has too many packs", limits.objects)
    contents = _checked(path, (head.manifest, *head.packs), objects)
    try:
        manifest = msgspec.json.decode(next(contents), type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptSnapshot(path, f"its manifest cannot be read ({error})") from error
    return head, manifest, contents


def _open_directory(path: Path, limits: Limits) -> tuple[Head, Iterator[tuple[str, bytes]]]:
    head = parse_head(read_directory_head(path), path)
    return head, read_directory_objects(path, (head.manifest, *head.packs), limits)


def _open_archive(path: Path, limits: Limits) -> tuple[Head, Iterator[tuple[str, bytes]]]:
    members = read_archive(path, limits)
    first = next(members, None)
    if first is None:
        raise NotASnapshot(path, "the archive is empty")
    return parse_head(first[1], path), ((name.removeprefix(f"{OBJECTS}/"), data) for name, data in members)


def _checked(path: Path, names: tuple[str, ...], objects: Iterator[tuple[str, bytes]]) -> Iterator[bytes]:
    try:
        for wanted, (name, data) in zip(names, chain(objects, [("", b"")] * len(names)), strict=False):
            if name != wanted:
                raise CorruptSnapshot(path, f"object {wanted[:12]} is missing or out of place")
            if _digest(data) != wanted:
                raise CorruptSnapshot(path, f"object {wanted[:12]} is not what its digest says")
            yield data
        if next(objects, None) is not None:
            raise CorruptSnapshot(path, "it holds more than its HEAD names")
    except OSError as error:
        raise CorruptSnapshot(path, f"it cannot be read ({error.strerror})") from error
