"""The kernel's own account of real connections: every device, every reason, silence known at once, and the simulator measured by it."""

import random
import time
from collections.abc import Iterator
from dataclasses import replace as changed

import pytest
from msgspec.structs import replace

from lab.cluster import Lab
from lab.faults.catalogue import FAULTS
from lab.plan import Backend, Kind
from lab.prober import Ask, Attempt, attempt_all
from tasks.skoop.diagnostor import Diagnostor
from tasks.skoop.model.diagnosis import Diagnosis
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.trace import Reason, View
from tests.kernel.differential.comparing import asks, diagnostor_of, difference, question_of
from tests.kernel.differential.test_broken import witness_of
from tests.kernel.oracle.comparing import compare, wires_of
from tests.kernel.oracle.oracle import Oracle, inum, unavailable_because
from tests.kernel.oracle.paths import Story
from tests.kernel.oracle.watching import Watching

pytestmark = pytest.mark.root
PATIENCE_S = 4.0
"""Far longer than any answer takes: who knows of a drop does not need it."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if reason := unavailable_because():
        pytest.skip(reason)
    with Lab(Kind.FLANNEL_VXLAN, nodes=2, backend=Backend.LEGACY, families=(4,)) as one:
        yield one


@pytest.fixture(scope="module")
def oracle(lab: Lab) -> Iterator[Oracle]:
    with Oracle({inum(netns): name for name, netns in lab.spaces.items()}) as one:
        yield one


@pytest.fixture(scope="module")
def healthy(lab: Lab) -> Diagnostor:
    lab.forget()
    return diagnostor_of(lab)


def watched(lab: Lab, oracle: Oracle, *questions: Ask) -> tuple[list[Attempt], list[Story]]:
    """Try everything at once under the oracle's eyes."""
    watching = Watching(oracle)
    attempts = attempt_all(questions, lab.spaces, lab.servers, watching)
    stories = watching.stories()
    assert oracle.lost == 0
    return attempts, stories


def address(lab: Lab, pod: str) -> str:
    return next(one.ips[0] for one in lab.plan.pods if one.netns == pod)


def test_every_device_of_the_way_is_told_with_its_addresses(lab: Lab, oracle: Oracle) -> None:
    service = next(one for one in lab.plan.services if one.name == "web").cluster_ips(lab.plan.families)[0]
    _, stories = watched(lab, oracle, *[Ask(src="pod/shop/client-1", dst=service, dport=80)] * 20)
    remote = [one for one in stories if one.forward.hops[-1].netns == "pod/shop/web-2"]
    assert remote, "of twenty connections none went to the other node"
    hops = remote[0].forward.hops
    assert [(hop.netns, hop.dev) for hop in hops if hop.dev in ("eth0", "flannel.1", "cni0", "n1", "n2")] == [
        ("pod/shop/client-1", "eth0"),
        ("node/n1", "cni0"),
        ("node/n1", "flannel.1"),
        ("node/n1", "eth0"),
        ("host/fabric", "n1"),
        ("host/fabric", "n2"),
        ("node/n2", "eth0"),
        ("node/n2", "flannel.1"),
        ("node/n2", "cni0"),
        ("pod/shop/web-2", "eth0"),
    ]
    assert (hops[0].dst, hops[0].dport, hops[0].ttl) == (service, 80, 64)
    assert (hops[-1].dst, hops[-1].dport, hops[-1].ttl) == (address(lab, "pod/shop/web-2"), 8080, 62)
    outer = {hop.outer for hop in hops if hop.outer[0]}
    assert outer == {tuple(node.ips[0] for node in lab.plan.nodes)}
    assert remote[0].reply.hops[-1].src == service
    assert remote[0].forward.drop is remote[0].reply.drop is None


def test_others_are_not_told(lab: Lab) -> None:
    name = "pod/shop/web-1"
    with Oracle({inum(lab.spaces[name]): name}) as narrow:
        lab.attempt(Ask(src="pod/shop/client-1", dst=address(lab, name), dport=8080))
        events = narrow.drain()
    assert {event.netns for event in events} == {name}


def test_a_silent_drop_is_known_at_once_and_where(lab: Lab, oracle: Oracle) -> None:
    node = lab.spaces["node/n2"]
    rule = ["FORWARD", "-p", "udp", "-j", "DROP"]
    node.run(["iptables-legacy", "-I", *rule], lock=lab.lock)
    try:
        begun = time.monotonic()
        question = Ask(
            src="pod/shop/client-1", dst=address(lab, "pod/shop/web-2"), dport=99, protocol="udp", timeout_s=PATIENCE_S
        )
        (attempt,), (story,) = watched(lab, oracle, question)
        took = time.monotonic() - begun
    finally:
        node.run(["iptables-legacy", "-D", *rule], lock=lab.lock)
    assert attempt.view == View.TIMEOUT
    assert took < PATIENCE_S / 2
    drop = story.forward.drop
    assert drop is not None
    assert (drop.netns, drop.dev, drop.reason) == ("node/n2", "flannel.1", "NETFILTER_DROP")
    assert drop.function == "nf_hook_slow"


