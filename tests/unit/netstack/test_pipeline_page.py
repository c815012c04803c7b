"""docs/pipeline.md names every stage, and every word that a trace uses."""

import re
from pathlib import Path

import pytest

from tasks.skoop.model.trace import Stage
from tasks.skoop.netstack.stack import STAGES
from tests.unit.netstack.asking import ask, connects, scenarios, state_named

PAGE = (Path(__file__).parents[3] / "docs" / "pipeline.md").read_text()
ROWS = {
    row[1]: set(re.findall(r"`([\w-]+)`", row[2]))
    for row in re.finditer(r"^\| `([a-z]+)` \|.*\|([^|]*)\|$", PAGE, re.M)
}


@pytest.mark.parametrize("function", [function.__name__ for function in STAGES.values()])
def test_a_stage_has_its_row(function: str) -> None:
    assert f"| `{function}` |" in PAGE


@pytest.mark.parametrize("stage", Stage)
def test_a_stage_of_places_has_its_row(stage: Stage) -> None:
    assert stage in ROWS


def test_the_words_of_traces_are_explained() -> None:
    used: set[tuple[str, str]] = set()
    for scenario in scenarios():
        for what in connects(scenario):
            for outcome in ask(state_named(scenario.name), what).outcomes:
                walks = (outcome.forward, outcome.reply, outcome.data)
                used |= {(step.place.stage, step.action) for walk in walks if walk for step in walk.steps}
    assert len(used) > 30
    assert not {(stage, action) for stage, action in used if action not in ROWS[stage]}
