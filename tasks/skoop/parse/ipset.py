"""Which sets there are and what is in them: the text of `ipset save`.

Follows ipset 6 and 7. Of an element its text and `nomatch` are kept; timeouts, counters and comments are passed over, as are
the options of a set beyond its type and family.
"""

from tasks.skoop.model.state import IpSet, IpSetEntry
from tasks.skoop.parse.errors import ParseError

WITHOUT_FAMILY = ("bitmap:", "list:", "hash:mac")


def parse_ipset_save(text: str, source: str = "ipset-save.txt") -> tuple[IpSet, ...]:
    """Return the sets, in order. Raises ParseError."""
    kinds: dict[str, tuple[str, int]] = {}
    entries: dict[str, list[IpSetEntry]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "create" and len(words) >= 3 and words[1] not in kinds:
            kinds[words[1]] = (words[2], _family(words[2], words[3:]))
            entries[words[1]] = []
        elif words[0] == "add" and len(words) >= 3 and words[1] in kinds:
            entries[words[1]].append(IpSetEntry(words[2], "nomatch" in words[3:]))
        else:
            raise ParseError(
                source, number, 1, f"{line[:100]!r} is not a line of ipset save", "take it with ipset save"
            )
    return tuple(
        IpSet(name=name, type=kind, family=family, entries=tuple(entries[name]))
        for name, (kind, family) in kinds.items()
    )


def _family(kind: str, options: list[str]) -> int:
    if kind.startswith(WITHOUT_FAMILY):
        return 0
    return 6 if "inet6" in options else 4
