"""Yes, no, or it cannot be said and why: the logic in which policies are matched.

An answer that cannot be given does not spread further than it must: no beats it in a conjunction, yes in a disjunction.
"""

from collections.abc import Iterable

from msgspec import Struct


class Unsure(Struct, frozen=True):
    """It cannot be said, for this reason."""

    reason: str


Answer = bool | Unsure


def all_of(answers: Iterable[Answer]) -> Answer:
    """Return False if one is False, else the first that is unsure, else True."""
    doubt: Answer = True
    for answer in answers:
        if answer is False:
            return False
        if answer is not True and doubt is True:
            doubt = answer
    return doubt


def any_of(answers: Iterable[Answer]) -> Answer:
    """Return True if one is True, else the first that is unsure, else False."""
    doubt: Answer = False
    for answer in answers:
        if answer is True:
            return True
        if answer is not False and doubt is False:
            doubt = answer
    return doubt


def negation(answer: Answer) -> Answer:
    """Return the opposite; what is unsure stays so."""
    return answer if isinstance(answer, Unsure) else not answer
