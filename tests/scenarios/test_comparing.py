"""The comparison of the two runners can fail, and fails for the right things only."""

import pytest

from tasks.skoop.model.packet import Protocol
from tests.scenarios.results import Rule, Seen, difference
from tests.scenarios.scenario import Connect, Trial

FIRST: Rule = ("gw", 4, "legacy", "filter", "FORWARD", 1)
SECOND: Rule = ("gw", 4, "legacy", "filter", "FORWARD", 2)


def trial(times: int = 1) -> Trial:
    return Trial(number=0, what=Connect(netns="a", protocol=Protocol.TCP, dst="10.0.0.1", times=times))  # type: ignore[arg-type]


def seen(results: dict[str, float], rules: set[Rule] | None = None, at_most: set[Rule] | None = None) -> Seen:
    return Seen(
        results=results,
        rules=frozenset(rules or ()),
        at_most=None if at_most is None else frozenset(at_most),
    )


@pytest.mark.parametrize(
    ("foretold", "found", "times", "said"),
    [
        pytest.param(seen({"timeout": 1.0}), seen({"timeout": 1.0}), 1, "", id="the same"),
        pytest.param(seen({"timeout": 1.0}), seen({"connected": 1.0}), 1, "kernel: connected", id="another result"),
        pytest.param(seen({"a": 0.5, "b": 0.5}), seen({"b": 1.0}), 1, "", id="one of two, tried once"),
        pytest.param(seen({"a": 0.5, "b": 0.5}), seen({"b": 1.0}), 20, "never gave a", id="one of two in twenty tries"),
        pytest.param(seen({"a": 0.001, "b": 0.999}), seen({"b": 1.0}), 20, "", id="a rare one need not come"),
        pytest.param(seen({"a": 0.0, "b": 1.0}), seen({"a": 0.1, "b": 0.9}), 20, "kernel: a", id="an impossible one"),
        pytest.param(seen({"a": 1.0}, {FIRST}), seen({"a": 1.0}), 1, "foretold but not hit", id="a rule not hit"),
        pytest.param(
            seen({"a": 1.0}, {FIRST}, {FIRST}), seen({"a": 1.0}, {FIRST, SECOND}), 1, "hit but not", id="too many"
        ),
        pytest.param(seen({"a": 1.0}, {FIRST}), seen({"a": 1.0}, {FIRST, SECOND}), 1, "", id="more by later packets"),
    ],
)
def test_difference(foretold: Seen, found: Seen, times: int, said: str) -> None:
    told = difference(trial(times), foretold, found)
    assert said in told
    assert bool(said) == bool(told)
