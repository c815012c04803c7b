"""Connection tracking: what the kernel holds after real connections is what the simulator foretold, in every namespace."""

import random
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from lab.cluster import Lab
from lab.plan import Backend, Kind
from lab.prober import Ask, attempt_all
from tasks.skoop.model.state import Tuple
from tasks.skoop.netstack.conntrack import Conn, Flow
from tests.kernel.differential.comparing import asks, diagnostor_of, question_of
from tests.kernel.oracle.comparing import courses_of, wires_of
from tests.kernel.oracle.oracle import Oracle, inum, unavailable_because
from tests.kernel.oracle.tracked import Tracker, compare_tracked
from tests.kernel.oracle.watching import Watching

pytestmark = pytest.mark.root


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


def test_the_simulator_foretells_every_entry(lab: Lab, oracle: Oracle) -> None:
    lab.forget()
    diagnostor = diagnostor_of(lab)
    wires = wires_of(diagnostor.state)
    itself = Ask(src="node/n1", dst=lab.plan.nodes[0].ips[0], protocol="icmp")
    questions = [itself, *random.Random(8).sample(list(asks(lab)), 59)]
    wrong, entries = [], 0
    with Tracker(lab.spaces) as tracker:
        for start in range(0, len(questions), 30):
            lab.forget()
            watching = Watching(oracle)
            attempts = attempt_all(questions[start : start + 30], lab.spaces, lab.servers, watching)
            stories = watching.stories()
            tables = tracker.look_up(stories, attempts)
            entries += sum(len(found) for table in tables.values() for found in table.values())
            for attempt, story in zip(attempts, stories, strict=True):
                courses = courses_of(diagnostor.connections(question_of(attempt.ask)), story, attempt, wires)
                wrong += [f"{attempt.ask}: {said}" for said in compare_tracked(courses, story, attempt, tables)]
    assert not wrong, "\n".join(wrong)
    assert entries > 40


@pytest.mark.parametrize("what", ["mark", "translation", "entry missing", "entry too many", "answer"])
def test_every_kind_of_difference_is_seen(lab: Lab, oracle: Oracle, what: str) -> None:
    lab.forget()
    diagnostor = diagnostor_of(lab)
    service = next(one for one in lab.plan.services if one.name == "web").cluster_ips(lab.plan.families)[0]
    watching = Watching(oracle)
    attempts = attempt_all([Ask(src="pod/shop/client-1", dst=service, dport=80)], lab.spaces, lab.servers, watching)
    stories = watching.stories()
    with Tracker(lab.spaces) as tracker:
        tables = tracker.look_up(stories, attempts)
    told = diagnostor.connections(question_of(attempts[0].ask))
    courses = courses_of(told, stories[0], attempts[0], wires_of(diagnostor.state))
    assert compare_tracked(courses, stories[0], attempts[0], tables) == []
    wrong = [(outcome, altered(flow, what)) for outcome, flow in courses]
    assert compare_tracked(wrong, stories[0], attempts[0], tables)


def altered(flow: Flow, what: str) -> Flow:
    """Return the flow with an error in what node/n1 tracks."""
    conn, *tunnel = flow["node/n1"]
    other: tuple[Conn, ...] = ()
    if what == "mark":
        other = (replace(conn, mark=0x4000),)
    elif what == "translation":
        other = (replace(conn, reply=Tuple(conn.original.dst, conn.reply.dst, 80, conn.reply.dport)),)
    elif what == "answer":
        other = (replace(conn, seen_reply=False),)
    elif what == "entry too many":
        other = (conn, replace(conn, zone=3))
    return {**flow, "node/n1": (*other, *tunnel)}
