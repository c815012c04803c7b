"""Does a limit, quota or connection count let a packet go on?

Follows nft_limit.c, nft_quota.c, nft_connlimit.c. One packet is asked about: a rate limit is taken to have tokens left,
and its connection to be the only one that counts; both are noted as assumed. A quota is as far used up as it was
listed.
"""

from tasks.skoop.netstack.nftables.jsonform import Json, fields, text, whole
from tasks.skoop.netstack.nftables.source import TableSource
from tasks.skoop.netstack.xtables.truth import Chance, NotUnderstood, Truth

WITHIN_LIMIT = "the rate limit is not used up"
FEW_CONNECTIONS = "it is the only connection that counts"
UNITS = {"bytes": 1, "kbytes": 1 << 10, "mbytes": 1 << 20, "gbytes": 1 << 30}


def below(name: str, content: Json, source: TableSource) -> Truth:
    """Return whether a limit, quota or connection count of the table lets a packet go on.

    `content` is what is listed, or the name of an object of the table. Raises NotUnderstood for other statements.
    """
    if isinstance(content, str):
        found = source.named.get((name, content))
        if found is None:
            raise NotUnderstood(f"the {name} {content}, which is not listed")
        content = found
    over = bool(fields(content).get("inv", False))
    match name:
        case "limit":
            return Chance(0.0 if over else 1.0, assumed=(WITHIN_LIMIT,))
        case "ct count":
            many = whole(content, "val") < 1
            return Chance(1.0 if many == over else 0.0, assumed=(FEW_CONNECTIONS,))
        case "quota":
            used_up = _bytes(content, "used") >= _bytes(content, "bytes" if "bytes" in fields(content) else "val")
            return Chance(1.0 if used_up == over else 0.0, assumed=("the quota is used as far as it was listed",))
        case "counter" | "last":
            return True
    raise NotUnderstood(f"the statement {name}")


def _bytes(content: Json, name: str) -> int:
    """Return an amount of a quota in bytes, 0 where it is not listed."""
    unit = text(content, f"{name}_unit", "bytes")
    if unit not in UNITS:
        raise NotUnderstood(f"a quota in {unit}")
    return whole(content, name, 0) * UNITS[unit]
