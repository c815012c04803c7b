from pathlib import Path

import pytest
from msgspec.structs import replace

from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.ids import NetnsId, node_netns
from tasks.skoop.model.state import NetNS
from tasks.skoop.snapshot import describe, diff, save
from tasks.skoop.snapshot.diff import Change
from tests.unit.snapshot.states import NFT, chain, cluster, node, table

N1 = node_netns("n1")


def changed(netns: NetNS) -> ClusterState:
    state = cluster()
    return replace(state, netns=state.netns | {N1: netns})


CHANGES = [
    pytest.param(
        replace(node("n1"), sysctls={"net/ipv4/ip_forward": "0"}), [("sysctls", "changed", "")], id="a setting"
    ),
    pytest.param(replace(node("n1"), routes=()), [("routes", "removed", "")], id="all routes gone"),
    pytest.param(replace(node("n1"), interfaces=()), [("links", "removed", "")], id="links by their section's name"),
    pytest.param(
        node("n1", tables=(table(chain("KUBE-SERVICES", "a", "X"), chain("KUBE-SEP-1", "c")),)),
        [("iptables", "changed", "legacy ip4 nat KUBE-SERVICES")],
        id="one chain",
    ),
    pytest.param(
        node("n1", tables=(table(chain("KUBE-SERVICES", "a", "b"), chain("KUBE-SEP-2", "c")),)),
        [("iptables", "removed", "legacy ip4 nat KUBE-SEP-1"), ("iptables", "added", "legacy ip4 nat KUBE-SEP-2")],
        id="one chain for another",
    ),
    pytest.param(
        replace(node("n1"), nft=(replace(NFT, objects=NFT.objects[:3]),)),
        [("nft", "removed", "ip kube-proxy object"), ("nft", "changed", "ip kube-proxy rule services")],
        id="nft rules of one chain",
    ),
    pytest.param(replace(node("n1"), ipsets=()), [("ipsets", "removed", "pods")], id="a set"),
    pytest.param(replace(node("n1"), missing=()), [("missing", "removed", "conntrack")], id="a gap closed"),
]


@pytest.mark.parametrize(("after", "expected"), CHANGES)
def test_what_changed_in_a_namespace_is_named(
    tmp_path: Path, after: NetNS, expected: list[tuple[str, str, str]]
) -> None:
    save(cluster(), tmp_path / "old.kps")
    save(changed(after), tmp_path / "new")
    told = diff(tmp_path / "old.kps", tmp_path / "new")
    assert told.changed == {N1: tuple(Change(section=a, what=b, part=c) for a, b, c in expected)}
    assert (told.same, told.objects, told.added, told.removed) == (False, (), (), ())


def test_when_and_by_what_a_snapshot_was_taken_does_not_count(tmp_path: Path) -> None:
    save(cluster(), tmp_path / "a.kps")
    later = replace(cluster(), taken_at="2027-01-01T00:00:00+00:00", source="elsewhere", tools={})
    assert diff(tmp_path / "a.kps", later).same


def test_namespaces_and_objects_that_come_and_go(tmp_path: Path) -> None:
    old, new = cluster("n1", "n2"), cluster("n2", "n3")
    new = replace(new, uncollected={}, objects=replace(new.objects, nodes=old.objects.nodes, pods=()))
    told = diff(old, new)
    assert (told.added, told.removed) == ((node_netns("n3"),), (N1,))
    assert told.objects == (Change(section="objects", what="removed", part="pods"),)
    assert told.uncollected_removed == (NetnsId("pod/shop/web"),)


@pytest.mark.parametrize("name", ["it.kps", "it"])
def test_describe_counts_and_tells_gaps(tmp_path: Path, name: str) -> None:
    digest = save(cluster(), tmp_path / name)
    told = describe(tmp_path / name)
    assert (told.digest, told.version, told.source, told.tools) == (digest, 1, "test", {"ip": "iproute2-6.1.0"})
    assert told.objects["nodes"] == 2
    assert told.objects_missing == {"NetworkPolicy": "forbidden"}
    assert told.uncollected == {NetnsId("pod/shop/web"): "gone"}
    assert told.netns[0].counts["iptables-chains"] == 2
    assert told.netns[0].counts["iptables-rules"] == 3
    assert told.netns[0].missing[0].reason == "conntrack is not installed"
    assert told.stored_bytes > 1000
