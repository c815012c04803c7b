"""What cannot be collected is told with its reason, and the rest goes on; nothing is changed by looking."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.skoop.collect.messages import Place, Request
from tasks.skoop.collect.protocol import CollectProgress, NothingCollected
from tasks.skoop.collect.topology import TopologyError, collect_machine, collect_topology, read_topology
from tasks.skoop.collect.workers import Worker, WorkerPool
from tasks.skoop.model.ids import NetnsId, node_netns, pod_netns
from tasks.skoop.model.state import NetNS, Section
from tests.kernel.collect.spaces import Space, spaces, write_topology

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]
N1, N2 = node_netns("n1"), node_netns("n2")


@pytest.fixture
def two() -> Iterator[tuple[Space, Space]]:
    with spaces(2) as (first, second):
        yield first, second


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose programs are found before the system's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def program(folder: Path, name: str, script: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def collect_one(space: Space, folder: Path) -> NetNS:
    return collect_topology(write_topology(folder, nodes={"n1": {"netns": space.path}})).netns[N1]


SILENT = dict.fromkeys(("ipset", "nft", "iptables-legacy-save", "ip", "conntrack"), "exit 3")
COMPLAINING = {name: f"echo '{name}: you may not' >&2; exit 1" for name in SILENT}
NONSENSE = {
    "ipset": "echo create x",
    "nft": "echo '{'",
    "iptables-legacy-save": "echo '*nat'",
    "ip": "echo '[{]'",
    "conntrack": "echo tcp",
}
SECTIONS = {
    Section.IPSETS: ("ipset save", "not a line of ipset"),
    Section.NFT: ("nft -j list tables", "not its JSON"),
    Section.IPTABLES: ("iptables-legacy-save", "COMMIT"),
    Section.ROUTE_EXCEPTIONS: ("ip -j -4 route show cache", "ip -4 route show cache"),
    Section.CONNTRACK: ("conntrack -L -f ipv4", "not a whole line"),
    Section.NEIGHBOURS: ("ip -j neigh show proxy", "ip neigh show proxy"),
}
FAILING = [
    pytest.param(SILENT, "exit status 3", 0, id="without a word"),
    pytest.param(COMPLAINING, "you may not", 0, id="with a word"),
    pytest.param(NONSENSE, "", 1, id="with nonsense"),
]


@pytest.mark.parametrize(("scripts", "said", "which"), FAILING)
def test_tools_that_fail_cost_only_their_sections(
    two: tuple[Space, Space], tmp_path: Path, tools: Path, scripts: dict[str, str], said: str, which: int
) -> None:
    two[0].sh("iptables-legacy -t nat -A POSTROUTING -j ACCEPT; ip6tables-legacy -A INPUT -m conntrack --ctstate NEW")
    two[0].call(talk_to_oneself)
    for name, script in scripts.items():
        program(tools, name, script)
    netns = collect_one(two[0], tmp_path)
    assert {gap.section for gap in netns.missing} == set(SECTIONS)
    for section, reasons in SECTIONS.items():
        assert reasons[which] in (netns.lacks(section) or "")
        assert said in (netns.lacks(section) or "")
    # What needs no tool is there, and of a section what another tool gave: the tables of the other family.
    assert netns.interface("lo") is not None
    assert netns.rules != ()
    assert [(table.family, table.name) for table in netns.tables] == [(6, "filter")]


def talk_to_oneself() -> None:
    """Leave a tracked connection."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as one:
        one.sendto(b"x", ("::1", 9))


