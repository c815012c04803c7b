"""However a DAG is made of fan-outs and reduces, and in whatever order its instances end, it unfolds once and to the same result."""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import replace

from tests.unit.workflows.toy_steps import BELOW, IS_ODD, RANGE, SHOW, SQUARE, SUM, Count
from workflows.dag import EACH, Dag, Step, gather, param, result
from workflows.frontier import Frontier
from workflows.runs import StepRun, StepState

FUNCTIONS = {
    RANGE.name: lambda p: {"values": list(range(p["n"]))},
    SQUARE.name: lambda p: {"value": p["value"] ** 2 % 11},
    BELOW.name: lambda p: {"values": list(range(p["value"] % 4))},
    SUM.name: lambda p: {"value": sum(p["values"])},
    IS_ODD.name: lambda p: {"yes": p["value"] % 2 == 1},
    SHOW.name: lambda p: {"text": str(p["value"])},
}


class Plan:
    """A DAG built by random moves, and the same computed by plain recursion over nested lists."""

    def __init__(self, n: int) -> None:
        self.steps = [Step(name="s0", spec=RANGE, bind={"n": param("n")})]
        self.value: Any = list(range(n))
        self.depth = 0
        self.listing = True

    def move(self, choice: int) -> None:
        before = self.steps[-1].name
        name = f"s{len(self.steps)}"
        moves = ["fan", "sum"] if self.listing else ["square", "below", *(["gather"] if self.depth else [])]
        match moves[choice % len(moves)]:
            case "fan":
                self.steps.append(Step(name=name, spec=SQUARE, each=result(before, "values"), bind={"value": EACH}))
                self.apply(lambda values: [value**2 % 11 for value in values])
                self.depth, self.listing = self.depth + 1, False
            case "sum":
                self.steps.append(Step(name=name, spec=SUM, bind={"values": result(before, "values")}))
                self.apply(sum)
                self.listing = False
            case "square":
                self.steps.append(Step(name=name, spec=SQUARE, bind={"value": result(before, "value")}))
                self.apply(lambda value: value**2 % 11)
            case "below":
                self.steps.append(Step(name=name, spec=BELOW, bind={"value": result(before, "value")}))
                self.apply(lambda value: list(range(value % 4)))
                self.listing = True
            case "gather":
                self.steps.append(Step(name=name, spec=SUM, bind={"values": gather(before, "value")}))
                self.depth -= 1
                self.apply(sum)

    def apply(self, function: Callable[..., object]) -> None:
        def down(value: Any, depth: int) -> object:  # noqa: ANN401  # a nested list
            return function(value) if depth == 0 else [down(one, depth - 1) for one in value]

        self.value = down(self.value, self.depth)

    def finish(self) -> Dag:
        if self.listing:
            self.move(1)
        while self.depth:
            self.move(2)
        return Dag(name="random", params=Count, steps=self.steps, result=self.steps[-1].name)


@st.composite
def plans(draw: st.DrawFn) -> tuple[Dag, int, Any]:
    n = draw(st.integers(0, 4))
    plan = Plan(n)
    for choice in draw(st.lists(st.integers(0, 2), max_size=7)):
        if plan.depth < 3 or not plan.listing or choice % 2:
            plan.move(choice)
    return plan.finish(), n, plan.value


def carry_out(dag: Dag, frontier: Frontier, instance: StepRun) -> StepRun:
    given = json.loads(frontier.params_of(instance))
    found = FUNCTIONS[dag.steps[instance.step].spec.name](given)
    return replace(instance, state=StepState.DONE, result=Raw(json.dumps(found).encode()))


def run_through(dag: Dag, frontier: Frontier, choose: Callable[[int], int]) -> list[StepRun]:
    """Run instances in the order that `choose` gives, each told twice; return them as they ended."""
    ready = [one for one in frontier.start() if one.state is StepState.PENDING]
    ended: list[StepRun] = []
    best = frontier.progress()
    while ready:
        done = carry_out(dag, frontier, ready.pop(choose(len(ready))))
        ended.append(done)
        ready += [one for one in frontier.settle(done) if one.state is StepState.PENDING]
        assert not frontier.settle(done)
        assert best <= frontier.progress() <= 100
        best = frontier.progress()
        assert frontier.complete == (not ready)
        assert frontier.complete == (best == 100)
    return ended


