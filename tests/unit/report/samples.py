"""Diagnoses made by hand, for the reports to tell: one that works, one that fails for a confirmed cause, one in three shares."""

from tasks.skoop.model.addr import Ip, Mac
from tasks.skoop.model.diagnosis import Diagnosis, FlowOutcome, MtuReport, RootCause, ServerSees
from tasks.skoop.model.endpoint import Endpoint, EndpointType, Question
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.netnode import Action, ActionType, Link, LinkType, NetNode, NetNodeType, PacketPath
from tasks.skoop.model.packet import Packet, Protocol
from tasks.skoop.model.state import FdbEntry
from tasks.skoop.model.suspicion import Evidence, Level, Remedy, SetFdb, Suspicion
from tasks.skoop.model.trace import IcmpError, Outcome, Place, Reason, Stage, Step, View, Walk

CLIENT, N1, N3, WEB = (NetnsId(name) for name in ("pod/shop/client-1", "node/n1", "node/n3", "pod/shop/web-3"))
REQUEST = Packet(src=Ip("10.244.1.4"), dst=Ip("10.96.10.1"), sport=40000, dport=80)
TRANSLATED = REQUEST.with_(dst=Ip("10.244.3.3"), dport=8080)
ANSWER = Packet(src=Ip("10.244.3.3"), dst=Ip("10.244.1.4"), sport=8080, dport=40000)
QUESTION = Question(
    src=Endpoint(ip=Ip("10.244.1.4"), type=EndpointType.POD, name="shop/client-1", netns=CLIENT),
    dst=Endpoint(ip=Ip("10.96.10.1"), type=EndpointType.SERVICE, port=80, name="shop/web"),
)
SEP_RULE = "-A KUBE-SEP-ABC -p tcp -m tcp -j DNAT --to-destination 10.244.3.3:8080"


def nat(netns: NetnsId, chain: str, rule: int, text: str = "") -> Place:
    return Place(
        netns=netns,
        stage=Stage.NETFILTER,
        backend="legacy",
        family=4,
        hook="PREROUTING",
        table="nat",
        chain=chain,
        rule=rule,
        text=text,
    )


SENT = (
    Step(place=Place(netns=CLIENT, stage=Stage.SOCKET), action="send", packet=REQUEST),
    Step(place=Place(netns=CLIENT, stage=Stage.ROUTE, key="default"), action="route", detail="via 10.244.1.1 dev eth0"),
)
ON_N1 = (
    Step(place=Place(netns=N1, stage=Stage.LINK, dev="veth1"), action="recv", packet=REQUEST),
    Step(place=nat(N1, "PREROUTING", 1), action="match", detail="-> KUBE-SERVICES"),
    Step(place=nat(N1, "KUBE-SEP-ABC", 2, SEP_RULE), action="dnat", detail="to 10.244.3.3:8080", packet=TRANSLATED),
    Step(
        place=Place(netns=N1, stage=Stage.ROUTE, key="10.244.3.0/24"),
        action="route",
        detail="via 10.244.3.0 dev flannel.1",
    ),
)
FDB_PLACE = Place(netns=N1, stage=Stage.TUNNEL, dev="flannel.1", key="9a:7c:10:24:40:03")
FDB_LOST = Walk(
    outcome=Outcome.DROPPED,
    steps=(*SENT, *ON_N1),
    place=FDB_PLACE,
    reason=Reason.NO_TX_TARGET,
    packet=TRANSLATED,
    probability=1.0,
)
ARRIVED = Walk(
    outcome=Outcome.DELIVERED,
    steps=(*SENT, *ON_N1, Step(place=Place(netns=WEB, stage=Stage.SOCKET, key="0.0.0.0:8080"), action="deliver")),
    place=Place(netns=WEB, stage=Stage.SOCKET, key="0.0.0.0:8080"),
    packet=TRANSLATED,
)
CAME_BACK = Walk(
    outcome=Outcome.DELIVERED,
    steps=(
        Step(place=Place(netns=WEB, stage=Stage.SOCKET), action="send", packet=ANSWER),
        Step(place=nat(N1, "PREROUTING", 0), action="snat", detail="back to 10.96.10.1:80"),
        Step(place=Place(netns=CLIENT, stage=Stage.SOCKET, key="10.244.1.4:40000"), action="deliver"),
    ),
    place=Place(netns=CLIENT, stage=Stage.SOCKET, key="10.244.1.4:40000"),
)
FDB_MISSING = Suspicion(
    level=Level.CRITICAL,
    code="KP-VXLAN-008",
    message="flannel.1 on n1 has no forwarding entry for 9a:7c:10:24:40:03, the vxlan device of n3",
    subject=N1,
    place=FDB_PLACE,
    evidence=(Evidence(seen="no entry", expected="9a:7c:10:24:40:03 dst 172.18.0.13 self permanent"),),
    remedy=Remedy(
        changes=(
            SetFdb(netns=N1, entry=FdbEntry(mac=Mac("9a:7c:10:24:40:03"), dev="flannel.1", dst=Ip("172.18.0.13"))),
        ),
        commands=(("n1", "bridge fdb replace 9a:7c:10:24:40:03 dev flannel.1 dst 172.18.0.13 self permanent"),),
        advice="Set the entry; restart the network daemon.",
    ),
    confirmed=True,
)
POLICIES = Suspicion(
    level=Level.INFO, code="KP-K8S-015", message="3 NetworkPolicies exist, but nothing enforces them", subject=""
)
LINK = Link(type=LinkType.VETH, source=CLIENT, destination=N1, packet=REQUEST, source_attributes={"interface": "eth0"})
PATH = PacketPath(
    nodes=(
        NetNode(
            type=NetNodeType.POD, id=CLIENT, netns=CLIENT, actions=(Action(type=ActionType.SEND, outputs=(LINK,)),)
        ),
        NetNode(
            type=NetNodeType.NODE,
            id=N1,
            netns=N1,
            actions=(Action(type=ActionType.DROP, input=LINK),),
            suspicions=(FDB_MISSING,),
        ),
    ),
    links=(LINK,),
)

