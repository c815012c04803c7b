"""A real kernel to compare with: a router between two silent ends, in network namespaces of its own.

    c (raw frames) ── rc [10.1.0.1, fd00:1::1]  r  rs [10.2.0.1, fd00:2::1] ── s (listens to frames)

The ends have no addresses and answer nothing; what the router itself wants to send is dropped before any iptables rule sees
it, so that the counters of rules show what the sent packets met and nothing else.
"""

import ctypes
import os
import re
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.skoop.model.packet import Packet
from tests.kernel.xtables.frames import frame, read

CLONE_NEWNET = 0x40000000
ETH_P_ALL = 3
C_MAC, RC_MAC, RS_MAC, S_MAC = "02:00:00:00:01:02", "02:00:00:00:01:01", "02:00:00:00:02:01", "02:00:00:00:02:02"
PORTS = (53, 80, 443, 8080)
LIBC = ctypes.CDLL(None, use_errno=True)
COUNTED = re.compile(r"\[(\d+):\d+\] -A (\S+)")
POLICY = re.compile(r":(\S+) (ACCEPT|DROP) \[(\d+):\d+\]")
BLOCK_OWN = "table inet lab { chain output { type filter hook output priority -500; policy drop; }; }"
BATCH = f"""
link add rc address {RC_MAC} type veth peer name eth0 netns {{c}} address {C_MAC}
link add rs address {RS_MAC} type veth peer name eth0 netns {{s}} address {S_MAC}
link set lo up
link set rc up
link set rs up
addr add 10.1.0.1/24 brd + dev rc
addr add 10.2.0.1/24 brd + dev rs
addr add fd00:1::1/64 dev rc nodad
addr add fd00:2::1/64 dev rs nodad
"""
SYSCTLS = {
    "net/ipv4/ip_forward": 1,
    "net/ipv4/conf/all/rp_filter": 0,
    "net/ipv4/conf/default/rp_filter": 0,
    "net/ipv4/conf/all/send_redirects": 0,
    "net/ipv6/conf/all/disable_ipv6": 0,
    "net/ipv6/conf/default/accept_dad": 0,
    "net/ipv6/conf/all/forwarding": 1,
}
MARKER = {4: "10.1.0.99", 6: "fd00:1::99"}
"""Source of the packet that tells that all before it have been dealt with; every built-in chain accepts it first."""


def _call(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _own_netns() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class RouterLab:
    """The three namespaces; `close` (or the `with` statement) takes them away."""

    def __init__(self) -> None:
        self.home = _own_netns()
        self.netns: dict[str, int] = {}
        self.serial = 0
        self.listeners: list[socket.socket] = []
        try:
            for name in ("c", "s", "r"):
                _call(LIBC.unshare(CLONE_NEWNET))
                self.netns[name] = _own_netns()
        finally:
            _call(LIBC.setns(self.home, CLONE_NEWNET))
        self._build()
        self.sender, self.receiver = (self._raw(name) for name in ("c", "s"))

    def _build(self) -> None:
        with self.inside("r"):
            for path, value in SYSCTLS.items():
                with open(f"/proc/sys/{path}", "w") as file:  # noqa: PTH123 (a file of the entered namespace)
                    file.write(str(value))
            paths = {name: f"/proc/{os.getpid()}/fd/{fd}" for name, fd in self.netns.items()}
            self._batch(BATCH.format(**paths))
            hosts = [f"neigh add 10.{net}.0.{n} lladdr {mac} dev {dev} nud permanent\nneigh add fd00:{net}::{n} lladdr {mac} dev {dev} nud permanent"
                     for net, dev, mac in ((1, "rc", C_MAC), (2, "rs", S_MAC)) for n in (2, 3, 99)]  # fmt: skip
            self._batch("\n".join(hosts))
            for family, any_address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                for port in PORTS:
                    listener = socket.socket(family, socket.SOCK_DGRAM)
                    if family == socket.AF_INET6:
                        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    listener.bind((any_address, port))
                    self.listeners.append(listener)
            self.run("nft", "-f", "-", given=BLOCK_OWN)
        for name in ("c", "s"):
            with self.inside(name):
                with open("/proc/sys/net/ipv6/conf/all/disable_ipv6", "w") as file:  # noqa: PTH123
                    file.write("1")
                self._batch("link set eth0 arp off\nlink set eth0 up")

    def _batch(self, text: str) -> None:
        self.run("ip", "-batch", "-", given=text)

    def _raw(self, name: str) -> socket.socket:
        with self.inside(name):
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            raw.bind(("eth0", ETH_P_ALL))
            raw.setblocking(False)
            return raw

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Enter a namespace for the time of a `with` block."""
        _call(LIBC.setns(self.netns[name], CLONE_NEWNET))
        try:
            yield
        finally:
            _call(LIBC.setns(self.home, CLONE_NEWNET))

    def run(self, *command: str, given: str | None = None) -> str:
        """Run a command in the namespace that is entered; return its output. Raises RuntimeError with what it complained of."""
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}\n{given or ''}")
        return done.stdout

    def on_router(self, *command: str, given: str | None = None) -> str:
        """Run a command on the router."""
        with self.inside("r"):
            return self.run(*command, given=given)

    def send(self, packets: list[Packet], marker: Packet) -> dict[int, Packet]:
        """Send packets and then the marker; return those that arrived by their position, as they arrived.

        Waits for the marker, which goes the same way behind the others; fails if it does not come within two seconds.
        """
        first = self.serial + 1
        for packet in (*packets, marker):
            self.serial += 1
            self.sender.send(frame(packet, C_MAC, RC_MAC, self.serial))
        arrived: dict[int, Packet] = {}
        deadline = time.monotonic() + 2.0
        while first + len(packets) not in arrived:
            ready, _, _ = select.select([self.receiver], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise RuntimeError("the marker did not arrive")
            found = read(self.receiver.recv(4096))
            if found is not None:
                arrived[found[0]] = found[1]
        return {serial - first: packet for serial, packet in arrived.items() if first <= serial < first + len(packets)}

    def close(self) -> None:
        """Give everything back."""
        for each in (self.sender, self.receiver, *self.listeners):
            each.close()
        for fd in (*self.netns.values(), self.home):
            os.close(fd)

    def __enter__(self) -> "RouterLab":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def counters(dump: str) -> dict[tuple[str, str, int], int]:
    """Return how many packets each rule of `iptables-save -c` has met: (table, chain, number from 1), 0 for a policy."""
    found: dict[tuple[str, str, int], int] = {}
    positions: dict[tuple[str, str], int] = {}
    table = ""
    for line in dump.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif rule := COUNTED.match(line):
            chain = (table, rule[2])
            positions[chain] = positions.get(chain, 0) + 1
            found[*chain, positions[chain]] = int(rule[1])
        elif policy := POLICY.match(line):
            found[table, policy[1], 0] = int(policy[3])
    return found
