"""The local engine does what a DAG says, once, in order, and ends: also when steps fail, hang, or are told to stop."""

import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.skoop.context import Context
from tasks.skoop.specs import MAX_RESULT_BYTES, Message
from tests.unit.workflows.toy_steps import (
    BELOW,
    IS_ODD,
    JOIN,
    RANGE,
    SHOUT,
    SHOW,
    SQUARE,
    SUM,
    Broken,
    Count,
    Empty,
    Flag,
    Gate,
    Number,
    Word,
    Wrong,
    bindings,
)
from workflows.blobs import digest_of
from workflows.dag import EACH, Const, Dag, Retry, Step, gather, param, result
from workflows.engines.local import LocalEngine
from workflows.errors import (
    EngineClosed,
    ParamsDoNotFit,
    RunCancelled,
    RunExists,
    RunFailed,
    RunNotEnded,
    RunNotFound,
    RunNotRetryable,
    StoreUnusable,
    UnknownStep,
)
from workflows.runs import Change, Event, Run, RunState, StepState, fold
from workflows.runstore import DirectoryRuns, MemoryRuns

RANGED = Step(name="range", spec=RANGE, bind={"n": param("n")})
SQUARED = Step(name="square", spec=SQUARE, each=result("range", "values"), bind={"value": EACH})
SUMMED = Step(name="sum", spec=SUM, bind={"values": gather("square", "value")})
ONE = Step(name="one", spec=SQUARE, bind={"value": param("n")})


def dag(*steps: Step) -> Dag:
    return Dag(name="toy", params=Count, steps=steps, result=steps[-1].name)


SQUARES = dag(RANGED, SQUARED, SUMMED)


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(bindings()) as engine:
        yield engine


def finish(engine: LocalEngine, run_id: str) -> list[Event]:
    return list(engine.watch(run_id))


def ask(engine: LocalEngine, dag: Dag, n: int = 3) -> Message:
    run_id = engine.submit(dag, Count(n=n))
    finish(engine, run_id)
    return engine.result(run_id)


def states(run: Run) -> dict[str, str]:
    return {key: str(step.state) for key, step in run.steps.items()}


def test_fan_out_and_reduce(engine: LocalEngine) -> None:
    assert ask(engine, SQUARES, 4) == Number(value=0 + 1 + 4 + 9)


@pytest.mark.parametrize("n", [0, 1], ids=["no element", "one element"])
def test_short_fan_outs(engine: LocalEngine, n: int) -> None:
    assert ask(engine, SQUARES, n) == Number(value=0)


def test_nested_fan_outs_keep_their_order(engine: LocalEngine) -> None:
    nested = dag(
        RANGED,
        Step(name="below", spec=BELOW, each=result("range", "values"), bind={"value": EACH}),
        Step(name="show", spec=SHOW, each=result("below", "values"), bind={"value": EACH}),
        Step(name="shout", spec=SHOUT, bind={"text": result("show", "text")}),
        Step(name="words", spec=JOIN, bind={"texts": gather("shout", "text")}),
        Step(name="all", spec=JOIN, bind={"texts": gather("words", "text")}),
    )
    run_id = engine.submit(nested, Count(n=4))
    finish(engine, run_id)
    assert engine.result(run_id) == Word(text=" 0 0 1 0 1 2")
    assert "shout[3,2]" in engine.run(run_id).steps


def test_two_reduces_in_a_row_and_a_second_fan_out(engine: LocalEngine) -> None:
    twice = dag(
        RANGED,
        SQUARED,
        SUMMED,
        Step(name="below", spec=BELOW, bind={"value": result("sum", "value")}),
        Step(name="show", spec=SHOW, each=result("below", "values"), bind={"value": EACH}),
        Step(name="all", spec=JOIN, bind={"texts": gather("show", "text")}),
    )
    assert ask(engine, twice, 3) == Word(text="0 1 2 3 4")


@pytest.mark.parametrize(("n", "word", "state"), [(3, "9", "done"), (4, "None", "skipped")], ids=["true", "false"])
def test_condition(engine: LocalEngine, n: int, word: str, state: str) -> None:
    conditional = dag(
        Step(name="odd", spec=IS_ODD, bind={"value": param("n")}),
        Step(name="square", spec=SQUARE, bind={"value": param("n")}, when=result("odd", "yes")),
        Step(name="show", spec=SHOW, bind={"value": result("square", "value")}),
    )
    run_id = engine.submit(conditional, Count(n=n))
    finish(engine, run_id)
    assert engine.result(run_id) == Word(text=word)
    assert states(engine.run(run_id))["square"] == state


