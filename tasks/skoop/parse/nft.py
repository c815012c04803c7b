"""Which native nftables tables there are: the JSON of `nft -j list ruleset`.

Follows libnftables-json(5), schema 1. Objects are kept as the JSON text that nft printed; only what names them is read.
"""

import re
from collections.abc import Iterable, Iterator

from msgspec import DecodeError, Raw, Struct, ValidationError
from msgspec.json import decode, encode
from msgspec.structs import replace

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


_OPENED = re.compile(r"\s*(table|chain) (.+) \{$")
_BOUND = re.compile(r"hook \w+ device(?:s = \{ (?P<many>[^}]*)\}| (?P<one>\S+)) priority")


def with_devices(tables: Iterable[NftTable], listing: str) -> tuple[NftTable, ...]:
    """Return the tables with the devices of their base chains, which nft up to 1.0.6 has in its text form alone."""
    bound = dict(_bound(listing))
    return tuple(
        replace(table, objects=tuple(_with_device(table, text, bound) for text in table.objects)) for table in tables
    )


def lacks_devices(table: NftTable) -> bool:
    """Say whether a base chain is at a device, and the listing does not say at which."""
    below = [text for text in table.objects if text.startswith('{"chain"') and '"dev"' not in text]
    return any(hook in ("ingress", "egress") for _, _, hook, _, _ in table.hooks) and bool(below)


def _bound(listing: str) -> Iterator[tuple[tuple[str, str, str], list[str]]]:
    table = ("", "")
    chain = ""
    for line in listing.splitlines():
        if opened := _OPENED.match(line):
            words = opened[2].split()
            table, chain = ((words[0], words[1]), "") if opened[1] == "table" else (table, words[0])
        elif found := _BOUND.search(line):
            names = found["many"].split(",") if found["many"] else [found["one"]]
            yield (*table, chain), [name.strip().strip('"') for name in names]


def _with_device(table: NftTable, text: str, bound: dict[tuple[str, str, str], list[str]]) -> str:
    if not text.startswith('{"chain"') or '"dev"' in text:
        return text
    body = decode(text)["chain"]
    devices = bound.get((table.family, table.name, body["name"]))
    return encode({"chain": body | {"dev": devices}}).decode() if devices else text
