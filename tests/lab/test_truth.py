"""Where a packet ended: rules of thumb on traces made by hand, and the kernel's own traces in a lab."""

from dataclasses import replace

import pytest

from lab.plan import Kind, make_plan
from lab.prober import Ask, Attempt
from lab.truth import find
from lab.watch import Evidence, RuleHit, Seen
from tasks.skoop.model.trace import Reason, Stage, View
from tests.lab.fixtures import Labs

PLAN = make_plan(Kind.FLANNEL_VXLAN)
ASK = Ask(src="pod/shop/client-1", dst="10.244.2.4", dport=8080)
SILENCE = Attempt(ask=ASK, view=View.TIMEOUT, local_ip="10.244.1.3", sport=40000)


def syn(netns: str, dev: str, way: str, **more: object) -> Seen:
    base = Seen(
        at_ns=0, netns=netns, dev=dev, way=way, kind="tcp", src="10.244.1.3", dst="10.244.2.4", sport=40000, dport=8080
    )
    return replace(base, flags="S", seq=7, **more)  # type: ignore[arg-type]  # fields of Seen


def answer(netns: str, dev: str, way: str) -> Seen:
    return replace(syn(netns, dev, way), src="10.244.2.4", dst="10.244.1.3", flags="SA", seq=1, ack=8)


def hit(netns: str, chain: str, text: str) -> RuleHit:
    return RuleHit(
        netns=netns, family=4, backend="legacy", table="filter", chain=chain, rule=1, text=text, packets=1, stops=True
    )


OUT = syn("pod/shop/client-1", "eth0", "out")
AT_N2 = syn("node/n2", "flannel.1", "in")


@pytest.mark.parametrize(
    ("evidence", "netns", "stage", "reason"),
    [
        pytest.param(
            Evidence(packets=(OUT, AT_N2), rules=(hit("node/n2", "FORWARD", "-A FORWARD -j DROP"),)),
            "node/n2",
            Stage.NETFILTER,
            Reason.NETFILTER_DROP,
            id="a rule that drops, where it was last seen",
        ),
        pytest.param(
            Evidence(packets=(OUT, AT_N2), rules=(hit("node/n1", "FORWARD", "-A FORWARD -j DROP"),)),
            "node/n2",
            Stage.LINK,
            Reason.NONE,
            id="a rule that drops elsewhere does not count",
        ),
        pytest.param(
            Evidence(packets=(OUT, AT_N2), counters={"node/n2": {"TcpExt.IPReversePathFilter": 1}}),
            "node/n2",
            Stage.SYSCTL,
            Reason.IP_RPFILTER,
            id="reverse path",
        ),
        pytest.param(
            Evidence(packets=(OUT, replace(AT_N2, way="other"))),
            "node/n2",
            Stage.LINK,
            Reason.OTHERHOST,
            id="wrong MAC",
        ),
        pytest.param(
            Evidence(
                packets=(
                    OUT,
                    AT_N2,
                    Seen(at_ns=1, netns="node/n2", dev="cni0", way="out", kind="ask", dst="10.244.2.4"),
                )
            ),
            "node/n2",
            Stage.NEIGHBOUR,
            Reason.NEIGH_FAILED,
            id="a neighbour that was asked and is silent",
        ),
        pytest.param(
            Evidence(
                packets=(OUT, AT_N2, answer("node/n2", "cni0", "in")), counters={"node/n2": {"IpExt.InNoRoutes": 1}}
            ),
            "node/n2",
            Stage.ROUTE,
            Reason.IP_INNOROUTES,
            id="the answer has no way back",
        ),
        pytest.param(
            Evidence(packets=(OUT, AT_N2, answer("pod/shop/client-1", "eth0", "in"))),
            "pod/shop/client-1",
            Stage.SOCKET,
            Reason.UNEXPECTED_REPLY,
            id="an answer that the client does not know",
        ),
        pytest.param(Evidence(), "pod/shop/client-1", Stage.LINK, Reason.NONE, id="nothing seen at all"),
    ],
)
def test_place_of_silence(evidence: Evidence, netns: str, stage: Stage, reason: Reason) -> None:
    truth = find(SILENCE, evidence, PLAN)
    assert truth.place is not None
    assert (truth.place.netns, truth.place.stage, truth.reason) == (netns, stage, reason)


def test_translation_on_the_way_is_followed() -> None:
    masqueraded = syn("node/n2", "eth0", "in", src="172.18.0.11", sport=61000)
    truth = find(SILENCE, Evidence(packets=(OUT, masqueraded, syn("x", "y", "in", dst="0.0.0.0", kind="udp"))), PLAN)
    assert truth.path == ("pod/shop/client-1 eth0 out", "node/n2 eth0 in")


def test_an_answered_connection_has_no_place() -> None:
    truth = find(replace(SILENCE, view=View.CONNECTED, answer="ok"), Evidence(packets=(OUT,)), PLAN)
    assert truth.answered
    assert truth.place is None


@pytest.mark.root
@pytest.mark.parametrize("kind", list(Kind))
def test_the_whole_way_is_seen(labs: Labs, kind: Kind) -> None:
    lab = labs(kind)
    truth = lab.probe(Ask(src="pod/shop/client-1", dst="10.244.3.3", dport=8080))
    assert truth.answered
    there = [step.partition(" ")[0] for step in truth.path]
    wanted = ["pod/shop/client-1", "node/n1", "host/fabric", "node/n3", "pod/shop/web-3"]
    seen = list(dict.fromkeys(there))
    assert seen == wanted
    assert there[-1] == "pod/shop/client-1"


@pytest.mark.root
@pytest.mark.parametrize(
    ("dst", "dport", "protocol", "place", "reason"),
    [
        pytest.param("10.96.10.6", 80, "tcp", "node/n1 filter/KUBE-SERVICES", Reason.NETFILTER_REJECT, id="REJECT"),
        pytest.param(
            "172.18.0.13", 30081, "tcp", "node/n3 filter/KUBE-EXTERNAL-SERVICES", Reason.NETFILTER_DROP, id="DROP"
        ),
        pytest.param("10.244.2.4", 81, "tcp", "pod/shop/web-2 socket", Reason.NO_SOCKET, id="no listener"),
        pytest.param("10.244.2.4", 81, "udp", "pod/shop/web-2 socket", Reason.NO_SOCKET, id="no UDP listener"),
        pytest.param("10.244.2.99", 80, "tcp", "node/n2 neighbour 10.244.2.99", Reason.NEIGH_FAILED, id="no such pod"),
        pytest.param("fd00:10:244:2::99", 80, "tcp", "node/n2 neighbour", Reason.NEIGH_FAILED, id="no such pod, IPv6"),
        pytest.param(
            "203.0.113.1", 80, "icmp", "host/fabric sysctl forwarding", Reason.IP_INADDRERRORS, id="no way out"
        ),
    ],
)
def test_places_in_a_healthy_lab(labs: Labs, dst: str, dport: int, protocol: str, place: str, reason: Reason) -> None:
    lab = labs()
    lab.forget()
    truth = lab.probe(Ask(src="pod/shop/client-1", dst=dst, dport=dport, protocol=protocol, timeout_s=0.25))
    assert str(truth.place).startswith(place), truth
    assert truth.reason == reason
