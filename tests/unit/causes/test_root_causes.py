"""Root causes of broken clusters: recorded ones, and the healthy one broken once, twice, or beyond repair."""

from collections.abc import Sequence
from functools import lru_cache

import pytest
from msgspec.structs import replace

from tasks.skoop.causes import MAX_TRIALS, Explainer, badness, is_good, root_causes
from tasks.skoop.diagnostor import Diagnostor
from tasks.skoop.model.addr import Ip
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.diagnosis import Diagnosis
from tasks.skoop.model.endpoint import Endpoint, Question
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.suspicion import Change, SetFdb, SetLink, SetPolicy, SetSysctl
from tasks.skoop.model.trace import View
from tasks.skoop.network import Network
from tasks.skoop.remedy import apply
from tests.unit.clusters import N1, N2, N3, broken, cut, healthy, pod, put, recorded

WEB = "10.96.10.1"
DB = "10.96.10.7"


@lru_cache(maxsize=64)
def _diagnostor(identity: int, holder: "_Held") -> Diagnostor:
    del identity
    return Diagnostor(Network(holder.state))


class _Held:
    def __init__(self, state: ClusterState) -> None:
        self.state = state

    def __hash__(self) -> int:
        return id(self.state)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and other.state is self.state


def _diagnose(state: ClusterState, question: Question) -> Diagnosis:
    return _diagnostor(id(state), _Held(state)).diagnose(question)


def _ask(
    state: ClusterState, source: str, node: str, dst: str, port: int, protocol: str = "tcp", payload: int = 0
) -> Question:
    client = pod(source, node, state)
    end = Endpoint(ip=client.ips[0], netns=client.netns, name=client.key)
    return Question(src=end, dst=Endpoint(ip=Ip(dst), port=port), protocol=Protocol(protocol), payload_bytes=payload)


def _causes(state: ClusterState, question: Question) -> list[list[str]]:
    answer = _diagnose(state, question)
    assert not is_good(answer)
    explained = Explainer(Network(state), _diagnose).explain(answer)
    for cause in explained.root_causes:
        changes = [change for item in cause.suspicions for change in (item.remedy.changes if item.remedy else ())]
        mended = _diagnose(apply(state, changes), question)
        assert cause.turns_to == mended.client_sees
        assert all(item.confirmed for item in cause.suspicions)
    return [[f"{item.code} {item.subject}" for item in cause.suspicions] for cause in explained.root_causes]


@pytest.mark.parametrize(
    ("name", "source", "dst", "port", "expected"),
    [
        pytest.param("il-brnf-off-n1", ("client-", "n1"), WEB, 80, "KP-SYSCTL-003 node/n1", id="bridge passes iptables by"),
        pytest.param("il-cni0-down-n3", ("client-", "n1"), WEB, 80, "KP-LINK-005 node/n3", id="bridge down"),
        pytest.param("il-fdb-missing-n3", ("client-", "n3"), "10.244.1.5", 8080, "KP-VXLAN-008 node/n3", id="forwarding entry"),
        pytest.param("il-forward-drop-n1", ("client-", "n1"), DB, 5432, "KP-NF-001 node/n1", id="policy DROP"),
        pytest.param("il-hairpin-off-db", ("db-", "n2"), DB, 5432, "KP-LINK-007 node/n2", id="hairpin"),
        pytest.param("il-ipfwd-n2", ("client-", "n1"), DB, 5432, "KP-SYSCTL-001 node/n2", id="forwarding off"),
        pytest.param("il-masq-deleted-n3", ("web-", "n3"), WEB, 80, "KP-SVC-007 node/n3", id="masquerade"),
        pytest.param("il-notrack-n1", ("client-", "n1"), WEB, 80, "KP-CT-003 node/n1", id="no tracking"),
        pytest.param("il-pod-localhost-n2", ("client-", "n1"), WEB, 80, "KP-SOCK-001 pod/shop/web-776fb8b5b9-tjrt6", id="loopback listener"),
        pytest.param("il-pod-no-default", ("client-", "n2"), WEB, 80, "KP-ROUTE-003 pod/shop/client-74cdc48d-vdrd8", id="no default route"),
        pytest.param("il-reject-reset-n1", ("client-", "n1"), "10.244.2.5", 5432, "KP-NF-002 node/n1", id="stray REJECT"),
        pytest.param("il-route-missing-n3", ("client-", "n3"), "10.244.1.5", 8080, "KP-ROUTE-001 node/n3", id="route"),
        pytest.param("il-rpfilter-asym-n1", ("client-", "n2"), "10.244.1.5", 8080, "KP-SYSCTL-002 node/n1", id="strict filter"),
        pytest.param("il-sep-rule-deleted-n2", ("client-", "n2"), WEB, 80, "KP-SVC-002 node/n2", id="backend rule"),
        pytest.param("il-veth-unplugged-n1", ("client-", "n2"), WEB, 80, "KP-LINK-004 node/n1", id="unplugged veth"),
        pytest.param("il-vxlan-blocked-n2", ("client-", "n1"), DB, 5432, "KP-VXLAN-010 node/n2", id="overlay port"),
    ],
)  # fmt: skip
def test_the_first_root_cause_is_the_fault(
    name: str, source: tuple[str, str], dst: str, port: int, expected: str
) -> None:
    state = recorded(name)
    assert _causes(state, _ask(state, *source, dst, port))[0] == [expected]


