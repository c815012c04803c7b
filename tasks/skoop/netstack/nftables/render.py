"""A rule as `nft list ruleset` shows it, from its JSON: for people who look for it in their own listing."""

from tasks.skoop.netstack.nftables.jsonform import Json, compact


def rendered(statements: list[Json], *, comment: str = "", handle: int = 0) -> str:
    return compact(statements)
