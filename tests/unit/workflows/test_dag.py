"""A DAG that does not fit together is refused when it is built, and the message says where and why."""

import pytest

from tests.unit.workflows.toy_steps import BELOW, IS_ODD, JOIN, RANGE, SHOUT, SHOW, SQUARE, SUM, Count
from workflows.dag import EACH, Const, Dag, Retry, Step, gather, param, result
from workflows.errors import DagError
from workflows.pictures import d2, mermaid

RANGED = Step(name="range", spec=RANGE, bind={"n": param("n")})
SQUARED = Step(name="square", spec=SQUARE, each=result("range", "values"), bind={"value": EACH})
SUMMED = Step(name="sum", spec=SUM, bind={"values": gather("square", "value")})


def dag(*steps: Step, ends: str = "") -> Dag:
    return Dag(name="toy", params=Count, steps=steps, result=ends or steps[-1].name, summary="numbers")


def test_order_and_scopes_of_a_sound_dag() -> None:
    sound = dag(SUMMED, SQUARED, RANGED, ends="sum")
    assert sound.order == ("range", "square", "sum")
    assert dict(sound.scopes) == {"range": (), "square": ("square",), "sum": ()}
    assert list(sound.edges()) == [("range", "square", "each"), ("square", "sum", "gather")]


def test_elementwise_and_nested_scopes() -> None:
    nested = dag(
        RANGED,
        SQUARED,
        Step(name="below", spec=BELOW, bind={"value": result("square", "value")}),
        Step(name="inner", spec=SQUARE, each=result("below", "values"), bind={"value": EACH}),
        Step(name="inner-sum", spec=SUM, bind={"values": gather("inner", "value")}),
        Step(name="total", spec=SUM, bind={"values": gather("inner-sum", "value")}),
    )
    assert nested.scopes["below"] == ("square",)
    assert nested.scopes["inner"] == ("square", "inner")
    assert nested.scopes["inner-sum"] == ("square",)
    assert nested.scopes["total"] == ()


def step(name: str, spec: object, **kwargs: object) -> Step:
    return Step(name=name, spec=spec, **kwargs)


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        pytest.param((), "it has no steps", id="empty"),
        pytest.param((RANGED, RANGED), "two steps have this name", id="same name"),
        pytest.param((step("Range", RANGE),), "lower-case letters", id="bad name"),
        pytest.param((step("range", RANGE, time_limit_s=0),), "time limit", id="no time"),
        pytest.param((step("range", RANGE, retry=Retry(attempts=0)),), "never tries", id="no attempts"),
        pytest.param(
            (step("sum", SUM, bind={"values": result("range", "values")}),),
            "range, which is no step",
            id="unknown step",
        ),
        pytest.param(
            (
                step("a", SQUARE, bind={"value": result("b", "value")}),
                step("b", SQUARE, bind={"value": result("a", "value")}),
            ),
            "needs itself: ",
            id="cycle",
        ),
        pytest.param((step("range", RANGE, after=("range",)),), "needs itself: range <- range", id="own successor"),
        pytest.param(
            (step("range", RANGE, bind={"m": param("n")}),), "has no parameter m; it has n", id="unknown field"
        ),
        pytest.param(
            (step("range", RANGE, bind={"n": param("m")}),), "no parameter m; it has n", id="unknown run parameter"
        ),
        pytest.param(
            (RANGED, step("sum", SUM, bind={"values": result("range", "list")})),
            "returns no list; it returns values",
            id="no result",
        ),
        pytest.param((step("square", SQUARE),), "parameter value is bound to nothing", id="unbound"),
        pytest.param(
            (RANGED, step("square", SQUARE, bind={"value": result("range", "values")})),
            "value takes int, but",
            id="list to number",
        ),
        pytest.param(
            (step("sum", SUM, bind={"values": param("n")}),), "values takes tuple[int, ...], but", id="number to list"
        ),
        pytest.param(
            (step("shout", SHOUT, bind={"text": Const(3)}),), "text takes str, but", id="constant of wrong type"
        ),
        pytest.param(
            (step("square", SQUARE, each=param("n"), bind={"value": EACH}),), "not a list", id="fan-out over a number"
        ),
        pytest.param(
            (RANGED, step("square", SQUARE, bind={"value": EACH})), "does not fan out", id="each without fan-out"
        ),
        pytest.param(
            (RANGED, step("square", SQUARE, each=result("range", "values"), bind={"value": param("n")})),
            "all instances would be the same",
            id="element unused",
        ),
        pytest.param(
            (RANGED, step("sum", SUM, bind={"values": gather("range", "values")})),
            "does not fan out",
            id="gather of one",
        ),
        pytest.param((RANGED, SQUARED), "the fan-out of square ends open", id="result inside of a fan-out"),
        pytest.param(
            (
                SUMMED,
                RANGED,
                SQUARED,
                step("odd", IS_ODD, bind={"value": result("square", "value")}),
                step("end", RANGE),
            ),
            "step odd: the fan-out of square ends open",
            id="elementwise tail never gathered",
        ),
        pytest.param(
            (
                RANGED,
                SQUARED,
                step("other", SHOW, each=result("range", "values"), bind={"value": EACH}),
                step("meet", SHOW, bind={"value": result("square", "value")}, after=("other",), when=None),
                step("mix", JOIN, bind={"texts": gather("meet", "text")}),
                step("clash", SQUARE, bind={"value": result("square", "value")}, when=result("flag", "yes")),
                step("flag", IS_ODD, each=result("range", "values"), bind={"value": EACH}),
            ),
            "joins elements of fan-outs square and flag",
            id="two fan-outs meet",
        ),
        pytest.param(
            (RANGED, step("square", SQUARE, bind={"value": param("n")}, when=param("n"))),
            "not true or false",
            id="condition a number",
        ),
        pytest.param(
            (
                step("odd", IS_ODD, bind={"value": param("n")}),
                step("square", SQUARE, bind={"value": param("n")}, when=result("odd", "yes")),
                step("again", SQUARE, bind={"value": result("square", "value")}),
            ),
            "value takes int, but Result(step='square', field='value') gives Optional[int]",
            id="skipped step's result needed",
        ),
        pytest.param(
            (
                step("odd", IS_ODD, bind={"value": param("n")}),
                step("square", SQUARE, bind={"value": param("n")}, when=result("odd", "yes")),
            ),
            "cannot have a condition",
            id="result may be skipped",
        ),
    ],
)
def test_what_does_not_fit_is_refused(steps: tuple[Step, ...], problem: str) -> None:
    with pytest.raises(DagError) as caught:
        Dag(name="toy", params=Count, steps=steps, result=steps[-1].name if steps else "")
    assert problem in str(caught.value)


