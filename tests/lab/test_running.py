"""Labs held by a process of their own: started, asked, broken, mended and ended through `lab.api`."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from lab import api
from lab.errors import BadRequest, LabExists, LabFailed, NoSuchLab
from lab.netns import setns
from tasks.skoop.model.trace import Reason, View
from tests.lab.fixtures import need_lab

pytestmark = pytest.mark.root
CLONE_NEWUSER = 0x10000000


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def links_of(topology: dict[str, dict[str, dict[str, str]]], netns: str) -> set[str]:
    """The interfaces that another process finds behind a path of the topology file."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if "enter" in topology:
                setns(os.open(f"/proc/{topology['enter']['pid']}/ns/user", os.O_RDONLY), CLONE_NEWUSER)
            setns(os.open(netns, os.O_RDONLY))
            names = [line.partition(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]]
            os.write(writer, " ".join(names).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        found = set(said.read().split())
    os.waitpid(child, 0)
    return found


def test_a_labs_life(labs_folder: Path) -> None:
    info = api.up("flannel-vxlan", name="life", nodes=2)
    try:
        assert api.running() == ("life",)
        topology = yaml.safe_load(info.topology.read_text())
        assert set(topology["nodes"]) == {"n1", "n2"}
        assert links_of(topology, topology["nodes"]["n1"]["netns"]) >= {"lo", "eth0", "flannel.1", "cni0"}
        assert links_of(topology, topology["pods"]["shop/web-1"]["netns"]) == {"lo", "eth0"}
        assert {"pods.json", "services.json", "endpointslices.json"} <= {
            p.name for p in (info.folder / "k8s").iterdir()
        }
        (truth,) = api.probe("life", "shop/client-1", "svc/shop/db:sql")
        assert (truth.view, truth.server, truth.seen_src) == (View.CONNECTED, "pod/shop/db-1", "10.244.1.3")
        with pytest.raises(LabExists, match="life"):
            api.up("bridge", name="life")
        done = api.break_("life", "F01", "n2")
        assert done.on == "n2"
        assert [one.fault for one in api.status("life").broken] == ["F01"]
        (truth,) = api.probe("life", "shop/client-1", "svc/shop/db:sql", timeout_s=0.2)
        assert (truth.view, truth.reason) == (View.TIMEOUT, Reason.IP_INADDRERRORS)
        assert truth.place is not None
        assert truth.place.netns == "node/n2"
        assert api.mend("life") == ("F01",)
        assert len(api.probe("life", "shop/client-1", "shop/web-2", count=3)) == 3
    finally:
        api.down("life")
    assert gone(info.pid)
    assert not info.folder.exists()
    with pytest.raises(NoSuchLab, match="lab up"):
        api.status("life")


def test_a_lab_that_was_killed_is_cleared_away(labs_folder: Path) -> None:
    info = api.up("bridge", name="killed", nodes=2, families=(4,))
    watched = os.pidfd_open(info.pid)
    try:
        signal.pidfd_send_signal(watched, signal.SIGKILL)
        os.waitpid(info.pid, 0)
    finally:
        os.close(watched)
    with pytest.raises(NoSuchLab):
        api.probe("killed", "shop/client-1", "shop/web-2")
    api.down("killed")
    assert not info.folder.exists()


def test_sigterm_ends_a_lab_in_good_order(labs_folder: Path) -> None:
    info = api.up("bridge", name="term", nodes=2, families=(6,))
    watched = os.pidfd_open(info.pid)
    try:
        signal.pidfd_send_signal(watched, signal.SIGTERM)
        _, status = os.waitpid(info.pid, 0)
    finally:
        os.close(watched)
    assert os.WIFEXITED(status)
    assert os.WEXITSTATUS(status) == 0
    api.down("term")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        pytest.param({"kind": "calico"}, "flannel-vxlan", id="kind"),
        pytest.param({"kind": "bridge", "nodes": 5}, "5", id="nodes"),
        pytest.param({"kind": "bridge", "families": (5,)}, "families", id="families"),
        pytest.param({"kind": "bridge", "name": "../x"}, "name", id="name"),
    ],
)
def test_bad_requests_start_nothing(labs_folder: Path, given: dict[str, object], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        api.up(**given)  # type: ignore[arg-type]  # wrong on purpose
    assert not labs_folder.exists()


def test_a_failed_start_leaves_nothing(labs_folder: Path) -> None:
    labs_folder.parent.mkdir(exist_ok=True)
    labs_folder.write_text("a file where the folder should be")
    with pytest.raises(LabFailed):
        api.up("bridge", name="x")
    labs_folder.unlink()


NOBODY = "65534"
DROP = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]
# The interpreter may lie where nobody may read: give it the right to read files, and no other.
DROP += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
UNPRIVILEGED = """
import os, yaml
from lab import api
from tests.lab.test_running import links_of
assert os.getuid() == 65534
info = api.up("flannel-vxlan", nodes=2)
try:
    topology = yaml.safe_load(info.topology.read_text())
    assert topology["enter"] == {"pid": info.pid}
    assert "cni0" in links_of(topology, topology["nodes"]["n2"]["netns"])
    (truth,) = api.probe("default", "shop/client-1", "svc/shop/db:sql")
    assert truth.view == "connected", truth
    api.break_("default", "F39")
    (truth,) = api.probe("default", "shop/client-1", "shop/web-2", timeout_s=0.2)
    assert truth.place.chain == "INPUT", truth
    api.mend("default")
    (truth,) = api.probe("default", "shop/client-1", "shop/web-2", family=6)
    assert truth.answered, truth
finally:
    api.down()
print("done")
"""


def test_without_root() -> None:
    """An ordinary user's lab, in a user namespace of its own."""
    need_lab()
    trial = subprocess.run(["unshare", "-Urn", "true"], capture_output=True, text=True, user=65534, check=False)
    if trial.returncode:
        pytest.skip(f"this kernel gives ordinary users no user namespaces: {trial.stderr.strip()}")
    with tempfile.TemporaryDirectory(prefix="kubeprobe-nobody-") as folder:  # pytest's own are closed to other users
        os.chown(folder, int(NOBODY), int(NOBODY))
        env = os.environ | {"KUBEPROBE_LAB_DIR": f"{folder}/labs", "HOME": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        env["PYTHONPATH"] = os.pathsep.join(sys.path)
        argv = [*DROP, sys.executable, "-c", UNPRIVILEGED]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, cwd="/")
    assert done.stdout.strip() == "done", done.stderr