def test_who_is_refused_hears_it_and_is_not_given_up(lab: Lab, oracle: Oracle) -> None:
    where = address(lab, "pod/shop/web-2")
    questions = [Ask(src="pod/shop/client-1", dst=where, dport=99, protocol=kind) for kind in ("tcp", "udp")]
    attempts, stories = watched(lab, oracle, *questions * 10)
    assert {one.view for one in attempts} == {View.REFUSED}
    assert {(one.forward.drop.netns, one.forward.drop.reason) for one in stories if one.forward.drop} == {
        ("pod/shop/web-2", "NO_SOCKET")
    }
    assert {one.error for one in stories} == {None, (3, 3)}


def test_the_simulator_foretells_every_device_of_a_healthy_lab(lab: Lab, oracle: Oracle, healthy: Diagnostor) -> None:
    wires = wires_of(healthy.state)
    questions = random.Random(3).sample(list(asks(lab)), 120)
    judged, wrong = 0, []
    for start in range(0, len(questions), 30):
        lab.forget()
        for attempt, story in zip(*watched(lab, oracle, *questions[start : start + 30]), strict=True):
            found = compare(healthy.diagnose(question_of(attempt.ask)), story, attempt, wires)
            judged += bool(story.forward.hops)
            wrong += [f"{attempt.ask}: {said}" for said in found.said]
    assert judged > 80
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "name",
    [
        "ip-forward-off",
        "forward-policy-drop",
        "underlay-mtu-small",
        "fdb-missing",
        "vtep-mac-rewritten",
        "vxlan-blocked",
    ],
)
def test_the_simulator_foretells_where_a_broken_lab_drops(lab: Lab, oracle: Oracle, name: str) -> None:
    fault = next(one for one in FAULTS.values() if one.name == name)
    lab.forget()
    broken = lab.break_(fault.id)
    try:
        lab.forget(connections=False)
        diagnostor = diagnostor_of(lab)
        question = changed(witness_of(lab, fault, broken.on), timeout_s=1.0)
        (attempt,), (story,) = watched(lab, oracle, question)
    finally:
        lab.mend()
    diagnosis = diagnostor.diagnose(question_of(question))
    assert not difference(attempt, diagnosis)
    found = compare(diagnosis, story, attempt, wires_of(diagnostor.state))
    assert not found.said
    assert found.places


# --- it can fail -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def refused(lab: Lab, oracle: Oracle, healthy: Diagnostor) -> tuple[Diagnosis, Story, Attempt]:
    """A connection to a closed port of another node, foretold and tried."""
    question = Ask(src="pod/shop/client-1", dst=address(lab, "pod/shop/web-2"), dport=99)
    (attempt,), (story,) = watched(lab, oracle, question)
    return healthy.diagnose(question_of(question)), story, attempt


def with_forward(diagnosis: Diagnosis, **changes: object) -> Diagnosis:
    (only,) = diagnosis.outcomes
    return replace(diagnosis, outcomes=(replace(only, forward=replace(only.forward, **changes)),))


def test_what_is_right_is_not_blamed(healthy: Diagnostor, refused: tuple[Diagnosis, Story, Attempt]) -> None:
    diagnosis, story, attempt = refused
    found = compare(diagnosis, story, attempt, wires_of(healthy.state))
    assert not found.said
    assert found.places == 1


@pytest.mark.parametrize("what", ["other namespace", "other reason", "other address", "other ttl", "hop left out"])
def test_every_kind_of_difference_is_seen(
    healthy: Diagnostor, refused: tuple[Diagnosis, Story, Attempt], what: str
) -> None:
    diagnosis, story, attempt = refused
    walk = diagnosis.outcomes[0].forward
    last = max(number for number, step in enumerate(walk.steps) if step.action == "recv")
    packet = walk.steps[last].packet
    assert packet is not None
    assert walk.place is not None
    if what == "other namespace":
        wrong = with_forward(diagnosis, place=replace(walk.place, netns=NetnsId("node/n1")))
    elif what == "other reason":
        wrong = with_forward(diagnosis, reason=Reason.NETFILTER_DROP)
    elif what == "hop left out":
        wrong = with_forward(diagnosis, steps=walk.steps[:last] + walk.steps[last + 1 :])
    else:
        other = packet.with_(ttl=packet.ttl - 1) if what == "other ttl" else packet.with_(src="10.9.9.9")
        steps = (*walk.steps[:last], replace(walk.steps[last], packet=other), *walk.steps[last + 1 :])
        wrong = with_forward(diagnosis, steps=steps)
    found = compare(wrong, story, attempt, wires_of(healthy.state))
    assert len(found.said) == 1
    assert bool(found.place) == what.startswith(("other namespace", "other reason"))
