"""What of a namespace's packet filters the simulator does not understand, rule by rule, before any packet has come there.

The same compilers are asked that answer for packets, so that nothing counts as understood which would be `unknown` later. Not
told here: what is understood but hangs on state that no dump has (counters, lists, the options of a packet).
"""

from collections.abc import Iterator

from msgspec import Struct

from tasks.skoop.model.state import NetNS
from tasks.skoop.netstack.nftables.fib_lookup import Routes
from tasks.skoop.netstack.nftables.table import Table as NftTable
from tasks.skoop.netstack.xtables.compile import Tables
from tasks.skoop.netstack.xtables.matches import Scope
from tasks.skoop.netstack.xtables.table import Table
from tasks.skoop.netstack.xtables.targets import objection


class Doubt(Struct, frozen=True):
    """A rule or set that is not understood: where it stands, what of it, as a person would look for it."""

    where: str
    what: str


def not_understood(netns: NetNS) -> Iterator[Doubt]:
    """Yield every match, target, statement and ipset element that packets would find `unknown`."""
    scopes = {family: Scope(netns, family) for family in (4, 6)}
    for tables in Tables(netns).tables.values():
        for table in tables:
            assert isinstance(table, Table)
            yield from _of_iptables(table, scopes[table.family])
    for one in scopes[4].sets.values():
        yield from (Doubt(f"ipset {one.source.name}", what) for what in one.objections())
    routes = Routes(netns)
    for source in netns.nft:
        yield from _of_nftables(NftTable(source, netns, routes))


def _of_iptables(table: Table, scope: Scope) -> Iterator[Doubt]:
    for chain in table.source.chains:
        for number, rule in enumerate(chain.rules, 1):
            where = f"{table.backend} {table.name}/{chain.name}#{number}"
            said = [scope.objection(match) for match in rule.matches]
            said.append(objection(rule.target, table.family, table.chain))
            yield from (Doubt(where, what) for what in said if what)


def _of_nftables(table: NftTable) -> Iterator[Doubt]:
    for chain, rules in table.source.rules.items():
        for number, rule in enumerate(rules, 1):
            where = f"nft {table.id.family} {table.id.name}/{chain}#{number}"
            said = (what for statement in rule.statements() for what in table.objections(statement))
            yield from (Doubt(where, what) for what in said)
