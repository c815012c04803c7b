"""Labs that several tests share, and the one check that decides whether they can run."""

import os

import pytest

from lab.cluster import Lab
from lab.plan import Backend, Kind
from lab.requirements import unavailable_because


def need_lab():
    """Skip, by name, where no lab can run in this process."""
    if os.geteuid() != 0:
        pytest.skip("labs inside the test's own process need root")
    if reason := unavailable_because():
        pytest.skip(f"no lab here: {reason}")


@pytest.fixture(scope="session")
def labs():
    """Return a function that gives the running lab of a kind and back end (built once)."""
    need_lab()
    made = {}

    def get(kind=Kind.FLANNEL_VXLAN, backend=Backend.LEGACY):
        if (kind, backend) not in made:
            made[kind, backend] = Lab(kind, backend=backend)
            made[kind, backend].up()
        return made[kind, backend]

    yield get
    for lab in made.values():
        lab.down()


@pytest.fixture
def labs_folder(tmp_path, monkeypatch):
    """Keep labs with processes of their own below the test's folder."""
    need_lab()
    monkeypatch.setenv("KUBEPROBE_LAB_DIR", str(tmp_path / "labs"))
    return tmp_path / "labs"
