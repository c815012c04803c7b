"""Which veth ends are paired, and which are left open because two would fit."""

import pytest

from tasks.skoop.collect.wiring import wire
from tasks.skoop.model.cluster import ClusterObjects, ClusterState, PodMeta
from tasks.skoop.model.ids import NetnsId, NodeName
from tasks.skoop.model.state import Interface, NetNS

Wires = dict[str, list[tuple[str, int, int, int | None]]]
"""Namespace → its veths: (name, ifindex, the peer's ifindex, netnsid)."""


def state(wires: Wires, pods: dict[str, str] | None = None, uncollected: tuple[str, ...] = ()) -> ClusterState:
    metas = tuple(
        PodMeta(namespace=key.split("/")[0], name=key.split("/")[1], node_name=NodeName(node))
        for key, node in (pods or {}).items()
    )
    netns = {
        NetnsId(key): NetNS(
            id=NetnsId(key),
            interfaces=tuple(
                Interface(index=index, name=name, kind="veth", peer_index=peer, peer_nsid=nsid)
                for name, index, peer, nsid in ends
            ),
        )
        for key, ends in wires.items()
    }
    return ClusterState(
        objects=ClusterObjects(pods=metas),
        netns=netns,
        uncollected={NetnsId(key): "not there" for key in uncollected},
    )


def plugged(cluster: ClusterState) -> dict[str, str | None]:
    return {
        f"{key}:{link.name}": None if link.peer is None else f"{link.peer[0]}:{link.peer[1]}"
        for key, netns in wire(cluster).netns.items()
        for link in netns.interfaces
    }


POD = {"pod/a/p": [("eth0", 2, 5, 0)]}
CASES = [
    pytest.param(
        {**POD, "node/n1": [("v1", 5, 2, 1)]},
        {"a/p": "n1"},
        (),
        {"pod/a/p:eth0": "node/n1:v1", "node/n1:v1": "pod/a/p:eth0"},
        id="a pod on its node",
    ),
    pytest.param(
        {**POD, "node/n1": [("v1", 5, 2, 1)], "node/n2": [("v1", 5, 2, 1)]},
        {"a/p": "n2"},
        (),
        {"pod/a/p:eth0": "node/n2:v1", "node/n1:v1": None, "node/n2:v1": "pod/a/p:eth0"},
        id="indexes repeat from node to node",
    ),
    pytest.param(
        {**POD, "node/n1": [("eth0", 2, 5, 0), ("v1", 5, 2, 1)], "host/sw": [("p1", 5, 2, 0)]},
        {"a/p": "n1"},
        (),
        {
            "pod/a/p:eth0": "node/n1:v1",
            "node/n1:eth0": "host/sw:p1",
            "node/n1:v1": "pod/a/p:eth0",
            "host/sw:p1": "node/n1:eth0",
        },
        id="the node's own uplink looks like its pod's end",
    ),
    pytest.param(
        {**POD, "node/n1": [("v1", 5, 3, 1)]},
        {"a/p": "n1"},
        (),
        {"pod/a/p:eth0": None, "node/n1:v1": None},
        id="one names the other, but not back",
    ),
    pytest.param(
        {"pod/a/p": [("eth0", 2, 5, 0)], "pod/a/q": [("eth0", 2, 5, 0)], "node/n1": [("v1", 5, 2, 1)]},
        {"a/p": "n1", "a/q": "n1"},
        (),
        {"pod/a/p:eth0": None, "pod/a/q:eth0": None, "node/n1:v1": None},
        id="two pods claim one end",
    ),
    pytest.param(
        {"node/n1": [("d0", 3, 4, None), ("d1", 4, 3, None)], "host/x": [("e", 3, 4, 0)]},
        {},
        (),
        {"node/n1:d0": "node/n1:d1", "node/n1:d1": "node/n1:d0", "host/x:e": None},
        id="both ends in one namespace",
    ),
    pytest.param(
        {"host/a": [("e", 2, 3, 0)], "host/b": [("e", 2, 3, 0)], "host/sw": [("p", 3, 2, 0)]},
        {},
        (),
        {"host/a:e": None, "host/b:e": None, "host/sw:p": None},
        id="two would fit: open",
    ),
    pytest.param(
        {
            "host/a": [("e", 2, 3, 0), ("f", 4, 7, 0)],
            "host/b": [("e", 2, 3, 0)],
            "host/sw": [("p", 3, 2, 1), ("q", 7, 4, 1)],
            "host/other": [("p", 3, 2, 0)],
        },
        {},
        (),
        {
            "host/a:e": "host/sw:p",
            "host/a:f": "host/sw:q",
            "host/b:e": "host/other:p",
            "host/sw:p": "host/a:e",
            "host/sw:q": "host/a:f",
            "host/other:p": "host/b:e",
        },
        id="a netnsid means one namespace, which settles the rest",
    ),
    pytest.param(
        {
            "host/a": [("e", 2, 3, 0), ("f", 4, 7, 1)],
            "host/sw": [("p", 3, 2, 0), ("q", 7, 4, 5)],
            "host/other": [("q", 7, 4, 0)],
        },
        {},
        (),
        {
            "host/a:e": "host/sw:p",
            "host/a:f": "host/other:q",
            "host/sw:p": "host/a:e",
            "host/sw:q": None,
            "host/other:q": "host/a:f",
        },
        id="two netnsids mean two namespaces",
    ),
    pytest.param(
        {"node/n1": [("eth0", 2, 5, 0)], "node/n2": [("v9", 5, 2, 1)]},
        {"a/gone": "n2"},
        ("pod/a/gone",),
        {"node/n1:eth0": None, "node/n2:v9": None},
        id="the end may be that of a pod that was not collected",
    ),
    pytest.param(
        {"node/n1": [("eth0", 2, 5, 0)], "node/n2": [("eth0", 5, 2, 1)]},
        {},
        (),
        {"node/n1:eth0": "node/n2:eth0", "node/n2:eth0": "node/n1:eth0"},
        id="two nodes back to back",
    ),
]


