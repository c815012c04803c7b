"""How a process steps into the namespaces of others: setns(2) by path. For processes with one thread only."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
FIRST_USER_NAMESPACE = 0xEFFFFFFD
"""Inode of the initial user namespace (PROC_USER_INIT_INO, include/linux/proc_ns.h)."""
OWN_NETNS = Path("/proc/thread-self/ns/net")
NAMED_NETNS = Path("/run/netns")


def netns_path(text: str, *, enter_pid: int | None = None) -> Path:
    """Return the file of a network namespace given as a path, or as a name that `ip netns` knows.

    A name is looked up as the process `enter_pid` sees it, if there is one: its /run may be its own.
    """
    if "/" in text:
        return Path(text)
    root = Path("/") if enter_pid is None else Path("/proc", str(enter_pid), "root")
    return root / NAMED_NETNS.relative_to("/") / text


def enter_user_namespace(pid: int) -> None:
    """Enter the user namespace of a process, becoming root in it. Raises OSError.

    Nothing is done if it is our own, nor for root of the first user namespace, who may do everything in all of them.
    """
    theirs = Path("/proc", str(pid), "ns/user")
    ours = Path("/proc/self/ns/user").stat().st_ino
    if theirs.stat().st_ino == ours or (ours == FIRST_USER_NAMESPACE and os.geteuid() == 0):
        return
    descriptor = os.open(theirs, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(descriptor, CLONE_NEWUSER)
    finally:
        os.close(descriptor)
    if os.geteuid() != 0:
        # Entering gives all capabilities, but a program that is started keeps them only if its user is root there.
        os.setgid(0)
        os.setuid(0)


def enter_netns(path: Path) -> None:
    """Enter a network namespace. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(descriptor, CLONE_NEWNET)
    finally:
        os.close(descriptor)


@contextmanager
def inside(descriptor: int) -> Iterator[None]:
    """Work in the network namespace behind a descriptor; afterwards the process is back where it was. Raises OSError."""
    home = os.open(OWN_NETNS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(descriptor, CLONE_NEWNET)
        try:
            yield
        finally:
            _setns(home, CLONE_NEWNET)
    finally:
        os.close(home)


def _setns(descriptor: int, kind: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, kind) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