def test_a_stall_is_explained_by_the_link_that_differs() -> None:
    state = recorded("il-mtu-n2")
    question = _ask(state, "client-", "n1", "10.244.2.5", 5432, payload=4096)
    assert _causes(state, question)[0] == ["KP-LINK-014 node/n2"]


def test_alternatives_are_listed_the_nearest_to_the_drop_first() -> None:
    state = recorded("il-rpfilter-asym-n1")
    causes = _causes(state, _ask(state, "client-", "n2", "10.244.1.5", 8080))
    assert causes == [["KP-SYSCTL-002 node/n1"], ["KP-ROUTE-006 node/n2"]]


NO_FORWARD_N2 = SetSysctl(netns=N2, key="net/ipv4/ip_forward", value="0")
DROP_N1 = put(N1, "filter", "FORWARD", "-p tcp -m tcp --dport 5432 -j DROP")
BLOCK_N2 = put(N2, "filter", "INPUT", "-p udp -m udp --dport 8472 -j DROP")
POLICY_N1 = SetPolicy(netns=N1, backend="legacy", family=4, table="filter", chain="FORWARD", policy="DROP")
NO_ACCEPT_N1 = cut(N1, "filter", "FORWARD", "FLANNEL-FWD")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param([DROP_N1, NO_FORWARD_N2], {"KP-NF-002 node/n1", "KP-SYSCTL-001 node/n2"}, id="on two nodes"),
        pytest.param([DROP_N1, BLOCK_N2], {"KP-NF-002 node/n1", "KP-VXLAN-010 node/n2"}, id="two filters"),
        pytest.param(
            [DROP_N1, BLOCK_N2, NO_FORWARD_N2],
            {"KP-NF-002 node/n1", "KP-VXLAN-010 node/n2", "KP-SYSCTL-001 node/n2"},
            id="three in a row",
        ),
        pytest.param(
            [POLICY_N1, NO_ACCEPT_N1, cut(N1, "nat", "KUBE-SERVICES", DB)],
            {"KP-NF-001 node/n1", "KP-SVC-001 node/n1"},
            id="a Service that is not programmed, behind a closed door",
        ),
    ],
)
def test_several_blockers_on_one_way_are_all_named_and_no_more(changes: Sequence[Change], expected: set[str]) -> None:
    state = broken(*changes)
    question = _ask(state, "client-", "n1", DB, 5432)
    assert set(_causes(state, question)[0]) == expected


def test_a_way_back_that_is_broken_is_explained_too() -> None:
    gone = next(entry for entry in healthy().netns[N2].fdb if entry.mac == "9a:7c:10:24:40:01" and entry.dst)
    state = broken(SetFdb(netns=N2, entry=gone, remove=True))
    assert _causes(state, _ask(state, "client-", "n1", "10.244.2.5", 5432))[0] == ["KP-VXLAN-008 node/n2"]


def test_a_fault_that_no_assertion_knows_is_found_by_the_end_of_the_walk() -> None:
    state = broken(put(N3, "mangle", "PREROUTING", "-p tcp -m tcp --dport 8080 -j DROP"))
    assert Network(state).suspicions() == Network(healthy()).suspicions()
    causes = _causes(state, _ask(state, "client-", "n1", "10.244.3.4", 8080))
    assert causes[0][0].endswith("node/n3")


def test_what_is_refused_on_purpose_has_no_root_cause_but_is_explained() -> None:
    state = healthy()
    question = _ask(state, "client-", "n1", "10.96.10.6", 80)
    answer = Explainer(Network(state), _diagnose).explain(_diagnose(state, question))
    assert (answer.client_sees, answer.root_causes) == ({View.REFUSED: 1.0}, ())
    assert answer.suspicions[0].code == "KP-K8S-003"
    assert answer.suspicions[0].remedy is not None and answer.suspicions[0].remedy.changes == ()
    assert "KP-K8S-002" in {item.code for item in answer.suspicions}