@settings(deadline=None)
@given(plans(), st.data())
def test_any_order_gives_the_result_of_plain_recursion(plan: tuple[Dag, int, Any], data: st.DataObject) -> None:
    dag, n, expected = plan
    frontier = Frontier(dag, {"n": n})
    ended = run_through(dag, frontier, lambda count: data.draw(st.integers(0, count - 1)))
    assert frontier.complete
    assert frontier.result == {"value": expected}
    assert len({one.key for one in ended}) == len(ended)


@settings(deadline=None)
@given(plans(), st.data())
def test_a_run_taken_up_anywhere_repeats_nothing(plan: tuple[Dag, int, Any], data: st.DataObject) -> None:
    dag, n, expected = plan
    whole = run_through(dag, Frontier(dag, {"n": n}), lambda count: 0)
    kept = {one.key: one for one in whole[: data.draw(st.integers(0, len(whole)))]}
    frontier = Frontier(dag, {"n": n}, kept)
    again = run_through(dag, frontier, lambda count: count - 1)
    assert frontier.result == {"value": expected}
    assert {one.key for one in again} == {one.key for one in whole} - kept.keys()


def test_a_wide_fan_out_unfolds_whole() -> None:
    wide = Dag(
        name="wide",
        params=Count,
        steps=(
            Step(name="range", spec=RANGE, bind={"n": param("n")}),
            Step(name="square", spec=SQUARE, each=result("range", "values"), bind={"value": EACH}),
            Step(name="again", spec=SQUARE, bind={"value": result("square", "value")}),
            Step(name="sum", spec=SUM, bind={"values": gather("again", "value")}),
        ),
        result="sum",
    )
    frontier = Frontier(wide, {"n": 5000})
    assert len(run_through(wide, frontier, lambda count: count - 1)) == 2 + 2 * 5000


def test_a_skipped_step_passes_none_on_and_is_left_out_of_lists() -> None:
    dag = Dag(
        name="odd",
        params=Count,
        steps=(
            Step(name="range", spec=RANGE, bind={"n": param("n")}),
            Step(name="odd", spec=IS_ODD, each=result("range", "values"), bind={"value": EACH}),
            Step(name="below", spec=BELOW, bind={"value": param("n")}, when=result("odd", "yes")),
            Step(name="inner", spec=SQUARE, each=result("below", "values"), bind={"value": EACH}),
            Step(name="inner-sum", spec=SUM, bind={"values": gather("inner", "value")}),
            Step(name="sum", spec=SUM, bind={"values": gather("inner-sum", "value")}),
        ),
        result="sum",
    )
    frontier = Frontier(dag, {"n": 3})
    ended = run_through(dag, frontier, lambda count: 0)
    assert [one.key for one in ended if one.step == "below"] == ["below[1]"]
    assert frontier.result == {"value": 0 + 1 + 4}


def test_labels_name_the_element() -> None:
    dag = Dag(
        name="labels",
        params=Count,
        steps=(
            Step(name="range", spec=RANGE, bind={"n": param("n")}),
            Step(name="show", spec=SHOW, each=result("range", "values"), bind={"value": EACH}),
            Step(name="end", spec=RANGE, after=("show",)),
        ),
        result="end",
    )
    frontier = Frontier(dag, {"n": 2})
    (first,) = frontier.start()
    appeared = frontier.settle(replace(first, state=StepState.DONE, result=Raw(b'{"values":[{"label":"n1"},7,["x"]]}')))
    assert [(one.key, one.label) for one in appeared] == [("show[0]", "n1"), ("show[1]", "7"), ("show[2]", "3")]
