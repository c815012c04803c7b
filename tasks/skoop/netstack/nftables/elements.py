"""Which element of a set or map holds a value, and what a map gives for it.

Plain elements stand in a dictionary, ranges and prefixes in order of their start; concatenations with ranges in dictionaries by
their plain parts. So thousands of elements cost one look-up. Follows nft_set_hash.c, nft_set_rbtree.c and nft_set_pipapo.c.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from tasks.skoop.netstack.nftables.datatypes import WILDCARD, Datatype, span
from tasks.skoop.netstack.nftables.jsonform import Json, compact, fields, is_named, items, pair
from tasks.skoop.netstack.nftables.outcomes import HIDDEN, Number, Outcome, Unsure
from tasks.skoop.netstack.xtables.truth import NotUnderstood

Span = tuple[int, int]

NOTES = frozenset(("val", "timeout", "expires", "comment", "counter", "last"))
"""Fields of an element that do not make a difference to a packet."""


class Element:
    """One element. `data` is what a map has for it; `gates` are statements (limits) that a hit has to pass."""

    __slots__ = ("data", "gates", "key")

    def __init__(self, key: Json, data: Json, gates: tuple[Json, ...]) -> None:
        self.key = key
        self.data = data
        self.gates = gates


class Elements:
    """The elements of one set or map, for values of the given types."""

    def __init__(self, found: Iterable[Element], types: Sequence[Datatype]) -> None:
        self.types = tuple(types)
        self.default: Element | None = None
        self._plain: dict[Number, Element] = {}
        self._ranges: list[tuple[int, int, Element]] = []
        self._starts: list[int] = []
        self._shapes: dict[tuple[bool, ...], dict[tuple[int, ...], list[tuple[tuple[Span, ...], Element]]]] = {}
        for element in found:
            self._add(element)
        self._ranges.sort(key=lambda entry: entry[:2])
        self._starts = [entry[0] for entry in self._ranges]

    def _add(self, element: Element) -> None:
        if element.key == WILDCARD:
            self.default = element
            return
        parts = items(fields(element.key)["concat"]) if is_named(element.key, "concat") else [element.key]
        if len(parts) != len(self.types):
            raise NotUnderstood(f"the element {compact(element.key)}")
        spans = tuple(span(part, kind) for part, kind in zip(parts, self.types, strict=True))
        if all(low == high for low, high in spans):
            self._plain[spans[0][0] if len(spans) == 1 else tuple(low for low, _ in spans)] = element
        elif len(spans) == 1:
            self._ranges.append((*spans[0], element))
        else:
            shape = tuple(low == high for low, high in spans)
            plain = tuple(low for low, high in spans if low == high)
            wide = tuple(each for each in spans if each[0] != each[1])
            self._shapes.setdefault(shape, {}).setdefault(plain, []).append((wide, element))

    def find(self, value: Outcome) -> Outcome:
        """Return the Element that holds a number or concatenation, None if none does, or Unsure."""
        element = self._plain.get(value)  # type: ignore[call-overload]  # numbers and tuples of them
        if element is not None:
            return element
        found: Outcome = None
        if self._ranges and isinstance(value, int):
            found = self._in_ranges(value)
        elif self._shapes and isinstance(value, tuple):
            found = self._in_boxes(value)
        return self.default if found is None else found

    def _in_ranges(self, value: int) -> Outcome:
        if value == HIDDEN:
            return Unsure("a field of the packet that is not simulated", f"hidden {self._starts}")
        at = bisect_right(self._starts, value) - 1
        if at >= 0 and self._ranges[at][1] >= value:
            return self._ranges[at][2]
        return None

    def _in_boxes(self, value: tuple[int, ...]) -> Outcome:
        for shape, filed in self._shapes.items():
            plain = tuple(part for part, exact in zip(value, shape, strict=True) if exact)
            for spans, element in filed.get(plain, ()):
                wide = [part for part, exact in zip(value, shape, strict=True) if not exact]
                inside = zip(wide, spans, strict=True)
                if all(part == HIDDEN or low <= part <= high for part, (low, high) in inside):
                    if HIDDEN in wide:
                        return Unsure("a field of the packet that is not simulated", f"hidden {compact(element.key)}")
                    return element
        return None


def element_of(value: Json, *, mapping: bool) -> Element:
    """Return an element as nft prints it: a value, or `{"elem": {"val": …}}`; in a map with its data as a pair."""
    key, data = pair(value) if mapping else (value, None)
    gates: tuple[Json, ...] = ()
    if is_named(key, "elem"):
        inner = fields(fields(key)["elem"])
        gates = tuple({name: content} for name, content in inner.items() if name not in NOTES)
        key = inner.get("val")
    return Element(key, data, gates)
