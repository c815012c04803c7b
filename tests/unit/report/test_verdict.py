import pytest
from msgspec.structs import replace

from tasks.skoop.model.trace import View
from tasks.skoop.report.verdict import Judgement, ending_walk, judge, percent, shares_text, told_outcome, views_text
from tests.unit.report import samples


@pytest.mark.parametrize("name", samples.ALL)
def test_judgement(name: str) -> None:
    expected = {"refused": Judgement.FAILS}.get(name) or Judgement(name)
    assert judge(samples.ALL[name]()) is expected


@pytest.mark.parametrize(
    ("views", "judgement"),
    [
        pytest.param({}, Judgement.UNKNOWN, id="nothing is known"),
        pytest.param({View.CONNECTED: 0.5, View.UNKNOWN: 0.5}, Judgement.UNKNOWN, id="never guesses fine"),
        pytest.param(
            {View.TIMEOUT: 0.5, View.UNKNOWN: 0.5}, Judgement.PARTLY, id="a known fault outweighs the unknown"
        ),
        pytest.param({View.TIMEOUT: 0.5, View.REFUSED: 0.5}, Judgement.FAILS, id="two ways to fail"),
        pytest.param({View.CONNECTED: 1.0, View.TIMEOUT: 0.0}, Judgement.WORKS, id="what cannot happen does not count"),
    ],
)
def test_judgement_of_views(views: dict[View, float], judgement: Judgement) -> None:
    assert judge(replace(samples.works(), client_sees=views)) is judgement


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100 %"), (0.9999, "99 %"), (2 / 3, "67 %"), (0.01, "1 %"), (0.0004, "under 1 %")],
)
def test_percent_never_rounds_to_certainty(share: float, text: str) -> None:
    assert percent(share) == text


def test_views_are_told_likeliest_first() -> None:
    views = {View.TIMEOUT: 0.25, View.CONNECTED: 0.75}
    assert views_text(views) == "connected 75 %, timeout 25 %"
    assert shares_text(views) == "75 % connect, 25 % time out"


def test_told_is_the_likeliest_failure_and_a_known_one_before_an_unknown() -> None:
    connected, lost = samples.CONNECTED, replace(samples.LOST, probability=0.1)
    unknown = replace(samples.unknown().outcomes[0], probability=0.4)
    assert told_outcome((connected, unknown, lost)) is lost
    assert told_outcome((connected, unknown)) is unknown
    assert told_outcome((connected,)) is connected
    assert told_outcome(()) is None


def test_an_answer_that_is_lost_is_where_it_ends() -> None:
    lost_answer = replace(samples.LOST, forward=samples.ARRIVED, reply=samples.FDB_LOST)
    assert ending_walk(lost_answer) is samples.FDB_LOST
    assert ending_walk(samples.LOST) is samples.FDB_LOST
    assert ending_walk(samples.CONNECTED) is samples.ARRIVED
