"""The chains that kube-proxy and flannel write, from the dump of a real node."""

import io
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tasks.skoop.model.packet import CtState, Protocol, TcpFlags
from tasks.skoop.netstack.xtables.api import CompiledTable, ConnectionView, Hook, TableResult
from tests.unit.xtables.scene import Field, FixedFacts, compiled, context, minimal

RECORDING = Path(__file__).parents[2] / "data" / "broken" / "il-healthy.tar.zst"
MEMBER = "nodes/n1/iptables-save-c.legacy.txt"


class NodeFacts(FixedFacts):
    """Node n1 owns 172.18.0.11 and its loopback."""

    def address_type(self, ip: str, dev: str | None) -> str:
        return "LOCAL" if ip in ("172.18.0.11", "127.0.0.1", "10.244.1.1") else "UNICAST"


@cache
def _tables() -> dict[str, CompiledTable]:
    with zstandard.ZstdDecompressor().stream_reader(RECORDING.read_bytes()) as stream:
        content = stream.read()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        member = archive.extractfile(next(name for name in archive.getnames() if name.endswith(MEMBER)))
        assert member is not None
        text = member.read().decode()
    return {table: each[0] for (_, table), each in compiled(text).tables.items()}


def _ask(table: str, hook: Hook, **scene: Field) -> tuple[TableResult, ...]:
    changes: dict[str, Any] = {"src": "10.244.1.4", "in_dev": "cni0", **scene}
    at = {"in_dev": changes.pop("in_dev"), **changes.pop("at", {})}
    return _tables()[table].evaluate(context(hook, facts=NodeFacts(), at=at, **changes))


def _backends(results: tuple[TableResult, ...]) -> dict[str, float]:
    found: dict[str, float] = {}
    for result in results:
        assert result.nat is not None
        ((first, _),), (port, _) = result.nat.addresses, result.nat.ports or (0, 0)
        found[f"{first}:{port}"] = found.get(f"{first}:{port}", 0.0) + result.probability
    return found


THIRD = pytest.approx(1 / 3, abs=1e-6)
HALF = pytest.approx(0.5)
WEB = {"10.244.1.5:8080": THIRD, "10.244.2.6:8080": THIRD, "10.244.3.4:8080": THIRD}
API = {"10.244.1.3:8080": HALF, "10.244.2.3:8080": HALF}
LOCAL_API = {"10.244.1.3:8080": 1.0}
MASQUERADED, PLAIN = 0x4000, 0
FROM_OUTSIDE = {"src": "172.18.0.100", "in_dev": "eth0"}

SERVICES = [
    pytest.param({"dst": "10.96.10.1"}, WEB, PLAIN, id="ClusterIP from a pod"),
    pytest.param({"dst": "10.96.10.1", **FROM_OUTSIDE}, WEB, MASQUERADED, id="ClusterIP from outside the pod network"),
    pytest.param({"dst": "10.96.10.4"}, API, PLAIN, id="ClusterIP with two endpoints"),
    pytest.param({"dst": "10.96.10.7", "dport": 5432}, {"10.244.2.5:5432": 1.0}, PLAIN, id="one endpoint"),
    pytest.param({"dst": "10.96.10.5"}, WEB, PLAIN, id="session affinity"),
    pytest.param({"dst": "10.96.10.10"}, LOCAL_API, PLAIN, id="internalTrafficPolicy Local"),
    pytest.param({"dst": "10.96.10.13"}, {"172.18.0.100:8080": 1.0}, PLAIN, id="endpoint outside the cluster"),
    pytest.param({"dst": "172.18.0.11", "dport": 30080}, WEB, MASQUERADED, id="NodePort from a pod"),
    pytest.param({"dst": "172.18.0.11", "dport": 30080, **FROM_OUTSIDE}, WEB, MASQUERADED, id="NodePort from outside"),
    pytest.param({"dst": "172.18.0.11", "dport": 30081}, API, PLAIN, id="NodePort, policy Local, from a pod: all endpoints"),
    pytest.param({"dst": "172.18.0.11", "dport": 30081, **FROM_OUTSIDE}, LOCAL_API, PLAIN, id="NodePort, policy Local, from outside: local ones"),
    pytest.param({"dst": "172.18.0.200", **FROM_OUTSIDE}, WEB, MASQUERADED, id="external IP"),
    pytest.param({"dst": "172.18.0.210", **FROM_OUTSIDE}, WEB, MASQUERADED, id="load balancer, source in range"),
]  # fmt: skip


@pytest.mark.parametrize(("scene", "backends", "mark"), SERVICES)
def test_service(scene: dict[str, Any], backends: dict[str, float], mark: int) -> None:
    results = _ask("nat", Hook.PREROUTING, **scene)
    assert _backends(results) == backends
    assert {result.packet.mark for result in results if result.packet.src != "10.244.1.5"} == {mark}
    assert not any(result.missing for result in results)


def test_hairpin_is_marked_for_masquerade() -> None:
    results = _ask("nat", Hook.PREROUTING, dst="10.96.10.1", src="10.244.1.5")
    marks = {result.nat.addresses[0][0]: result.packet.mark for result in results if result.nat}
    assert marks == {"10.244.1.5": MASQUERADED, "10.244.2.6": PLAIN, "10.244.3.4": PLAIN}


