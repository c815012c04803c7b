"""With which status does a command end? Scripts rely on these numbers."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """What the exit status tells; the last two are a shell's own for a signal (128 + its number)."""

    NOTHING_WRONG = 0
    PROBLEM_FOUND = 1
    WRONG_COMMAND = 2
    NOT_DONE = 3
    INTERRUPTED = 130
    BROKEN_PIPE = 141
