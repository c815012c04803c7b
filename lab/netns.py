"""How does a process make network namespaces, and work in one for a moment.

A namespace is held by a file descriptor and nothing else: no name under /run, so it dies with the process that holds it.
Sockets stay in the namespace in which they were opened; that is how one process serves twenty of them.
"""

import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab.errors import LabFailed
from lab.rtnl import Rtnl

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Leave the namespaces of `flags` for new ones. Raises OSError."""
    if _libc.unshare(flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def setns(fd: int, kind: int = CLONE_NEWNET) -> None:
    """Enter the namespace behind a descriptor. Raises OSError."""
    if _libc.setns(fd, kind) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _open_own() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class Netns:
    """One network namespace: its id (`node/n1`, `pod/shop/web-1`, `host/ext`), descriptor and rtnetlink socket."""

    def __init__(self, name: str) -> None:
        """Make a new namespace; the caller stays where he was."""
        self.name = name
        home = _open_own()
        try:
            unshare(CLONE_NEWNET)
            self.fd = _open_own()
            self.rtnl = Rtnl()
        finally:
            setns(home)
            os.close(home)

    def close(self) -> None:
        """Let go of the namespace."""
        self.rtnl.close()
        os.close(self.fd)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Work in this namespace; afterwards the thread is back where it was."""
        home = _open_own()
        try:
            setns(self.fd)
            yield
        finally:
            setns(home)
            os.close(home)

    def sysctl(self, key: str, value: object) -> None:
        """Write a sysctl given as path below /proc/sys/net (`ipv4/ip_forward`). Raises LabFailed."""
        with self.inside():
            write_sysctl(key, value)

    def read_sysctl(self, key: str) -> str:
        """Read a sysctl given as path below /proc/sys/net."""
        with self.inside():
            return Path("/proc/sys/net", key).read_text().strip()

    def read_proc(self, name: str) -> str:
        """Read /proc/net/<name> of this namespace."""
        with self.inside():
            return Path("/proc/thread-self/net", name).read_text()

    def run(self, argv: Sequence[str], stdin: str = "", *, lock: Path | None = None) -> str:
        """Run a tool in this namespace and return what it prints. Raises LabFailed with its error text."""
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin:" + os.environ.get("PATH", ""), "LC_ALL": "C"}
        if lock is not None:
            env["XTABLES_LOCKFILE"] = str(lock)
        with self.inside():
            done = subprocess.run(list(argv), input=stdin, capture_output=True, text=True, env=env, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise LabFailed(f"{' '.join(argv)} in {self.name}", said or f"status {done.returncode}")
        return done.stdout


def write_sysctl(key: str, value: object) -> None:
    """Write a sysctl of the namespace the thread is in. Raises LabFailed."""
    try:
        fd = os.open(f"/proc/sys/net/{key}", os.O_WRONLY)
        try:
            os.write(fd, str(value).encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise LabFailed(f"setting net/{key} to {value}", error.strerror or str(error)) from error


def become_root_of_own_user_namespace() -> None:
    """Enter a new user namespace in which this process is root. Raises OSError where the kernel refuses."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