@pytest.mark.parametrize(("wires", "pods", "uncollected", "expected"), CASES)
def test_pairs(
    wires: Wires, pods: dict[str, str], uncollected: tuple[str, ...], expected: dict[str, str | None]
) -> None:
    assert plugged(state(wires, pods, uncollected)) == expected


def test_host_network_pods_do_not_make_their_node_a_pod() -> None:
    cluster = state({"node/n1": [("eth0", 2, 5, 0), ("v1", 5, 2, 1)]})
    proxy = PodMeta(namespace="kube-system", name="kube-proxy", node_name=NodeName("n1"), host_network=True)
    found = plugged(ClusterState(objects=ClusterObjects(pods=(proxy,)), netns=cluster.netns))
    assert found == {"node/n1:eth0": None, "node/n1:v1": None}


def test_what_a_collector_resolved_is_kept_and_completed() -> None:
    cluster = state({"host/a": [("e", 2, 3, 0)], "host/b": [("e", 2, 3, 0)], "host/sw": [("p", 3, 2, 0)]})
    known = Interface(index=2, name="e", kind="veth", peer_index=3, peer_nsid=0, peer=(NetnsId("host/sw"), "p"))
    netns = {**cluster.netns, NetnsId("host/a"): NetNS(id=NetnsId("host/a"), interfaces=(known,))}
    found = plugged(ClusterState(netns=netns))
    assert found == {"host/a:e": "host/sw:p", "host/b:e": None, "host/sw:p": "host/a:e"}


def test_many_alike_are_left_open_and_cost_little() -> None:
    wires: Wires = {f"host/h{number}": [("eth0", 2, 5, 0)] for number in range(3000)}
    wires["host/sw"] = [("p", 5, 2, 0)]
    assert set(plugged(state(wires)).values()) == {None}