def test_condition_inside_of_a_fan_out_leaves_elements_out(engine: LocalEngine) -> None:
    odd_squares = dag(
        RANGED,
        Step(name="odd", spec=IS_ODD, each=result("range", "values"), bind={"value": EACH}),
        Step(name="square", spec=SQUARE, bind={"value": Const(5)}, when=result("odd", "yes")),
        Step(name="sum", spec=SUM, bind={"values": gather("square", "value")}),
    )
    assert ask(engine, odd_squares, 5) == Number(value=50)


def test_condition_on_a_whole_fan_out(engine: LocalEngine) -> None:
    maybe = dag(
        Step(name="odd", spec=IS_ODD, bind={"value": param("n")}),
        RANGED,
        Step(
            name="square", spec=SQUARE, each=result("range", "values"), bind={"value": EACH}, when=result("odd", "yes")
        ),
        SUMMED,
    )
    assert ask(engine, maybe, 4) == Number(value=0)
    assert ask(engine, maybe, 3) == Number(value=5)


def test_after_waits_without_taking(engine: LocalEngine) -> None:
    seen: list[str] = []

    def show(params: Message, context: Context) -> Word:
        seen.append(context.run.step)
        return Word(text="x")

    def shout(params: Word, context: Context) -> Word:
        seen.append("last")
        return params

    ordered = dag(
        RANGED,
        Step(name="show", spec=SHOW, each=result("range", "values"), bind={"value": EACH}),
        Step(name="last", spec=SHOUT, bind={"text": Const("end")}, after=("show",)),
    )
    with LocalEngine(bindings(show=show, shout=shout)) as engine:
        ask(engine, ordered, 5)
    assert seen[-1] == "last"
    assert sorted(seen[:-1]) == [f"show[{i}]" for i in range(5)]


def test_events_tell_the_whole_run_in_order(engine: LocalEngine) -> None:
    run_id = engine.submit(SQUARES, Count(n=2), asked_by="me")
    events = finish(engine, run_id)
    assert [event.change.version for event in events] == list(range(1, len(events) + 1))
    progress = [event.change.progress for event in events]
    assert progress == sorted(progress)
    assert (progress[0], progress[-1]) == (0, 100)
    assert events[-1].state is RunState.DONE
    run = engine.run(run_id)
    assert run.asked_by == "me"
    assert set(states(run).items()) == {(key, "done") for key in ("range", "square[0]", "square[1]", "sum")}
    assert [run.steps[f"square[{i}]"].label for i in range(2)] == ["0", "1"]
    empty = Run(
        id=run_id, dag="toy", dag_digest=run.dag_digest, params=run.params, created_at=run.created_at, asked_by="me"
    )
    assert fold(empty, [event.change for event in events]) == run


def test_watch_from_a_version_on(engine: LocalEngine) -> None:
    run_id = engine.submit(SQUARES, Count(n=2))
    events = finish(engine, run_id)
    assert list(engine.watch(run_id, after=events[2].change.version)) == events[3:]


def test_equal_steps_have_equal_keys(engine: LocalEngine) -> None:
    first, second = (engine.submit(SQUARES, Count(n=2)) for _ in range(2))
    finish(engine, first)
    finish(engine, second)
    keys = [{key: step.idempotency for key, step in engine.run(run_id).steps.items()} for run_id in (first, second)]
    assert keys[0] == keys[1]
    assert len(set(keys[0].values())) == 4


def test_a_failure_ends_the_run_with_its_message() -> None:
    def square(params: Number, context: Context) -> Number:
        if params.value == 1:
            raise Wrong("give another number")
        return params

    with LocalEngine(bindings(square=square)) as engine:
        run_id = engine.submit(SQUARES, Count(n=3))
        finish(engine, run_id)
        with pytest.raises(RunFailed, match=r"^give another number$") as caught:
            engine.result(run_id)
        run = engine.run(run_id)
    assert (caught.value.step, caught.value.exit_status) == ("square[1]", 2)
    assert run.state is RunState.FAILED
    assert run.steps["square[1]"].error.kind == "Wrong"
    assert run.steps["square[1]"].error.trace == ""
    assert "sum" not in run.steps


def test_a_bug_is_recorded_with_its_trace() -> None:
    def square(params: Number, context: Context) -> Number:
        raise ZeroDivisionError("oh")

    with LocalEngine(bindings(square=square)) as engine:
        run_id = engine.submit(SQUARES, Count(n=1))
        finish(engine, run_id)
        with pytest.raises(RunFailed, match=r"step square\[0\] met a bug of this program \(ZeroDivisionError: oh\)"):
            engine.result(run_id)
        assert "in square" in engine.run(run_id).steps["square[0]"].error.trace


