"""Routes that routers advertise: which router does a host go by? The kernel is asked with `ip route get` on the same host."""

import json
import os
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from lab.netns import Netns
from lab.requirements import unavailable_because
from tasks.skoop.model.addr import Ip
from tasks.skoop.model.state import NetNS
from tasks.skoop.netstack.fib import FlowKey
from tasks.skoop.netstack.namespace import Namespace
from tests.kernel.devices.performing import _cable, _collected, _settle

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces"),
]
ROUTERS = {"node/r1": "eth1", "node/r2": "eth2"}
ALL_NODES = "ff02::1"
LOW, MEDIUM, HIGH = 3, 0, 1
FAR = Ip("2600::1")
PATIENCE_S = 5.0


@pytest.fixture
def spaces() -> Iterator[dict[str, Netns]]:
    if reason := unavailable_because():
        pytest.skip(reason)
    made = {name: Netns(name) for name in ("node/host", *ROUTERS)}
    try:
        for netns in made.values():
            for key in ("accept_dad", "router_solicitations"):
                netns.sysctl(f"ipv6/conf/default/{key}", 0)
        made["node/host"].sysctl("ipv6/conf/default/accept_ra", 2)
        for number, (router, dev) in enumerate(ROUTERS.items(), 1):
            for space, line in _cable(made, ("host", dev), (router.removeprefix("node/"), "eth0")):
                made[f"node/{space}"].run(["sh", "-ec", line])
            made[router].run(["ip", "addr", "add", f"fe80::{number}/64", "dev", "eth0", "nodad"])
        _settle(made)
        yield made
    finally:
        for netns in made.values():
            netns.close()


def advertise(router: Netns, number: int, preference: int) -> None:
    """Say by a router advertisement (RFC 4861, RFC 4191) that this is a default router."""
    with router.inside():
        sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    with sock:
        index = int(router.run(["cat", "/proc/net/dev_snmp6/eth0"]).split()[1])
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sock.bind((f"fe80::{number}", 0, 0, index))
        body = struct.pack("!BBHBBHII", 134, 0, 0, 64, preference << 3, 1800, 0, 0)
        sock.sendto(body, (ALL_NODES, 0, 0, index))


def advertised(spaces: dict[str, Netns], preferences: tuple[int, int]) -> NetNS:
    """Return the host as it is collected once both routers have advertised themselves."""
    deadline = time.monotonic() + PATIENCE_S
    for number, (router, preference) in enumerate(zip(ROUTERS, preferences, strict=True), 1):
        advertise(spaces[router], number, preference)
    while True:
        state = _collected(spaces["node/host"], spaces)
        if sum(route.dst == "::/0" for route in state.routes) == len(ROUTERS) or time.monotonic() > deadline:
            return state


def by_kernel(host: Netns) -> str:
    return str(json.loads(host.run(["ip", "-j", "-6", "route", "get", FAR]))[0]["dev"])


def foretold(state: NetNS) -> set[str]:
    found = Namespace(state, None).routers[6].lookup(FlowKey(dst=FAR))  # type: ignore[arg-type]  # nobody is asked
    return {leg.dev for leg in found.legs} if found is not None else set()


@pytest.mark.parametrize(
    ("preferences", "dev"),
    [
        pytest.param((LOW, HIGH), "eth2", id="the second is preferred"),
        pytest.param((HIGH, MEDIUM), "eth1", id="the first is preferred"),
        pytest.param((LOW, MEDIUM), "eth2", id="medium before low"),
    ],
)
def test_the_preferred_router_is_taken(spaces: dict[str, Netns], preferences: tuple[int, int], dev: str) -> None:
    state = advertised(spaces, preferences)
    assert sorted(route.preference for route in state.routes if route.dst == "::/0") == sorted(
        {LOW: "low", MEDIUM: "medium", HIGH: "high"}[one] for one in preferences
    )
    assert by_kernel(spaces["node/host"]) == dev
    assert foretold(state) == {dev}


def test_a_preferred_router_that_does_not_answer_is_avoided(spaces: dict[str, Netns]) -> None:
    advertised(spaces, (LOW, HIGH))
    host = spaces["node/host"]
    host.run(["ip", "neigh", "replace", "fe80::2", "dev", "eth2", "nud", "failed"])
    assert by_kernel(host) == "eth1"
    assert foretold(_collected(host, spaces)) == {"eth1"}
