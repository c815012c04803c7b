"""How many small blobs share one file: a pack holds blobs of one kind, back to back.

    u32     length of the header, little endian
    header  MessagePack [kind, digests back to back, lengths as u32 little endian back to back]
    body    MessagePack array of the blobs

The body is one array, so that 50,000 chains are decoded by one call; the header names each by its digest, and the lengths
let `check_blobs` hash every one.
"""

import hashlib
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tasks.skoop.snapshot.blobs import TYPES, Digest, decoder
from tasks.skoop.snapshot.errors import CorruptSnapshot, SnapshotTooLarge

PACK_BYTES = 32 << 20
"""A pack is closed when its body has reached this size."""
_DIGEST_BYTES = 32
_ARRAY32 = struct.Struct(">BI")
_ARRAY32_TAG = 0xDD


class PackHeader(msgspec.Struct, frozen=True, array_like=True):
    """What a pack says about its body."""

    kind: str
    digests: bytes
    lengths: bytes

    def names(self) -> list[Digest]:
        """Return the digests, in the order of the body."""
        return [Digest(self.digests[at : at + _DIGEST_BYTES]) for at in range(0, len(self.digests), _DIGEST_BYTES)]


_header_decoder = msgspec.msgpack.Decoder(PackHeader)


def pack_blobs(kind: str, blobs: Iterable[tuple[Digest, bytes]]) -> Iterator[bytes]:
    """Yield packs that hold the blobs of one kind, in order, none much larger than PACK_BYTES unless one blob is."""
    chosen: list[tuple[Digest, bytes]] = []
    size = 0
    for digest, data in blobs:
        if chosen and size + len(data) > PACK_BYTES:
            yield _encode_pack(kind, chosen)
            chosen, size = [], 0
        chosen.append((digest, data))
        size += len(data)
    if chosen:
        yield _encode_pack(kind, chosen)


def _encode_pack(kind: str, blobs: Sequence[tuple[Digest, bytes]]) -> bytes:
    lengths = array("I", (len(data) for _, data in blobs))
    if sys.byteorder == "big":
        lengths.byteswap()
    header = msgspec.msgpack.encode(
        PackHeader(kind=kind, digests=b"".join(digest for digest, _ in blobs), lengths=lengths.tobytes())
    )
    body = _ARRAY32.pack(_ARRAY32_TAG, len(blobs))
    return b"".join((len(header).to_bytes(4, "little"), header, body, *(data for _, data in blobs)))


def open_pack(data: bytes, path: Path, *, blobs_left: int) -> tuple[PackHeader, memoryview]:
    """Return header and body of a pack that holds at most `blobs_left` blobs. Raises CorruptSnapshot, SnapshotTooLarge."""
    size = int.from_bytes(data[:4], "little")
    view = memoryview(data)
    try:
        header = _header_decoder.decode(view[4 : 4 + size])
    except (msgspec.DecodeError, RecursionError) as error:
        raise CorruptSnapshot(path, f"the header of a pack cannot be read ({error})") from error
    count, rest = divmod(len(header.digests), _DIGEST_BYTES)
    body = view[4 + size :]
    if rest or len(header.lengths) != 4 * count or body[: _ARRAY32.size] != _ARRAY32.pack(_ARRAY32_TAG, count):
        raise CorruptSnapshot(path, "a pack does not hold what its header says")
    if count > blobs_left:
        raise SnapshotTooLarge(path, "it has too many parts", blobs_left)
    if header.kind not in TYPES:
        # The version of HEAD is one we know: no program of ours wrote this.
        raise CorruptSnapshot(path, "a pack holds parts of a kind that its format does not have")
    return header, body


def decode_pack(header: PackHeader, body: memoryview, path: Path) -> dict[Digest, Any]:
    """Return the values of a pack by their digests. Raises CorruptSnapshot."""
    try:
        values = decoder(header.kind).decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptSnapshot(path, f"a pack of {header.kind} cannot be decoded ({error})") from error
    return dict(zip(header.names(), values, strict=True))


def check_blobs(header: PackHeader, body: memoryview, path: Path) -> int:
    """Hash each blob of a pack and return how many there are. Raises CorruptSnapshot where one is not what it is called."""
    lengths = array("I")
    lengths.frombytes(header.lengths)
    if sys.byteorder == "big":
        lengths.byteswap()
    at = _ARRAY32.size
    names = header.names()
    for digest, length in zip(names, lengths, strict=True):
        if hashlib.sha256(body[at : at + length]).digest() != digest:
            raise CorruptSnapshot(path, f"a {header.kind} is not what its digest {digest.hex()[:12]} says")
        at += length
    if at != len(body):
        raise CorruptSnapshot(path, f"a pack of {header.kind} is longer than its parts")
    return len(names)
