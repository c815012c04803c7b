"""How files appear whole or not at all: written under another name in the same folder, flushed to disk, renamed."""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tasks.skoop.snapshot.errors import SaveFailed


def temporary_name(path: Path) -> Path:
    """Return a fresh hidden name beside `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses (disk full, no permission …) into SaveFailed about `path`."""
    try:
        yield
    except OSError as error:
        raise SaveFailed(path, error.strerror or str(error)) from error


def write_file(path: Path, fill: Callable[[BinaryIO], None]) -> None:
    """Write a file atomically; `fill` writes its content. Raises OSError with nothing left behind."""
    temporary = temporary_name(path)
    try:
        with temporary.open("xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder atomically (`path` must not exist, or be an empty folder); `fill` writes into it."""
    temporary = temporary_name(path)
    try:
        temporary.mkdir()
        fill(temporary)
        sync_folder(temporary)
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
