"""Runs the network tools of the system, bounded in time, and says what went wrong in their own words."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tasks.skoop.errors import KubeprobeError

_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin")
TIMEOUT_S = 60.0

VERSIONS: dict[str, tuple[str, ...]] = {
    "ip": ("-V",),
    "nft": ("--version",),
    "iptables-legacy-save": ("--version",),
    "iptables-nft-save": ("--version",),
    "ipset": ("--version",),
    "conntrack": ("--version",),
    "ipvsadm": ("--version",),
}
"""Program → how to ask its version."""


class ToolFailed(KubeprobeError):
    """A program is not there, failed, or took too long."""

    def __init__(self, command: str, reason: str) -> None:
        self.command = command
        self.reason = reason
        super().__init__(f"{command}: {reason}")


def search_path() -> str:
    """Return PATH with the folders of system programs, which the one of an ordinary user lacks."""
    known = os.environ.get("PATH", "").split(os.pathsep)
    return os.pathsep.join([*known, *(folder for folder in _SBIN if folder not in known)])


def find_tool(*names: str) -> str | None:
    """Return the path of the first of these programs that is installed."""
    path = search_path()
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


def run_tool(argv: Sequence[str], *, timeout_s: float = TIMEOUT_S) -> str:
    """Run a program and return what it prints. Raises ToolFailed with its error text."""
    command = " ".join((Path(argv[0]).name, *argv[1:]))
    executable = find_tool(argv[0])
    if executable is None:
        raise ToolFailed(command, f"{argv[0]} is not installed")
    env = {"PATH": search_path(), "LC_ALL": "C", "HOME": "/"}
    try:
        done = subprocess.run(
            [executable, *argv[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=env,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ToolFailed(command, f"gave no answer within {timeout_s:g} s") from None
    except OSError as error:
        raise ToolFailed(command, error.strerror or str(error)) from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).decode(errors="replace").split())
        raise ToolFailed(command, said[:500] or f"exit status {done.returncode}")
    return done.stdout.decode(errors="surrogateescape").encode("utf-8", "replace").decode()


def tool_versions() -> dict[str, str]:
    """Return what each installed program says of its version, and the kernel's as `linux`."""
    found = {"linux": os.uname().release}
    for name, options in VERSIONS.items():
        if find_tool(name) is None:
            continue
        try:
            said = run_tool([name, *options], timeout_s=5)
        except ToolFailed as failure:
            said = f"unknown ({failure.reason})"
        found[name] = said.strip().partition("\n")[0]
    return found
