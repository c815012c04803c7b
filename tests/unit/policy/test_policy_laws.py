"""Laws that every set of NetworkPolicies keeps."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.skoop.policy.engine import PolicyEngine
from tasks.skoop.policy.verdict import PolicyVerdict
from tests.unit.policy.world import ENDS, OUTSIDE, TCP, UDP, end, expression, labels, objects, policy

SELECTORS = st.sampled_from(
    [
        {},
        labels(pod="a"),
        labels(pod="c"),
        expression("tier", "Exists"),
        expression("pod", "NotIn", "b"),
        labels(pod="none"),
    ]
)
SPACES = st.sampled_from([{}, labels(team="blue"), expression("team", "DoesNotExist")])
PEERS = st.one_of(
    st.builds(lambda pods: {"podSelector": pods}, SELECTORS),
    st.builds(lambda spaces: {"namespaceSelector": spaces}, SPACES),
    st.builds(lambda spaces, pods: {"namespaceSelector": spaces, "podSelector": pods}, SPACES, SELECTORS),
    st.sampled_from(
        [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.244.2.0/24"]}}, {"ipBlock": {"cidr": "198.51.100.0/24"}}]
    ),
)
PORTS = st.sampled_from([{"port": 80}, {"port": "web"}, {"port": 53, "protocol": "UDP"}, {"port": 70, "endPort": 9000}])


@st.composite
def rules(draw: st.DrawFn, way: str) -> dict[str, Any]:
    rule: dict[str, Any] = {}
    peers, ports = draw(st.lists(PEERS, max_size=2)), draw(st.lists(PORTS, max_size=2))
    if peers:
        rule["from" if way == "ingress" else "to"] = peers
    if ports:
        rule["ports"] = ports
    return rule


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    return policy(
        draw(st.sampled_from("pqr")),
        draw(st.sampled_from("xyz")),
        pods=draw(SELECTORS),
        types=draw(st.sampled_from([None, ["Ingress"], ["Egress"], ["Ingress", "Egress"]])),
        ingress=draw(st.lists(rules("ingress"), max_size=2)),
        egress=draw(st.lists(rules("egress"), max_size=2)),
    )


def _all(*given_policies: dict[str, Any]) -> list[PolicyVerdict]:
    engine = PolicyEngine(objects(*given_policies))
    pairs = ((src, dst) for src in ENDS[::2] for dst in ENDS if not (src in OUTSIDE and dst in OUTSIDE))
    probes = ((80, TCP), (53, UDP))
    return [engine.verdict(end(src), end(dst), *probe) for src, dst in pairs for probe in probes]


def _rulings(found: list[PolicyVerdict]) -> list[tuple[str, str]]:
    return [(one.egress.ruling, one.ingress.ruling) for one in found]


@settings(max_examples=40, deadline=None)
@given(st.lists(policies(), max_size=4), policies())
def test_a_policy_that_selects_nothing_changes_nothing(some: list[dict[str, Any]], other: dict[str, Any]) -> None:
    other["spec"]["podSelector"] = labels(pod="nobody")
    assert _all(*some, other) == _all(*some)


@settings(max_examples=40, deadline=None)
@given(st.lists(policies(), min_size=1, max_size=4), st.sampled_from(["ingress", "egress"]), st.data())
def test_another_rule_takes_no_connection_away(some: list[dict[str, Any]], way: str, data: st.DataObject) -> None:
    before = _rulings(_all(*some))
    spec = some[0]["spec"]
    # without types, a first egress rule makes the policy isolate that direction
    spec.setdefault("policyTypes", ["Ingress", "Egress"] if spec["egress"] else ["Ingress"])
    spec[way] = [*spec[way], data.draw(rules(way))]
    for old, new in zip(before, _rulings(_all(*some)), strict=True):
        for was, is_now in zip(old, new, strict=True):
            assert was == "denied" or is_now == "allowed"


@settings(max_examples=40, deadline=None)
@given(st.lists(policies(), max_size=4), st.randoms(use_true_random=False))
def test_their_order_is_of_no_importance(some: list[dict[str, Any]], random: Any) -> None:  # noqa: ANN401 -- Random
    for number, one in enumerate(some):
        one["metadata"]["name"] += str(number)
    shuffled = list(some)
    random.shuffle(shuffled)
    assert _all(*shuffled) == _all(*some)


@settings(max_examples=40, deadline=None)
@given(st.lists(policies(), max_size=4))
def test_a_verdict_names_what_it_rests_on(some: list[dict[str, Any]]) -> None:
    for found in _all(*some):
        for side in (found.egress, found.ingress):
            assert side.ruling in ("allowed", "denied")
            assert bool(side.isolated_by) is (side.ruling == "denied")
            assert not (side.allowed_by and side.ruling == "denied")
            assert side.why
