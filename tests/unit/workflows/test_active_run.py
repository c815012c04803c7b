"""A run that is being moved takes each report once: what is delivered twice, late or from the past changes nothing."""

from msgspec import Raw

from tests.unit.workflows.toy_steps import SQUARE, Broken, Count
from workflows.dag import Dag, Retry, Step, param
from workflows.engines.active import ActiveRun
from workflows.frontier import Frontier
from workflows.runs import Run, RunState, StepError, StepState
from workflows.runstore import MemoryRuns

ONE = Dag(
    name="one",
    params=Count,
    steps=(Step(name="one", spec=SQUARE, bind={"value": param("n")}, retry=Retry(attempts=3, delay_s=5)),),
    result="one",
)
ERROR = StepError(kind="Broken", message=str(Broken("not now")))


def begin() -> tuple[ActiveRun, MemoryRuns]:
    store = MemoryRuns()
    run = Run(id="r", dag="one", dag_digest=ONE.digest, params=Raw(b'{"n":3}'), created_at=0.0)
    store.create(run)
    active = ActiveRun(ONE, run, Frontier(ONE, {"n": 3}), store, lambda: 1.0)
    (ready,) = active.begin()
    assert (ready.key, active.params_of(ready)) == ("one", b'{"value":3}')
    return active, store


def test_a_call_that_is_delivered_twice_is_taken_up_once() -> None:
    active, _ = begin()
    assert active.take_up("one", 1, "key") is not None
    assert active.take_up("one", 1, "key") is None


def test_a_call_of_an_earlier_attempt_is_not_taken_up() -> None:
    active, _ = begin()
    taken = active.take_up("one", 1, "key")
    assert taken is not None
    again = active.fail("one", taken[1], ERROR, retryable=True)
    assert again is not None
    assert (again[0].state, again[0].attempts, again[1]) == (StepState.PENDING, 1, 5)
    assert active.take_up("one", 1, "key") is None
    assert active.take_up("one", 3, "key") is None
    assert active.take_up("one", 2, "key") is not None


def test_a_report_of_an_attempt_that_was_given_up_changes_nothing() -> None:
    active, store = begin()
    taken = active.take_up("one", 1, "key")
    assert taken is not None
    active.fail("one", taken[1], ERROR, retryable=False)
    before = store.load("r")
    assert before.state is RunState.FAILED
    assert active.succeed("one", taken[1], b'{"value":9}') == []
    assert active.fail("one", taken[1], ERROR, retryable=True) is None
    active.progress("one", taken[1], 50, "late")
    assert store.load("r") == before


def test_an_instance_that_does_not_exist_is_not_taken_up() -> None:
    active, _ = begin()
    assert active.take_up("two", 1, "key") is None


def test_nothing_is_taken_up_after_cancelling() -> None:
    active, _ = begin()
    assert active.cancel() == []
    assert active.take_up("one", 1, "key") is None
    assert active.cancel() is None
