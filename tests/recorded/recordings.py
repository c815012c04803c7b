"""Recorded clusters as test material: unpack, ask, and judge a foretold answer against what was measured."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.diagnosis import Diagnosis
from tasks.skoop.model.endpoint import Endpoint, Question
from tasks.skoop.model.ids import NetnsId, host_netns, node_netns
from tasks.skoop.model.packet import Protocol

DATA = Path(__file__).parents[1] / "data"
BROKEN = DATA / "broken"
BASE = DATA / "base"
NAMESPACE_OF = {"outside-host": "ext"}
"""What the server outside the cluster calls itself, and the name of its namespace in the recording."""

# Longest that a view foretold with probability >= 0.5 may go unmeasured by chance alone before it counts as wrong.
CHANCE = 1e-4


def unpack(archive: Path, into: Path) -> Path:
    """Unpack a recording and return its folder."""
    with archive.open("rb") as packed:
        stream = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(packed)
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            tar.extractall(into, filter="data")
    return into / archive.name.removesuffix(".tar.zst")


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the measured connections of a recording."""
    with (folder / "matrix.jsonl").open() as lines:
        for line in lines:
            yield json.loads(line)


def source_of(state: ClusterState, name: str, ip: str) -> NetnsId:
    """Return the namespace in which a row's client ran."""
    for pod in state.objects.pods:
        if ip in pod.ips and not pod.host_network:
            return pod.netns
    netns = node_netns(name)
    return netns if netns in state.netns else host_netns(name)


def question_of(state: ClusterState, row: dict[str, Any]) -> Question:
    """Return the question that a row answers."""
    kind = row["proto"]
    return Question(
        src=Endpoint(ip=Ip(row["src_ip"]), netns=source_of(state, row["src"], row["src_ip"]), uid=0, gid=0),
        dst=Endpoint(ip=Ip(row["dst"]), port=row["dport"] or 0),
        protocol=Protocol({"tcp4k": "tcp", "udp1400df": "udp"}.get(kind, kind)),
        sport=row.get("sport") or 0,
        payload_bytes={"tcp4k": 4096, "udp1400df": 1400}.get(kind, 0),
        df=kind == "udp1400df",
    )


@dataclass
class Judgement:
    """What speaks against a foretold answer. `expected_misses` adds up the chances of views not to turn up in few tries."""

    wrong: list[str] = field(default_factory=list)
    unknown: bool = False
    misses: int = 0
    expected_misses: float = 0.0


def judge(row: dict[str, Any], diagnosis: Diagnosis) -> Judgement:
    """Compare one row with its diagnosis.

    What was measured must be among the views foretold; what was foretold with probability >= 0.5 must have been measured,
    unless the row's few tries may well have missed it (then it is counted, and the sum is held against its expectation);
    every server that answered, and the source it saw, must be among those foretold.
    """
    result = Judgement()
    measured = {view["r"] for view in row["client_sees"]}
    foretold = {str(view): share for view, share in diagnosis.client_sees.items() if share > 1e-9}
    if "unknown" in foretold:
        result.unknown = True
        return result
    if not measured <= set(foretold):
        result.wrong.append(f"measured {sorted(measured)}, foretold {foretold}")
    tries = 1 if "sticky" in row["what"] else sum(view["n"] for view in row["client_sees"])
    for view, share in foretold.items():
        if share < 0.5:
            continue
        chance = (1 - share) ** tries
        result.expected_misses += chance
        if view in measured:
            continue
        result.misses += 1
        if chance < CHANCE:
            result.wrong.append(f"foretold {view} ({share:.3f}), measured {sorted(measured)} in {tries} tries")
    seen = {
        (outcome.server_sees.netns.rsplit("/", 1)[-1], outcome.server_sees.src)
        for outcome in diagnosis.outcomes
        if outcome.server_sees is not None
    }
    for server, source in row["pairs"]:
        if (NAMESPACE_OF.get(server, server), source) not in seen:
            result.wrong.append(f"{server} saw {source}, foretold {sorted(seen)}")
    return result


def describe(row: dict[str, Any], wrong: list[str]) -> str:
    """Return a line for a failure report."""
    return f"{row['src']} -> {row['dst']}:{row['dport']} {row['proto']} ({row['what']}): {'; '.join(wrong)}"
