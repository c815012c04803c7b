"""Can this machine run a lab: the right to make namespaces, the kernel's parts, the tools."""

import os
import shutil
import signal
from pathlib import Path

from lab.errors import LabFailed
from lab.netns import CLONE_NEWNET, Netns, become_root_of_own_user_namespace, unshare

TOOLS = (
    "ip",
    "bridge",
    "iptables-legacy-restore",
    "ip6tables-legacy-restore",
    "iptables-nft-restore",
    "nft",
    "conntrack",
)
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def unavailable_because() -> str | None:
    """Return None if a lab can run here, else the reason. Tries it out in a child process, which touches nothing."""
    missing = [tool for tool in TOOLS if not shutil.which(tool, path=_PATH + ":" + os.environ.get("PATH", ""))]
    if missing:
        return f"missing tools: {', '.join(missing)} (packages iproute2, iptables, nftables, conntrack)"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.write(writer, (_try_out() or "").encode())
        os.kill(os.getpid(), signal.SIGKILL)  # no exit handlers of the parent's in here
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        reason = said.read().decode()
    os.waitpid(child, 0)
    return reason or None


def _try_out() -> str | None:
    try:
        try:
            unshare(CLONE_NEWNET)
        except PermissionError:
            become_root_of_own_user_namespace()
            unshare(CLONE_NEWNET)
        netns = Netns("trial")
        with netns.inside():
            if not Path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists():
                return "the kernel module br_netfilter is not loaded (modprobe br_netfilter)"
        netns.sysctl("ipv4/ip_forward", 1)
    except (OSError, LabFailed) as error:
        limits = (
            "user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns, the container's seccomp profile"
        )
        return f"no right to make network namespaces ({error}); run as root, or see {limits}"
    return None
