import re
from pathlib import Path

import pytest

from tasks.skoop.assertions.codes import AREAS, CODES, suspect
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.suspicion import Level, SetSysctl

SOURCES = Path(__file__).parents[3] / "tasks"
CODE = re.compile(r"KP-[A-Z0-9]+-\d{3}")


def _used() -> set[str]:
    sources = (path for path in SOURCES.rglob("*.py") if path.name != "codes.py")
    return {code for path in sources for code in CODE.findall(path.read_text())}


def test_every_code_that_is_used_is_in_the_table_and_the_other_way_round() -> None:
    assert _used() == set(CODES)


def test_codes_are_unique_and_of_their_areas_form() -> None:
    codes = [code.code for area in AREAS.values() for code in area]
    assert len(codes) == len(set(codes))
    for area in AREAS.values():
        assert len({code.code.rpartition("-")[0] for code in area}) == 1
        assert [code.code[-3:] for code in area] == [f"{number:03}" for number in range(1, len(area) + 1)]


@pytest.mark.parametrize("code", CODES.values(), ids=list(CODES))
def test_a_code_says_what_it_means_and_what_to_do(code: object) -> None:
    title, meaning, todo = (getattr(code, name) for name in ("title", "meaning", "todo"))
    assert (
        title[0].isupper() or title.startswith("vxlan") or title.startswith("host-gw") or title.startswith("kube-proxy")
    )
    assert not title.endswith(".")
    assert meaning.endswith(".") and todo.endswith(".")


def test_a_suspicion_is_filled_from_the_table() -> None:
    change = SetSysctl(netns=NetnsId("node/n1"), key="net/ipv4/ip_forward", value="1")
    found = suspect("KP-SYSCTL-001", "off", subject="node/n1", seen="0", expected="1", changes=(change,))
    assert (found.level, found.evidence[0].seen) == (Level.CRITICAL, "0")
    assert found.remedy is not None
    assert found.remedy.commands == (("n1", "sysctl -w net.ipv4.ip_forward=1"),)
    assert found.remedy.advice == CODES["KP-SYSCTL-001"].todo


def test_a_code_that_does_not_exist_is_a_mistake_of_the_program() -> None:
    with pytest.raises(KeyError):
        suspect("KP-NOTHING-001", "", subject="")
