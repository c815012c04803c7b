"""Which questions does a `--pairs` file ask?

JSON lines with src, dst, dport, proto and optionally sport, payload_bytes, df. A member that is not one of these is left aside
and named once, so that a file with notes of its own works and a mistyped name is still seen.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kubectl_probe.errors import PairsUnreadable

if TYPE_CHECKING:
    from tasks.skoop.specs import Pair

STDIN = Path("-")
_KNOWN = frozenset({"src", "dst", "dport", "proto", "sport", "payload_bytes", "df"})


def read_pairs(file: Path) -> "tuple[tuple[Pair, ...], frozenset[str]]":
    """Return the questions of a file (`-`: standard input), and the names of members that were left aside.

    Empty lines are skipped. Raises PairsUnreadable (with the line), OSError.
    """
    from tasks.skoop.specs import Pair

    pairs: list[Pair] = []
    unknown: set[str] = set()
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        members = _members(file, number, line)
        unknown |= members.keys() - _KNOWN
        pairs.append(_pair(file, number, {name: value for name, value in members.items() if name in _KNOWN}))
    if not pairs:
        raise PairsUnreadable(file, 0, "there is no question in it")
    return tuple(pairs), frozenset(unknown)


def _lines(file: Path) -> Iterable[bytes]:
    if file == STDIN:
        return sys.stdin.buffer.read().splitlines()
    return file.read_bytes().splitlines()


def _members(file: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        members = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PairsUnreadable(file, number, f"it cannot be read as a JSON object ({error})") from error
    # A port or protocol that does not apply is written as null by some; it is the same as leaving it out.
    return {name: value for name, value in members.items() if value is not None}


def _pair(file: Path, number: int, members: dict[str, Any]) -> "Pair":
    from pydantic import ValidationError

    from tasks.skoop.specs import Pair

    if isinstance(members.get("proto"), str):
        members["proto"] = members["proto"].lower()
    try:
        return Pair(**members)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PairsUnreadable(file, number, f"{where}: {first['msg']}") from error