def test_a_drop_before_a_refusal_is_still_the_cause_of_the_silence() -> None:
    state = broken(NO_FORWARD_N2)
    question = _ask(state, "client-", "n2", "10.96.10.6", 80)
    answer = _diagnose(state, question)
    assert answer.client_sees == {View.TIMEOUT: 1.0}
    causes = root_causes(_diagnose, state, question, answer, Network(state).suspicions())
    assert [item.code for item in causes[0].suspicions] == ["KP-SYSCTL-001"]
    assert causes[0].turns_to == {View.REFUSED: 1.0}


def test_nobody_listening_on_a_node_port_is_not_mended_by_a_listener_on_the_node() -> None:
    state = broken(cut(N1, "nat", "KUBE-NODEPORTS", "30080"))
    causes = _causes(state, _ask(state, "client-", "n1", "172.18.0.11", 30080))
    assert causes == [["KP-SVC-012 node/n1"]]


def test_a_good_answer_has_no_cause_and_costs_no_trial() -> None:
    state = healthy()
    question = _ask(state, "client-", "n1", WEB, 80)

    def never(_state: ClusterState, _question: Question) -> Diagnosis:
        raise AssertionError("nothing is to be tried")

    assert root_causes(never, state, question, _diagnose(state, question), ()) == ()


def test_trials_are_bounded() -> None:
    state = broken(NO_FORWARD_N2)
    question = _ask(state, "client-", "n1", DB, 5432)
    answer = _diagnose(state, question)
    asked: list[Question] = []

    def hopeless(_state: ClusterState, again: Question) -> Diagnosis:
        asked.append(again)
        return answer

    many = [
        replace(item, remedy=replace(item.remedy, changes=(SetLink(netns=N1, dev="eth0", mtu=1000 + number),)))
        for number, item in enumerate([Network(state).suspicions()[0]] * 200)
        if item.remedy is not None
    ]
    assert root_causes(hopeless, state, question, answer, many) == ()
    assert 0 < len(asked) <= MAX_TRIALS


def test_the_answer_is_the_same_every_time() -> None:
    state = recorded("il-rpfilter-asym-n1")
    question = _ask(state, "client-", "n2", WEB, 80)
    assert _causes(state, question) == _causes(state, question)


def test_badness_counts_stalls_and_leaves_out_what_is_unknown() -> None:
    question = _ask(healthy(), "client-", "n1", WEB, 80)
    good = _diagnose(healthy(), question)
    assert badness(good) == pytest.approx(0.0, abs=1e-9)
    half = replace(good, client_sees={View.CONNECTED: 0.25, View.UNKNOWN: 0.25, View.TIMEOUT: 0.5})
    assert badness(half) == pytest.approx(0.5)
    stalled = replace(good, outcomes=tuple(replace(outcome, stalls=True) for outcome in good.outcomes))
    assert badness(stalled) == pytest.approx(1.0)


def test_suspicions_are_parted_into_what_concerns_the_traffic_and_the_rest() -> None:
    state = broken(NO_FORWARD_N2)
    explained = Explainer(Network(state), _diagnose).explain(_diagnose(state, _ask(state, "client-", "n1", DB, 5432)))
    assert explained.suspicions[0].code == "KP-SYSCTL-001"
    assert explained.suspicions[0].confirmed
    assert len([item for item in explained.suspicions if item.code == "KP-SYSCTL-001"]) == 1
    assert "KP-K8S-002" in {item.code for item in explained.cluster_suspicions}


def _with_pod(prefix: str, **changes: object) -> ClusterState:
    """Return the healthy cluster with the pods of one beginning changed, objects only."""
    objects = healthy().objects
    pods = tuple(replace(known, **changes) if known.name.startswith(prefix) else known for known in objects.pods)
    return replace(healthy(), objects=replace(objects, pods=pods))


def test_a_pod_that_is_not_ready_is_proven_to_be_the_cause_of_a_refusal() -> None:
    state = healthy()
    assert _causes(state, _ask(state, "client-", "n1", "10.96.10.9", 80)) == [["KP-K8S-003 svc/shop/slow"]]


def test_a_misspelt_label_is_proven_to_be_the_cause_of_a_refusal() -> None:
    state = _with_pod("web-", labels={"app": "noboyd"})
    assert _causes(state, _ask(state, "client-", "n1", "10.96.10.6", 80)) == [["KP-K8S-002 svc/shop/orphan"]]
