"""What the kernel's settings of a network namespace are: those files below /proc/sys/net that decide (`parse.sysctl`).

/proc/sys/net follows the namespace of the process that opens it. A setting that this kernel does not have, or that we may
not read, is left out: to the simulator it is unknown.
"""

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from tasks.skoop.parse.sysctl import PER_DEVICE, SINGLE

ROOT = Path("/proc/sys")
_VALUE_BYTES = 65536


def read_settings(root: Path = ROOT, *, named: Collection[str] = ()) -> dict[str, str]:
    """Return path below /proc/sys → value, sorted; of certain settings alone if they are `named` (`rp_filter`).

    Raises OSError if there are no settings at all.
    """
    (root / "net").stat()
    return dict(_read(root, sorted((*_single(named), *_per_device(root, named)))))


def _wanted(names: Iterable[str], named: Collection[str]) -> list[str]:
    return [name for name in names if not named or name in named]


def _single(named: Collection[str]) -> Iterator[str]:
    for folder, names in SINGLE.items():
        yield from (f"{folder}/{name}" for name in _wanted(names, named))


def _per_device(root: Path, named: Collection[str]) -> Iterator[str]:
    for folder, known in PER_DEVICE.items():
        names = _wanted(known, named)
        if not names:
            continue
        try:
            devices = os.listdir(root / folder)  # noqa: PTH208 -- names are all that is wanted
        except OSError:
            continue  # no IPv6 here
        for device in devices:
            yield from (f"{folder}/{device}/{name}" for name in names)


def _read(root: Path, paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path in paths:
            try:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
            except OSError:
                continue
            try:
                yield path, os.read(file, _VALUE_BYTES).decode(errors="replace").strip()
            except OSError:
                continue
            finally:
                os.close(file)
    finally:
        os.close(folder)
