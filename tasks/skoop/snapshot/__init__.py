"""The snapshot: one collected cluster, stored by content, as a folder or one `.kps` file (`layout` has the shape).

`save` and `load` are inverse up to `redact`; `verify` checks thoroughly; `diff` compares two by their digests alone;
`describe` tells what is in one and what is missing.
"""

from tasks.skoop.snapshot.describe import Description, describe
from tasks.skoop.snapshot.diff import SnapshotDiff, diff
from tasks.skoop.snapshot.errors import (
    CorruptSnapshot,
    NewerSnapshot,
    NotASnapshot,
    SaveFailed,
    SaveRefused,
    SnapshotTooLarge,
)
from tasks.skoop.snapshot.layout import Limits
from tasks.skoop.snapshot.redact import redact
from tasks.skoop.snapshot.store import Verified, load, save, verify

__all__ = [
    "CorruptSnapshot",
    "Description",
    "Limits",
    "NewerSnapshot",
    "NotASnapshot",
    "SaveFailed",
    "SaveRefused",
    "SnapshotDiff",
    "SnapshotTooLarge",
    "Verified",
    "describe",
    "diff",
    "load",
    "redact",
    "save",
    "verify",
]
