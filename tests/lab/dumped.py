"""The whole state of a namespace as text, in the words of the usual tools: to tell whether mending left anything behind."""

import contextlib
import glob
import re
from collections.abc import Iterator

from lab.netns import Netns

_CHANGING = re.compile(
    r"\[\d+:\d+\]|^# .*| (?:valid_lft|preferred_lft|expires) \S+|handle \d+|mcast\S* \S+|state UNKNOWN", re.M
)
_EMPTY_TABLE = re.compile(r"^\*\w+\n(?::\w+ ACCEPT \n)+COMMIT\n", re.M)
COMMANDS = (
    ("ip", "-4", "route", "show", "table", "all"),
    ("ip", "-6", "route", "show", "table", "all"),
    ("ip", "-o", "addr"),
    ("ip", "-o", "link"),
    ("ip", "rule"),
    ("bridge", "-d", "link"),
)
PERMANENT = (("bridge", "fdb"), ("ip", "neigh", "show", "nud", "permanent"))
RULES = ("iptables-legacy-save", "ip6tables-legacy-save", "iptables-nft-save", "ip6tables-nft-save")
SYSCTLS = ("ipv4/conf/*/*", "ipv4/ip_forward", "ipv6/conf/*/*", "bridge/*")


def dump(netns: Netns) -> dict[str, list[str]]:
    """Return command → its lines, without counters and ages; rules in order, all else sorted."""
    found = {" ".join(command): sorted(_clean(netns.run(command)).splitlines()) for command in COMMANDS}
    for command in PERMANENT:
        lines = netns.run(command).splitlines()
        found[" ".join(command)] = sorted(line for line in lines if "permanent" in line.lower() or command[0] == "ip")
    for tool in RULES:
        text = _EMPTY_TABLE.sub("", _clean(netns.run([tool])) + "\n")
        found[tool] = [line for line in text.splitlines() if line]
    found["nft"] = _clean(netns.run(["nft", "list", "ruleset"])).splitlines()
    found["sysctl"] = sorted(_sysctls(netns))
    return found


def _sysctls(netns: Netns) -> Iterator[str]:
    with netns.inside():
        for pattern in SYSCTLS:
            for path in glob.glob(f"/proc/sys/net/{pattern}"):  # noqa: PTH207  (a thousand files: pathlib is slow)
                with contextlib.suppress(OSError), open(path, "rb") as setting:  # noqa: PTH123
                    yield f"{path}={setting.read().decode().strip()}"


def _clean(text: str) -> str:
    lines = (line.rstrip() if "ACCEPT" not in line else line for line in _CHANGING.sub("", text).splitlines())
    return "\n".join(line for line in lines if line)
