"""Collection runs once per machine, in parallel, and goes on where a machine fails."""

import threading
from collections.abc import Sequence

import pytest

from tasks.skoop.collect.manager import CollectorManager, assemble
from tasks.skoop.collect.protocol import CollectProgress, NothingCollected, Report
from tasks.skoop.errors import KubeprobeError
from tasks.skoop.model.addr import Ip
from tasks.skoop.model.cluster import ClusterObjects, NodeMeta, NodeNetworkStackDump, PodMeta
from tasks.skoop.model.ids import NetnsId, NodeName, node_netns, pod_netns
from tasks.skoop.model.state import Address, Interface, NetNS

N1, N2, WEB = node_netns("n1"), node_netns("n2"), pod_netns("shop/web")


class Recorded:
    """A Collector that gives what it was given; machines in `broken` are lost."""

    def __init__(self, machines: dict[NetnsId, Sequence[NetnsId]], broken: Sequence[NetnsId] = ()) -> None:
        self.machines = machines
        self.broken = broken
        self.calls: list[NetnsId] = []
        self.closed = False
        self.all_here = threading.Barrier(len(machines), timeout=10)

    @property
    def source(self) -> str:
        return "recorded"

    def namespaces(self) -> dict[NetnsId, Sequence[NetnsId]]:
        return self.machines

    def objects(self) -> ClusterObjects:
        return ClusterObjects()

    def collect(self, machine: NetnsId, report: Report) -> NodeNetworkStackDump:
        self.calls.append(machine)
        self.all_here.wait()  # breaks unless all machines are collected at once
        if machine in self.broken:
            raise KubeprobeError("the node does not answer")
        for name in self.machines[machine]:
            report(name, "")
        node = NodeName(machine.removeprefix("node/"))
        netns = tuple(NetNS(id=name) for name in self.machines[machine])
        return NodeNetworkStackDump(node=node, netns=netns, tools={"ip": f"of {node}", "linux": "6.1"})

    def close(self) -> None:
        self.closed = True


def test_all_machines_at_once_each_once() -> None:
    collector = Recorded({N1: [N1, WEB], N2: [N2]})
    seen: list[CollectProgress] = []
    with CollectorManager(collector, progress=seen.append) as manager:
        state = manager.collect()
        again = manager.collect()
        assert manager.dump(N1).netns[1].id == WEB
        assert manager.machines() == (N1, N2)
    assert set(state.netns) == set(again.netns) == {N1, WEB, N2}
    assert sorted(collector.calls) == [N1, N2]
    assert sorted((one.done, one.total) for one in seen) == [(1, 3), (2, 3), (3, 3)]
    assert collector.closed
    assert state.tools == {"ip": "of n1 (n1); of n2 (n2)", "linux": "6.1"}


def test_a_machine_that_is_lost_is_told_for_each_of_its_namespaces() -> None:
    with CollectorManager(Recorded({N1: [N1, WEB], N2: [N2]}, broken=[N1])) as manager:
        state = manager.collect()
    assert set(state.netns) == {N2}
    assert state.uncollected == dict.fromkeys((N1, WEB), "the node does not answer")


def test_where_all_is_lost_it_is_an_error_with_the_reason() -> None:
    collector = Recorded({N1: [N1]}, broken=[N1])
    with CollectorManager(collector) as manager, pytest.raises(NothingCollected, match="does not answer"):
        manager.collect()
    assert collector.closed


def test_an_unknown_machine_is_a_key_error() -> None:
    with CollectorManager(Recorded({N1: [N1]})) as manager, pytest.raises(KeyError):
        manager.dump(N2)


def pod(name: str, *, phase: str = "Running", host_network: bool = False) -> PodMeta:
    return PodMeta(namespace="shop", name=name, node_name=NodeName("n1"), phase=phase, host_network=host_network)


def test_what_kubernetes_has_and_nobody_brought_is_uncollected() -> None:
    pods = (pod("web"), pod("done", phase="Succeeded"), pod("proxy", host_network=True), pod("api"))
    objects = ClusterObjects(nodes=(NodeMeta(name=NodeName("n1")), NodeMeta(name=NodeName("n2"))), pods=pods)
    dump = NodeNetworkStackDump(node=NodeName("n1"), netns=(NetNS(id=N1),), failed={WEB: "gone"})
    state = assemble(objects, [dump], source="recorded")
    assert set(state.uncollected) == {N2, WEB, pod_netns("shop/api")}
    assert state.uncollected[WEB] == "gone"


def link(name: str, ip: str, *, kind: str = "veth", peer: tuple[NetnsId, str] | None = None) -> Interface:
    return Interface(index=1, name=name, kind=kind, addresses=(Address(ip=Ip(ip), prefixlen=24),), peer=peer)


def test_what_kubernetes_does_not_know_is_made_up_from_what_was_seen() -> None:
    node = NetNS(id=N1, interfaces=(link("cni0", "10.244.1.1", kind="bridge"), link("eth0", "172.18.0.11")))
    web = NetNS(id=WEB, interfaces=(link("eth0", "10.244.1.2", peer=(N1, "veth1")),))
    state = assemble(ClusterObjects(), [NodeNetworkStackDump(node=NodeName("n1"), netns=(node, web))], source="x")
    assert [(one.name, one.ips) for one in state.objects.nodes] == [("n1", ("172.18.0.11",))]
    assert [(one.key, one.node_name, one.ips) for one in state.objects.pods] == [("shop/web", "n1", ("10.244.1.2",))]