def test_dns_over_udp() -> None:
    scene = {"dst": "10.96.0.10", "dport": 53, "protocol": Protocol.UDP, "tcp_flags": TcpFlags.NONE}
    assert _backends(_ask("nat", Hook.PREROUTING, **scene)) == {"10.244.1.2:53": HALF, "10.244.2.2:53": HALF}


def test_every_way_names_the_chains_it_went_through() -> None:
    first = _ask("nat", Hook.PREROUTING, dst="10.96.10.1", src="10.244.1.5")[0]
    assert minimal(first) == [
        "PREROUTING#1 jump to KUBE-SERVICES",
        "KUBE-SERVICES#2 jump to KUBE-SVC-67NZLRHBNDSAWJRO",
        "KUBE-SVC-67NZLRHBNDSAWJRO#2 jump to KUBE-SEP-34ZZ2QFGO32YYXXO",
        "KUBE-SEP-34ZZ2QFGO32YYXXO#1 jump to KUBE-MARK-MASQ",
        "KUBE-MARK-MASQ#1 mark 0x4000",
        "KUBE-SEP-34ZZ2QFGO32YYXXO#2 dnat to 10.244.1.5:8080",
    ]


def test_load_balancer_source_out_of_range_is_not_translated_and_dropped_by_the_firewall_chain() -> None:
    scene = {"dst": "172.18.0.210", "src": "192.0.2.9", "in_dev": "eth0"}
    (nat,) = _ask("nat", Hook.PREROUTING, **scene)
    assert nat.nat is None
    (verdict,) = _ask("filter", Hook.FORWARD, **scene)
    assert (verdict.verdict, minimal(verdict)[-1]) == ("DROP", "KUBE-PROXY-FIREWALL#1 drop")


POSTROUTING = [
    pytest.param({"mark": 0x4000}, "masquerade", "KUBE-POSTROUTING#3", 0, id="marked by kube-proxy"),
    pytest.param({"dst": "172.18.0.100"}, "masquerade", "FLANNEL-POSTRTG#5", 0, id="pod to outside"),
    pytest.param({"dst": "10.244.2.5"}, "accept", "POSTROUTING#0", 0, id="pod to pod"),
    pytest.param(
        {"src": "172.18.0.11", "dst": "10.244.2.5"}, "masquerade", "FLANNEL-POSTRTG#6", 0, id="node to pod elsewhere"
    ),
    pytest.param({"src": "172.18.0.100", "dst": "10.244.1.5"}, "accept", "POSTROUTING#0", 0, id="outside to own pod"),
    pytest.param({"dst": "224.0.0.5"}, "accept", "POSTROUTING#0", 0, id="pod to multicast"),
]


@pytest.mark.parametrize(("scene", "action", "place", "mark"), POSTROUTING)
def test_postrouting(scene: dict[str, Any], action: str, place: str, mark: int) -> None:
    (result,) = _ask("nat", Hook.POSTROUTING, **{"in_dev": "", **scene})
    assert minimal(result)[-1] == f"{place} {action}"
    assert result.packet.mark == mark
    assert (result.nat is not None) == (action == "masquerade")


NATTED = {"at": {"connection": ConnectionView(status=frozenset(("DNAT",)))}}
FILTER = [
    pytest.param(Hook.FORWARD, {"dst": "10.244.2.5"}, "FLANNEL-FWD#1 accept", id="pod to pod"),
    pytest.param(Hook.FORWARD, {"src": "172.18.0.100", "dst": "10.244.1.5"}, "FLANNEL-FWD#2 accept", id="outside to pod"),
    pytest.param(Hook.FORWARD, {"ct_state": CtState.ESTABLISHED}, "KUBE-FORWARD#3 accept", id="reply"),
    pytest.param(Hook.FORWARD, {"ct_state": CtState.INVALID}, "KUBE-FORWARD#1 drop", id="invalid"),
    pytest.param(Hook.FORWARD, {"mark": 0x4000}, "KUBE-FORWARD#2 accept", id="marked"),
    pytest.param(Hook.FORWARD, {"dst": "10.96.10.6"}, "KUBE-SERVICES#1 reject with icmp-port-unreachable", id="service without endpoints"),
    pytest.param(Hook.INPUT, {"dst": "172.18.0.11", "dport": 30082}, "KUBE-EXTERNAL-SERVICES#1 reject with icmp-port-unreachable", id="NodePort without endpoints"),
    pytest.param(Hook.INPUT, {"dst": "172.18.0.11", "dport": 22}, "INPUT#0 accept", id="to the node itself"),
    pytest.param(Hook.INPUT, {"dst": "127.0.0.1"}, "KUBE-FIREWALL#1 drop", id="from outside to loopback"),
    pytest.param(Hook.INPUT, {"dst": "127.0.0.1", **NATTED}, "INPUT#0 accept", id="translated to loopback"),
    pytest.param(Hook.OUTPUT, {"dst": "10.96.10.9", "in_dev": ""}, "KUBE-SERVICES#2 reject with icmp-port-unreachable", id="node to a service without endpoints"),
]  # fmt: skip


@pytest.mark.parametrize(("hook", "scene", "last"), FILTER)
def test_filter(hook: Hook, scene: dict[str, Any], last: str) -> None:
    (result,) = _ask("filter", hook, **scene)
    assert minimal(result)[-1] == last
    assert not result.missing
