"""Recorded dumps that several tests read."""

import io
import tarfile
from pathlib import Path

import pytest
import zstandard

DATA = Path(__file__).resolve().parents[2] / "data"


def member(archive: str, name: str) -> str:
    """Return the text of one file of a recorded cluster."""
    packed = (DATA / "broken" / f"{archive}.tar.zst").read_bytes()
    reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(io.BytesIO(packed))
    with tarfile.open(fileobj=io.BytesIO(reader.read())) as files:
        found = files.extractfile(f"{archive}/{name}")
        assert found is not None
        return found.read().decode()


@pytest.fixture(scope="session")
def recorded_dump() -> str:
    """iptables-save -c of a recorded node: four tables, kube-proxy and flannel."""
    return member("il-healthy", "nodes/n1/iptables-save-c.legacy.txt")


@pytest.fixture(scope="session")
def large_dump() -> str:
    """iptables-save -c of the recorded node with 10,000 services."""
    packed = (DATA / "large-10000.iptables-save.zst").read_bytes()
    return zstandard.ZstdDecompressor().decompress(packed, max_output_size=1 << 28).decode()
