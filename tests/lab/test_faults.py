"""Every fault: it breaks what it says, where it says, and mending leaves nothing of it behind."""

from dataclasses import replace

import pytest

from lab import api
from lab.cluster import Lab
from lab.errors import BadRequest, LabFailed
from lab.faults.catalogue import FAULTS
from lab.faults.fault import ALL_KINDS, Fault, Run, Witness, facts
from lab.plan import Backend, ClusterPlan, Kind, make_plan
from lab.prober import Ask, Attempt
from lab.truth import Truth
from tasks.skoop.model.trace import Reason, Stage, View
from tests.lab.dumped import dump
from tests.lab.fixtures import Labs

pytestmark = pytest.mark.root
PAIRS = [
    pytest.param(fault, kind, id=f"{fault.id}-{fault.name}-{kind}")
    for fault in FAULTS.values()
    for kind in (fault.kinds if fault.kinds != ALL_KINDS else (Kind.FLANNEL_VXLAN,))
]


def ask_of(witness: Witness, plan: ClusterPlan, names: dict[str, str], timeout_s: float = 0.15) -> Ask:
    src, dst = witness.src.format_map(names), witness.dst.format_map(names)
    return api.make_ask(
        plan,
        src,
        dst,
        witness.dport or None,
        witness.protocol,
        family=witness.family,
        sport=witness.sport,
        payload=witness.payload,
        timeout_s=timeout_s,
    )


def differences(witness: Witness, truth: Truth, names: dict[str, str]) -> list[str]:
    """What of a witness's words the kernel does not confirm."""
    place = truth.place
    told = {
        "view": truth.view in witness.views,
        "answer": not witness.answer or truth.attempt.answer == witness.answer,
        "netns": not witness.netns or truth.answered or (place and place.netns == witness.netns.format_map(names)),
        "stage": witness.stage is None or truth.answered or (place and place.stage == witness.stage),
        "reason": witness.reason is None or truth.answered or truth.reason == witness.reason,
        "chain": not witness.chain or (place and place.chain == witness.chain),
        "server": not witness.server or truth.server == witness.server.format_map(names),
        "seen_src": not witness.seen_src or truth.seen_src == witness.seen_src.format_map(names),
    }
    return [word for word, held in told.items() if not held]


def unanswered(lab: Lab, witness: Witness, names: dict[str, str]) -> list[Attempt]:
    """The witness's connection, tried twice at most: what the client saw if it was not answered."""
    ask = ask_of(witness, lab.plan, names, timeout_s=0.5)
    tries = lab.attempt(ask)
    if tries[0].answer != "ok":
        tries = lab.attempt(ask)
    return [one for one in tries if one.answer != "ok"]


@pytest.mark.parametrize(("fault", "kind"), PAIRS)
def test_fault(labs: Labs, fault: Fault, kind: Kind) -> None:
    lab = labs(kind)
    names = facts(lab.plan, fault, None)
    touched = {step.where for step in fault.steps if hasattr(step, "where")} | {f"node/{names['node']}"}
    spaces = [lab.spaces[where.format_map(names)] for where in touched if not where.startswith("app:")]
    before = {netns.name: dump(netns) for netns in spaces}
    if fault.id != "F22":  # its address does not exist before
        assert unanswered(lab, fault.witness, names) == []
    done = lab.break_(fault.id)
    try:
        truth = lab.probe(ask_of(fault.witness, lab.plan, names))
        assert done.did
        assert differences(fault.witness, truth, names) == [], truth
    finally:
        lab.mend(fault.id)
    after = {netns.name: dump(netns) for netns in spaces}
    assert after == before
    if fault.id != "F22":
        assert unanswered(lab, fault.witness, names) == []


def test_the_check_of_a_witness_can_fail(labs: Labs) -> None:
    lab = labs()
    fault = FAULTS["F01"]
    names = facts(lab.plan, fault, None)
    truth = lab.probe(ask_of(fault.witness, lab.plan, names))
    assert differences(fault.witness, truth, names) == ["view"], "a healthy lab does not confirm the fault"
    wrong = replace(fault.witness, netns="node/n1", stage=Stage.ROUTE, reason=Reason.IP_INNOROUTES)
    lab.break_("F01")
    try:
        broken = lab.probe(ask_of(fault.witness, lab.plan, names))
    finally:
        lab.mend()
    assert differences(wrong, broken, names) == ["netns", "stage", "reason"]


def test_two_faults_at_once_are_mended_newest_first(labs: Labs) -> None:
    lab = labs()
    lab.break_("F01")
    lab.break_("F87")
    assert [one.fault for one in lab.broken] == ["F01", "F87"]
    assert lab.mend() == ("F87", "F01")
    assert lab.broken == ()


@pytest.mark.parametrize(
    ("fault", "on", "kind"),
    [
        pytest.param("F99", None, Kind.BRIDGE, id="no such fault"),
        pytest.param("F34", None, Kind.BRIDGE, id="a tunnel's fault without a tunnel"),
        pytest.param("F01", "n9", Kind.BRIDGE, id="no such node"),
        pytest.param("F16", "n1", Kind.BRIDGE, id="a node where a pod is wanted"),
    ],
)
def test_impossible_faults_are_refused(labs: Labs, fault: str, on: str | None, kind: Kind) -> None:
    with pytest.raises(BadRequest):
        labs(kind).break_(fault, on)


def test_a_fault_that_fails_half_way_is_undone(labs: Labs, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = labs()
    steps = (
        Run(where="node/{node}", do="ip link set eth0 mtu 1400", undo="ip link set eth0 mtu 1500"),
        Run(where="node/{node}", do="ip link set nowhere up"),
    )
    bad = Fault(id="F0", name="x", title="x", cause="x", at="x", steps=steps, witness=Witness(src="", dst=""))
    monkeypatch.setitem(FAULTS, "F0", bad)
    with pytest.raises(LabFailed, match="nowhere"):
        lab.break_("F0")
    assert "mtu 1500" in lab.spaces["node/n2"].run(["ip", "link", "show", "eth0"])
    assert lab.broken == ()


def test_at_least_thirty_faults_and_every_text_can_be_filled_in() -> None:
    assert len(FAULTS) >= 30
    for fault in FAULTS.values():
        for kind in fault.kinds:
            plan = make_plan(kind, backend=fault.backends[0])
            assert fault.fits(plan) == ""
            names = facts(plan, fault, None)
            for text in (fault.at, fault.witness.src, fault.witness.dst, fault.witness.netns, fault.witness.server):
                text.format_map(names)


def test_some_views_of_every_sort_are_among_the_faults() -> None:
    assert {view for fault in FAULTS.values() for view in fault.witness.views} >= set(View) - {View.UNKNOWN}
    assert Backend.LEGACY in FAULTS["F58"].backends