def test_a_tool_that_is_not_installed_is_named(two: tuple[Space, Space], tmp_path: Path) -> None:
    # Only what is below is to be found: the whole path of the machine's programs is hidden behind an empty one.
    hide = 'for d in /usr/local/sbin /usr/sbin /usr/bin; do mount -t tmpfs none $d; done; exec "$@"'
    code = (
        "import sys; from pathlib import Path; from tasks.skoop.collect.topology import collect_topology;"
        "netns = next(iter(collect_topology(Path(sys.argv[1])).netns.values()));"
        "print(*sorted({gap.section for gap in netns.missing}));"
        "print(*[gap.reason for gap in netns.missing], sep='\\n'); print(len(netns.interfaces), len(netns.routes))"
    )
    file = write_topology(tmp_path, nodes={"n1": {"netns": two[0].path}})
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        ["unshare", "-m", "/bin/sh", "-c", hide, "sh", sys.executable, "-c", code, str(file)],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert {"nft", "ipsets"} <= set(lines[0].split())
    assert any("ipset is not installed" in line for line in lines)
    assert lines[-1].split()[0] == "1"


def test_a_tool_that_hangs_is_ended_and_the_next_namespace_is_collected(
    two: tuple[Space, Space], tmp_path: Path, tools: Path
) -> None:
    inode = Path(two[0].path).stat().st_ino
    program(
        tools,
        "ipset",
        f'[ "$(stat -Lc %i /proc/self/ns/net)" = {inode} ] && {{ echo $$ > {tmp_path}/pid; sleep 1000; }}; exit 0',
    )
    file = write_topology(tmp_path, nodes={"n1": {"netns": two[0].path}, "n2": {"netns": two[1].path}})
    state = collect_topology(file, workers=1, timeout_s=3)
    assert "no answer within 3 s" in state.uncollected[N1]
    assert state.netns[N2].interface("lo") is not None
    pid = int((tmp_path / "pid").read_text())
    assert not Path("/proc", str(pid)).exists() or "Z" in Path("/proc", str(pid), "stat").read_text().split()[2]


def test_a_namespace_that_goes_away_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    with spaces(2) as (first, second):
        holder = subprocess.Popen(["nsenter", f"--net={second.path}", "sleep", "1000"])
        try:
            file = write_topology(
                tmp_path,
                nodes={"n1": {"netns": first.path}},
                pods={"shop/a": {"netns": f"/proc/{holder.pid}/ns/net", "node": "n1"}},
            )

            def gone(progress: CollectProgress) -> None:
                holder.kill()
                holder.wait()
                seen.append(progress)

            seen: list[CollectProgress] = []
            state = collect_topology(file, workers=1, progress=gone)
        finally:
            holder.kill()
            holder.wait()
    assert set(state.netns) == {N1}
    assert "cannot enter" in state.uncollected[pod_netns("shop/a")]
    assert [(one.netns, one.done, one.total, bool(one.error)) for one in seen] == [
        (N1, 1, 2, False),
        (pod_netns("shop/a"), 2, 2, True),
    ]


def test_where_nothing_can_be_collected_the_command_fails(tmp_path: Path) -> None:
    (tmp_path / "not-a-namespace").write_text("")
    file = write_topology(tmp_path, nodes={"n1": {"netns": str(tmp_path / "not-a-namespace")}})
    with pytest.raises(NothingCollected, match="Invalid argument") as raised:
        collect_topology(file)
    assert raised.value.exit_status == 3


def test_looking_loads_no_legacy_tables(two: tuple[Space, Space], tmp_path: Path) -> None:
    def loaded() -> str:
        names = (Path("/proc/thread-self/net", name) for name in ("ip_tables_names", "ip6_tables_names"))
        return "".join(name.read_text() for name in names if name.exists())

    netns = collect_one(two[0], tmp_path)
    assert (netns.tables, netns.missing) == ((), ())
    assert two[0].call(loaded) == ""
    assert two[0].sh("nft list tables") == ""


def test_legacy_tables_without_their_program_are_missing_not_empty(
    two: tuple[Space, Space], tmp_path: Path, tools: Path
) -> None:
    two[0].sh("iptables-legacy -A INPUT -j DROP")
    program(tools, "iptables-legacy-save", "exit 127")
    netns = collect_one(two[0], tmp_path)
    assert "iptables-legacy-save" in (netns.lacks(Section.IPTABLES) or "")


