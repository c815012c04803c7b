"""The worlds whose devices this machine's kernel has: built, collected and tried here, and the simulator foretells what happens."""

import os
import subprocess

import pytest

from tests.kernel.devices.comparing import differences
from tests.kernel.devices.performing import perform
from tests.kernel.devices.world import QEMU_WORLDS, WORLDS, World, read_world

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and their full state"),
]

MAKE = {
    "nexthop": "ip link add e type veth peer name f; ip link set e up; ip link set f up; ip nexthop add id 5 dev e",
    "bridge-vlan": "ip link add b type bridge vlan_filtering 1",
    "vlan": "ip link add e type veth; ip link add link e name e.5 type vlan id 5",
    "macvlan": "ip link add e type veth; ip link add link e name m type macvlan",
    "ipvlan": "ip link add e type veth; ip link add link e name m type ipvlan",
    "vrf": "ip link add v type vrf table 10",
    "vxlan": "ip link add v type vxlan id 5 dstport 4789",
    "geneve": "ip link add v type geneve id 5 remote 192.0.2.1",
    "bond": "ip link add b type bond",
    "wireguard": "ip link add w type wireguard",
    "dummy": "ip link add d type dummy",
    "ip6tnl": "ip link add t type ip6tnl remote 2001:db8::1 local 2001:db8::2",
    "ip6gre": "ip link add t type ip6gre remote 2001:db8::1 local 2001:db8::2",
}
"""Kind → the lines that only a kernel which has it takes; IPv4 tunnels are all made alike."""


def has(kind: str) -> bool:
    """Say whether this kernel makes such a device."""
    script = MAKE.get(kind, f"ip link add t type {kind} remote 192.0.2.1 local 192.0.2.2")
    return subprocess.run(["unshare", "-n", "sh", "-ec", script], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("world", [read_world(path) for path in (*WORLDS, *QEMU_WORLDS)], ids=lambda world: world.name)
def test_the_simulator_foretells_what_happens_here(world: World) -> None:
    missing = [kind for kind in world.needs if not has(kind)]
    if missing:
        pytest.skip(f"this kernel has no {', '.join(missing)}: see `make fuzz-uml`, `make fuzz-wireguard`")
    wrong = [line for fault in ("", *world.faults) for line in differences(perform(world, fault))]
    assert not wrong, "\n".join(wrong)
