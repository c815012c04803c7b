"""What user-mode Linux has shown of IPVS must be foretold, every row of it; `make fuzz-uml-ipvs` asks it for more."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from tasks.skoop.model.diagnosis import Diagnosis
from tasks.skoop.model.state import IpvsService, NetNS
from tasks.skoop.model.trace import Outcome, Place, Reason
from tasks.skoop.netstack import ipvs
from tasks.skoop.netstack.ipvs import Way
from tasks.skoop.netstack.namespace import Namespace
from tasks.skoop.netstack.skb import Skb
from tasks.skoop.netstack.xtables.api import Hook
from tests.uml.ipvs.cases import NAMED, mixed
from tests.uml.ipvs.comparing import compare, judge
from tests.uml.ipvs.record import DATA, Recorded, Row, load

FILES = sorted(DATA.glob("*.msgpack.zst"))
MOST_UNKNOWN = 0.005


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name.partition(".")[0])
def test_every_row_is_foretold(file: Path) -> None:
    result = compare(load(file))
    assert not result.wrong, "\n".join(result.wrong[:20])
    assert result.unknown <= MOST_UNKNOWN * result.rows


def test_every_named_case_is_recorded() -> None:
    assert set(_cases()) == {case.name for case in NAMED}


@cache
def _cases() -> dict[str, Recorded]:
    return {case.name: case for case in load(DATA / "named.msgpack.zst")}


def _healthy() -> Recorded:
    return _cases()[NAMED[0].name]


def _without_ipvs(netns: NetNS) -> NetNS:
    return replace(netns, ipvs=())


def _as_if_untracked(netns: NetNS) -> NetNS:
    return replace(netns, sysctls={**netns.sysctls, "net/ipv4/vs/conntrack": "0"})


def _first_server_only(netns: NetNS) -> NetNS:
    return replace(netns, ipvs=tuple(replace(one, destinations=one.destinations[:1]) for one in netns.ipvs))


@pytest.mark.parametrize("damage", [_without_ipvs, _as_if_untracked, _first_server_only])
def test_the_comparison_can_fail(damage: object) -> None:
    assert callable(damage)
    case = _healthy()
    state = replace(case.state, netns={name: damage(netns) for name, netns in case.state.netns.items()})
    assert compare([replace(case, state=state)]).wrong


def _at(hook: Hook, *functions: tuple[int, Way]) -> dict[Hook, tuple[tuple[int, Way], ...]]:
    return {**ipvs.HOOKS, hook: functions}


def _silent(ns: Namespace, skb: Skb, hook: Hook, service: IpvsService, place: Place) -> list[Skb]:
    del ns, hook, service
    return [skb.finish(Outcome.DROPPED, Reason.IPVS_DROP, place)]


@pytest.mark.parametrize(
    ("name", "planted", "case"),
    [
        pytest.param("HOOKS", _at(Hook.FORWARD), "no masquerade", id="answers keep their source"),
        pytest.param("HOOKS", _at(Hook.INPUT), "as kube-proxy leaves it", id="requests from pods are not seen"),
        pytest.param("HOOKS", _at(Hook.OUTPUT), "as kube-proxy leaves it", id="requests of the node are not seen"),
        pytest.param(
            "HOOKS",
            _at(Hook.INPUT, (-200, Way.OUT), (-199, Way.IN)),
            "INPUT drops the virtual address",
            id="requests are taken before the filter",
        ),
        pytest.param(
            "HOOKS",
            _at(Hook.OUTPUT, (60, Way.OUT), (61, Way.IN)),
            "OUTPUT drops the virtual address",
            id="requests of the node are taken after the filter",
        ),
        pytest.param("_leave_to_conntrack", lambda *_, **__: None, "vs.conntrack=0", id="conntrack is left alone"),
        pytest.param("_leave", _silent, "weight 0", id="nobody is told"),
        pytest.param(
            "candidates",
            lambda service, _: tuple((s, 1.0) for s in service.destinations[:1]),
            "weight 0",
            id="weights do not count",
        ),
    ],
)
def test_planted_errors_are_caught(name: str, planted: object, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipvs, name, planted)
    assert compare([_cases()[case]]).wrong


@pytest.mark.parametrize(
    ("views", "pairs", "wrong"),
    [
        pytest.param({"connected": 3}, (), False, id="as foretold"),
        pytest.param({"connected": 2, "timeout": 1}, (), True, id="a view nobody foretold"),
        pytest.param({"connected": 3}, (("pod/shop/web-1", "10.0.0.1"),), True, id="a server nobody foretold"),
        pytest.param({"timeout": 3}, (), True, id="what was foretold did not happen"),
    ],
)
def test_the_judge_can_say_no(views: dict[str, int], pairs: tuple[tuple[str, str], ...], wrong: bool) -> None:
    row = Row(src="pod/shop/client-1", dst="10.96.10.1", dport=80, protocol="tcp", views=views, pairs=pairs)
    diagnosis = Diagnosis(question=SimpleNamespace(), verdict="delivered", client_sees={"connected": 1.0})  # type: ignore[arg-type]
    assert bool(judge(row, diagnosis)) is wrong


def test_a_mixed_case_is_the_same_for_the_same_seed() -> None:
    assert mixed(7, 3) == mixed(7, 3)
    assert mixed(7, 3) != mixed(7, 4)
