"""All iptables tables of a namespace, ready to evaluate, of both back ends and families.

Pure. Nothing is compiled before a packet comes to it: a table on its first use, a chain when a packet enters it, a rule when
the packet might fit it. So a node with ten thousand services costs next to nothing until it is asked.
"""

from collections.abc import Mapping

from tasks.skoop.model.state import NetNS
from tasks.skoop.netstack.xtables.api import CompiledTable, CompiledTables
from tasks.skoop.netstack.xtables.index import LONG
from tasks.skoop.netstack.xtables.matches import Scope
from tasks.skoop.netstack.xtables.table import Table
from tasks.skoop.netstack.xtables.tracking import needs_conntrack


class Tables:
    """The compiled tables of a namespace."""

    def __init__(self, netns: NetNS, *, index_from: int = LONG) -> None:
        scopes = {family: Scope(netns, family) for family in (4, 6)}
        tables: dict[tuple[int, str], tuple[CompiledTable, ...]] = {}
        for source in netns.tables:
            slot = (source.family, source.name)
            table = Table(source, netns.id, scopes[source.family], index_from=index_from)
            tables[slot] = (*tables.get(slot, ()), table)
        self.tables: Mapping[tuple[int, str], tuple[CompiledTable, ...]] = tables
        self.needs_conntrack: Mapping[int, bool] = {family: needs_conntrack(netns, family) for family in (4, 6)}


def compile_tables(netns: NetNS) -> CompiledTables:
    """Return the tables of a namespace by family and name.

    Tables that were not collected are simply not there: whether they are missing is for the caller to ask (`NetNS.lacks`).
    """
    return Tables(netns)
