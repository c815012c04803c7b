"""A step that computes is stopped at once, and what stops it never leaks into what runs next on the thread."""

import threading

import pytest

from tasks.skoop.errors import KubeprobeError
from workflows.engines.alarm import Alarm
from workflows.engines.interrupt import Attempt, StepStopped


def test_stop_before_the_start() -> None:
    attempt = Attempt()
    attempt.stop(KubeprobeError("early"))
    with pytest.raises(StepStopped), attempt:
        pytest.fail("began all the same")


def test_only_the_first_reason_counts() -> None:
    attempt = Attempt()
    attempt.stop(KubeprobeError("first"))
    attempt.stop(KubeprobeError("second"))
    assert str(attempt.reason) == "first"
    with pytest.raises(StepStopped):
        attempt.check()


def test_a_stop_after_the_end_touches_nobody() -> None:
    attempt = Attempt()
    with attempt:
        pass
    attempt.stop(KubeprobeError("late"))
    for _ in range(1000):
        pass


def test_stops_at_any_moment_never_escape_the_attempt() -> None:
    """Stop racing with the end, many times: the exception comes inside of the attempt or not at all."""
    outcomes = {"stopped": 0, "ended": 0}
    escaped: list[BaseException] = []

    def work(attempt: Attempt, begun: threading.Event, length: int) -> None:
        try:
            try:
                with attempt:
                    begun.set()
                    for _ in range(length):
                        pass
            except StepStopped:
                outcomes["stopped"] += 1
            else:
                outcomes["ended"] += 1
            for _ in range(200):
                pass
        except BaseException as error:  # noqa: BLE001
            escaped.append(error)

    for round_number in range(400):
        attempt, begun = Attempt(), threading.Event()
        thread = threading.Thread(target=work, args=(attempt, begun, round_number % 40 * 100))
        thread.start()
        begun.wait()
        attempt.stop(KubeprobeError("now"))
        thread.join()
    assert not escaped
    assert sum(outcomes.values()) == 400


def test_alarm_calls_in_order_of_time_and_not_what_was_cancelled() -> None:
    alarm = Alarm()
    called: list[str] = []
    done = threading.Event()
    alarm.after(0.03, done.set)
    alarm.after(0.02, lambda: called.append("second"))
    alarm.cancel(alarm.after(0.01, lambda: called.append("never")))
    alarm.after(0, lambda: called.append("first"))
    assert done.wait(5)
    alarm.close()
    assert called == ["first", "second"]


def test_a_closed_alarm_calls_nothing_and_leaves_no_thread() -> None:
    before = threading.active_count()
    alarm = Alarm()
    alarm.after(60, lambda: pytest.fail("called"))
    alarm.close()
    alarm.after(0, lambda: pytest.fail("called"))
    assert threading.active_count() == before
