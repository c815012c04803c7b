"""Which native nftables tables there are: the JSON of `nft -j list ruleset`.

Follows libnftables-json(5), schema 1. Objects are kept as the JSON text that nft printed; only what names them is read.
"""

from collections.abc import Iterable

from msgspec import DecodeError, Raw, Struct, ValidationError
from msgspec.json import decode

from tasks.skoop.model.state import NftTable
from tasks.skoop.model.xtables import Backend, XTable
from tasks.skoop.parse.errors import ParseError
from tasks.skoop.parse.jsontext import read_json


class _Ruleset(Struct):
    nftables: list[dict[str, Raw]]


class _Object(Struct):
    """What every object has; the rest only of a base chain."""

    family: str
    table: str = ""
    name: str = ""
    type: object = ""
    hook: str = ""
    prio: int = 0
    policy: str = "accept"


FAMILIES = {"ip": 4, "ip6": 6}


def parse_nft(text: str, source: str = "nft-ruleset.json") -> tuple[NftTable, ...]:
    """Return the tables, in order, each with all its objects in order. Raises ParseError; an empty text is an error too,
    as nft prints its version even where there is no table.
    """
    objects: dict[tuple[str, str], list[str]] = {}
    hooks: dict[tuple[str, str], list[tuple[str, str, str, int, str]]] = {}
    for number, item in enumerate(read_json(text, _Ruleset, source).nftables):
        for kind, raw in item.items():
            if kind == "metainfo":
                continue
            try:
                found = decode(raw, type=_Object)
            except (ValidationError, DecodeError) as error:
                raise ParseError(source, 1, 1, f"object {number} ({kind}) is not one of nft: {error}") from None
            key = (found.family, found.name if kind == "table" else found.table)
            objects.setdefault(key, []).append(f'{{"{kind}": {bytes(raw).decode()}}}')
            hooks.setdefault(key, [])
            if kind == "chain" and found.hook:
                hooks[key].append((found.name, str(found.type), found.hook, found.prio, found.policy))
    return tuple(
        NftTable(family=family, name=name, objects=tuple(texts), hooks=tuple(hooks[family, name]))
        for (family, name), texts in objects.items()
    )


def without_iptables(tables: Iterable[NftTable], xtables: Iterable[XTable]) -> tuple[NftTable, ...]:
    """Return the tables but for those that iptables-nft owns, which `xtables` already represents: same family and name."""
    owned = {(table.family, table.name) for table in xtables if table.backend == Backend.NFT}
    return tuple(table for table in tables if (FAMILIES.get(table.family, 0), table.name) not in owned)
