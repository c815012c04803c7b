"""What is in a snapshot, in figures, and what is not in it: the content of `snapshot show`."""

from pathlib import Path

import msgspec

from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.state import Missing, NetNS
from tasks.skoop.snapshot.blobs import OBJECT_FIELDS, SECTION_FIELDS
from tasks.skoop.snapshot.layout import Limits
from tasks.skoop.snapshot.store import DEFAULT_LIMITS, load, load_manifest


class NetnsDescription(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One namespace: how many entries each section has (`chains`, `rules-iptables`, `nft-objects`, … too), and the gaps."""

    id: NetnsId
    counts: dict[str, int]
    missing: tuple[Missing, ...] = ()


class Description(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A snapshot in figures. `stored_bytes` is its size on disk; `digest` its manifest's (hexadecimal)."""

    digest: str
    version: int
    tool: str
    taken_at: str
    source: str
    stored_bytes: int
    netns: tuple[NetnsDescription, ...]
    objects: dict[str, int]
    objects_missing: dict[str, str] = {}
    uncollected: dict[NetnsId, str] = {}
    tools: dict[str, str] = {}


def describe(path: Path, *, limits: Limits = DEFAULT_LIMITS) -> Description:
    """Return what a snapshot holds and lacks. Raises as `store.load`."""
    digest, manifest = load_manifest(path, limits=limits)
    state = load(path, limits=limits)
    return Description(
        digest=digest,
        version=manifest.version,
        tool=manifest.tool,
        taken_at=manifest.taken_at,
        source=manifest.source,
        stored_bytes=_stored_bytes(path),
        netns=tuple(_describe_netns(netns) for netns in state.netns.values()),
        objects=_count_objects(state),
        objects_missing=state.objects.missing,
        uncollected=state.uncollected,
        tools=state.tools,
    )


def _stored_bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _count_objects(state: ClusterState) -> dict[str, int]:
    return {field: len(getattr(state.objects, field)) for field in OBJECT_FIELDS if field != "missing"}


def _describe_netns(netns: NetNS) -> NetnsDescription:
    counts = {field.replace("_", "-"): len(value) for field in SECTION_FIELDS if (value := getattr(netns, field))}
    chains = [chain for table in netns.tables for chain in table.chains]
    counts |= {
        "iptables-chains": len(chains),
        "iptables-rules": sum(len(chain.rules) for chain in chains),
        "nft-objects": sum(len(table.objects) for table in netns.nft),
        "ipsets": len(netns.ipsets),
    }
    return NetnsDescription(
        id=netns.id, counts={name: count for name, count in counts.items() if count}, missing=netns.missing
    )
