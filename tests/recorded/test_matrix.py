"""Every connection that was measured on 24 real clusters, broken in one way each, must be foretold."""

import json
from math import sqrt
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.skoop.collect.dumps import load_dumps
from tasks.skoop.diagnostor import Diagnostor
from tasks.skoop.model.diagnosis import Diagnosis
from tasks.skoop.model.trace import View
from tests.recorded.recordings import BROKEN, describe, judge, question_of, rows, unpack

ARCHIVES = sorted(BROKEN.glob("*.tar.zst"))
MOST_UNKNOWN = 0.005


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.zst"))
def test_every_measured_connection_is_foretold(archive: Path, tmp_path: Path) -> None:
    folder = unpack(archive, tmp_path)
    state = load_dumps(folder)
    diagnostor = Diagnostor(SimpleNamespace(state=state))
    failures, asked, unknown, misses, expected = [], 0, 0, 0, 0.0
    for row in rows(folder):
        asked += 1
        diagnosis = diagnostor.diagnose(question_of(state, row))
        result = judge(row, diagnosis)
        unknown += result.unknown
        misses += result.misses
        expected += result.expected_misses
        if result.unknown:
            assert diagnosis.missing, f"unknown without a reason: {describe(row, [])}"
        if result.wrong:
            failures.append(describe(row, result.wrong))
    assert asked == 1030
    assert not failures, "\n".join(failures[:20])
    assert misses <= expected + 4 * sqrt(expected) + 2, "views go unmeasured more often than by chance"
    assert unknown <= MOST_UNKNOWN * asked


def test_the_recordings_are_all_here() -> None:
    ids = {entry["id"] for entry in json.loads((BROKEN / "index.json").read_text())}
    assert ids == {path.name.removesuffix(".tar.zst") for path in ARCHIVES}


@pytest.mark.parametrize(
    ("views", "seen", "pairs", "wrong"),
    [
        pytest.param({View.CONNECTED: 1.0}, "connected", [], False, id="as foretold"),
        pytest.param({View.CONNECTED: 1.0}, "timeout", [], True, id="another view measured"),
        pytest.param({View.CONNECTED: 0.6, View.TIMEOUT: 0.4}, "timeout", [], True, id="likely view never measured"),
        pytest.param({View.CONNECTED: 1.0}, "connected", [["web", "10.0.0.9"]], True, id="a server nobody foretold"),
        pytest.param(
            {View.CONNECTED: 0.9, View.REFUSED: 0.1}, "connected", [], False, id="an unlikely view may be absent"
        ),
    ],
)
def test_the_judge_can_say_no(views: dict[View, float], seen: str, pairs: list[list[str]], wrong: bool) -> None:
    row = {"what": "svc", "client_sees": [{"r": seen, "n": 20}], "pairs": pairs}
    question = SimpleNamespace()
    diagnosis = Diagnosis(question=question, verdict="delivered", client_sees=views)  # type: ignore[arg-type]
    assert bool(judge(row, diagnosis).wrong) is wrong