class Flaky:
    """Fails a number of times for each value, then squares it."""

    def __init__(self, failures: int, error: type[Exception] = Broken) -> None:
        self.calls: list[int] = []
        self.failures = failures
        self.error = error

    def __call__(self, params: Number, context: Context) -> Number:
        self.calls.append(params.value)
        if self.calls.count(params.value) <= self.failures:
            raise self.error("not now")
        return Number(value=params.value**2)


def retried(attempts: int) -> Dag:
    policy = Retry(attempts=attempts, delay_s=0.01, factor=1)
    return dag(Step(name="one", spec=SQUARE, bind={"value": param("n")}, retry=policy))


def test_retries_until_it_works() -> None:
    flaky = Flaky(2)
    with LocalEngine(bindings(square=flaky)) as engine:
        run_id = engine.submit(retried(3), Count(n=3))
        finish(engine, run_id)
        assert engine.result(run_id) == Number(value=9)
        assert engine.run(run_id).steps["one"].attempts == 3
    assert flaky.calls == [3, 3, 3]


@pytest.mark.parametrize(
    ("error", "calls"),
    [pytest.param(Broken, 2, id="up to the limit"), pytest.param(Wrong, 1, id="never what was asked wrongly")],
)
def test_retries_end(error: type[Exception], calls: int) -> None:
    flaky = Flaky(9, error)
    with LocalEngine(bindings(square=flaky)) as engine:
        run_id = engine.submit(retried(2), Count(n=3))
        finish(engine, run_id)
        with pytest.raises(RunFailed, match="not now"):
            engine.result(run_id)
    assert len(flaky.calls) == calls


def test_retry_from_failure_keeps_what_is_done() -> None:
    flaky = Flaky(1)
    flaky.calls = [0, 1, 2, 3]
    flaky.calls.remove(2)
    with LocalEngine(bindings(square=flaky)) as engine:
        run_id = engine.submit(SQUARES, Count(n=4))
        finish(engine, run_id)
        assert engine.run(run_id).state is RunState.FAILED
        done_before = {key for key, state in states(engine.run(run_id)).items() if state == "done"}
        engine.retry_from_failure(run_id)
        events = list(engine.watch(run_id, after=0))
        assert engine.result(run_id) == Number(value=14)
        assert (events[-1].state, events[-1].change.progress) == (RunState.DONE, 100)
    rerun = {int(key[7:-1]) for key in {f"square[{i}]" for i in range(4)} - done_before}
    assert sorted(flaky.calls) == sorted(
        [0, 1, 3, 0, 1, 2, 3] + [2] + [i for i in rerun if i != 2 and flaky.calls.count(i) == 3]
    )


def test_only_what_failed_can_be_retried(engine: LocalEngine) -> None:
    run_id = engine.submit(SQUARES, Count(n=1))
    finish(engine, run_id)
    with pytest.raises(RunNotRetryable, match="it is done"):
        engine.retry_from_failure(run_id)
    with pytest.raises(RunNotFound):
        engine.retry_from_failure("nothing")


def test_cancel_stops_what_runs_and_starts_nothing_more() -> None:
    gate = Gate()
    with LocalEngine(bindings(square=gate), threads=1) as engine:
        run_id = engine.submit(SQUARES, Count(n=3))
        gate.entered.wait()
        with pytest.raises(RunNotEnded, match="is running"):
            engine.result(run_id)
        assert engine.cancel(run_id)
        finish(engine, run_id)
        with pytest.raises(RunCancelled):
            engine.result(run_id)
        assert set(states(engine.run(run_id)).items()) == {
            ("range", "done"),
            ("square[0]", "cancelled"),
            ("square[1]", "cancelled"),
            ("square[2]", "cancelled"),
        }
        assert not engine.cancel(run_id)
        gate.open.set()
        engine.retry_from_failure(run_id)
        finish(engine, run_id)
        assert engine.result(run_id) == Number(value=3)


def test_cancel_reaches_into_a_step_that_only_computes() -> None:
    computing = threading.Event()

    def square(params: Number, context: Context) -> Number:
        computing.set()
        while True:
            params.value + 1

    with LocalEngine(bindings(square=square), grace_s=60) as engine:
        run_id = engine.submit(dag(ONE), Count(n=1))
        computing.wait()
        engine.cancel(run_id)
        finish(engine, run_id)
        assert engine.run(run_id).state is RunState.CANCELLED


