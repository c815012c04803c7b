"""What a table holds, read from its JSON only as far as it is asked: chains with their rules, sets, maps, limits."""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from msgspec import Raw, Struct
from msgspec.json import Decoder, decode

from tasks.skoop.model.state import NftTable
from tasks.skoop.netstack.nftables.datatypes import Datatype, declared
from tasks.skoop.netstack.nftables.elements import Element, Elements, element_of
from tasks.skoop.netstack.nftables.jsonform import Json, items, text

NOTHING = Raw(b"null")


def _json(raw: Raw) -> Json:
    found: Json = decode(raw)
    return found


class RuleSource(Struct, gc=False):
    """A rule as listed; its statements are decoded when a packet comes to it."""

    chain: str
    handle: int = 0
    expr: Raw = Raw(b"[]")
    comment: str = ""

    def statements(self) -> list[Json]:
        """Return its statements in order."""
        return items(_json(self.expr))


class _Collection(Struct, gc=False):
    name: str
    type: Raw = NOTHING
    map: Raw = NOTHING
    elem: Raw = Raw(b"[]")


class _Chain(Struct, gc=False):
    name: str
    dev: Raw = NOTHING


class _Object(Struct, gc=False):
    """One object of a listing: exactly one field is there."""

    rule: RuleSource | None = None
    chain: _Chain | None = None
    set: _Collection | None = None
    map: _Collection | None = None
    meter: _Collection | None = None
    element: _Collection | None = None
    limit: Raw = NOTHING
    quota: Raw = NOTHING


class _Sorted(NamedTuple):
    """The objects of a table by what they are; `more` are elements that are listed apart from their set."""

    rules: dict[str, list[RuleSource]]
    collections: dict[str, _Collection]
    more: dict[str, list[_Collection]]
    named: dict[tuple[str, str], Json]
    devices: dict[str, tuple[str, ...]]


class TableSource:
    """One table, sorted out on first use."""

    def __init__(self, table: NftTable) -> None:
        self.table = table
        self._indexed: dict[tuple[str, tuple[str, ...]], Elements] = {}

    @cached_property
    def _sorted(self) -> _Sorted:
        found = _Sorted({}, {}, {}, {}, {})
        decoder = Decoder(_Object)
        for each in map(decoder.decode, self.table.objects):
            if each.rule is not None:
                found.rules.setdefault(each.rule.chain, []).append(each.rule)
            elif each.chain is not None:
                found.rules.setdefault(each.chain.name, [])
                if each.chain.dev is not NOTHING:
                    found.devices[each.chain.name] = tuple(text(name) for name in items(_json(each.chain.dev)))
            elif (collection := each.set or each.map or each.meter) is not None:
                found.collections[collection.name] = collection
            elif each.element is not None:
                found.more.setdefault(each.element.name, []).append(each.element)
            for kind, raw in (("limit", each.limit), ("quota", each.quota)):
                if raw is not NOTHING:
                    content = _json(raw)
                    found.named[kind, text(content, "name")] = content
        return found

    @property
    def rules(self) -> dict[str, list[RuleSource]]:
        """The rules of each chain in order; chains without rules have an empty list."""
        return self._sorted.rules

    @property
    def named(self) -> dict[tuple[str, str], Json]:
        """Named limits and quotas: (kind, name) → what is listed."""
        return self._sorted.named

    def devices(self, chain: str) -> tuple[str, ...]:
        """Return the devices that a base chain is bound to, as far as they are listed."""
        return self._sorted.devices.get(chain, ())

    def data_types(self, name: str) -> tuple[Datatype, ...]:
        """Return the types of a named map's data as declared; integer where it is not there."""
        found = self._sorted.collections.get(name)
        return declared(_json(found.map) if found else None)

    def elements(self, name: str, types: tuple[Datatype, ...]) -> Elements | None:
        """Return the elements of a named set or map for values of these types, None if there is no such set."""
        slot = (name, tuple(kind.name for kind in types))
        if slot not in self._indexed:
            found = self._sorted.collections.get(name)
            if found is None:
                return None
            self._indexed[slot] = Elements(self._listed(found), types)
        return self._indexed[slot]

    def listed(self, name: str) -> list[Element]:
        """Return the elements of a named set or map as they are listed; none where there is no such set."""
        found = self._sorted.collections.get(name)
        return list(self._listed(found)) if found is not None else []

    def _listed(self, collection: _Collection) -> Iterator[Element]:
        mapping = _json(collection.map) is not None
        for part in (collection, *self._sorted.more.get(collection.name, ())):
            for value in items(_json(part.elem)):
                yield element_of(value, mapping=mapping)
