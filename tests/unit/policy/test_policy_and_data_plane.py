"""Policies against recorded nodes: plain flannel enforces none of them, and some nodes drop what they allow."""

import pytest
from msgspec.structs import replace

from tasks.skoop.diagnostor import Diagnostor
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.diagnosis import Diagnosis
from tasks.skoop.model.endpoint import Endpoint, EndpointType, Question
from tasks.skoop.model.trace import View
from tasks.skoop.network import Network
from tasks.skoop.policy.dataplane import Agreement, Comparison, compare
from tasks.skoop.policy.engine import PolicyEngine
from tests.unit.clusters import N1, broken, healthy, pod, put, recorded


def _asked(state: ClusterState, src: tuple[str, str], dst: tuple[str, str], port: int) -> tuple[PolicyEngine, Question]:
    ends = []
    for prefix, node in (src, dst):
        found = pod(prefix, node, state)
        ends.append(Endpoint(ip=found.ips[0], type=EndpointType.POD, name=found.key, netns=found.netns))
    question = Question(src=ends[0], dst=replace(ends[1], port=port))
    return PolicyEngine(state.objects), question


def _compared(
    state: ClusterState, src: tuple[str, str], dst: tuple[str, str], port: int
) -> tuple[Comparison, Diagnosis]:
    engine, question = _asked(state, src, dst, port)
    diagnosis = Diagnostor(Network(state)).diagnose(question)
    return compare(engine.verdict(question.src, question.dst, port), diagnosis), diagnosis


def test_allowed_and_passes() -> None:
    found, diagnosis = _compared(healthy(), ("client", "n3"), ("web", "n1"), 8080)
    assert diagnosis.client_sees == {View.CONNECTED: 1.0}
    assert found.agreement is Agreement.AGREE
    assert found.suspicion is None
    assert any("web-from-client" in line for line in found.policy_proof)
    assert found.data_plane_proof


def test_denied_but_passes_as_nothing_enforces_it() -> None:
    found, _ = _compared(healthy(), ("api", "n1"), ("web", "n2"), 8080)
    assert found.agreement is Agreement.PASSES
    assert found.suspicion is not None
    assert found.suspicion.code == "KP-POL-013"
    assert any("isolates: NetworkPolicy shop/default-deny" in line for line in found.policy_proof)


def test_allowed_but_filtered_names_the_chain() -> None:
    state = recorded("il-forward-drop-n1")
    found, _ = _compared(state, ("client", "n3"), ("web", "n1"), 8080)
    assert found.agreement is Agreement.DROPPED
    assert found.place is not None
    assert (found.place.netns, found.place.table) == (N1, "filter")
    assert found.suspicion is not None
    assert found.suspicion.code == "KP-POL-012"
    assert found.suspicion.subject == N1


def test_denied_and_filtered() -> None:
    found, _ = _compared(broken(put(N1, "filter", "FORWARD", "-j DROP")), ("api", "n1"), ("web", "n2"), 8080)
    assert found.agreement is Agreement.AGREE
    assert "filtered at node/n1" in found.why


def test_lost_for_another_reason_says_nothing_about_policies() -> None:
    found, _ = _compared(recorded("il-route-missing-n3"), ("api", "n1"), ("web", "n3"), 8080)
    assert found.agreement in (Agreement.CANNOT_TELL,)
    assert "no packet filter stops it" in found.why


@pytest.mark.parametrize("missing", ["networkpolicies"])
def test_unknown_policies_are_not_compared(missing: str) -> None:
    state = healthy()
    state = replace(state, objects=replace(state.objects, network_policies=(), missing={missing: "forbidden"}))
    found, _ = _compared(state, ("client", "n3"), ("web", "n1"), 8080)
    assert found.agreement is Agreement.CANNOT_TELL
    assert "forbidden" in found.why
