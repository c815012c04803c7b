"""What a table holds, read from its JSON objects only as far as it is asked: chains with their rules, sets, maps, named objects."""

from collections.abc import Iterator
from functools import cached_property

from msgspec import Raw, Struct
from msgspec.json import decode

from tasks.skoop.model.state import NftTable
from tasks.skoop.netstack.nftables.datatypes import Datatype, declared
from tasks.skoop.netstack.nftables.elements import Element, Elements, element_of
from tasks.skoop.netstack.nftables.jsonform import Json, items, text


NOTHING = Raw(b"null")


def _json(raw: Raw) -> Json:
    found: Json = decode(raw)
    return found


class RuleSource(Struct):
    """A rule as listed; its statements are decoded when a packet comes to it."""

    chain: str
    handle: int = 0
    expr: Raw = Raw(b"[]")
    comment: str = ""

    def statements(self) -> list[Json]:
        """Return its statements in order."""
        return items(_json(self.expr))


class _Collection(Struct):
    name: str
    type: Raw = NOTHING
    map: Raw = NOTHING
    elem: Raw = Raw(b"[]")


class _Chain(Struct):
    name: str
    hook: str = ""


class _Object(Struct):
    """One object of a listing: exactly one field is there."""

    rule: RuleSource | None = None
    chain: _Chain | None = None
    set: _Collection | None = None
    map: _Collection | None = None
    meter: _Collection | None = None
    element: _Collection | None = None
    limit: Raw | None = None
    quota: Raw | None = None


class TableSource:
    """One table, sorted out on first use."""

    def __init__(self, table: NftTable) -> None:
        self.table = table
        self._indexed: dict[tuple[str, tuple[Datatype, ...]], Elements] = {}

    @cached_property
    def objects(self) -> tuple[_Object, ...]:
        """All objects, their contents not yet decoded."""
        return tuple(decode(each, type=_Object) for each in self.table.objects)

    @cached_property
    def rules(self) -> dict[str, list[RuleSource]]:
        """The rules of each chain in order; chains without rules have an empty list."""
        found: dict[str, list[RuleSource]] = {}
        for each in self.objects:
            if each.chain is not None:
                found.setdefault(each.chain.name, [])
            elif each.rule is not None:
                found.setdefault(each.rule.chain, []).append(each.rule)
        return found

    @cached_property
    def collections(self) -> dict[str, _Collection]:
        """Sets and maps by name."""
        found = (each.set or each.map or each.meter for each in self.objects)
        return {each.name: each for each in found if each is not None}

    @cached_property
    def named(self) -> dict[tuple[str, str], Json]:
        """Named limits and quotas: (kind, name) → what is listed."""
        found: dict[tuple[str, str], Json] = {}
        for each in self.objects:
            for kind, raw in (("limit", each.limit), ("quota", each.quota)):
                if raw is not None:
                    content = _json(raw)
                    found[kind, text(content, "name")] = content
        return found

    def data_types(self, name: str) -> tuple[Datatype, ...]:
        """Return the types of a named map's data as declared; integer where it is not there."""
        found = self.collections.get(name)
        return declared(_json(found.map) if found else None)

    def elements(self, name: str, types: tuple[Datatype, ...]) -> Elements | None:
        """Return the elements of a named set or map for values of these types, None if there is no such set."""
        slot = (name, tuple(types))
        if slot not in self._indexed:
            found = self.collections.get(name)
            if found is None:
                return None
            self._indexed[slot] = Elements(self._listed(found), types)
        return self._indexed[slot]

    def _listed(self, collection: _Collection) -> Iterator[Element]:
        more = (each.element for each in self.objects if each.element and each.element.name == collection.name)
        mapping = _json(collection.map) is not None
        for part in (collection, *more):
            for value in items(_json(part.elem)):
                yield element_of(value, mapping=mapping)
