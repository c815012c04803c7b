"""What can go wrong with a stored snapshot, each as one error that says what to do next."""

from pathlib import Path

from tasks.skoop.errors import KubeprobeError, RequestError


class NotASnapshot(RequestError):
    """The path holds something else, or nothing."""

    def __init__(self, path: Path, why: str) -> None:
        self.path = path
        self.why = why
        super().__init__(f"{path} is not a snapshot: {why}; give a .kps file or a folder that `collect` wrote")


class NewerSnapshot(RequestError):
    """The snapshot was written in a format that this program does not know yet."""

    def __init__(self, path: Path, version: int, known: int, needs: str) -> None:
        self.path = path
        self.version = version
        self.known = known
        self.needs = needs
        super().__init__(
            f"{path} has snapshot format {version}, this program reads up to {known}; use kubectl-probe {needs} or newer"
        )


class CorruptSnapshot(RequestError):
    """The snapshot is cut off, was changed after it was written, or was made to do harm."""

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self.what = what
        super().__init__(f"{path} is damaged: {what}; copy it again from where it was made, or collect anew")


class SnapshotTooLarge(RequestError):
    """Reading the snapshot would take more memory than its limits allow."""

    def __init__(self, path: Path, what: str, limit: int) -> None:
        self.path = path
        self.what = what
        self.limit = limit
        super().__init__(
            f"{path} was not read: {what} (limit {limit}); if you trust where it comes from, raise the limit, "
            "else ask its sender for another"
        )


class SaveRefused(RequestError):
    """A snapshot may not or cannot be put at that place."""

    def __init__(self, path: Path, why: str) -> None:
        self.path = path
        self.why = why
        super().__init__(f"cannot write the snapshot {path}: {why}; choose another place")


class SaveFailed(KubeprobeError):
    """The snapshot could not be written; nothing of it was left behind."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(
            f"cannot write the snapshot {path}: {reason}; nothing was left behind, free some space or choose another place"
        )
