"""The yardstick for parsing: how long iptables itself takes to read the same dump, in a network namespace of its own."""

import os
import shutil
import subprocess
import time


def restore_command() -> list[str] | None:
    """Return the command that checks a dump without applying it, None if this machine has not got what it needs."""
    if not shutil.which("iptables-legacy-restore") or not shutil.which("unshare"):
        return None
    own = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-Urn"]
    return [*own, "iptables-legacy-restore", "--test"]


def restore_seconds(command: list[str], text: str) -> float | None:
    """Return how many seconds the command took to read the dump, None if it refused."""
    began = time.perf_counter()
    done = subprocess.run(command, input=text.encode(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        print(f"restore      {' '.join(command)} failed: {done.stderr.decode(errors='replace').strip()[:200]}")
        return None
    return seconds
