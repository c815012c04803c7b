"""What an expression may give besides a number: nothing, a lot to be drawn, or something that is not known.

A number is certain; a tuple of numbers is a concatenation. `None` is the kernel's NFT_BREAK: the packet does not have it, and
the rule does not match, negated or not. HIDDEN stands for a number in the packet that the model does not carry (a checksum).
"""

from collections.abc import Callable
from typing import NamedTuple

from tasks.skoop.netstack.nftables.view import PacketView

HIDDEN = -1
"""Equals no number of a rule; whether it lies in a range is not known."""

MAX_DRAWN = 4096
"""Lots with more outcomes than this are not gone through one by one."""


class Unsure(NamedTuple):
    """A value that is not known. An empty `reason`: it hangs on the moment, and both answers can come."""

    reason: str
    key: str


class Draw(NamedTuple):
    """A number drawn evenly from `low` to `low + size - 1`, by chance, or by a hash whose seed is secret.

    `results` are what became of each outcome in order, once something has been done with it (None: nothing yet). A `sticky`
    one gives the same number each time that the same packet asks. `part`: it is only a part of the value (of a
    concatenation) and has to be drawn before anything can be done with the whole.
    """

    key: str
    low: int
    size: int
    sticky: bool
    results: "tuple[Outcome, ...] | None" = None
    part: bool = False

    def each(self) -> "tuple[Outcome, ...]":
        """Return the outcomes in order, all of the same weight."""
        return self.results if self.results is not None else tuple(range(self.low, self.low + self.size))

    def groups(self) -> "list[tuple[int, float, Outcome]]":
        """Return (a number that leads to it, its probability, outcome) of each outcome; like ones together if they may be."""
        if self.sticky or self.part:
            return [(self.low + at, 1.0 / self.size, result) for at, result in enumerate(self.each())]
        found: dict[Outcome, tuple[int, int]] = {}
        for at, result in enumerate(self.each()):
            first, count = found.get(result, (self.low + at, 0))
            found[result] = (first, count + 1)
        return [(first, count / self.size, result) for result, (first, count) in found.items()]


Number = int | tuple[int, ...]
Outcome = object
"""An int, a tuple of them, None, Draw, Unsure; or, out of a map, whatever the map's data was made into."""

Getter = Callable[[PacketView], Outcome]


def lifted(value: Outcome, change: Callable[[Outcome], Outcome]) -> Outcome:
    """Return what `change` makes of a value: of every outcome of a draw; nothing and unknown stay what they are."""
    if value is None or isinstance(value, Unsure) or (isinstance(value, Draw) and value.part):
        return value
    if isinstance(value, Draw):
        if value.results is None and value.size > MAX_DRAWN:
            return Unsure("", value.key)
        return value._replace(results=tuple(lifted(each, change) for each in value.each()))
    return change(value)
