"""What is remembered between questions and states must not show: an answer hangs on the state and the question alone."""

from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.json import encode
from msgspec.structs import replace

from tasks.skoop.collect.dumps import load_dumps
from tasks.skoop.diagnostor import Diagnostor
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.endpoint import Question
from tasks.skoop.model.ids import NetnsId, node_netns
from tasks.skoop.model.state import NetNS
from tests.recorded.recordings import BROKEN, question_of, rows, unpack

EVERY = 23
"""Every so many-th row of a recording is asked."""
CHANGED = node_netns("n2")


def diagnostor_of(state: ClusterState) -> Diagnostor:
    return Diagnostor(SimpleNamespace(state=state))


def answers(diagnostor: Diagnostor, questions: list[Question]) -> list[bytes]:
    return [encode(diagnostor.diagnose(question), order="deterministic") for question in questions]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> ClusterState:
    return load_dumps(recording(tmp_path_factory))


@pytest.fixture(scope="module")
def questions(state: ClusterState, tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    return [question_of(state, row) for row in islice(rows(recording(tmp_path_factory)), 0, None, EVERY)]


def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(BROKEN / "il-healthy.tar.zst", tmp_path_factory.mktemp("recording"))


def test_what_was_asked_before_does_not_matter(state: ClusterState, questions: list[Question]) -> None:
    alone = [answer for question in questions for answer in answers(diagnostor_of(state), [question])]
    asked = diagnostor_of(state)
    backwards = answers(asked, questions[::-1])[::-1]
    assert backwards == alone
    assert answers(asked, questions) == alone


def changed(netns: NetNS) -> NetNS:
    """Return the namespace with FORWARD dropping by policy, its first rule gone, two sysctls turned round and a route less."""
    tables = tuple(
        replace(
            table,
            chains=tuple(
                replace(chain, policy="DROP", rules=chain.rules[1:]) if chain.name == "FORWARD" else chain
                for chain in table.chains
            ),
        )
        for table in netns.tables
    )
    sysctls = {**netns.sysctls, "net/ipv4/conf/all/rp_filter": "1", "net/bridge/bridge-nf-call-iptables": "0"}
    return replace(netns, tables=tables, sysctls=sysctls, routes=netns.routes[:-1])


def test_namespaces_taken_over_from_another_state_answer_as_those_compiled_anew(
    state: ClusterState, questions: list[Question]
) -> None:
    whole = diagnostor_of(state)
    before = answers(whole, questions)
    spaces: dict[NetnsId, NetNS] = {**state.netns, CHANGED: changed(state.netns[CHANGED])}
    other = replace(state, netns=spaces)
    kept = [space for space in whole.nodes.cabling.namespaces() if space.state is spaces[space.id]]
    assert len(kept) == len(spaces) - 1
    heir = diagnostor_of(other)
    heir.nodes.cabling.adopt(whole.nodes.cabling.namespaces())
    taken = [space for space in heir.nodes.cabling.namespaces() if any(space is one for one in kept)]
    assert len(taken) == len(kept)
    after = answers(heir, questions)
    assert after == answers(diagnostor_of(other), questions)
    assert after != before
    back = diagnostor_of(state)
    back.nodes.cabling.adopt(heir.nodes.cabling.namespaces())
    assert answers(back, questions) == before
