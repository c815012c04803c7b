"""How a cluster's state becomes blobs named by digests, and back.

`split` turns a state into a manifest and blobs (a part that occurs twice is there once); `join` is its inverse. Nothing
here knows how they are stored.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from tasks.skoop.model.cluster import ClusterObjects, ClusterState
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.state import NetNS, NftTable
from tasks.skoop.model.xtables import XTable
from tasks.skoop.snapshot.blobs import (
    CHAIN,
    IPSET,
    NETNS,
    NFT_PART,
    NFT_TABLE,
    OBJECT_FIELDS,
    SECTION_FIELDS,
    TABLE,
    Digest,
    NetnsTree,
    NftTree,
    TableTree,
    encode,
    object_kind,
    section_kind,
)
from tasks.skoop.snapshot.layout import VERSION, program_version

_Value = TypeVar("_Value")
Blobs = Mapping[str, Mapping[Digest, bytes]]
"""Kind → digest → canonical bytes."""
Values = Mapping[str, Mapping[Digest, Any]]
"""Kind → digest → decoded value; typed by `blobs.TYPES`."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The root of a snapshot; digests are hexadecimal. `objects` maps a field of ClusterObjects to its blob."""

    version: int
    tool: str
    taken_at: str
    source: str
    netns: dict[NetnsId, str]
    objects: dict[str, str]
    uncollected: dict[NetnsId, str]
    tools: dict[str, str] = {}


class Tree(msgspec.Struct, frozen=True):
    """A whole state as blobs."""

    manifest: Manifest
    blobs: Blobs


class BrokenTree(ValueError):
    """A tree names a blob that is not there."""


class _Sink:
    """Collects blobs, each once, in the order of their first use."""

    def __init__(self) -> None:
        self.blobs: dict[str, dict[Digest, bytes]] = {}
        self._seen: dict[tuple[str, int], tuple[object, Digest]] = {}

    def put(self, kind: str, value: object) -> Digest:
        # Namespaces of one collected cluster share values by identity: those need no second encoding. The value is kept in
        # the entry, so that its id is not given to another while the entry lives.
        seen = self._seen.get((kind, id(value)))
        if seen is not None:
            return seen[1]
        digest, data = encode(value)
        self.blobs.setdefault(kind, {}).setdefault(digest, data)
        self._seen[kind, id(value)] = (value, digest)
        return digest


def split(state: ClusterState) -> Tree:
    """Return the state as a manifest and blobs. The same content gives the same digests, whatever the order of its maps."""
    assert all(netns.id == name for name, netns in state.netns.items())
    sink = _Sink()
    netns = {name: sink.put(NETNS, _split_netns(state.netns[name], sink)).hex() for name in sorted(state.netns)}
    empty = ClusterObjects()
    objects = {
        field: sink.put(object_kind(field), getattr(state.objects, field)).hex()
        for field in OBJECT_FIELDS
        if getattr(state.objects, field) != getattr(empty, field)
    }
    manifest = Manifest(
        version=VERSION,
        tool=program_version(),
        taken_at=state.taken_at,
        source=state.source,
        netns=netns,
        objects=objects,
        uncollected=state.uncollected,
        tools=state.tools,
    )
    return Tree(manifest, sink.blobs)


def _split_netns(netns: NetNS, sink: _Sink) -> NetnsTree:
    return NetnsTree(
        sections={
            field: sink.put(section_kind(field), value) for field in SECTION_FIELDS if (value := getattr(netns, field))
        },
        tables=tuple(sink.put(TABLE, _split_table(table, sink)) for table in netns.tables),
        nft=tuple(sink.put(NFT_TABLE, _split_nft(table, sink)) for table in netns.nft),
        ipsets=tuple((ipset.name, sink.put(IPSET, ipset)) for ipset in netns.ipsets),
        missing=netns.missing,
    )


def _split_table(table: XTable, sink: _Sink) -> TableTree:
    chains = tuple((chain.name, sink.put(CHAIN, chain)) for chain in table.chains)
    return TableTree(backend=table.backend, family=table.family, name=table.name, chains=chains)


class _NftBody(msgspec.Struct):
    name: str = ""
    chain: str = ""


_nft_decoder = msgspec.json.Decoder(dict[str, _NftBody])


def _nft_key(text: str) -> str:
    """Return `rule <chain>`, `chain <name>`, `set <name>` … for one object of `nft -j`; `object` for what is not of that form."""
    try:
        ((kind, body),) = _nft_decoder.decode(text).items()
    except (msgspec.DecodeError, ValueError):
        return "object"
    return f"{kind} {body.chain or body.name}"


def _split_nft(table: NftTable, sink: _Sink) -> NftTree:
    runs: list[tuple[str, list[str]]] = []
    for text in table.objects:
        key = _nft_key(text)
        if not runs or runs[-1][0] != key:
            runs.append((key, []))
        runs[-1][1].append(text)
    parts = tuple((key, sink.put(NFT_PART, tuple(texts))) for key, texts in runs)
    return NftTree(family=table.family, name=table.name, hooks=table.hooks, parts=parts)


def join(manifest: Manifest, values: Values) -> ClusterState:
    """Return the state that was split. Raises BrokenTree if a blob is missing."""
    joiner = _Joiner(values)
    objects = {field: joiner.get(object_kind(field), bytes.fromhex(name)) for field, name in manifest.objects.items()}
    return ClusterState(
        objects=ClusterObjects(**objects),
        netns={name: joiner.netns(name, Digest(bytes.fromhex(digest))) for name, digest in manifest.netns.items()},
        taken_at=manifest.taken_at,
        source=manifest.source,
        uncollected=manifest.uncollected,
        tools=manifest.tools,
    )


class _Joiner:
    """Builds values from trees; what two namespaces share is one object in memory too."""

    def __init__(self, values: Values) -> None:
        self._values = values
        self._tables: dict[Digest, XTable] = {}
        self._nft: dict[Digest, NftTable] = {}

    def get(self, kind: str, digest: bytes) -> Any:  # noqa: ANN401 -- typed by the kind
        try:
            return self._values[kind][Digest(digest)]
        except KeyError:
            raise BrokenTree(f"{kind} {digest.hex()[:12]}") from None

    def netns(self, name: NetnsId, digest: Digest) -> NetNS:
        tree: NetnsTree = self.get(NETNS, digest)
        if unknown := set(tree.sections) - set(SECTION_FIELDS):
            raise BrokenTree(f"section {min(unknown)}")
        sections = {field: self.get(section_kind(field), ref) for field, ref in tree.sections.items()}
        return NetNS(
            id=name,
            tables=tuple(self._table(ref) for ref in tree.tables),
            nft=tuple(self._nft_table(ref) for ref in tree.nft),
            ipsets=tuple(self.get(IPSET, ref) for _, ref in tree.ipsets),
            missing=tree.missing,
            **sections,
        )

    def _table(self, digest: Digest) -> XTable:
        found = self._tables.get(digest)
        if found is None:
            tree: TableTree = self.get(TABLE, digest)
            chains = tuple(self.get(CHAIN, ref) for _, ref in tree.chains)
            found = XTable(backend=tree.backend, family=tree.family, name=tree.name, chains=chains)
            self._tables[digest] = found
        return found

    def _nft_table(self, digest: Digest) -> NftTable:
        found = self._nft.get(digest)
        if found is None:
            tree: NftTree = self.get(NFT_TABLE, digest)
            objects = tuple(text for _, ref in tree.parts for text in self.get(NFT_PART, ref))
            found = NftTable(family=tree.family, name=tree.name, objects=objects, hooks=tree.hooks)
            self._nft[digest] = found
        return found
