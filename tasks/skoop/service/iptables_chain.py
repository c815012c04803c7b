"""How does a chain differ from what it should be, and which edits make it right?

The smallest set of deletions and insertions, written so that each is valid after the ones before it: from the chain's end to
its beginning, so that no edit moves what a later one names.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher

from msgspec import Struct

from tasks.skoop.assertions.rules import TableView
from tasks.skoop.model.suspicion import Change, DeleteRule, InsertRule


class Line(Struct, frozen=True, array_like=True):
    """One rule as far as it is compared (`key`), with its text and, if it stands in a chain, its position."""

    key: tuple[str, float]
    raw: str
    position: int = 0


def edits(view: TableView, chain: str, present: Sequence[Line], wanted: Sequence[Line]) -> tuple[Change, ...]:
    """Return the changes that turn the compared lines of a chain into the wanted ones.

    `present` are the lines of the chain in order, possibly with other rules before them; `wanted` is the full list in order.
    """
    matcher = SequenceMatcher(a=[line.key for line in present], b=[line.key for line in wanted], autojunk=False)
    end = (present[-1].position if present else len(view.rules(chain))) + 1
    changes: list[Change] = []
    for kind, first, last, start, stop in reversed(matcher.get_opcodes()):
        if kind == "equal":
            continue
        changes += [delete_rule(view, chain, line.position, line.raw) for line in reversed(present[first:last])]
        at = present[first].position if first < len(present) else end
        changes += [insert_rule(view, chain, at, line.raw) for line in reversed(wanted[start:stop])]
    return tuple(changes)


def delete_rule(view: TableView, chain: str, position: int, raw: str) -> DeleteRule:
    """Return the change that deletes a rule of this table."""
    return DeleteRule(
        netns=view.netns, backend=view.backend, family=view.family, table=view.name, chain=chain, rule=position, raw=raw
    )


def insert_rule(view: TableView, chain: str, position: int, raw: str) -> InsertRule:
    """Return the change that inserts a rule before `position` (0: at the end)."""
    return InsertRule(
        netns=view.netns, backend=view.backend, family=view.family, table=view.name, chain=chain, rule=position, raw=raw
    )
