"""Small steps over numbers and words, to try the engine with: every kind of flow, none of the diagnosis."""

import threading
from collections.abc import Callable

from tasks.skoop.context import Context
from tasks.skoop.errors import KubeprobeError, RequestError
from tasks.skoop.specs import AnyBinding, Binding, Message, StepSpec, table


class Empty(Message):
    pass


class Count(Message):
    n: int = 3


class Numbers(Message):
    values: tuple[int, ...]


class Number(Message):
    value: int


class Word(Message):
    text: str


class Words(Message):
    texts: tuple[str, ...]


class Flag(Message):
    yes: bool


class MaybeNumber(Message):
    value: int | None


class Broken(KubeprobeError):
    """The world failed us."""


class Wrong(RequestError):
    """The request was wrong."""


RANGE = StepSpec(name="toy.range", params=Count, result=Numbers, summary="list the numbers below n")
SQUARE = StepSpec(name="toy.square", params=Number, result=Number, summary="square a number")
SUM = StepSpec(name="toy.sum", params=Numbers, result=Number, summary="add numbers up")
BELOW = StepSpec(name="toy.below", params=Number, result=Numbers, summary="list the numbers below one")
SHOW = StepSpec(name="toy.show", params=MaybeNumber, result=Word, summary="write a number down")
IS_ODD = StepSpec(name="toy.is-odd", params=Number, result=Flag, summary="say whether a number is odd")
SHOUT = StepSpec(name="toy.shout", params=Word, result=Word, summary="write a word in capitals")
JOIN = StepSpec(name="toy.join", params=Words, result=Word, summary="join words")

Toy = Callable[[Message, Context], Message]


def bindings(**replaced: Callable[..., Message]) -> dict[str, AnyBinding]:
    """Return the functions of the toy steps; `square=…` puts another one in."""
    functions: dict[str, tuple[StepSpec, Callable[..., Message]]] = {
        "range": (RANGE, lambda p, c: Numbers(values=tuple(range(p.n)))),
        "square": (SQUARE, lambda p, c: Number(value=p.value**2)),
        "sum": (SUM, lambda p, c: Number(value=sum(p.values))),
        "below": (BELOW, lambda p, c: Numbers(values=tuple(range(p.value)))),
        "show": (SHOW, lambda p, c: Word(text=str(p.value))),
        "is_odd": (IS_ODD, lambda p, c: Flag(yes=p.value % 2 == 1)),
        "shout": (SHOUT, lambda p, c: Word(text=p.text.upper())),
        "join": (JOIN, lambda p, c: Word(text=" ".join(p.texts))),
    }
    assert not set(replaced) - set(functions)
    return dict(table(*(Binding(spec, replaced.get(name, function)) for name, (spec, function) in functions.items())))


class Gate:
    """A step that waits in here until the test lets it go on; tells the test when it has come in."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, params: Number, context: Context) -> Number:
        self.entered.set()
        while not self.open.wait(0.005):
            context.step.progress(50, "waiting")
        return params
