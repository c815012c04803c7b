"""A healthy lab: whoever should reach whom does, over every kind of address, in both families."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cluster import Lab
from lab.objects import all_objects
from lab.plan import Backend, Kind
from lab.prober import Ask, Attempt
from tasks.skoop.model.trace import View
from tests.lab.fixtures import Labs

pytestmark = pytest.mark.root
CASES = [(Kind.FLANNEL_VXLAN, Backend.LEGACY), (Kind.FLANNEL_VXLAN, Backend.NFT)]
CASES += [(Kind.FLANNEL_HOST_GW, Backend.LEGACY), (Kind.BRIDGE, Backend.LEGACY)]
each_lab = pytest.mark.parametrize(("kind", "backend"), CASES, ids=str)


def views(lab: Lab, asks: list[Ask]) -> dict[tuple[str, str, int, str], Attempt]:
    """What each client saw; silence is asked once more, for a machine that was late."""
    seen = lab.attempt(*asks)
    again = [one.ask for one in seen if one.view == View.TIMEOUT]
    second = dict(zip(again, lab.attempt(*again), strict=True)) if again else {}
    return {(one.ask.src, one.ask.dst, one.ask.dport, one.ask.protocol): second.get(one.ask, one) for one in seen}


@each_lab
def test_everything_reaches_every_pod_node_and_outside_host(labs: Labs, kind: Kind, backend: Backend) -> None:
    lab = labs(kind, backend)
    sources = [machine.netns for machine in lab.plan.machines if not machine.netns.startswith("host/")]
    targets = [(ip, 8080) for pod in lab.plan.pods for ip in pod.ips]
    targets += [(ip, 10250) for node in lab.plan.nodes for ip in node.ips]
    targets += [(ip, 8080) for ip in lab.plan.hosts[-1].ips]
    asks = [
        Ask(src=src, dst=ip, dport=0 if protocol == "icmp" else port, protocol=protocol)
        for src, (ip, port), protocol in itertools.product(sources, targets, ("tcp", "udp", "icmp"))
    ]
    failed = {key: one for key, one in views(lab, asks).items() if (one.view, one.answer) != (View.CONNECTED, "ok")}
    assert failed == {}


def service_asks(lab: Lab) -> Iterator[tuple[str, Ask]]:
    pods = [pod.netns for pod in lab.plan.pods if pod.app == "client"] + [node.netns for node in lab.plan.nodes]
    for one in all_objects(lab.plan)["services"]["items"]:
        name = one["metadata"]["name"]
        for ip in one["spec"].get("clusterIPs", []):
            if ip != "None":
                for port in one["spec"]["ports"]:
                    for src in pods:
                        yield name, Ask(src=src, dst=ip, dport=port["port"], protocol=port["protocol"].lower())


EXPECTED = {"orphan": View.REFUSED, "slow": View.REFUSED, "db-wrongport": View.REFUSED}


@each_lab
def test_services_answer_as_their_objects_say(labs: Labs, kind: Kind, backend: Backend) -> None:
    lab = labs(kind, backend)
    local = {"api": {pod.node for pod in lab.plan.pods if pod.app == "api"}}
    asked = list(service_asks(lab))
    seen = views(lab, [ask for _, ask in asked])
    wrong = {}
    for name, ask in asked:
        one = seen[ask.src, ask.dst, ask.dport, ask.protocol]
        want = EXPECTED.get(name, View.CONNECTED)
        node = ask.src.removeprefix("node/") if ask.src.startswith("node/") else f"n{ask.src[-1]}"
        if name == "web-internal-local" and node not in local["api"]:
            want = View.TIMEOUT
        if one.view != want:
            wrong[name, ask.src, ask.dst] = one
    assert wrong == {}


@each_lab
def test_from_outside(labs: Labs, kind: Kind, backend: Backend) -> None:
    lab = labs(kind, backend)
    node_ips = {node.name: node.ips[0] for node in lab.plan.nodes}
    wanted = {
        (node_ips["n1"], 30080): View.CONNECTED,
        (node_ips["n3"], 30081): View.TIMEOUT,  # externalTrafficPolicy Local, no api pod on n3
        (node_ips["n2"], 30082): View.REFUSED,
        (node_ips["n3"], 30084): View.CONNECTED,
        (node_ips["n2"], 8088): View.CONNECTED,
        (node_ips["n1"], 8088): View.REFUSED,
        ("172.18.0.200", 80): View.CONNECTED,
        ("172.18.0.210", 80): View.CONNECTED,
        ("172.18.0.220", 80): View.CONNECTED,
        ("fd00:172:18::220", 80): View.CONNECTED,
    }
    seen = views(lab, [Ask(src="host/ext", dst=ip, dport=port) for ip, port in wanted])
    assert {(key[1], key[2]): one.view for key, one in seen.items()} == wanted
    local = seen["host/ext", node_ips["n3"], 30084, "tcp"]
    assert (local.server, local.seen_src) == ("pod/shop/web-3", "172.18.0.100"), "policy Local keeps the source"


def test_session_affinity_sticks(labs: Labs) -> None:
    lab = labs()
    lab.forget()
    (first,) = lab.attempt(Ask(src="pod/shop/client-2", dst="10.96.10.5", dport=80))
    for _ in range(8):
        (again,) = lab.attempt(Ask(src="pod/shop/client-2", dst="10.96.10.5", dport=80))
        assert again.server == first.server


def test_the_hosts_own_namespace_is_untouched(labs: Labs) -> None:
    def own() -> tuple[list[str], str]:
        devices = Path("/proc/net/dev").read_text().splitlines()
        return [line.partition(":")[0] for line in devices], Path("/proc/net/route").read_text()

    before = own()
    lab = labs(Kind.BRIDGE)
    lab.attempt(Ask(src="pod/shop/client-1", dst="10.96.10.1", dport=80))
    assert own() == before