ORDINARY = ["unshare", "-U", "--map-user=1000", "--map-group=1000"]
IN_ONE_OF_ITS_OWN = """
import subprocess, sys
from pathlib import Path
from tasks.skoop.collect.topology import collect_topology
from tests.kernel.collect.spaces import write_topology
script = "ip link set lo up; ip link add d0 type bridge; echo ready; exec sleep 1000"
holder = subprocess.Popen(["unshare", "-Urn", "sh", "-c", script], stdout=subprocess.PIPE, text=True)
try:
    if holder.stdout.readline() != "ready\\n":
        sys.exit("no user namespaces")
    place = f"/proc/{holder.pid}/ns/net"
    file = write_topology(Path(sys.argv[1]), nodes={"n1": {"netns": place}}, enter={"pid": holder.pid})
    netns = next(iter(collect_topology(file).netns.values()))
finally:
    holder.kill()
    holder.wait()
print(netns.interface("d0") is not None, netns.missing, netns.sysctls["net/ipv4/ip_forward"])
"""


@pytest.mark.parametrize("who", [[], ORDINARY], ids=["root", "an ordinary user"])
def test_a_user_namespace_is_entered_first(tmp_path: Path, who: list[str]) -> None:
    """As the unprivileged lab is: network namespaces that belong to a user namespace which somebody made for himself."""
    tmp_path.chmod(0o777)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*who, sys.executable, "-c", IN_ONE_OF_ITS_OWN, str(tmp_path)],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    if "no user namespaces" in done.stderr:
        pytest.skip("user namespaces cannot be made here (user.max_user_namespaces, AppArmor)")
    assert (done.stdout.strip(), done.stderr) == ("True () 0", "")


def test_a_child_that_dies_is_told_and_replaced(two: tuple[Space, Space]) -> None:
    pool = WorkerPool(1, timeout_s=20)
    request = Request(place=Place(N1, two[0].path))
    try:
        assert pool.collect(request).netns is not None
        worker = pool._idle.get()
        assert isinstance(worker, Worker)
        worker._process.kill()
        worker._process.wait()
        pool._idle.put(worker)
        answer = pool.collect(request)
        assert (answer.netns, "the collecting process" in answer.error) == (None, True)
        assert pool.collect(request).netns is not None
    finally:
        pool.close()


def test_closing_ends_the_processes(two: tuple[Space, Space]) -> None:
    pool = WorkerPool(2)
    assert pool.collect(Request(place=Place(N1, two[0].path))).netns is not None
    worker = pool._idle.get()
    assert worker is not None
    pool._idle.put(worker)
    pool.close()
    assert worker._process.returncode is not None


def test_a_name_of_ip_netns_is_found(tmp_path: Path) -> None:
    with pytest.raises(TopologyError) as raised:
        read_topology(write_topology(tmp_path, nodes={"n1": {"netns": "no-such-name"}}))
    assert raised.value.key == "nodes.n1.netns"
    assert "no-such-name" in str(raised.value)


def test_one_machine_alone(two: tuple[Space, Space], tmp_path: Path) -> None:
    file = write_topology(
        tmp_path,
        nodes={"n1": {"netns": two[0].path}, "n2": {"netns": two[1].path}},
        pods={"shop/web": {"netns": two[1].path, "node": "n2"}},
    )
    dump = collect_machine(file, N2)
    assert (dump.node, [netns.id for netns in dump.netns]) == ("n2", [N2, pod_netns("shop/web")])
    with pytest.raises(TopologyError, match="did you mean 'node/n2'"):
        collect_machine(file, NetnsId("node/n22"))


def test_ids_of_the_state_are_those_of_the_file(two: tuple[Space, Space], tmp_path: Path) -> None:
    file = write_topology(
        tmp_path, nodes={"n1": {"netns": two[0].path}}, hosts={"ext": {"netns": two[1].path}}, name="t"
    )
    state = collect_topology(file)
    assert (set(state.netns), state.source) == ({N1, NetnsId("host/ext")}, "topology t")
    assert state.taken_at.endswith("+00:00")
