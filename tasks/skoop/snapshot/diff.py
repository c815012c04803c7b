"""Where two snapshots differ, told from their digests: only trees are decoded, never a chain or a route.

Two namespaces are equal where their digests are; where not, the sections, and of iptables, nft and ipsets the chains,
runs of objects and sets, are named. What changed inside a chain is the reader's next question: load both and look.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.state import Section
from tasks.skoop.snapshot.blobs import (
    NETNS,
    NFT_TABLE,
    TABLE,
    TREE_KINDS,
    TYPES,
    Digest,
    NetnsTree,
    NftTree,
    TableTree,
)
from tasks.skoop.snapshot.errors import CorruptSnapshot
from tasks.skoop.snapshot.layout import Limits
from tasks.skoop.snapshot.redact import redact
from tasks.skoop.snapshot.store import DEFAULT_LIMITS, load_values
from tasks.skoop.snapshot.tree import Manifest, split

_Key = TypeVar("_Key")


class Change(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One part that differs: `added` is only in the newer, `removed` only in the older, else `changed`.

    `section` is the section's name; `part` names what is inside it, where it is stored finer: `legacy ip4 nat KUBE-SVC-X`,
    `ip kube-proxy chain services`, an ipset's name.
    """

    section: str
    what: str
    part: str = ""


class SnapshotDiff(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What differs between an older and a newer snapshot. `objects` are kinds of Kubernetes objects, as in ClusterObjects."""

    same: bool
    added: tuple[NetnsId, ...] = ()
    removed: tuple[NetnsId, ...] = ()
    changed: dict[NetnsId, tuple[Change, ...]] = {}
    objects: tuple[Change, ...] = ()
    uncollected_added: tuple[NetnsId, ...] = ()
    uncollected_removed: tuple[NetnsId, ...] = ()


class _Side:
    """One of the two: its manifest, and its trees by digest."""

    def __init__(self, what: Path | ClusterState, limits: Limits) -> None:
        self.path = what if isinstance(what, Path) else Path("(collected now)")
        if isinstance(what, Path):
            self.manifest, self._trees = load_values(what, kinds=TREE_KINDS, limits=limits)
        else:
            self.manifest, self._trees = _split_trees(what)

    def tree(self, kind: str, digest: Digest) -> Any:  # noqa: ANN401 -- typed by the kind
        try:
            return self._trees[kind][digest]
        except KeyError:
            raise CorruptSnapshot(self.path, f"its tree has a hole: {kind} {digest.hex()[:12]}") from None

    def netns(self, name: NetnsId) -> NetnsTree:
        try:
            digest = Digest(bytes.fromhex(self.manifest.netns[name]))
        except ValueError as error:
            raise CorruptSnapshot(self.path, f"its manifest names {name} by something other than a digest") from error
        found: NetnsTree = self.tree(NETNS, digest)
        return found


def _split_trees(state: ClusterState) -> tuple[Manifest, dict[str, dict[Digest, Any]]]:
    tree = split(redact(state))
    decoded = {
        kind: {digest: msgspec.msgpack.decode(data, type=TYPES[kind]) for digest, data in blobs.items()}
        for kind, blobs in tree.blobs.items()
        if kind in TREE_KINDS
    }
    return tree.manifest, decoded


def diff(older: Path | ClusterState, newer: Path | ClusterState, *, limits: Limits = DEFAULT_LIMITS) -> SnapshotDiff:
    """Return where two snapshots (or collected states) differ in content; when and whence they were taken does not count.

    Raises as `store.load`.
    """
    old, new = _Side(older, limits), _Side(newer, limits)
    before, after = old.manifest, new.manifest
    changed = {
        name: _netns_changes(old, new, name)
        for name in before.netns
        if name in after.netns and before.netns[name] != after.netns[name]
    }
    result = SnapshotDiff(
        same=False,
        added=tuple(name for name in after.netns if name not in before.netns),
        removed=tuple(name for name in before.netns if name not in after.netns),
        changed=changed,
        objects=tuple(_changes("objects", before.objects, after.objects, part=str)),
        uncollected_added=tuple(name for name in after.uncollected if name not in before.uncollected),
        uncollected_removed=tuple(name for name in before.uncollected if name not in after.uncollected),
    )
    return msgspec.structs.replace(result, same=result == SnapshotDiff(same=False))


def _netns_changes(old: _Side, new: _Side, name: NetnsId) -> tuple[Change, ...]:
    before, after = old.netns(name), new.netns(name)
    changes = [_named(change) for change in _changes("", before.sections, after.sections, part=str)]
    changes += _changes(Section.IPTABLES, _chains(old, before), _chains(new, after), part=" ".join)
    changes += _changes(Section.NFT, _nft_parts(old, before), _nft_parts(new, after), part=" ".join)
    changes += _changes(Section.IPSETS, dict(before.ipsets), dict(after.ipsets), part=str)
    gaps = {gap.section: gap.reason for gap in before.missing}, {gap.section: gap.reason for gap in after.missing}
    changes += _changes("missing", *gaps, part=str)
    return tuple(changes)


def _named(change: Change) -> Change:
    """Give a field of NetNS the name of its section."""
    section = {"interfaces": Section.LINKS}.get(change.part, change.part.replace("_", "-"))
    return Change(section=section, what=change.what)


def _chains(side: _Side, netns: NetnsTree) -> dict[tuple[str, ...], Digest]:
    tables: Iterable[TableTree] = (side.tree(TABLE, digest) for digest in netns.tables)
    return {
        (table.backend, f"ip{table.family}", table.name, name): digest
        for table in tables
        for name, digest in table.chains
    }


def _nft_parts(side: _Side, netns: NetnsTree) -> dict[tuple[str, ...], Digest]:
    found: dict[tuple[str, ...], Digest] = {}
    tables: Iterable[NftTree] = (side.tree(NFT_TABLE, digest) for digest in netns.nft)
    for table in tables:
        for key, digest in table.parts:
            # Runs of one name may repeat (rules of a chain, then another's, then more of the first): number them.
            name: tuple[str, ...] = (table.family, table.name, key)
            number = 1
            while name in found:
                number += 1
                name = (table.family, table.name, key, f"({number})")
            found[name] = digest
    return found


def _changes(
    section: str, before: Mapping[_Key, object], after: Mapping[_Key, object], *, part: Callable[[_Key], str]
) -> list[Change]:
    removed = [Change(section=section, what="removed", part=part(key)) for key in before if key not in after]
    added = [Change(section=section, what="added", part=part(key)) for key in after if key not in before]
    changed = [
        Change(section=section, what="changed", part=part(key))
        for key, value in before.items()
        if key in after and after[key] != value
    ]
    return removed + added + changed
