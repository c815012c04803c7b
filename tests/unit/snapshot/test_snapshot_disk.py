"""Disks that are full, places that are taken: nothing half-written, and what was there before stays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.skoop.snapshot import SaveFailed, SaveRefused, load, save
from tests.unit.snapshot.states import cluster

FORMS = pytest.mark.parametrize("name", ["it.kps", "it"], ids=["archive", "folder"])

FULL = """
import resource, signal, sys
from pathlib import Path
from msgspec.structs import replace
from tasks.skoop.snapshot import SaveFailed, load, save
from tests.unit.snapshot.states import cluster
how, path = sys.argv[1], Path(sys.argv[2])
old, new = cluster("n1"), cluster("n1", "n2")
new = replace(new, objects=replace(new.objects, network_policies=(__import__("random").Random(1).randbytes(400_000).hex(),)))
for before in (None, old):
    if before is not None:
        if how == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        save(before, path)
    if how == "limit":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    listed = sorted(str(file) for file in path.parent.rglob("*"))
    try:
        save(new, path)
    except SaveFailed as error:
        assert error.exit_status == 3, error
        print(error.reason)
    else:
        raise SystemExit("it was written")
    assert sorted(str(file) for file in path.parent.rglob("*")) == listed, listed
    if before is not None:
        assert load(path) == before
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)


@FORMS
def test_a_file_that_may_not_grow_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    done = run(sys.executable, "-c", FULL, "limit", str(tmp_path / name))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["File too large"] * 2


@FORMS
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    mount = f'mount -t tmpfs -o size=200k none "{tmp_path}" && exec "$@"'
    inside = [sys.executable, "-c", FULL, "disk", str(tmp_path / name)]
    done = run("unshare", "-m", "sh", "-c", mount, "sh", *inside)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["No space left on device"] * 2


@FORMS
def test_what_is_no_snapshot_is_not_overwritten(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".kps"):
        path.write_text("my notes")
    else:
        path.mkdir()
        (path / "notes").write_text("my notes")
    with pytest.raises(SaveRefused, match="not overwritten"):
        save(cluster(), path)
    assert (path if path.is_file() else path / "notes").read_text() == "my notes"


@FORMS
def test_a_folder_that_is_not_there_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(SaveRefused, match="no folder"):
        save(cluster(), tmp_path / "nowhere" / name)


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    path = tmp_path / "it"
    path.mkdir()
    save(cluster(), path)
    assert load(path) == cluster()


@FORMS
def test_a_place_that_cannot_be_written_is_told(name: str) -> None:
    with pytest.raises(SaveFailed):
        save(cluster(), Path("/proc", name))
