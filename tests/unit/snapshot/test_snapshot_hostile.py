"""Archives from strangers: cut, changed, made to fill the memory or to write outside."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tasks.skoop.errors import RequestError
from tasks.skoop.snapshot import (
    CorruptSnapshot,
    Limits,
    NewerSnapshot,
    NotASnapshot,
    SnapshotTooLarge,
    diff,
    load,
    save,
    verify,
)
from tasks.skoop.snapshot.blobs import CHAIN, encode
from tasks.skoop.snapshot.layout import VERSION
from tasks.skoop.snapshot.pack import pack_blobs
from tests.unit.snapshot.states import cluster


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "it.kps"
    save(cluster(), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "it"
    save(cluster(), path)
    return path


def test_wherever_an_archive_is_cut_it_is_told(archive: Path) -> None:
    whole = archive.read_bytes()
    # The last bytes hold only the end mark of the tar and the checksum of what was checked by digests already.
    content_end = len(whole) - 40
    for size in [*range(0, content_end, 97), content_end]:
        archive.write_bytes(whole[:size])
        with pytest.raises(RequestError):
            load(archive)


def test_a_cut_archive_says_so(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(CorruptSnapshot, match="ends too early"):
        load(archive)


def test_no_flipped_bit_gives_another_state(archive: Path) -> None:
    whole = archive.read_bytes()
    for at in range(0, len(whole), 23):
        archive.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            assert load(archive) == cluster()
        except RequestError:
            continue


def test_a_changed_object_of_a_folder_is_told(folder: Path) -> None:
    for file in (folder / "objects").iterdir():
        whole = file.read_bytes()
        file.write_bytes(zstandard.ZstdCompressor().compress(b"something else"))
        with pytest.raises(CorruptSnapshot):
            load(folder)
        file.write_bytes(whole)
    assert load(folder) == cluster()


def test_a_missing_object_is_told(folder: Path) -> None:
    next((folder / "objects").iterdir()).unlink()
    with pytest.raises(CorruptSnapshot, match="missing"):
        load(folder)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd")], ids=["a pipe", "a link"])
@pytest.mark.parametrize("name", ["HEAD", "objects"])
def test_only_plain_files_are_opened(folder: Path, make: Callable[[Path], None], name: str) -> None:
    file = folder / name if name == "HEAD" else next((folder / "objects").iterdir())
    file.unlink()
    make(file)
    with pytest.raises(CorruptSnapshot, match="plain file"):
        load(folder)


def head(**changes: object) -> bytes:
    made = {"format": "kubeprobe-snapshot", "version": VERSION, "manifest": "a" * 64, "packs": ()}
    return json.dumps(made | changes).encode()


@pytest.mark.parametrize("form", ["archive", "folder"])
def test_a_newer_snapshot_says_which_program_it_needs(tmp_path: Path, form: str) -> None:
    # A newer format may lay out everything but HEAD differently.
    newer = head(version=VERSION + 1, needs="9.4.0", manifest={"new": "shape"} and "x", packs=())
    path = tmp_path / "new"
    if form == "folder":
        (path / "objects").mkdir(parents=True)
        (path / "HEAD").write_bytes(newer)
    else:
        path = write_tar(tmp_path, [("HEAD", newer)])
    with pytest.raises(NewerSnapshot, match=r"9\.4\.0") as raised:
        load(path)
    assert (raised.value.version, raised.value.exit_status) == (VERSION + 1, 2)


def write_tar(folder: Path, members: list[tuple[str, bytes]], *, kind: bytes = tarfile.REGTYPE) -> Path:
    path = folder / "made.kps"
    buffer = io.BytesIO()
    with tarfile.open(mode="w", fileobj=buffer, format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if name != "HEAD":
                info.type = kind
                info.linkname = "/etc/passwd" if kind != tarfile.REGTYPE else ""
            tar.addfile(info, io.BytesIO(data))
    path.write_bytes(zstandard.ZstdCompressor().compress(buffer.getvalue()))
    return path


OBJECT = "objects/" + "a" * 64
NAMES = [
    pytest.param("../../etc/cron.d/x", id="upwards"),
    pytest.param("/etc/passwd", id="from the root"),
    pytest.param("objects/../HEAD", id="through objects"),
    pytest.param("objects/" + "A" * 64, id="not hexadecimal as we write it"),
    pytest.param("HEAD", id="HEAD twice"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_member_by_another_name_is_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    path = write_tar(tmp_path, [("HEAD", head()), (name, b"x")])
    with pytest.raises(CorruptSnapshot, match="no snapshot has"):
        load(path)
    assert [file.name for file in tmp_path.iterdir()] == ["made.kps"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.XHDTYPE])
def test_a_member_that_is_no_plain_file_is_refused(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(CorruptSnapshot, match="plain file"):
        load(write_tar(tmp_path, [("HEAD", head()), (OBJECT, b"")], kind=kind))


def bomb(folder: Path, size: int, *, name: str = OBJECT) -> Path:
    """An archive whose member unpacks to `size` zeros, itself some thousand times smaller."""
    path = folder / "bomb.kps"
    info = tarfile.TarInfo(name)
    info.size = size
    first = tarfile.TarInfo("HEAD")
    first.size = len(head())
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file, closefd=False) as out:
        if name != "HEAD":
            out.write(first.tobuf(tarfile.USTAR_FORMAT) + head().ljust(512, b"\0"))
        out.write(info.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(min(size, 256 << 20) >> 20):
            out.write(bytes(1 << 20))
    return path


@pytest.mark.parametrize("name", [OBJECT, "HEAD"])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, name: str) -> None:
    path = bomb(tmp_path, 256 << 20, name=name)
    assert path.stat().st_size < 64 << 10
    with pytest.raises(SnapshotTooLarge):
        load(path)


def test_a_claim_of_a_size_that_does_not_come_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "claim.kps"
    info = tarfile.TarInfo(OBJECT)
    info.size = 60 << 20
    first = tarfile.TarInfo("HEAD")
    first.size = len(head())
    data = first.tobuf(tarfile.USTAR_FORMAT) + head().ljust(512, b"\0") + info.tobuf(tarfile.USTAR_FORMAT) + b"x"
    path.write_bytes(zstandard.ZstdCompressor().compress(data))
    with pytest.raises(CorruptSnapshot, match="ends too early"):
        load(path)


def test_a_bomb_in_a_folder_is_refused(folder: Path) -> None:
    for file in (folder / "objects").iterdir():
        file.write_bytes(zstandard.ZstdCompressor().compress(bytes(128 << 20)))
    with pytest.raises(SnapshotTooLarge, match="unpacks to more"):
        load(folder)


LIMITS = [
    pytest.param(Limits(objects=2), id="members"),
    pytest.param(Limits(blobs=3), id="parts"),
    pytest.param(Limits(object_bytes=20), id="bytes of one object"),
    pytest.param(Limits(total_bytes=200), id="bytes in all"),
]


@pytest.mark.parametrize("form", ["archive", "folder"])
@pytest.mark.parametrize("limits", LIMITS)
def test_limits_hold(request: pytest.FixtureRequest, form: str, limits: Limits) -> None:
    with pytest.raises(SnapshotTooLarge) as raised:
        load(request.getfixturevalue(form), limits=limits)
    assert raised.value.exit_status == 2


def sealed(folder: Path, manifest: bytes, *packs: bytes) -> Path:
    """A snapshot whose digests are right, whatever is in it."""
    from hashlib import sha256

    objects = [(sha256(data).hexdigest(), data) for data in (manifest, *packs)]
    made = head(manifest=objects[0][0], packs=[name for name, _ in objects[1:]])
    return write_tar(folder, [("HEAD", made), *((f"objects/{name}", data) for name, data in objects)])


MANIFEST = {"version": 1, "tool": "", "taken_at": "", "source": "", "netns": {}, "objects": {}, "uncollected": {}}


def with_netns(digest: str) -> bytes:
    return json.dumps(MANIFEST | {"netns": {"node/n1": digest}}).encode()


def chain_pack(*, blob: bytes = b"\x93\xa1x\xa0\x90") -> bytes:
    return next(iter(pack_blobs(CHAIN, [(encode(0)[0], blob)])))


CRAFTED = [
    pytest.param((b"[]",), "manifest", id="a manifest of another shape"),
    pytest.param((b"\xff\xfe",), "manifest", id="a manifest that is not text"),
    pytest.param((b"[" * 100_000,), "manifest", id="a manifest nested deeply"),
    pytest.param((with_netns("zz"),), "hole", id="a digest that is none"),
    pytest.param((with_netns("a" * 64),), "hole", id="a tree that is not there"),
    pytest.param((json.dumps(MANIFEST).encode(), b""), "pack", id="an empty pack"),
    pytest.param((json.dumps(MANIFEST).encode(), b"\xff\xff\xff\xffxx"), "pack", id="a pack without its header"),
    pytest.param((json.dumps(MANIFEST).encode(), chain_pack(blob=b"\xc0")), "decoded", id="a chain of another shape"),
    pytest.param((json.dumps(MANIFEST).encode(), chain_pack(blob=b"\x91" * 100_000)), "decoded", id="nested deeply"),
    pytest.param((json.dumps(MANIFEST).encode(), chain_pack()[:-1]), "decoded", id="a pack that is too short"),
    pytest.param(
        (json.dumps(MANIFEST).encode(), chain_pack().replace(b"\xa5chain", b"\xa5chasm")), "kind", id="an unknown kind"
    ),
]


@pytest.mark.parametrize(("objects", "said"), CRAFTED)
def test_crafted_content_is_told_and_does_not_crash(tmp_path: Path, objects: tuple[bytes, ...], said: str) -> None:
    with pytest.raises(CorruptSnapshot, match=said):
        load(sealed(tmp_path, *objects))


@pytest.mark.parametrize("digest", ["zz", "a" * 64])
def test_comparing_with_a_crafted_manifest_is_told(tmp_path: Path, archive: Path, digest: str) -> None:
    with pytest.raises(CorruptSnapshot):
        diff(archive, sealed(tmp_path, with_netns(digest)))


def test_verify_finds_a_blob_that_is_not_what_it_is_called(tmp_path: Path) -> None:
    path = sealed(tmp_path, json.dumps(MANIFEST).encode(), chain_pack())
    load(path)
    with pytest.raises(CorruptSnapshot, match="digest"):
        verify(path)


FOREIGN = [
    pytest.param(b"", id="empty"),
    pytest.param(b"PK\x03\x04zip", id="another kind of archive"),
    pytest.param(zstandard.ZstdCompressor().compress(b"just text, " * 100), id="zstd without a tar"),
    pytest.param(zstandard.ZstdCompressor().compress(bytes(1024)), id="an empty tar"),
]


@pytest.mark.parametrize("content", FOREIGN)
def test_other_files_are_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.kps"
    path.write_bytes(content)
    with pytest.raises(NotASnapshot):
        load(path)


@pytest.mark.parametrize("name", ["nothing-here", "empty-folder"])
def test_other_places_are_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty-folder").mkdir()
    with pytest.raises(NotASnapshot) as raised:
        load(tmp_path / name)
    assert raised.value.exit_status == 2


def test_a_foreign_tar_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotASnapshot, match="first member"):
        load(write_tar(tmp_path, [("README", b"x")]))
