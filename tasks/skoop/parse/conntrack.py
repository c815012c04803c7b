"""Which connections are tracked: the text of `conntrack -L [-o extended]`.

Follows conntrack-tools 1.4 (libnetfilter_conntrack's default form). Counters, helpers and labels are passed over.
"""

import re

from tasks.skoop.model.addr import AddressError, parse_ip
from tasks.skoop.model.state import ConntrackEntry, Tuple
from tasks.skoop.parse.errors import ParseError
from tasks.skoop.parse.rtnames import ip_protocol

PAIR = re.compile(r"([a-z-]+)=(\S+)")


def parse_conntrack(text: str, source: str = "conntrack-L.txt") -> tuple[ConntrackEntry, ...]:
    """Return the entries, in order. Raises ParseError for a line that is not whole."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("conntrack v"):
            continue
        try:
            found.append(_entry(line))
        except (AddressError, ValueError, KeyError, IndexError):
            raise ParseError(source, number, 1, f"{line.strip()[:100]!r} is not a whole line of conntrack -L") from None
    return tuple(found)


def _entry(line: str) -> ConntrackEntry:
    words = line.split()
    if words[0] in ("ipv4", "ipv6"):
        words = words[2:]
    number = words[1]
    timed = words[2].isdigit()
    state_at = 3 if timed else 2
    state = words[state_at] if "=" not in words[state_at] and not words[state_at].startswith("[") else ""
    pairs = PAIR.findall(line)
    starts = [at for at, (key, _) in enumerate(pairs) if key == "src"]
    if len(starts) != 2 or "use" not in (key for key, _ in pairs):
        raise ValueError(line)
    tail = dict(pairs[starts[1] :])
    return ConntrackEntry(
        protocol=ip_protocol(number),
        original=_tuple(pairs[starts[0] : starts[1]]),
        reply=_tuple(pairs[starts[1] :]),
        state=state,
        replied="[UNREPLIED]" not in words,
        assured="[ASSURED]" in words,
        mark=int(tail.get("mark", "0")),
        zone=int(tail.get("zone", "0")),
        timeout_s=int(words[2]) if timed else 0,
    )


def _tuple(pairs: list[tuple[str, str]]) -> Tuple:
    fields: dict[str, str] = {}
    for key, value in pairs:
        fields.setdefault(key, value)
    if "id" in fields and "type" in fields:
        sport = dport = int(fields["id"])
    else:
        sport = int(fields.get("sport", fields.get("srckey", "0")), 0)
        dport = int(fields.get("dport", fields.get("dstkey", "0")), 0)
    return Tuple(parse_ip(fields["src"]), parse_ip(fields["dst"]), sport, dport)
