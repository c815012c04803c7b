"""Whose a network namespace of this machine is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.skoop.collect.host import find_spaces, logged_pods, pod_uid

UID = "0a1b2c3d-1111-2222-3333-0123456789ab"
CONTAINER = "a" * 64
CGROUPS = [
    pytest.param(
        f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID.replace('-', '_')}.slice"
        f"/cri-containerd-{CONTAINER}.scope",
        UID,
        id="systemd driver, cgroup v2",
    ),
    pytest.param(f"11:net_cls:/kubepods/besteffort/pod{UID}/{CONTAINER}\n1:name=x:/", UID, id="cgroupfs driver, v1"),
    pytest.param(f"0::/kubepods/pod{UID}/{CONTAINER}", UID, id="guaranteed"),
    pytest.param(
        f"0::/kubepods/burstable/pod0123456789abcdef0123456789abcdef/{CONTAINER}",
        "0123456789abcdef0123456789abcdef",
        id="static pod",
    ),
    pytest.param(f"0::/system.slice/docker-{CONTAINER}.scope", None, id="a container of no pod"),
    pytest.param("0::/user.slice/podman-1.scope", None, id="something that starts like one"),
    pytest.param("", None, id="nothing"),
]


@pytest.mark.parametrize(("text", "uid"), CGROUPS)
def test_the_cgroup_of_a_process_names_its_pod(text: str, uid: str | None) -> None:
    assert pod_uid(text) == uid


MOUNTS = """\
25 1 0:22 / /proc rw - proc proc rw
90 25 0:4 net:[4026532001] /run/netns/cni-1234 rw shared:2 - nsfs nsfs rw
91 25 0:4 net:[4026532002] /run/netns/my\\040net rw - nsfs nsfs rw
92 25 0:4 mnt:[4026532003] /run/mnt/x rw - nsfs nsfs rw
93 25 0:4 net:[4026532001] /var/run/netns/cni-1234 rw - nsfs nsfs rw
"""


def test_namespaces_are_found_by_process_and_by_mount() -> None:
    found = {one.inode: one for one in find_spaces(MOUNTS.splitlines(), {4026531840: [1, 20], 4026532001: [300, 299]})}
    assert set(found) == {4026531840, 4026532001, 4026532002}
    assert (found[4026532001].name, found[4026532001].path) == ("cni-1234", "/proc/299/ns/net")
    assert (found[4026532002].name, found[4026532002].path) == ("my net", "/run/netns/my net")
    assert (found[4026531840].name, found[4026531840].pids) == ("", (1, 20))


def test_the_kubelets_log_folders_name_pods(tmp_path: Path) -> None:
    for name in (f"shop_web-1_{UID}", "notes", "a_b"):
        (tmp_path / name).mkdir()
    assert logged_pods(tmp_path) == {UID: ("shop", "web-1")}
    assert logged_pods(tmp_path / "nothing") == {}


SCRIPT = """
ip link add veth0 type veth peer name eth0
ip addr add 192.0.2.1/24 dev veth0; ip link set veth0 up; ip link set lo up
unshare -n sleep 1000 & other=$!
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do :; done
ip link set eth0 netns $other
exec 3>&1
"$@" $other
kill $other
"""
CODE = """
import sys
from tasks.skoop.collect.host import collect_host
state = collect_host(node="me", workers=1)
node, other = state.netns["node/me"], state.netns[f"host/sleep-{sys.argv[1]}"]
print(len(state.netns), state.uncollected, state.source)
print(node.interface("veth0").peer, other.interface("eth0").peer)
print([(one.name, one.ips) for one in state.objects.nodes])
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root")
def test_a_whole_machine_is_collected() -> None:
    """The machine is one of our own: new PID, mount and network namespaces, so that it has two network namespaces in all."""
    command = ["unshare", "-nmpf", "--mount-proc", "sh", "-c", SCRIPT, "sh", sys.executable, "-c", CODE]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=60)
    assert done.stderr.strip() == ""
    first, second, third = done.stdout.splitlines()
    assert first == "2 {} host me"
    assert second.startswith("('host/sleep-")
    assert second.endswith("('node/me', 'veth0')")
    assert third == "[('me', ('192.0.2.1',))]"
