"""What the smallest stored parts are: their kinds, their canonical bytes, their digests.

A blob is the deterministic MessagePack encoding of one value of the model (maps in sorted order), named by its SHA-256.
A kind says what type its bytes have. Kinds follow the model: each field of NetNS and of ClusterObjects is one
(`netns.routes`, `objects.pods`), so that a field added to the model is stored without a change here; only what is stored
finer than its field (chains, nft objects, ipsets) and the trees that hold digests are listed by hand.
"""

import hashlib
from types import GenericAlias
from typing import Any, NewType, get_type_hints

import msgspec

from tasks.skoop.model.cluster import ClusterObjects
from tasks.skoop.model.state import IpSet, Missing, NetNS
from tasks.skoop.model.xtables import Backend, Chain

Digest = NewType("Digest", bytes)
"""SHA-256 of a blob, 32 bytes."""


class TableTree(msgspec.Struct, frozen=True, array_like=True):
    """One iptables table: its chains by name, in order."""

    backend: Backend
    family: int
    name: str
    chains: tuple[tuple[str, Digest], ...]


class NftTree(msgspec.Struct, frozen=True, array_like=True):
    """One nft table: runs of its objects (`chain x`, `rule x`: the rules of chain x, `set y`, …), in order."""

    family: str
    name: str
    hooks: tuple[tuple[str, str, str, int, str], ...]
    parts: tuple[tuple[str, Digest], ...]


class NetnsTree(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One network namespace without its name, so that equal ones are stored once.

    `sections` maps a field of NetNS to the digest of its value; empty fields are left out. `tables` and `nft` are digests
    of TableTree and NftTree.
    """

    sections: dict[str, Digest] = {}
    tables: tuple[Digest, ...] = ()
    nft: tuple[Digest, ...] = ()
    ipsets: tuple[tuple[str, Digest], ...] = ()
    missing: tuple[Missing, ...] = ()


CHAIN = "chain"
TABLE = "table"
NFT_PART = "nft-part"
NFT_TABLE = "nft-table"
IPSET = "ipset"
NETNS = "netns"

SPLIT_FIELDS = frozenset({"id", "tables", "nft", "ipsets", "missing"})
"""Fields of NetNS that do not become a blob of their own."""
SECTION_FIELDS = tuple(field for field in NetNS.__struct_fields__ if field not in SPLIT_FIELDS)
OBJECT_FIELDS = ClusterObjects.__struct_fields__

TREE_KINDS = frozenset({TABLE, NFT_TABLE, NETNS})


def section_kind(field: str) -> str:
    """Return the kind of a field of NetNS."""
    return f"netns.{field}"


def object_kind(field: str) -> str:
    """Return the kind of a field of ClusterObjects."""
    return f"objects.{field}"


def _kinds() -> dict[str, Any]:
    netns, objects = get_type_hints(NetNS), get_type_hints(ClusterObjects)
    return {
        CHAIN: Chain,
        TABLE: TableTree,
        NFT_PART: tuple[str, ...],
        NFT_TABLE: NftTree,
        IPSET: IpSet,
        NETNS: NetnsTree,
        **{section_kind(field): netns[field] for field in SECTION_FIELDS},
        **{object_kind(field): objects[field] for field in OBJECT_FIELDS},
    }


TYPES: dict[str, Any] = _kinds()
"""Kind → type of its value."""

_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_decoders: dict[str, msgspec.msgpack.Decoder[tuple[Any, ...]]] = {}


def encode(value: object) -> tuple[Digest, bytes]:
    """Return the digest and the canonical bytes of a value of the model."""
    data = _encode(value)
    return Digest(hashlib.sha256(data).digest()), data


def decoder(kind: str) -> msgspec.msgpack.Decoder[tuple[Any, ...]]:
    """Return the decoder of an array of blobs of that kind. Raises KeyError for a kind that this program does not know."""
    known = _decoders.get(kind)
    if known is None:
        known = _decoders[kind] = msgspec.msgpack.Decoder(GenericAlias(tuple, (TYPES[kind], ...)))
    return known
