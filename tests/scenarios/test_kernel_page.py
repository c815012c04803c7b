"""docs/kernel.md: what it links to is there, and what docstrings cite of it too."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "kernel.md").read_text()
SECTIONS = set(re.findall(r"^## (.+)$", PAGE, re.M))
CITATION = re.compile(r"docs/kernel\.md(?:, ([A-Z][\w ]+(?:; [A-Z][\w ]+)*))?")


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)]+)\)", PAGE))))
def test_a_link_leads_to_a_scenario(link: str) -> None:
    assert (ROOT / "docs" / link).resolve().is_file()


def test_every_section_but_the_plain_ones_shows_scenarios() -> None:
    for section in re.split(r"^## ", PAGE, flags=re.M)[1:]:
        assert "../tests/scenarios/cases/" in section, section.splitlines()[0]


def test_what_docstrings_cite_is_there() -> None:
    cited = [
        name
        for path in (ROOT / "tasks").rglob("*.py")
        for found in CITATION.finditer(path.read_text())
        for name in (found[1] or "").split("; ")
        if name
    ]
    assert cited
    assert not [name for name in cited if not any(section.startswith(name) for section in SECTIONS)]