def test_time_limit_stops_a_step_that_computes_and_it_is_retried() -> None:
    calls: list[int] = []

    def square(params: Number, context: Context) -> Number:
        calls.append(params.value)
        while len(calls) < 2:
            pass
        return params

    limited = dag(
        Step(name="one", spec=SQUARE, bind={"value": param("n")}, time_limit_s=0.05, retry=Retry(attempts=2, delay_s=0))
    )
    with LocalEngine(bindings(square=square), grace_s=60) as engine:
        assert ask(engine, limited) == Number(value=3)
    assert calls == [3, 3]


def test_a_step_that_hangs_in_the_kernel_is_given_up_after_its_grace() -> None:
    release = threading.Event()

    def square(params: Number, context: Context) -> Number:
        release.wait()
        return params

    limited = dag(Step(name="one", spec=SQUARE, bind={"value": param("n")}, time_limit_s=0.02))
    with LocalEngine(bindings(square=square), grace_s=0.02) as engine:
        run_id = engine.submit(limited, Count(n=1))
        events = finish(engine, run_id)
        with pytest.raises(RunFailed, match=r"step one took longer than its limit of 0.02 s"):
            engine.result(run_id)
        release.set()
        assert finish(engine, run_id) == events


def test_progress_of_a_step_is_told() -> None:
    def square(params: Number, context: Context) -> Number:
        context.step.progress(40, "halfway")
        for percent in range(41, 50):
            context.step.progress(percent, "not worth a line")
        context.step.progress(50, "on")
        return params

    with LocalEngine(bindings(square=square)) as engine:
        run_id = engine.submit(dag(ONE), Count(n=1))
        told = [
            (step.progress, step.message, event.change.progress)
            for event in finish(engine, run_id)
            for step in event.change.steps
        ]
    assert told == [(0, "", 0), (0, "", 0), (40, "halfway", 40), (50, "on", 50), (100, "on", 100)]


def test_a_result_that_is_too_large_is_refused_and_says_what_to_do() -> None:
    def show(params: Message, context: Context) -> Word:
        return Word(text="x" * MAX_RESULT_BYTES)

    with LocalEngine(bindings(show=show)) as engine:
        run_id = engine.submit(dag(Step(name="show", spec=SHOW, bind={"value": param("n")})), Count(n=1))
        finish(engine, run_id)
        with pytest.raises(
            RunFailed, match="step show returned 65547 bytes, 65536 may travel: it must put the value into the blob"
        ):
            engine.result(run_id)


def test_gathered_parameters_larger_than_a_message_go_by_digest() -> None:
    def show(params: Message, context: Context) -> Word:
        return Word(text="x" * 30_000)

    wide = dag(
        RANGED,
        Step(name="show", spec=SHOW, each=result("range", "values"), bind={"value": EACH}),
        Step(name="all", spec=JOIN, bind={"texts": gather("show", "text")}),
    )
    with LocalEngine(bindings(show=show, join=lambda p, c: Word(text=str(len("".join(p.texts)))))) as engine:
        assert ask(engine, wide, 5) == Word(text="150000")
        params = json.dumps({"texts": ["x" * 30_000] * 5}, separators=(",", ":")).encode()
        assert len(params) > MAX_RESULT_BYTES
        assert engine.context.blobs.get(digest_of(params)) == params


def test_a_wrong_result_is_a_bug_of_the_step() -> None:
    with LocalEngine(bindings(square=lambda p, c: Flag(yes=True))) as engine:
        run_id = engine.submit(dag(ONE), Count(n=1))
        finish(engine, run_id)
        with pytest.raises(RunFailed, match="step one returned Flag where its spec says Number"):
            engine.result(run_id)


def test_what_is_wrong_with_a_request_is_said_at_submit(engine: LocalEngine) -> None:
    with pytest.raises(ParamsDoNotFit, match="they are Empty, it takes Count"):
        engine.submit(SQUARES, Empty())
    engine.submit(SQUARES, Count(n=1), run_id="mine")
    with pytest.raises(RunExists):
        engine.submit(SQUARES, Count(n=1), run_id="mine")
    with pytest.raises(RunNotFound):
        engine.cancel("yours")
    with LocalEngine({}) as bare, pytest.raises(UnknownStep, match=r"DAG toy needs a step toy\.range"):
        bare.submit(SQUARES, Count(n=1))


