"""Which native nftables tables there are: the JSON of `nft -j list ruleset`.

Follows libnftables-json(5), schema 1. Objects are kept as the JSON text that nft printed; only what names them is read.
"""

import re
from collections.abc import Iterable

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


_CHAIN = re.compile(r"^\tchain (\S+) \{$")
_DEVICES = re.compile(
    r"^\t\ttype \w+ hook (?:in|e)gress devices? (?:= \{ (?P<several>[^}]*) \}|(?P<one>\S+)) priority "
)


def lacks_devices(table: NftTable) -> bool:
    """Say whether the JSON keeps quiet about the devices of a chain at an ingress or egress hook, as nft before 1.0.8 does."""
    bound = {name for name, _, hook, _, _ in table.hooks if hook in ("ingress", "egress")}
    chains = (decode(text)["chain"] for text in table.objects if text.startswith('{"chain":')) if bound else ()
    return any(chain["name"] in bound and "dev" not in chain for chain in chains)


def with_devices(table: NftTable, text: str) -> NftTable:
    """Return the table with the devices of its chains taken from what `nft list table` prints for people."""
    found: dict[str, list[str]] = {}
    chain = ""
    for line in text.splitlines():
        if (head := _CHAIN.match(line)) is not None:
            chain = head[1]
        elif (devices := _DEVICES.match(line)) is not None:
            names = devices["several"] if devices["several"] is not None else devices["one"]
            found[chain] = [name.strip().strip('"') for name in names.split(",")]

    def told(raw: str) -> str:
        if not raw.startswith('{"chain":'):
            return raw
        item = decode(raw)
        own = found.get(item["chain"]["name"])
        if not own or "dev" in item["chain"]:
            return raw
        return encode({"chain": {**item["chain"], "dev": own[0] if len(own) == 1 else own}}).decode()

    return replace(table, objects=tuple(told(raw) for raw in table.objects))


def without_iptables(tables: Iterable[NftTable], xtables: Iterable[XTable]) -> tuple[NftTable, ...]:
    """Return the tables but for those that iptables-nft owns, which `xtables` already represents: same family and name."""
    owned = {(table.family, table.name) for table in xtables if table.backend == Backend.NFT}
    return tuple(table for table in tables if (FAMILIES.get(table.family, 0), table.name) not in owned)
