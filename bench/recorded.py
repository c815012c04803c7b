"""What the benchmarks run on: the recorded node with 10,000 services, and a recorded cluster to put it in."""

import io
import tarfile
from pathlib import Path

import zstandard
from msgspec.structs import replace

from tasks.skoop.collect.dumps import load_dumps
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.ids import node_netns
from tasks.skoop.model.state import NetNS
from tasks.skoop.model.xtables import XTable

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
DUMP = DATA / "large-10000.iptables-save.zst"
CLUSTER = DATA / "broken" / "il-healthy.tar.zst"
NODE = "n1"
"""The node of the recorded cluster that gets the large rule set."""


def dump_text() -> str:
    """Return the iptables-save -c output of the node with 10,000 services: 201,249 lines."""
    return zstandard.ZstdDecompressor().decompress(DUMP.read_bytes(), max_output_size=1 << 28).decode()


def cluster(folder: Path) -> ClusterState:
    """Return the recorded cluster of three nodes, unpacked into `folder`."""
    with CLUSTER.open("rb") as packed:
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(packed)
        with tarfile.open(fileobj=io.BytesIO(reader.read())) as archive:
            archive.extractall(folder, filter="data")
    return load_dumps(folder / CLUSTER.name.removesuffix(".tar.zst"))


def with_tables(state: ClusterState, tables: tuple[XTable, ...]) -> ClusterState:
    """Return the cluster with these tables in place of those of the same family on NODE."""
    netns = node_netns(NODE)
    node: NetNS = state.netns[netns]
    families = {table.family for table in tables}
    kept = tuple(table for table in node.tables if table.family not in families)
    return replace(state, netns={**state.netns, netns: replace(node, tables=tables + kept)})
