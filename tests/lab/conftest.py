"""Labs that several tests share, and the one check that decides whether they can run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cluster import Lab
from lab.plan import Backend, Kind
from tests.lab.fixtures import Labs, need_lab


@pytest.fixture(scope="session")
def labs() -> Iterator[Labs]:
    """Return a function that gives the running lab of a kind and back end (built once)."""
    need_lab()
    made: dict[tuple[Kind, Backend], Lab] = {}

    def get(kind: Kind = Kind.FLANNEL_VXLAN, backend: Backend = Backend.LEGACY) -> Lab:
        if (kind, backend) not in made:
            made[kind, backend] = Lab(kind, backend=backend)
            made[kind, backend].up()
        return made[kind, backend]

    yield get
    for lab in made.values():
        lab.down()


@pytest.fixture
def labs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep labs with processes of their own below the test's folder."""
    need_lab()
    monkeypatch.setenv("KUBEPROBE_LAB_DIR", str(tmp_path / "labs"))
    return tmp_path / "labs"
