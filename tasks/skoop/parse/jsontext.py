"""Reads the JSON that a tool printed into typed rows: the one place that turns a decoder's complaint into a ParseError.

Fields that a row does not declare are passed over; a field of another type than declared is an error. Numbers written as
text are taken as numbers, as versions of iproute2 differ in that.
"""

import json
from typing import TypeVar

import msgspec

from tasks.skoop.parse.errors import ParseError

T = TypeVar("T")


def read_json(text: str, wanted: type[T], source: str) -> T:
    """Return the text as a value of `wanted`. Raises ParseError with line and column, or the path of the wrong field."""
    try:
        return msgspec.json.decode(text, type=wanted, strict=False)
    except msgspec.ValidationError as error:
        raise ParseError(source, 1, 1, f"not what this tool prints: {error}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise _with_place(text, source, error) from None


def read_rows(text: str, row: type[T], source: str) -> list[T]:
    """Return a JSON array of rows; an empty text is no rows, as `ip -j` prints nothing where there is nothing."""
    return read_json(text, list[row], source) if text.strip() else []  # type: ignore[valid-type]


def _with_place(text: str, source: str, error: Exception) -> ParseError:
    try:
        json.loads(text)
    except json.JSONDecodeError as found:
        cut = found.pos >= len(text.rstrip()) or "Unterminated" in found.msg
        problem = "the JSON ends in the middle" if cut else f"not JSON: {found.msg}"
        return ParseError(source, found.lineno, found.colno, problem)
    except RecursionError:
        return ParseError(source, 1, 1, "JSON nested too deeply")
    return ParseError(source, 1, 1, f"not JSON: {error}")
