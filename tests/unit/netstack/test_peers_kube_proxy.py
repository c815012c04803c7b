"""kube-proxy's own tests of where packets go, both modes: the rules that it wrote, walked, against what a kernel did with them.

Read from the folder that KUBEPROBE_PEERS names (kubeproxy_flows.json.gz, kubeproxy_nft.json.gz); skipped by name where it is
not set. Every flow counts; the node is the one of those tests: eth0 with its address, and pods behind one device.
"""

import gzip
import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tasks.skoop.model.addr import Ip, Mac, Net
from tasks.skoop.model.ids import NetnsId, node_netns
from tasks.skoop.model.packet import Frame, Packet, Protocol, TcpFlags
from tasks.skoop.model.state import Address, Interface, Neighbour, NeighbourState, NetNS, NextHop, NftTable, Route
from tasks.skoop.model.trace import Outcome, Reason
from tasks.skoop.model.xtables import Backend, XTable
from tasks.skoop.netstack import stack
from tasks.skoop.netstack.namespace import Answers, Namespace
from tasks.skoop.netstack.skb import Exit
from tasks.skoop.netstack.understood import not_understood
from tasks.skoop.parse.iptables import parse_iptables_save
from tasks.skoop.parse.nft import parse_nft

NODE = node_netns("peer")
FAR, NEAR = Mac("02:00:00:00:00:01"), Mac("02:00:00:00:00:02")
PODS, OUTSIDE = "pods", "eth0"
COMES_BY = {"pod": PODS, "external": OUTSIDE, "loadbalancer-ip": OUTSIDE, "node": ""}
"""Kind of a flow's source → the device that it comes in by; "" for a process of the node."""


class NobodyElse:
    """The ends of the node's links: its neighbour entries are permanent, nobody is asked."""

    def resolve(self, netns: NetnsId, dev: str, target: Ip, sender: Ip | None) -> Answers:
        return Answers()

    def reaches(self, netns: NetnsId, dev: str, mac: Mac, vlan: int = 0) -> bool:
        return True

    def vteps(self, netns: NetnsId, dev: str, mac: Mac) -> tuple[Ip, ...]:
        return ()

    def l3s_above(self, netns: NetnsId, dev: str, ip: Ip) -> None:
        return None


def _route(dst: str, dev: str, *, via: str = "", kind: str = "unicast", src: str = "") -> Route:
    return Route(
        dst=Net(dst),
        type=kind,
        table=255 if kind in ("local", "broadcast") else 254,
        scope={"local": "host"}.get(kind, "global" if via else "link"),
        nexthops=(NextHop(dev=dev, via=Ip(via) if via else None),),
        prefsrc=Ip(src) if src else None,
    )


def _link(index: int, name: str, *addresses: str) -> Interface:
    own = tuple(
        Address(ip=Ip(ip), prefixlen=int(length))
        for ip, _, length in (address.partition("/") for address in addresses)
    )  # fmt: skip
    return Interface(index=index, name=name, kind="loopback" if name == "lo" else "veth", mac=NEAR, addresses=own)


def node(*, tables: tuple[XTable, ...] = (), nft: tuple[NftTable, ...] = (), localnet: bool = False) -> NetNS:
    """Return the node of kube-proxy's tests with these rules; `localnet`: kube-proxy has set route_localnet."""
    return NetNS(
        id=NODE,
        interfaces=(
            _link(1, "lo", "127.0.0.1/8"),
            _link(2, OUTSIDE, "192.168.0.2/24"),
            _link(3, PODS, "10.255.255.253/31"),
        ),
        routes=(
            _route("127.0.0.0/8", "lo", kind="local", src="127.0.0.1"),
            _route("127.0.0.1/32", "lo", kind="local", src="127.0.0.1"),
            _route("192.168.0.2/32", OUTSIDE, kind="local", src="192.168.0.2"),
            _route("10.255.255.253/32", PODS, kind="local", src="10.255.255.253"),
            _route("192.168.0.0/24", OUTSIDE, src="192.168.0.2"),
            _route("10.255.255.252/31", PODS, src="10.255.255.253"),
            _route("10.0.0.0/8", PODS, via="10.255.255.252"),
            _route("0.0.0.0/0", OUTSIDE, via="192.168.0.1"),
        ),
        neighbours=tuple(
            Neighbour(ip=Ip(ip), dev=dev, mac=FAR, state=NeighbourState.PERMANENT)
            for ip, dev in (("192.168.0.1", OUTSIDE), ("10.255.255.252", PODS))
        ),
        sysctls={
            "net/ipv4/ip_forward": "1",
            "net/ipv4/conf/all/route_localnet": str(int(localnet)),
            **{f"net/ipv4/conf/{dev}/forwarding": "1" for dev in ("lo", OUTSIDE, PODS, "all")},
        },
        tables=tables,
        nft=nft,
    )


