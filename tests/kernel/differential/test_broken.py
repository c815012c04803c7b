"""One fault at a time in a lab: what the simulator foretells is what the kernel does, and it names the same place."""

import os
import random
from collections.abc import Iterator

import pytest

from lab import api
from lab.cluster import Lab
from lab.faults.catalogue import FAULTS
from lab.faults.fault import Fault, facts
from lab.plan import Backend, Kind
from lab.prober import Ask
from tasks.skoop.model.state import Section
from tests.kernel.differential.comparing import (
    asks,
    diagnostor_of,
    difference,
    question_of,
    same_place,
    stopped_at,
    tried,
)

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and their full state"),
]

SAMPLE = 80


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Kind.FLANNEL_VXLAN, nodes=3, backend=Backend.LEGACY) as one:
        yield one


@pytest.fixture(scope="module")
def routed_lab() -> Iterator[Lab]:
    with Lab(Kind.FLANNEL_HOST_GW, nodes=3, backend=Backend.LEGACY) as one:
        yield one


def witness_of(lab: Lab, fault: Fault, on: str) -> Ask:
    """Return the connection that shows the fault."""
    names, witness = facts(lab.plan, fault, on), fault.witness
    return api.make_ask(
        lab.plan,
        witness.src.format_map(names),
        witness.dst.format_map(names),
        witness.dport or None,
        witness.protocol,
        family=witness.family,
        sport=witness.sport,
        payload=witness.payload,
        timeout_s=0.5,
    )


@pytest.mark.parametrize("fault", FAULTS.values(), ids=lambda fault: f"{fault.id}-{fault.name}")
def test_a_broken_lab_does_as_foretold(fault: Fault, request: pytest.FixtureRequest) -> None:
    lab: Lab = request.getfixturevalue("lab" if Kind.FLANNEL_VXLAN in fault.kinds else "routed_lab")
    lab.forget()
    broken = lab.break_(fault.id)
    try:
        lab.forget(connections=False)
        diagnostor = diagnostor_of(lab)
        witness = witness_of(lab, fault, broken.on)
        diagnosis = diagnostor.diagnose(question_of(witness))
        truth = lab.probe(witness)
        if not same_place(diagnosis, truth):  # late packets of other flows move counters too: look once more
            lab.forget(connections=False)
            truth = lab.probe(witness)
        questions: list[Ask] = random.Random(fault.id).sample(list(asks(lab)), SAMPLE)
        attempts = tried(lab, questions)
    finally:
        lab.mend()
    assert not difference(truth.attempt, diagnosis), difference(truth.attempt, diagnosis)
    ends = list(stopped_at(diagnosis, truth))
    assert same_place(diagnosis, truth), f"kernel: {truth.place} {truth.reason} {truth.evidence}; foretold: {ends}"
    wrong = [
        said
        for ask, attempt in zip(questions, attempts, strict=True)
        if (said := difference(attempt, diagnostor.diagnose(question_of(ask))))
    ]
    assert not wrong, f"{len(wrong)} of {len(questions)}:\n" + "\n".join(wrong[:10])


def test_enough_faults_are_real() -> None:
    assert len(FAULTS) >= 25


def test_nothing_is_left_uncollected(lab: Lab) -> None:
    state = diagnostor_of(lab).state
    gaps = {(name, gap.section): gap.reason for name, netns in state.netns.items() for gap in netns.missing}
    assert not gaps
    assert Section.IPTABLES not in {section for _, section in gaps}
