"""Which sets there are and what is in them: the text of `ipset save` or of `ipset list`.

Follows ipset 6 and 7. Of an element its text, `nomatch` and `wildcard` are kept; timeouts, counters and comments are passed
over, as are the options of a set beyond its type, family and masks.
"""

from itertools import pairwise

from msgspec.structs import replace

from tasks.skoop.model.state import IpSet, IpSetEntry
from tasks.skoop.parse.errors import ParseError

WITHOUT_FAMILY = ("bitmap:", "list:", "hash:mac")
COMMENT = ' comment "'
LISTED = "Name: "
"""How the first line of each set begins in `ipset list`."""


def parse_ipset_save(text: str, source: str = "ipset-save.txt") -> tuple[IpSet, ...]:
    """Return the sets, in order, of `ipset save`, or of `ipset list` if the text begins so. Raises ParseError."""
    if text.lstrip().startswith(LISTED):
        return _listed(text, source)
    sets: dict[str, IpSet] = {}
    entries: dict[str, list[IpSetEntry]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition(COMMENT)[0].split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "create" and len(words) >= 3 and words[1] not in sets:
            sets[words[1]] = _set(words[1], words[2], words[3:], source, number)
            entries[words[1]] = []
        elif words[0] == "add" and len(words) >= 3 and words[1] in sets:
            entries[words[1]].append(_entry(words[2:]))
        else:
            raise _refused(source, number, line)
    return tuple(replace(one, entries=tuple(entries[name])) for name, one in sets.items())


def _listed(text: str, source: str) -> tuple[IpSet, ...]:
    """Read `ipset list`: a block for each set, its members last; the number of them tells whether all are there."""
    found: dict[str, IpSet] = {}
    lines = [*enumerate(text.splitlines(), 1), (0, LISTED)]
    heads: dict[str, str] = {}
    members: list[IpSetEntry] | None = None
    for number, line in lines:
        words = line.partition(COMMENT)[0].split()
        key, colon, value = line.partition(":")
        if line.startswith(LISTED):
            if heads:
                one = _finished(heads, members, source, number or len(lines) - 1)
                found[one.name] = one
            heads, members = {"Name": value.strip()}, None
        elif words and members is not None:
            members.append(_entry(words))
        elif line.startswith("Members:"):
            members = []
        elif words and not colon:
            raise _refused(source, number, line)
        elif words:
            heads[key] = value.strip()
    return tuple(found.values())


def _finished(heads: dict[str, str], members: list[IpSetEntry] | None, source: str, number: int) -> IpSet:
    count = heads.get("Number of entries", "")
    if members is None or "Type" not in heads or (count.isdigit() and int(count) > len(members)):
        what = f"the list of the set {heads['Name']!r} is cut short"
        raise ParseError(source, number, 1, what, "take it with ipset save")
    one = _set(heads["Name"], heads["Type"], heads.get("Header", "").split(), source, number)
    return replace(one, entries=tuple(members))


def _refused(source: str, number: int, line: str) -> ParseError:
    return ParseError(source, number, 1, f"{line[:100]!r} is not a line of ipset save", "take it with ipset save")


def _entry(words: list[str]) -> IpSetEntry:
    options = words[1:]
    return IpSetEntry(f"{words[0]} wildcard" if "wildcard" in options else words[0], "nomatch" in options)


def _set(name: str, kind: str, options: list[str], source: str, number: int) -> IpSet:
    given = dict(pairwise(options))
    markmask = given.get("markmask", "0")
    try:
        mask = int(markmask, 0) & 0xFFFFFFFF
    except ValueError:
        raise ParseError(
            source, number, 1, f"the set {name!r} has the markmask {markmask!r}, which is no number"
        ) from None
    return IpSet(
        name=name,
        type=kind,
        family=_family(kind, options),
        netmask=given.get("netmask", given.get("bitmask", "")),
        markmask=mask if mask != 0xFFFFFFFF else 0,
    )


def _family(kind: str, options: list[str]) -> int:
    if kind.startswith(WITHOUT_FAMILY):
        return 0
    return 6 if "inet6" in options else 4