def test_result_must_be_a_step() -> None:
    with pytest.raises(DagError, match="should give the run's result"):
        dag(RANGED, ends="sum")


def test_a_skipped_result_may_go_where_none_fits() -> None:
    dag(
        step("odd", IS_ODD, bind={"value": param("n")}),
        step("square", SQUARE, bind={"value": param("n")}, when=result("odd", "yes")),
        step("show", SHOW, bind={"value": result("square", "value")}),
    )


def test_graph_is_a_networkx_digraph() -> None:
    import networkx

    graph = dag(RANGED, SQUARED, SUMMED).graph()
    assert networkx.is_directed_acyclic_graph(graph)
    assert graph.edges["square", "sum"]["kinds"] == ("gather",)


def test_digest_tells_dags_apart() -> None:
    twice = Step(name="sum", spec=SUM, bind={"values": gather("square", "value")}, after=("range",))
    assert dag(RANGED, SQUARED, SUMMED).digest == dag(RANGED, SQUARED, SUMMED).digest
    assert dag(RANGED, SQUARED, SUMMED).digest != dag(RANGED, SQUARED, twice).digest


def test_mermaid() -> None:
    assert mermaid(dag(RANGED, SQUARED, SUMMED)) == (
        "%% toy: numbers\n"
        "flowchart TD\n"
        '  s_range["range<br/>list the numbers below n"]\n'
        '  s_square["square (fan-out)<br/>square a number"]\n'
        "  style s_square stroke-dasharray: 4 3\n"
        '  s_sum["sum<br/>add numbers up"]\n'
        '  s_range -->|"each"| s_square\n'
        '  s_square -->|"all"| s_sum\n'
    )


def test_d2() -> None:
    assert d2(dag(RANGED, SQUARED, SUMMED)) == (
        "# toy: numbers\n"
        "direction: down\n"
        'range: "range\\nlist the numbers below n"\n'
        'square: "square (fan-out)\\nsquare a number" {style.multiple: true; style.stroke-dash: 3}\n'
        'sum: "sum\\nadd numbers up"\n'
        "range -> square: each\n"
        "square -> sum: all\n"
    )


@pytest.mark.parametrize(
    ("retry", "pauses"),
    [
        pytest.param(Retry(attempts=4, delay_s=1, factor=2, max_delay_s=3), [1, 2, 3], id="grows up to its limit"),
        pytest.param(Retry(attempts=3, delay_s=0.5, factor=1), [0.5, 0.5], id="even"),
    ],
)
def test_pauses(retry: Retry, pauses: list[float]) -> None:
    assert [retry.pause_s(attempt) for attempt in range(1, retry.attempts)] == pauses
