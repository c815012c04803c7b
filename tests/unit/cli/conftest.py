import subprocess
from pathlib import Path

import pytest

from tests.architecture.tree import ROOT

RECORDING = ROOT / "tests" / "data" / "broken" / "il-fdb-missing-n3.tar.zst"


@pytest.fixture(scope="session")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw dumps of a recorded cluster. Not to be changed: copy it for that."""
    folder = tmp_path_factory.mktemp("dumps")
    subprocess.run(
        ["tar", "--use-compress-program=zstd -d --long=23", "-xf", RECORDING, "-C", folder], check=True, timeout=60
    )
    (inside,) = folder.iterdir()
    return inside


@pytest.fixture(scope="session")
def snapshot() -> Path:
    """The snapshot that the program carries, of the same cluster."""
    return ROOT / "kubectl_probe" / "data" / "fdb-missing.kps"