def test_wide_fan_out_is_quick_and_each_instance_runs_once() -> None:
    calls: list[int] = []

    def square(params: Number, context: Context) -> Number:
        calls.append(params.value)
        return params

    with LocalEngine(bindings(square=square)) as engine:
        began = time.perf_counter()
        assert ask(engine, SQUARES, 200) == Number(value=199 * 100)
        took_s = time.perf_counter() - began
    assert sorted(calls) == list(range(200))
    assert took_s < 2, f"a fan-out of 200 took {took_s:.2f} s"


def test_many_runs_at_once(engine: LocalEngine) -> None:
    ids = [engine.submit(SQUARES, Count(n=n)) for n in range(20)]
    for run_id in ids:
        finish(engine, run_id)
    assert [engine.result(run_id).value for run_id in ids] == [sum(i * i for i in range(n)) for n in range(20)]


def test_two_engines_beside_each_other() -> None:
    with LocalEngine(bindings()) as one, LocalEngine(bindings(square=lambda p, c: p)) as other:
        assert (ask(one, SQUARES, 3), ask(other, SQUARES, 3)) == (Number(value=5), Number(value=3))
        assert ask(one, SQUARES, 4) == Number(value=14)


def test_nothing_is_left_behind() -> None:
    before = set(threading.enumerate())
    gate = Gate()
    engine = LocalEngine(bindings(square=gate))
    run_id = engine.submit(SQUARES, Count(n=3))
    gate.entered.wait()
    began = time.perf_counter()
    engine.close()
    assert time.perf_counter() - began < 1
    assert engine.run(run_id).state is RunState.CANCELLED
    assert set(threading.enumerate()) == before
    with pytest.raises(EngineClosed):
        engine.submit(SQUARES, Count(n=3))


def test_an_unused_engine_costs_nothing() -> None:
    before = set(threading.enumerate())
    with LocalEngine(bindings()):
        assert set(threading.enumerate()) == before


def test_a_record_in_a_folder_outlives_the_engine(tmp_path: Path) -> None:
    with LocalEngine(bindings(), runs=DirectoryRuns(tmp_path)) as engine:
        run_id = engine.submit(SQUARES, Count(n=3))
        events = finish(engine, run_id)
    with LocalEngine(bindings(), runs=DirectoryRuns(tmp_path)) as later:
        assert later.run(run_id).state is RunState.DONE
        assert list(later.watch(run_id)) == events


def test_a_run_cancelled_by_another_process_stops(tmp_path: Path) -> None:
    begun = threading.Event()

    def square(params: Number, context: Context) -> Number:
        for number in itertools.count():
            context.step.progress(10 * number % 100, f"round {number}")
            begun.set()
        raise AssertionError

    with LocalEngine(bindings(square=square), runs=DirectoryRuns(tmp_path), grace_s=60) as engine:
        run_id = engine.submit(dag(ONE), Count(n=1))
        begun.wait()
        with LocalEngine(bindings(), runs=DirectoryRuns(tmp_path)) as other:
            while not other.cancel(run_id):
                pass
        finish(engine, run_id)
        assert engine.run(run_id).state is RunState.CANCELLED


class FullRuns(MemoryRuns):
    """A store that takes so many changes and no more."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def append(self, run_id: str, change: Change) -> bool:
        if change.version > self.room:
            raise StoreUnusable("/state", "No space left on device")
        return super().append(run_id, change)


@pytest.mark.parametrize("room", [1, 3, 5], ids=["at once", "early", "late"])
def test_a_full_store_ends_the_run_with_the_reason(room: int) -> None:
    with LocalEngine(bindings(), runs=FullRuns(room)) as engine:
        run_id = engine.submit(SQUARES, Count(n=3))
        with pytest.raises(StoreUnusable, match="No space left"):
            finish(engine, run_id)


def test_a_store_that_takes_nothing_is_said_at_submit() -> None:
    with LocalEngine(bindings(), runs=FullRuns(0)) as engine, pytest.raises(StoreUnusable):
        engine.submit(SQUARES, Count(n=3))


def test_skipped_state_is_recorded_once(engine: LocalEngine) -> None:
    maybe = dag(
        Step(name="odd", spec=IS_ODD, bind={"value": param("n")}),
        RANGED,
        Step(
            name="square", spec=SQUARE, each=result("range", "values"), bind={"value": EACH}, when=result("odd", "yes")
        ),
        SUMMED,
    )
    run_id = engine.submit(maybe, Count(n=2))
    events = finish(engine, run_id)
    skipped = [step.key for event in events for step in event.change.steps if step.state is StepState.SKIPPED]
    assert skipped == ["square"]
