"""Stores of blobs and of runs: every implementation keeps the same contract."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from workflows.blobs import BlobStore, DirectoryBlobs, MemoryBlobs, digest_of
from workflows.errors import (
    BlobDamaged,
    BlobMissing,
    BlobTooLarge,
    RunExists,
    RunNotFound,
    RunUnreadable,
    StoreUnusable,
)
from workflows.runs import Change, Run, RunState, StepRun, StepState
from workflows.runstore import DirectoryRuns, MemoryRuns, RunStore


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "directory"])
def make_blobs(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Callable[..., BlobStore]:
    def make(**options: int) -> BlobStore:
        if request.param == "memory":
            return MemoryBlobs(clock=clock, **options)
        return DirectoryBlobs(tmp_path / "blobs", clock=clock, **options)

    return make


@pytest.mark.parametrize(
    "content", [b"", b"x", b"ab" * 500_000, bytes(range(256))], ids=["empty", "one byte", "large", "binary"]
)
def test_a_blob_comes_back_under_its_digest(make_blobs: Callable[..., BlobStore], content: bytes) -> None:
    blobs = make_blobs()
    digest = blobs.put(content)
    assert digest == digest_of(content)
    assert blobs.has(digest)
    assert blobs.get(digest) == content
    assert blobs.put(content) == digest


@pytest.mark.parametrize(
    "digest",
    [digest_of(b"other"), "sha256:../../etc/passwd", "md5:00", ""],
    ids=["unknown", "path", "other kind", "empty"],
)
def test_what_is_not_there_is_missing(make_blobs: Callable[..., BlobStore], digest: str) -> None:
    with pytest.raises(BlobMissing, match="run again"):
        make_blobs().get(digest)


def test_a_blob_larger_than_the_limit_is_refused(make_blobs: Callable[..., BlobStore]) -> None:
    blobs = make_blobs(max_bytes=10)
    blobs.put(b"x" * 10)
    with pytest.raises(BlobTooLarge, match="a blob of 11 bytes does not go into a store that takes 10"):
        blobs.put(b"x" * 11)


def test_garbage_goes_by_age_but_for_what_is_kept(make_blobs: Callable[..., BlobStore], clock: Clock) -> None:
    blobs = make_blobs()
    old, kept, renewed = (blobs.put(name) for name in (b"old", b"kept", b"renewed"))
    clock.now += 100
    fresh = blobs.put(b"fresh")
    blobs.put(b"renewed")
    assert blobs.collect_garbage(50, keep={kept}) == 1
    assert [blobs.has(digest) for digest in (old, kept, renewed, fresh)] == [False, True, True, True]


def test_threads_may_put_the_same(make_blobs: Callable[..., BlobStore]) -> None:
    blobs = make_blobs()
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(blobs.put(b"same" * 1000))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert blobs.get(found[0]) == b"same" * 1000


def only_file(root: Path) -> Path:
    (path,) = (file for file in root.rglob("*") if file.is_file())
    return path


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda content: content[:-3], id="cut"),
        pytest.param(lambda content: b"not zstd", id="other format"),
        pytest.param(lambda content: b"", id="empty file"),
    ],
)
def test_a_damaged_file_is_told(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    blobs = DirectoryBlobs(tmp_path)
    digest = blobs.put(b"content" * 100)
    file = only_file(tmp_path)
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(BlobDamaged, match="is damaged"):
        blobs.get(digest)


def test_a_file_of_other_content_is_told(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path)
    digest = blobs.put(b"one")
    file = only_file(tmp_path)
    two = DirectoryBlobs(tmp_path / "two")
    two.put(b"two")
    file.write_bytes(only_file(tmp_path / "two").read_bytes())
    with pytest.raises(BlobDamaged, match="another digest"):
        blobs.get(digest)


def test_a_frame_that_would_unfold_without_end_is_refused(tmp_path: Path) -> None:
    large = DirectoryBlobs(tmp_path)
    digest = large.put(b"\0" * 5_000_000)
    with pytest.raises(BlobDamaged, match="claims to hold 5000000 bytes"):
        DirectoryBlobs(tmp_path, max_bytes=1000).get(digest)


def test_a_writer_that_dies_leaves_no_half_blob(tmp_path: Path, clock: Clock) -> None:
    blobs = DirectoryBlobs(tmp_path, clock=clock)
    digest = blobs.put(b"whole")
    folder = only_file(tmp_path).parent
    (folder / ".put-dead").write_bytes(b"hal")
    assert blobs.get(digest) == b"whole"
    clock.now += 10**10
    assert blobs.collect_garbage(1, keep={digest}) == 0
    assert [path.name for path in folder.iterdir()] == [only_file(tmp_path).name]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnusable, match="Not a directory: free space or permissions"):
        DirectoryBlobs(tmp_path / "file").put(b"x")
    with pytest.raises(StoreUnusable, match="File exists: free space"):
        DirectoryRuns(tmp_path / "file").create(run())


@given(st.lists(st.binary(max_size=100), max_size=20))
def test_any_contents_live_side_by_side(contents: list[bytes]) -> None:
    blobs = MemoryBlobs()
    digests = [blobs.put(content) for content in contents]
    assert [blobs.get(digest) for digest in digests] == contents


@pytest.fixture(params=["memory", "directory"])
def runs(request: pytest.FixtureRequest, tmp_path: Path) -> RunStore:
    return MemoryRuns() if request.param == "memory" else DirectoryRuns(tmp_path / "runs")


def run(run_id: str = "r1") -> Run:
    return Run(id=run_id, dag="toy", dag_digest="sha256:0", params=Raw(b'{"n":3}'), created_at=1.0, asked_by="me")


def change(version: int, state: RunState | None = None, **step: object) -> Change:
    steps = (StepRun(key="a", step="a", state=StepState.DONE, result=Raw(b'{"value":1}'), **step),)
    return Change(version=version, at=float(version), steps=steps, state=state, progress=min(100, version * 10))


def test_a_run_is_its_header_and_its_changes(runs: RunStore) -> None:
    runs.create(run())
    assert runs.load("r1") == run()
    assert runs.append("r1", change(1))
    assert runs.append("r1", change(2, RunState.DONE, attempts=1))
    loaded = runs.load("r1")
    assert (loaded.version, loaded.state, loaded.progress, loaded.changed_at) == (2, RunState.DONE, 20, 2.0)
    assert loaded.steps["a"].attempts == 1
    assert bytes(loaded.steps["a"].result) == b'{"value":1}'
    assert runs.changes("r1", 1) == [change(2, RunState.DONE, attempts=1)]
    assert runs.changes("r1", 2) == []


def test_a_change_that_does_not_follow_is_not_taken(runs: RunStore) -> None:
    runs.create(run())
    assert not runs.append("r1", change(2))
    assert runs.append("r1", change(1))
    assert not runs.append("r1", change(1))
    assert runs.load("r1").version == 1


def test_of_writers_that_race_one_wins_each_version(runs: RunStore) -> None:
    runs.create(run())
    won: list[int] = []

    def write() -> None:
        won.extend(version for version in range(1, 41) if runs.append("r1", change(version)))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(1, max(won) + 1))
    assert [one.version for one in runs.changes("r1", 0)] == sorted(won)


def test_runs_are_listed_created_once_and_removed(runs: RunStore) -> None:
    for name in ("b", "a"):
        runs.create(run(name))
    with pytest.raises(RunExists):
        runs.create(run("a"))
    assert runs.ids() == ["a", "b"]
    runs.remove("a")
    assert runs.ids() == ["b"]
    with pytest.raises(RunNotFound):
        runs.remove("a")


@pytest.mark.parametrize("name", ["nothing", "../etc/passwd", ""], ids=["unknown", "path", "empty"])
def test_what_is_not_there_is_not_found(runs: RunStore, name: str) -> None:
    for ask in (runs.load, lambda run_id: runs.changes(run_id, 0), lambda run_id: runs.append(run_id, change(1))):
        with pytest.raises(RunNotFound):
            ask(name)


def test_two_stores_over_one_folder_follow_each_other(tmp_path: Path) -> None:
    one, other = DirectoryRuns(tmp_path), DirectoryRuns(tmp_path)
    one.create(run())
    assert one.append("r1", change(1))
    assert not other.append("r1", change(1))
    assert other.append("r1", change(2))
    assert not one.append("r1", change(2))
    assert one.append("r1", change(3))
    assert other.load("r1") == one.load("r1")


def test_a_line_that_a_dying_writer_left_is_cut_off(tmp_path: Path) -> None:
    store = DirectoryRuns(tmp_path)
    store.create(run())
    store.append("r1", change(1))
    with (tmp_path / "r1.jsonl").open("ab") as file:
        file.write(b'{"version":2,"at":2.0,"st')
    assert store.load("r1").version == 1
    assert DirectoryRuns(tmp_path).append("r1", change(2))
    assert DirectoryRuns(tmp_path).load("r1").version == 2
    assert [json.loads(line)["version"] for line in (tmp_path / "r1.jsonl").read_text().splitlines()[1:]] == [1, 2]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(b"", "truncated", id="empty"),
        pytest.param(b"nonsense\n", "malformed", id="no JSON"),
        pytest.param(b"[]\n", "list", id="no object"),
        pytest.param(b'{"id":"r1","format":2}\n', "it has format 2, this program reads 1", id="newer"),
        pytest.param(b'{"id":"r1"}\n', "missing required field", id="fields missing"),
    ],
)
def test_a_record_that_cannot_be_read_is_told(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "r1.jsonl").write_bytes(content)
    with pytest.raises(RunUnreadable, match="run r1 cannot be read") as caught:
        DirectoryRuns(tmp_path).load("r1")
    assert problem in str(caught.value)
