"""What the fuzzing campaign has once found to be foretold wrongly: kernel and simulator say what the file says, and agree."""

import os
from pathlib import Path

import pytest

from tests.kernel.differential.comparing import question_of
from tests.kernel.fuzz.campaign import PATIENT_S, differs
from tests.kernel.fuzz.found import CASES, Found, parse
from tests.kernel.fuzz.world import World

FILES = sorted(CASES.glob("*.txt"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_is_what_it_says(file: Path) -> None:
    text = file.read_text()
    assert parse(text).text() == text


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and their full state")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_kernel_and_simulator_agree(file: Path) -> None:
    found: Found = parse(file.read_text())
    world = World(found.lab)
    try:
        diagnosis = world.apply(found.changes).diagnose(question_of(found.ask))
        assert not world.refused
        (attempt,) = world.attempt([found.ask], PATIENT_S)
    finally:
        world.close()
    assert str(attempt.view) in found.sees
    assert not differs(attempt, diagnosis)
    assert "unknown" not in map(str, diagnosis.client_sees)
