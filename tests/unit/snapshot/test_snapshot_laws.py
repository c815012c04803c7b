import copy
import gc
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from msgspec.structs import replace

from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.ids import node_netns
from tasks.skoop.model.state import NetNS
from tasks.skoop.snapshot import load, redact, save, verify
from tasks.skoop.snapshot.blobs import CHAIN, OBJECT_FIELDS, SECTION_FIELDS, SPLIT_FIELDS
from tasks.skoop.snapshot.pack import PACK_BYTES, open_pack, pack_blobs
from tasks.skoop.snapshot.store import DEFAULT_LIMITS
from tasks.skoop.snapshot.tree import Blobs, split
from tests.unit.snapshot.states import chain, cluster, node, states, table

FORMS = pytest.mark.parametrize("name", ["it.kps", "it"], ids=["archive", "folder"])
LAW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@LAW
@given(states())
def test_what_is_saved_is_loaded(state: ClusterState) -> None:
    with TemporaryDirectory() as folder:
        digests = {save(state, Path(folder, name)) for name in ("it.kps", "it")}
        assert len(digests) == 1
        for name in ("it.kps", "it"):
            assert load(Path(folder, name)) == redact(state)
            assert verify(Path(folder, name)).manifest in digests


@LAW
@given(states())
def test_redacting_twice_changes_nothing_more(state: ClusterState) -> None:
    once = redact(state)
    assert redact(once) == once


@FORMS
def test_a_whole_cluster_comes_back(tmp_path: Path, name: str) -> None:
    save(cluster(), tmp_path / name)
    assert load(tmp_path / name) == cluster()


@FORMS
def test_saving_leaves_only_the_snapshot(tmp_path: Path, name: str) -> None:
    save(cluster(), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_same_content_gives_the_same_digest_whatever_the_order_of_maps(tmp_path: Path) -> None:
    state = cluster("n1", "n2")
    turned = replace(
        state,
        netns=dict(reversed(state.netns.items())),
        objects=replace(
            state.objects,
            nodes=tuple(replace(one, labels=dict(reversed(one.labels.items()))) for one in state.objects.nodes),
        ),
    )
    assert save(state, tmp_path / "a.kps") == save(copy.deepcopy(turned), tmp_path / "b.kps")
    assert (tmp_path / "a.kps").read_bytes() == (tmp_path / "b.kps").read_bytes()


def blobs_of(state: ClusterState) -> Blobs:
    return split(state).blobs


def test_equal_nodes_are_stored_once() -> None:
    one, many = blobs_of(cluster("n1")), blobs_of(cluster("n1", "n2", "n3"))
    assert {
        kind: set(blobs) for kind, blobs in many.items() if kind.startswith(("netns", "chain", "table", "nft"))
    } == {kind: set(blobs) for kind, blobs in one.items() if kind.startswith(("netns", "chain", "table", "nft"))}


def test_one_changed_chain_changes_its_digest_and_the_trees_above_it_only() -> None:
    before = cluster("n1")
    changed = node("n1", tables=(table(chain("KUBE-SERVICES", "a", "CHANGED"), chain("KUBE-SEP-1", "c")),))
    after = replace(before, netns={changed.id: changed})
    old, new = blobs_of(before), blobs_of(after)
    differs = {kind: len(set(new[kind]) - set(old[kind])) for kind in new if set(new[kind]) != set(old[kind])}
    assert differs == {CHAIN: 1, "table": 1, "netns": 1}


def test_every_field_of_the_model_is_stored_or_split() -> None:
    assert set(SECTION_FIELDS) | SPLIT_FIELDS == set(NetNS.__struct_fields__)
    assert set(OBJECT_FIELDS) == set(ClusterState().objects.__struct_fields__)
    assert set(ClusterState.__struct_fields__) == {"objects", "netns", "taken_at", "source", "uncollected", "tools"}, (
        "a field of ClusterState that Manifest and tree.split do not know would be lost"
    )


def test_shared_parts_are_one_object_in_memory(tmp_path: Path) -> None:
    save(cluster("n1", "n2"), tmp_path / "it.kps")
    netns = load(tmp_path / "it.kps").netns
    assert netns[node_netns("n1")].tables[0] is netns[node_netns("n2")].tables[0]


def test_saving_again_replaces_and_removes_what_is_not_needed(tmp_path: Path) -> None:
    path = tmp_path / "it"
    save(cluster("n1", "n2", "n3"), path)
    save(cluster("n1"), path)
    assert load(path) == cluster("n1")
    save(cluster("n1"), tmp_path / "fresh")
    assert names(path) == names(tmp_path / "fresh")


def names(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*")}


def test_many_blobs_go_into_several_packs_in_order() -> None:
    big = bytes(PACK_BYTES // 3)
    blobs = [(bytes([number]) * 32, b"\xc4" + big) for number in range(7)]
    packs = list(pack_blobs(CHAIN, blobs))  # type: ignore[arg-type]
    found = [name for pack in packs for name in open_pack(pack, Path(), blobs_left=9)[0].names()]
    assert (len(packs), found) == (4, [digest for digest, _ in blobs])


@pytest.mark.parametrize("sound", [True, False], ids=["sound", "damaged"])
def test_the_cycle_collector_is_on_again_after_loading(tmp_path: Path, *, sound: bool) -> None:
    path = tmp_path / "it.kps"
    save(cluster(), path)
    if not sound:
        path.write_bytes(path.read_bytes()[:-40])
    assert gc.isenabled()
    try:
        load(path)
    except Exception:  # noqa: BLE001 -- whatever it raises, the collector must be on again
        assert not sound
    assert gc.isenabled()
    assert DEFAULT_LIMITS.blobs > 0
