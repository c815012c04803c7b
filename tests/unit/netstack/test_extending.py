"""The worked example of docs/extending.md works as it says."""

import re
from pathlib import Path

import pytest

from tasks.skoop.netstack.xtables.matches import MATCHES
from tests.scenarios.scenario import parse
from tests.scenarios.simulated import tell

GUIDE = (Path(__file__).parents[3] / "docs" / "extending.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", GUIDE, re.M | re.S)


def test_without_the_new_match_the_answer_is_unknown() -> None:
    (scenario,) = blocks("text")
    ((seen, _),) = tell(parse(scenario, "example"))
    assert any("unknown" in text for text in seen.results)


def test_the_new_match_does_as_the_guide_says(monkeypatch: pytest.MonkeyPatch) -> None:
    table = dict(MATCHES)
    monkeypatch.setattr("tasks.skoop.netstack.xtables.matches.MATCHES", table)
    names: dict[str, object] = {"MATCHES": table}
    for code in blocks("python"):
        exec(code, names)
    (scenario,), (expected,) = blocks("text"), blocks("expect")
    ((_, lines),) = tell(parse(scenario, "example"))
    assert list(lines) == expected.splitlines()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:tasks|tests)/[\w/.-]+\.py)`", GUIDE))))
def test_files_that_the_guide_names_are_there(path: str) -> None:
    assert (Path(__file__).parents[3] / path).exists()