class Seen(NamedTuple):
    """Where the packets of a flow go: what becomes of them, and for each endpoint whether their source is rewritten."""

    result: str
    endpoints: dict[str, bool]


def walk(state: NetNS, flow: Mapping[str, Any]) -> Seen:
    """Return what the simulator foretells of a flow."""
    ways = _ways(Namespace(state, NobodyElse()), flow)
    assert not any(way.missing for way in ways), [way.missing for way in ways]
    found = [_becomes(way, flow) for way in ways if way.probability > 0]
    results = {result for result, _, _ in found}
    assert len(results) == 1, found
    return Seen(results.pop(), {end: masqueraded for _, end, masqueraded in found if end})


def _ways(namespace: Namespace, flow: Mapping[str, Any]) -> tuple[Exit, ...]:
    protocol = Protocol(flow["protocol"].lower())
    packet = Packet(
        src=Ip(flow["sourceIP"]),
        dst=Ip(flow["destIP"]),
        protocol=protocol,
        sport=40000,
        dport=int(flow["destPort"]),
        tcp_flags=TcpFlags.SYN if protocol == Protocol.TCP else TcpFlags.NONE,
    )
    dev = COMES_BY[flow["sourceKind"]]
    if dev:
        return stack.receive(namespace, dev, Frame(packet, FAR, NEAR), {})
    return tuple(
        onward
        for way in stack.send(namespace, packet, {}, bound=True)
        for onward in ((way,) if way.emit is None or way.emit.dev != "lo" else ())
    )


def _becomes(way: Exit, flow: Mapping[str, Any]) -> tuple[str, str, bool]:
    if way.emit is not None:
        packet = way.emit.frame.packet
        if packet.dst == flow["destIP"] and packet.dport == int(flow["destPort"]):
            return "none", "", False
        return "dnat", f"{packet.dst}:{packet.dport}", packet.src != flow["sourceIP"]
    assert way.end is not None
    if way.end.reason == Reason.NETFILTER_REJECT:
        return "reject", "", False
    if way.end.outcome in (Outcome.DELIVERED, Outcome.REFUSED):
        return "local", "", False
    return "drop", "", False


@lru_cache
def suite(name: str) -> Any:  # noqa: ANN401 -- JSON of others
    folder = os.environ.get("KUBEPROBE_PEERS", "")
    path = Path(folder) / f"{name}.json.gz"
    if not folder or not path.is_file():
        pytest.skip(f"KUBEPROBE_PEERS names no folder with {path.name}")
    return json.loads(gzip.decompress(path.read_bytes()))


def _printed(ruleset: Mapping[str, str], how: str) -> str:
    """Return what one tool printed of a rule set; null stands for the text that another printed."""
    return ruleset[how] or ruleset["iptables_legacy_save"]


def _iptables(how: str) -> Iterator[tuple[str, NetNS, list[Any]]]:
    found = suite("kubeproxy_flows")
    for case in found["cases"]:
        text = _printed(found["rulesets"][case["ruleset"]], how)
        backend = Backend.NFT if "nft" in how else Backend.LEGACY
        tables = parse_iptables_save(text, backend=backend, family=4)
        yield case["id"], node(tables=tables, localnet=_localnet(case["settings"])), _flows(case)