CONNECTED = FlowOutcome(
    probability=1.0,
    forward=ARRIVED,
    reply=CAME_BACK,
    client_sees=View.CONNECTED,
    server_sees=ServerSees(netns=WEB, src="10.244.1.4", port=8080),
)
LOST = FlowOutcome(probability=1.0, forward=FDB_LOST, client_sees=View.TIMEOUT)


def works() -> Diagnosis:
    return Diagnosis(
        question=QUESTION,
        verdict=Outcome.DELIVERED,
        client_sees={View.CONNECTED: 1.0},
        outcomes=(CONNECTED,),
        mtu=MtuReport(forward=1450, reply=1450),
    )


def fails() -> Diagnosis:
    return Diagnosis(
        question=QUESTION,
        verdict=Outcome.DROPPED,
        client_sees={View.TIMEOUT: 1.0},
        outcomes=(LOST,),
        root_causes=(RootCause(suspicions=(FDB_MISSING,), turns_to={View.CONNECTED: 1.0}),),
        suspicions=(FDB_MISSING,),
        cluster_suspicions=(POLICIES,),
        path=PATH,
    )


def partly() -> Diagnosis:
    from msgspec.structs import replace

    return Diagnosis(
        question=QUESTION,
        verdict=Outcome.DROPPED,
        client_sees={View.CONNECTED: 2 / 3, View.TIMEOUT: 1 / 3},
        outcomes=(replace(CONNECTED, probability=2 / 3), replace(LOST, probability=1 / 3)),
        root_causes=(RootCause(suspicions=(FDB_MISSING,), turns_to={View.CONNECTED: 1.0}),),
    )


def stalls() -> Diagnosis:
    from msgspec.structs import replace

    lost_segment = Walk(
        outcome=Outcome.DROPPED,
        steps=SENT,
        place=Place(netns=N1, stage=Stage.MTU, dev="veth1"),
        reason=Reason.PEER_MTU,
        detail="1500 bytes on a link of 1400",
    )
    return Diagnosis(
        question=QUESTION,
        verdict=Outcome.DELIVERED,
        client_sees={View.CONNECTED: 1.0},
        outcomes=(replace(CONNECTED, stalls=True, data=lost_segment),),
        mtu=MtuReport(forward=1400, stalls=True),
    )


def refused() -> Diagnosis:
    place = Place(
        netns=N1, stage=Stage.NETFILTER, backend="nft", family=4, hook="FORWARD", table="filter", chain="KUBE-FORWARD", rule=3,
        text="-A KUBE-FORWARD -j REJECT --reject-with icmp-port-unreachable",
    )  # fmt: skip
    walk = Walk(
        outcome=Outcome.UNREACHABLE,
        steps=SENT,
        place=place,
        reason=Reason.NETFILTER_REJECT,
        error=IcmpError(type=3, code=3, sender="10.244.1.1", errno="ECONNREFUSED"),
    )
    return Diagnosis(
        question=QUESTION, verdict=Outcome.UNREACHABLE, client_sees={View.REFUSED: 1.0},
        outcomes=(FlowOutcome(probability=1.0, forward=walk, client_sees=View.REFUSED),),
    )  # fmt: skip


def unknown() -> Diagnosis:
    walk = Walk(
        outcome=Outcome.UNKNOWN,
        steps=SENT,
        place=Place(netns=N3, stage=Stage.INFRA),
        reason=Reason.MISSING_STATE,
        missing=("node/n3: namespace not collected",),
    )
    question = Question(src=QUESTION.src, dst=Endpoint(ip=Ip("172.18.0.13"), name="n3"), protocol=Protocol.ICMP)
    return Diagnosis(
        question=question,
        verdict=Outcome.UNKNOWN,
        client_sees={View.UNKNOWN: 1.0},
        outcomes=(FlowOutcome(probability=1.0, forward=walk, client_sees=View.UNKNOWN),),
        missing=("node/n3: namespace not collected",),
    )


ALL = {"works": works, "fails": fails, "partly": partly, "stalls": stalls, "refused": refused, "unknown": unknown}
