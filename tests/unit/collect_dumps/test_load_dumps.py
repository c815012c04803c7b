"""A folder of dumps as a cluster: whose folder is whose, what a missing file means, what is refused."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import zstandard

from tasks.skoop.collect.dumps import load_dumps
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.state import NetNS, Section
from tasks.skoop.model.xtables import Backend
from tasks.skoop.parse.errors import ParseError

BROKEN = Path(__file__).resolve().parents[2] / "data" / "broken"


def unpacked(scenario: str, folder: Path) -> Path:
    """Unpack a recorded cluster and return its folder."""
    packed = (BROKEN / f"{scenario}.tar.zst").read_bytes()
    reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(io.BytesIO(packed))
    with tarfile.open(fileobj=io.BytesIO(reader.read())) as archive:
        archive.extractall(folder, filter="data")
    return folder / scenario


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ClusterState]:
    folder = unpacked("il-healthy", tmp_path_factory.mktemp("healthy"))
    return folder, load_dumps(folder)


def node(state: ClusterState, name: str = "node/n1") -> NetNS:
    return state.netns[NetnsId(name)]


def test_every_namespace_of_a_recorded_cluster(recorded: tuple[Path, ClusterState]) -> None:
    folder, state = recorded
    kinds = Counter(key.partition("/")[0] for key in state.netns)
    assert kinds == {"node": 3, "pod": 12, "host": 3}
    assert set(state.netns) >= {"host/fab", "host/ext", "host/cp", "pod/shop/db-6d4bbdc6c8-rlfk9"}
    assert (state.uncollected, state.objects.missing, state.source) == ({}, {}, "dumps in il-healthy")
    assert all(not netns.missing for netns in state.netns.values())
    assert (len(state.objects.pods), len(state.objects.services), len(state.objects.network_policies)) == (18, 17, 3)
    assert folder.name in state.source


def test_counts_are_those_of_the_files(recorded: tuple[Path, ClusterState]) -> None:
    folder, state = recorded
    files, netns = folder / "nodes" / "n1", node(state)

    def rows(name: str) -> list[dict[str, object]]:
        found: list[dict[str, object]] = json.loads((files / name).read_text())
        return found

    def lines(name: str, part: str) -> int:
        return (files / name).read_text().count(part)

    assert len(netns.interfaces) == len(rows("ip-link.json")) == 8
    four = [row for row in rows("ip-route-all.json") if "pref" not in row]
    assert (len(four), len(netns.routes)) == (13, 13 + len(rows("ip-route6-all.json")))
    assert len(netns.neighbours) == len(rows("ip-neigh.json"))
    assert len(netns.fdb) == len(rows("bridge-fdb.json"))
    assert [rule.priority for rule in netns.rules if rule.family == 4] == [0, 32766, 32767]
    assert len(netns.conntrack) == lines("conntrack-L.txt", "\n")
    rules = {
        family: sum(len(chain.rules) for table in netns.tables if table.family == family for chain in table.chains)
        for family in (4, 6)
    }
    assert rules == {4: lines("iptables-save-c.legacy.txt", " -A "), 6: lines("ip6tables-save-c.legacy.txt", " -A ")}
    assert {socket.port for socket in netns.sockets if socket.state != "ESTAB"} == {8472, 10249, 10256}
    assert netns.sysctls["net/ipv4/conf/flannel.1/rp_filter"] in ("0", "1", "2")


def test_what_the_node_was_configured_with(recorded: tuple[Path, ClusterState]) -> None:
    config = recorded[1].objects.config
    assert "FLANNEL_SUBNET=10.244.1.1/24" in config["node/n1/subnet.env"]
    assert "--proxy-mode=iptables" in config["node/n1/kube-proxy.cmdline"]


def test_every_veth_of_the_recorded_cluster_is_plugged_in(recorded: tuple[Path, ClusterState]) -> None:
    state = recorded[1]
    ends = {
        (key, link.name): link.peer
        for key, netns in state.netns.items()
        for link in netns.interfaces
        if link.kind == "veth"
    }
    assert len(ends) == 34
    for end, peer in ends.items():
        assert peer is not None, end
        assert ends[peer] == end
    assert ends[NetnsId("node/n1"), "eth0"] == ("host/fab", "v-rig-n1")
    macs = {
        (entry.dev, entry.mac)
        for entry in node(state).fdb
        if entry.master == "cni0" and not (entry.permanent or entry.static)
    }
    for dev, mac in macs:
        peer = ends[NetnsId("node/n1"), dev]
        assert peer is not None
        link = state.netns[peer[0]].interface(peer[1])
        assert link is not None
        assert link.mac == mac, "the bridge learned another address behind this port"


@pytest.mark.parametrize("scenario", ["il-veth-unplugged-n1", "il-nft-stray-n2", "nf-healthy"])
def test_other_recordings_load(scenario: str, tmp_path: Path) -> None:
    state = load_dumps(unpacked(scenario, tmp_path))
    assert len(state.netns) == 18
    native = {(table.family, table.name) for netns in state.netns.values() for table in netns.nft}
    expected = {
        "il-veth-unplugged-n1": set(),
        "il-nft-stray-n2": {("inet", "stray")},
        "nf-healthy": {("ip", "kube-proxy"), ("ip6", "kube-proxy")},
    }
    assert native == expected[scenario]


LINK = '[{"ifindex":1,"ifname":"lo","flags":["LOOPBACK","UP","LOWER_UP"],"mtu":65536,"link_type":"loopback"}]'
ROUTE = '[{"dst":"10.0.0.0/8","dev":"lo","flags":[]}]'
NO_NFT = '{"nftables": [{"metainfo": {"version": "1.1.3"}}]}'
RULE = '[{"priority":0,"src":"all","table":"local"}]'
SAVE = "*filter\n:INPUT DROP [0:0]\nCOMMIT\n"
WHOLE = {
    "ip-link.json": LINK,
    "ip-route-all.json": ROUTE,
    "ip-rule.json": RULE,
    "sysctl-net.txt": "net.ipv4.ip_forward = 1\n",
    "nft-ruleset.json": NO_NFT,
}


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def gaps(state: ClusterState, name: str) -> dict[Section, str]:
    return {gap.section: gap.reason for gap in node(state, name).missing}


def test_a_flat_folder_is_one_node(tmp_path: Path) -> None:
    state = load_dumps(write(tmp_path / "worker-7", {**WHOLE, "subnet.env": "FLANNEL_MTU=1450\n"}))
    assert list(state.netns) == ["node/worker-7"]
    assert [meta.name for meta in state.objects.nodes] == ["worker-7"]
    assert state.objects.config == {"node/worker-7/subnet.env": "FLANNEL_MTU=1450\n"}
    assert set(state.objects.missing) >= {"pods", "nodes"}
    assert gaps(state, "node/worker-7") == {}


def test_what_was_empty_was_left_out(tmp_path: Path) -> None:
    netns = node(load_dumps(write(tmp_path / "n", WHOLE)), "node/n")
    assert (netns.neighbours, netns.sockets, netns.tables, netns.ipsets, netns.missing) == ((), (), (), (), ())


def test_sections_that_cannot_be_empty_are_missing(tmp_path: Path) -> None:
    some = {name: text for name, text in WHOLE.items() if name in ("ip-link.json", "ip-route-all.json")}
    found = gaps(load_dumps(write(tmp_path / "n", {**some, "nft-ruleset.txt": "table ip x {\n}\n"})), "node/n")
    assert set(found) == {Section.RULES, Section.SYSCTLS, Section.NFT}
    assert found[Section.NFT] == "no file nft-ruleset.json (only nft-ruleset.txt; take it with -j)"


def test_a_file_or_two_say_nothing_about_the_rest(tmp_path: Path) -> None:
    state = load_dumps(write(tmp_path / "n", {"iptables-save.txt": SAVE}))
    assert set(gaps(state, "node/n")) == set(Section) - {Section.IPTABLES}
    assert [table.name for table in node(state, "node/n").tables] == ["filter"]


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        pytest.param(
            {"conntrack-L.err": "conntrack v1.4.8 (conntrack-tools): 0 flow entries have been shown.\n"}, {}, id="count"
        ),
        pytest.param(
            {"iptables-save-c.nft.err": "# Warning: iptables-legacy tables present, use x\n"}, {}, id="remark"
        ),
        pytest.param(
            {"conntrack-L.err": "conntrack v1.4.8: Operation not permitted\n"},
            {Section.CONNTRACK: "conntrack-L.err: conntrack v1.4.8: Operation not permitted"},
            id="failure",
        ),
        pytest.param(
            {
                "ip6tables-save-c.legacy.err": "ip6tables-legacy-save: Permission denied\n",
                "iptables-save-c.legacy.txt": SAVE,
            },
            {Section.IPTABLES: "ip6tables-save-c.legacy.err: ip6tables-legacy-save: Permission denied"},
            id="failure of one family",
        ),
        pytest.param(
            {"ipset-save.err": "ipset: command not found\n"},
            {Section.IPSETS: "ipset-save.err: ipset: command not found"},
            id="no tool",
        ),
        pytest.param(
            {"ipset-save.err": "odd\n", "ipset-save.txt": "create a hash:ip\n"}, {}, id="output beside complaints"
        ),
    ],
)
def test_complaints_of_tools(tmp_path: Path, files: dict[str, str], missing: dict[Section, str]) -> None:
    assert gaps(load_dumps(write(tmp_path / "n", {**WHOLE, **files})), "node/n") == missing


NFT_SAVE = f"# Generated by iptables-save v1.8.9 (nf_tables) on Sat Nov 21 2026\n{SAVE}# Completed on Sat Nov 21 2026\n"
OWNED = '{"nftables": [{"table": {"family": "ip", "name": "filter"}}, {"table": {"family": "inet", "name": "x"}}]}'


@pytest.mark.parametrize(
    ("files", "backend", "native"),
    [
        pytest.param({"iptables-save.txt": SAVE}, Backend.LEGACY, [], id="unnamed, no nft table: legacy"),
        pytest.param(
            {"iptables-save.txt": NFT_SAVE, "nft-ruleset.json": OWNED}, Backend.NFT, ["x"], id="its first line says nft"
        ),
        pytest.param(
            {"iptables-save.txt": SAVE, "nft-ruleset.json": OWNED}, Backend.NFT, ["x"], id="nft has a table of the name"
        ),
        pytest.param(
            {"iptables-save-c.legacy.txt": SAVE, "nft-ruleset.json": OWNED},
            Backend.LEGACY,
            ["filter", "x"],
            id="the file says legacy",
        ),
    ],
)
def test_back_end_of_an_iptables_dump(
    tmp_path: Path, files: dict[str, str], backend: Backend, native: list[str]
) -> None:
    netns = node(load_dumps(write(tmp_path / "n", {**WHOLE, **files})), "node/n")
    assert [(table.backend, table.family) for table in netns.tables] == [(backend, 4)]
    assert [table.name for table in netns.nft] == native


def test_ipv6_rules_are_the_kernels_where_nobody_took_them(tmp_path: Path) -> None:
    without = node(load_dumps(write(tmp_path / "a", WHOLE)), "node/a").rules
    assert [(rule.priority, rule.table) for rule in without if rule.family == 6] == [(0, 255), (32766, 254)]
    taken = node(load_dumps(write(tmp_path / "b", {**WHOLE, "ip-rule6.json": "[]"})), "node/b").rules
    assert [rule for rule in taken if rule.family == 6] == []


def test_locked_mtu_comes_from_the_text_form(tmp_path: Path) -> None:
    route = '[{"dst":"10.0.0.1","dev":"lo","flags":[],"metrics":[{"mtu":1400}]},{"dst":"10.0.0.2","dev":"lo","metrics":[{"mtu":1}]}]'
    text = "10.0.0.1 dev lo mtu lock 1400\n10.0.0.2 dev lo mtu 1\n"
    files = {**WHOLE, "ip-route-all.json": route, "ip-route-all.txt": text}
    routes = node(load_dumps(write(tmp_path / "n", files)), "node/n").routes
    assert [(entry.dst, entry.mtu_locked) for entry in routes] == [("10.0.0.1/32", True), ("10.0.0.2/32", False)]


def pods(*keys: tuple[str, str, str]) -> str:
    items = [
        {
            "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name},
            "spec": {"nodeName": where},
            "status": {"phase": "Running"},
        }
        for namespace, name, where in keys
    ]
    return json.dumps({"kind": "List", "items": items})


def cluster(folder: Path, objects: str, *folders: str) -> Path:
    nodes = json.dumps(
        {"kind": "List", "items": [{"kind": "Node", "metadata": {"name": name}} for name in ("n1", "n2")]}
    )
    write(folder, {"k8s/pods.json": objects, "k8s/nodes.json": nodes})
    for given in ("nodes/n1", *folders):
        path, _, where = given.partition("@")
        write(folder / path, {**WHOLE, **({"WHERE": f"node {where}\n"} if where else {})})
    return folder


@pytest.mark.parametrize(
    ("objects", "path", "netns"),
    [
        pytest.param([("shop", "web", "n1")], "pods/web", "pod/shop/web", id="by name"),
        pytest.param(
            [("shop", "web", "n1"), ("dev", "web", "n2")], "pods/web@n2", "pod/dev/web", id="by name and node"
        ),
        pytest.param(
            [("shop", "web", "n1"), ("dev", "web", "n1")], "pods/dev/web", "pod/dev/web", id="by namespace folder"
        ),
        pytest.param(
            [("shop", "web", "n1"), ("dev", "web", "n1")], "pods/dev_web", "pod/dev/web", id="by namespace prefix"
        ),
        pytest.param([], "pods/web@n1", "pod/default/web", id="no object"),
        pytest.param([], "pods/dev_web", "pod/dev/web", id="no object, namespace prefix"),
    ],
)
def test_whose_pod_a_folder_is(tmp_path: Path, objects: list[tuple[str, str, str]], path: str, netns: str) -> None:
    state = load_dumps(cluster(tmp_path / "c", pods(*objects), path))
    assert [key for key in state.netns if key.startswith("pod/")] == [netns]
    assert netns in {pod.netns for pod in state.objects.pods}


def test_ambiguous_pod_folder_is_refused(tmp_path: Path) -> None:
    folder = cluster(tmp_path / "c", pods(("shop", "web", "n1"), ("dev", "web", "n1")), "pods/web@n1")
    with pytest.raises(ParseError, match=r"shop/web, dev/web; name the folder <namespace>_<pod>"):
        load_dumps(folder)


def test_two_folders_of_one_pod_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParseError, match="second folder for pod/shop/web"):
        load_dumps(cluster(tmp_path / "c", pods(("shop", "web", "n1")), "pods/web", "pods/shop_web"))


def test_objects_without_dumps_are_uncollected_and_machines_without_objects_are_hosts(tmp_path: Path) -> None:
    state = load_dumps(cluster(tmp_path / "c", pods(("shop", "web", "n1")), "nodes/control", "outside/ext"))
    assert sorted(state.netns) == ["host/control", "host/ext", "node/n1"]
    assert state.uncollected == {"node/n2": "no folder nodes/n2", "pod/shop/web": "no folder pods/web"}


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        pytest.param("ip-link.json", LINK[:-5], "ip-link.json:1:", id="links"),
        pytest.param("ip-route-all.json", ROUTE[:-5], "ip-route-all.json:1:", id="routes"),
        pytest.param("nft-ruleset.json", NO_NFT[:-5], "nft-ruleset.json:1:", id="nft"),
        pytest.param("nft-ruleset.json", "", "nft-ruleset.json:1:", id="nft, empty"),
        pytest.param("iptables-save-c.legacy.txt", SAVE[:-5], "iptables-save-c.legacy.txt:3:1", id="iptables"),
        pytest.param("conntrack-L.txt", "tcp 6 113 TIME_W", "conntrack-L.txt:1:1", id="conntrack"),
        pytest.param("ipset-save.txt", "create\n", "ipset-save.txt:1:1", id="ipset"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, text: str, place: str) -> None:
    with pytest.raises(ParseError) as caught:
        load_dumps(write(tmp_path / "n", {**WHOLE, name: text}))
    assert str(caught.value).startswith(f"n/{place}"), caught.value


def test_bytes_that_are_no_text_are_refused_with_their_place(tmp_path: Path) -> None:
    folder = write(tmp_path / "n", WHOLE)
    (folder / "sysctl-net.txt").write_bytes(b"net.ipv4.ip_forward = 1\nnet.\xff")
    with pytest.raises(ParseError, match=r"n/sysctl-net\.txt:2:5: not UTF-8"):
        load_dumps(folder)


@pytest.mark.parametrize("make", [pytest.param(True, id="empty"), pytest.param(False, id="not there")])
def test_no_dumps(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "none"
    if make:
        folder.mkdir()
    with pytest.raises(ParseError, match="give a folder with"):
        load_dumps(folder)


def test_the_same_table_from_two_files_is_refused(tmp_path: Path) -> None:
    files = {**WHOLE, "iptables-save-c.legacy.txt": SAVE, "iptables-save.txt": SAVE}
    with pytest.raises(ParseError, match="filter of this back end is in another file"):
        load_dumps(write(tmp_path / "n", files))