def _localnet(settings: Mapping[str, Any] | None) -> bool:
    """Say whether kube-proxy sets route_localnet: node ports are wanted on a loopback address (iptables mode alone)."""
    return settings is not None and settings["localhostNodePorts"] and "127.0.0.1" in settings["nodePortIPs"]


def _flows(case: Mapping[str, Any]) -> list[Any]:
    """Return the flows of a case, marked where they are to a service with session affinity."""
    sticky = {
        f"{one['metadata']['namespace']}/{one['metadata']['name']}"
        for one in case["services"] or ()
        if one["spec"].get("sessionAffinity") == "ClientIP"
    }
    return [{**flow, "sticky": flow.get("service") in sticky} for flow in case["flows"]]


def _nftables() -> Iterator[tuple[str, NetNS, list[Any]]]:
    for case in suite("kubeproxy_nft")["cases"]:
        yield case["id"], node(nft=parse_nft(json.dumps(case["nftListJson"]))), _flows(case)


FORMS: Mapping[str, tuple[Callable[[], Iterator[tuple[str, NetNS, list[Any]]]], str]] = {
    "iptables-legacy": (lambda: _iptables("iptables_legacy_save"), "kernel"),
    "iptables-nft": (lambda: _iptables("iptables_nft_save"), "kernel"),
    "as kube-proxy writes it": (lambda: _iptables("proxier_restore_state"), "kernel"),
    "nftables": (_nftables, "kernelNftMode"),
}


def _agree(got: Seen, kernel: Seen, flow: Mapping[str, Any]) -> bool:
    """Compare; with session affinity the one client that the kernel saw has only one of the endpoints that may be drawn."""
    if not flow["sticky"]:
        return got == kernel
    may_be = (flow.get("expected") or flow["expectedIptablesMode"])["endpoints"]
    return (
        got.result == kernel.result
        and set(got.endpoints) == set(may_be)
        and kernel.endpoints.items() <= got.endpoints.items()
    )


SAME = {"refused-by-node": "local"}


@pytest.mark.parametrize("form", FORMS)
def test_packets_go_where_the_kernel_sent_them(form: str) -> None:
    cases, field = FORMS[form]
    wrong, flows = [], 0
    for name, state, asked in cases():
        assert not list(not_understood(state)), name
        for flow in asked:
            flows += 1
            kernel = flow[field]
            expected = Seen(SAME.get(kernel["result"], kernel["result"]), kernel["endpointsMasqueraded"])
            got = walk(state, flow)
            if not _agree(got, expected, flow):
                wrong.append((name, flow["name"], flow["sourceIP"], flow["destIP"], got, expected))
    print(f"{form}: {flows} flows, {len(wrong)} differ")  # noqa: T201 (a figure for the report)
    assert flows > 100
    assert not wrong, wrong


def test_a_wrong_rule_is_noticed() -> None:
    found = suite("kubeproxy_flows")
    different = 0
    for case in found["cases"]:
        text = found["rulesets"][case["ruleset"]]["iptables_legacy_save"]
        altered = text.replace("-j KUBE-MARK-MASQ", "-j RETURN").replace("-j REJECT --reject-with", "-j DROP #")
        altered = "\n".join(line.partition(" #")[0] for line in altered.splitlines())
        tables = parse_iptables_save(altered, backend=Backend.LEGACY, family=4)
        state = node(tables=tables, localnet=_localnet(case["settings"]))
        for flow in _flows(case):
            kernel = flow["kernel"]
            different += not _agree(walk(state, flow), Seen(kernel["result"], kernel["endpointsMasqueraded"]), flow)
    assert different > 10


def test_all_rule_sets_of_its_tests_are_understood() -> None:
    texts = [
        (name, 6 if ruleset["family"] == "ip6" else 4, text)
        for file in ("kubeproxy_flows", "kubeproxy_rules")
        for name, ruleset in suite(file)["rulesets"].items()
        for how, text in ruleset.items()
        if how != "family" and text
    ]
    for name, family, text in texts:
        state = node(tables=parse_iptables_save(text, backend=Backend.LEGACY, family=family, source=name))
        assert not list(not_understood(state)), name
    assert len(texts) > 50
