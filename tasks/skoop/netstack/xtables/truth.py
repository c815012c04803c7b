"""What a condition may answer besides yes and no: that it depends, on chance or on something that was not collected.

A condition is a function of the packet's view. `True` and `False` are certain. A `Chance` says how likely it is, and why it
is not certain; it never counts as yes.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

if TYPE_CHECKING:
    from tasks.skoop.netstack.xtables.view import PacketView


class NotUnderstood(Exception):
    """A match or target, or a value of one, that this simulator cannot evaluate. The text says what and why."""


class Chance(Struct, frozen=True, gc=False):
    """An uncertain answer.

    `probability` is of "yes"; 1.0 and 0.0 are answers that rest on an assumption. `missing` says what would have to be known
    (then neither side is foretold), `assumed` what was taken for granted. Answers of one `key` agree during one evaluation;
    `inverted` ones are its opposite.
    """

    probability: float = 0.5
    missing: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    key: str = ""
    inverted: bool = False


Truth = bool | Chance
Condition = Callable[["PacketView"], Truth]


def opposite(truth: Truth) -> Truth:
    """Return the answer to the negated question."""
    if isinstance(truth, Chance):
        return replace(truth, probability=1.0 - truth.probability, inverted=not truth.inverted)
    return not truth


def unknown(reason: str, key: str = "") -> Chance:
    """Return the answer of a condition that cannot be evaluated."""
    return Chance(0.5, missing=(reason,), key=key)


def negated(condition: Condition, negate: bool) -> Condition:
    """Return the condition, or its opposite if `negate`."""
    return (lambda view: opposite(condition(view))) if negate else condition


def every(conditions: tuple[Condition, ...]) -> Condition:
    """Return the condition that all of these hold: one certain "no" decides, else what is uncertain adds up."""
    if len(conditions) == 1:
        return conditions[0]

    def all_hold(view: "PacketView") -> Truth:
        result: Truth = True
        for condition in conditions:
            truth = condition(view)
            if truth is False:
                return False
            if truth is not True:
                result = truth if result is True else both(result, truth)
        return result

    return all_hold


def both(first: Truth, second: Truth) -> Truth:
    """Return the answer to "both?", taking two uncertain ones as independent."""
    if first is False or second is False:
        return False
    if first is True:
        return second
    if second is True:
        return first
    return Chance(
        first.probability * second.probability,
        missing=first.missing + tuple(text for text in second.missing if text not in first.missing),
        assumed=first.assumed + tuple(text for text in second.assumed if text not in first.assumed),
    )
