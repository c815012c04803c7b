"""Where does what a command says go? Results to standard output, everything else to standard error.

With `-o json` standard output holds JSON and nothing else, and an error is one JSON object on standard error.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from tasks.skoop.report.depth import Depth
    from tasks.skoop.report.text import Style


class Format(StrEnum):
    """What `-o` takes."""

    TEXT = "text"
    JSON = "json"


def asked_for(argv: Sequence[str]) -> Format:
    """Return which format a command line asks for, before it is parsed: an error in parsing it is told in that format too."""
    for word, following in zip(argv, [*argv, ""][1:], strict=True):
        if word in ("-ojson", "--output=json", "-o=json") or (word in ("-o", "--output") and following == "json"):
            return Format.JSON
    return Format.TEXT


def say(text: str, *, end: str = "\n") -> None:
    """Write to standard output."""
    sys.stdout.write(text + end)


def say_bytes(data: bytes) -> None:
    """Write a line of encoded text to standard output."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data + b"\n")


def note(text: str) -> None:
    """Write a line for the person, not the result, to standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def is_colourful(stream: TextIO) -> bool:
    """Say whether colours make sense: a terminal that can show them, and nobody asked for none (NO_COLOR)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def text_style(depth: "Depth | None" = None) -> "Style":
    """Return the style of reports on standard output: the terminal's width (at most 120 columns), colours on a terminal."""
    from tasks.skoop.report.depth import Depth
    from tasks.skoop.report.text import Ink, Style

    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    ink = Ink.ANSI if is_colourful(sys.stdout) else Ink.PLAIN
    return Style(width=max(width, 40), ink=ink, depth=depth or Depth.SUMMARY)
