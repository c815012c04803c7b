"""A healthy lab: whatever the simulator foretells of any connection is what the kernel does."""

import os
import random

import pytest

from lab.cluster import Lab
from lab.plan import Backend, Kind
from tests.kernel.differential.comparing import asks, diagnostor_of, difference, question_of, tried

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and their full state"),
]


PART = 700


@pytest.mark.parametrize("backend", Backend)
@pytest.mark.parametrize("kind", Kind)
def test_every_pair_does_as_foretold(kind: Kind, backend: Backend) -> None:
    with Lab(kind, nodes=2 if backend == Backend.NFT else 3, backend=backend) as lab:
        questions = list(asks(lab))
        if (kind, backend) != (Kind.FLANNEL_VXLAN, Backend.LEGACY):  # one lab in full, of the others a part
            questions = random.Random(f"{kind} {backend}").sample(questions, PART)
        attempts = tried(lab, questions)
        diagnostor = diagnostor_of(lab)
        wrong = [
            said
            for ask, attempt in zip(questions, attempts, strict=True)
            if (said := difference(attempt, diagnostor.diagnose(question_of(ask))))
        ]
    assert len(questions) > 500
    assert not wrong, f"{len(wrong)} of {len(questions)}:\n" + "\n".join(wrong[:20])
