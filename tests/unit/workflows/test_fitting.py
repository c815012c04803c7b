"""Which types fit which."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Optional, Union

import pytest
from pydantic import StringConstraints

from tasks.skoop.specs import Digest, Message
from workflows.fitting import element_type, fits, show

Short = Annotated[str, StringConstraints(max_length=3)]


MAYBE = Optional[int]  # noqa: UP045  # the form that `|` does not make


class Special(Message):
    pass


@pytest.mark.parametrize(
    ("given", "wanted", "verdict"),
    [
        (int, int, True),
        (int, str, False),
        (int, float, True),
        (float, int, False),
        (bool, int, True),
        (Special, Message, True),
        (Message, Special, False),
        (int, Any, True),
        (int, int | None, True),
        (int | None, int, False),
        (int | None, MAYBE, True),
        (Union[int, str], int | str | None, True),  # noqa: UP007
        (None | int, str | None, False),
        (tuple[int, ...], tuple[int, ...], True),
        (list[int], tuple[int, ...], True),
        (tuple[int, ...], Sequence[float], True),
        (tuple[int, ...], tuple[str, ...], False),
        (tuple[int, str], tuple[int, ...], False),
        (int, tuple[int, ...], False),
        (tuple[int, ...], int, False),
        (Digest, Digest, True),
        (Digest, str, True),
        (str, Digest, False),
        (Short, Digest, False),
        (tuple[Digest, ...], tuple[Digest, ...], True),
        (tuple[str, ...], tuple[Digest, ...], False),
        (Literal["a"], Literal["a", "b"], True),
        (Literal["a", "b"], Literal["a"], False),
        (Literal["a"], str, True),
        (str, Literal["a"], False),
    ],
    ids=str,
)
def test_fits(given: object, wanted: object, verdict: bool) -> None:
    assert fits(given, wanted) is verdict


@pytest.mark.parametrize(
    ("listing", "element"),
    [
        (tuple[int, ...], int),
        (list[str], str),
        (tuple[int, ...] | None, int),
        (tuple[int, str], None),
        (tuple[()], None),
        (int, None),
        (int | None, None),
        (list[int] | list[str], None),
    ],
    ids=str,
)
def test_element_type(listing: object, element: object) -> None:
    assert element_type(listing) is element


@pytest.mark.parametrize(
    ("kind", "text"),
    [(int, "int"), (tuple[int, ...], "tuple[int, ...]"), (MAYBE, "Optional[int]")],
    ids=str,
)
def test_show(kind: object, text: str) -> None:
    assert show(kind) == text
