"""What is not in a dump is told, where it decides, instead of guessed: SCTP's sockets, and which user sends."""

from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from tasks.skoop.diagnostor import Diagnostor
from tasks.skoop.model.addr import Ip
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.diagnosis import Diagnosis
from tasks.skoop.model.endpoint import Endpoint, Question
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import Socket
from tasks.skoop.model.trace import View
from tests.scenarios.scenario import parse
from tests.scenarios.state import netns_of, state_of

TWO = """
veth a:eth0 b:eth0
netns a
  link eth0 10.1.0.1/24
  route blackhole default table 100
  rule pref 100 uidrange 1000-2000 {rule}
netns b
  link eth0 10.1.0.2/24
  listen udp 53
"""


def diagnosed(state: ClusterState, protocol: Protocol, *, uid: int | None = None) -> Diagnosis:
    question = Question(
        src=Endpoint(ip=Ip("0.0.0.0"), netns=netns_of("a"), uid=uid),
        dst=Endpoint(ip=Ip("10.1.0.2"), port=53),
        protocol=protocol,
    )
    return Diagnostor(SimpleNamespace(state=state)).diagnose(question)


def state(rule: str = "prohibit") -> ClusterState:
    return state_of(parse(TWO.format(rule=rule), "two"))


def test_sctp_without_collected_sockets_is_unknown() -> None:
    found = diagnosed(state(), Protocol.SCTP, uid=0)
    assert set(found.client_sees) == {View.UNKNOWN}
    assert any("SCTP" in gap for gap in found.missing)


def test_sctp_with_collected_sockets_is_not() -> None:
    known = state()
    server = known.netns[netns_of("b")]
    socket = Socket(protocol=Protocol.SCTP, ip=Ip("0.0.0.0"), port=53)
    both = {**known.netns, netns_of("b"): replace(server, sockets=(*server.sockets, socket))}
    assert View.UNKNOWN not in diagnosed(replace(known, netns=both), Protocol.SCTP, uid=0).client_sees


@pytest.mark.parametrize(
    ("uid", "sees"),
    [
        pytest.param(0, View.CONNECTED, id="root"),
        pytest.param(999, View.CONNECTED, id="below the range"),
        pytest.param(1000, View.UNREACHABLE, id="in the range"),
        pytest.param(2001, View.CONNECTED, id="above the range"),
        pytest.param(None, View.UNKNOWN, id="not known"),
    ],
)
def test_a_rule_by_user_decides_for_its_users(uid: int | None, sees: View) -> None:
    found = diagnosed(state(), Protocol.UDP, uid=uid)
    assert set(found.client_sees) == {sees}
    assert bool(found.missing) == (uid is None)


def test_a_user_that_makes_no_difference_need_not_be_known() -> None:
    assert set(diagnosed(state("to 192.0.2.0/24 prohibit"), Protocol.UDP).client_sees) == {View.CONNECTED}
