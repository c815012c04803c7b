"""A topology file is taken as it is meant, or refused with the place, the reason and a hint."""

import json
import os
from pathlib import Path

import pytest

from tasks.skoop.collect.messages import Place
from tasks.skoop.collect.topology import TopologyError, nearest_first, read_objects, read_topology
from tasks.skoop.model.ids import NetnsId

OWN = f"/proc/{os.getpid()}/ns/net"
GOOD = f"""
version: 1
name: bed
nodes: {{n1: {{netns: {OWN}}}, n2: {{netns: {OWN}}}}}
pods: {{shop/web: {{netns: {OWN}, node: n2}}}}
hosts: {{ext: {{netns: {OWN}}}}}
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "topology.yaml"
    file.write_text(text)
    return file


def test_a_good_file(tmp_path: Path) -> None:
    found = read_topology(written(tmp_path, GOOD))
    assert (found.name, found.enter_pid, found.objects) == ("bed", None, None)
    assert {name: [place.id for place in places] for name, places in found.machines.items()} == {
        "node/n1": ["node/n1"],
        "node/n2": ["node/n2", "pod/shop/web"],
        "host/ext": ["host/ext"],
    }


BAD = [
    pytest.param("version: 2\nnodes: {}", "version", "2 is not a version", "version: 1", id="another version"),
    pytest.param("nodes: {}", "version", "not a version", "version: 1", id="no version"),
    pytest.param("version: 1", "", "nodes", "documentation", id="no nodes"),
    pytest.param(
        f"version: 1\nnodse: {{n1: {{netns: {OWN}}}}}\nnodes: {{}}",
        "",
        "'nodse'",
        "did you mean 'nodes'",
        id="misspelt",
    ),
    pytest.param(
        "version: 1\nnodes: {n1: {netnss: x}}", "nodes", "'netnss'", "did you mean 'netns'", id="misspelt, deep"
    ),
    pytest.param("version: 1\nnodes: {n1: {netns: 7}}", "nodes", "expected `str`", "documentation", id="a number"),
    pytest.param(
        "version: 1\nnodes: {n1: {netns: /proc/4194999/ns/net}}",
        "nodes.n1.netns",
        "no network namespace",
        "lab still up",
        id="a process that is gone",
    ),
    pytest.param("version: 1\nnodes: {n1: {netns: /x/y}}", "nodes.n1.netns", "/x/y", "check the path", id="a path"),
    pytest.param("version: 1\nnodes: {n1: {netns: zzz}}", "nodes.n1.netns", "zzz", "", id="a name"),
    pytest.param(
        GOOD.replace("shop/web", "web"), "pods.web", "not the name of a pod", "namespace/name", id="a pod's name"
    ),
    pytest.param(
        GOOD.replace("node: n2", "node: n22"), "pods.shop/web.node", "'n22'", "did you mean 'n2'", id="a node"
    ),
    pytest.param(GOOD + "objects: k9s", "objects", "no folder", "relative", id="no folder of objects"),
    pytest.param(
        GOOD + "enter: {pid: 4194999}", "enter.pid", "no process", "lab", id="a process to enter that is gone"
    ),
    pytest.param("version: 1\n  nodes: {", "line 2", "", "YAML", id="not YAML"),
    pytest.param("- 1", "", "no settings", "documentation", id="a list"),
]


@pytest.mark.parametrize(("text", "key", "problem", "hint"), BAD)
def test_a_bad_file_is_refused_with_place_and_hint(
    tmp_path: Path, text: str, key: str, problem: str, hint: str
) -> None:
    file = written(tmp_path, text)
    with pytest.raises(TopologyError) as raised:
        read_topology(file)
    error = raised.value
    assert error.key.startswith(key)
    assert problem in error.problem
    assert hint in error.hint
    assert str(file) in str(error)
    assert error.exit_status == 2


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="no such file"):
        read_topology(tmp_path / "nothing.yaml")


def test_objects_come_from_the_folder_beside_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "k8s"
    folder.mkdir()
    item = {"kind": "Namespace", "metadata": {"name": "shop"}}
    (folder / "namespaces.json").write_text(json.dumps({"kind": "List", "items": [item]}))
    found = read_topology(written(tmp_path, GOOD + "objects: k8s"))
    objects = read_objects(found.objects)
    assert [one.name for one in objects.namespaces] == ["shop"]
    assert "pods" in objects.missing


def test_far_ends_are_looked_for_near_by_first() -> None:
    def place(name: str) -> Place:
        return Place(NetnsId(name), name)

    n1, n2, a, b, c = map(place, ("node/n1", "node/n2", "pod/x/a", "pod/x/b", "pod/x/c"))
    machines = {n1.id: (n1, a, b), n2.id: (n2, c)}
    assert list(nearest_first(machines, a)) == [n1, b, n2, c]
    assert list(nearest_first(machines, n2)) == [c, n1, a, b]
