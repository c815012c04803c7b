"""All native base chains of a namespace at the hooks of the IP families, ready to evaluate.

Pure. A table is sorted out on first use, a chain when a packet enters it, a set when it is looked into.
"""

from collections.abc import Sequence

from tasks.skoop.model.state import NetNS
from tasks.skoop.netstack.nftables.fib_lookup import Routes
from tasks.skoop.netstack.nftables.table import BaseChain, Table
from tasks.skoop.netstack.xtables.api import Hook

IP_FAMILIES = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}
IP_HOOKS = frozenset(hook.lower() for hook in Hook)


class BaseChains:
    """The base chains of a namespace by family and hook."""

    def __init__(self, netns: NetNS) -> None:
        routes = Routes(netns)
        self._at: dict[tuple[int, str], list[BaseChain]] = {}
        self._link: dict[tuple[str, str], list[BaseChain]] = {}
        self._on_link: dict[tuple[str, str], tuple[BaseChain, ...]] = {}
        for source in netns.nft:
            table = Table(source, netns, routes)
            for chain, kind, hook, priority, policy in source.hooks:
                base = BaseChain(table, chain, kind, hook, priority, policy)
                if source.family not in IP_FAMILIES or hook not in IP_HOOKS:
                    family = "netdev" if source.family == "inet" else source.family
                    self._link.setdefault((family, hook.upper()), []).append(base)
                    continue
                for version in IP_FAMILIES[source.family]:
                    self._at.setdefault((version, hook.upper()), []).append(base)

    def at(self, family: int, hook: Hook) -> Sequence[BaseChain]:
        """Return the base chains at a hook that can do anything to a packet, in order of priority."""
        found = (base for base in self._at.get((family, hook), ()) if base.has_chain(hook))
        return tuple(sorted(found, key=lambda base: base.priority))

    def on_link(self, family: str, hook: str) -> Sequence[BaseChain]:
        """Return the base chains of a link-layer family (bridge, netdev, arp) at a hook, as `at` does; inet's ingress is
        netdev's.
        """
        slot = (family, str(hook))
        if slot not in self._on_link:
            found = (base for base in self._link.get(slot, ()) if base.has_chain(hook))
            self._on_link[slot] = tuple(sorted(found, key=lambda base: base.priority))
        return self._on_link[slot]


def compile_chains(netns: NetNS) -> BaseChains:
    """Return the base chains of a namespace.

    Native tables that were not collected are simply not there: whether they are missing is for the caller to ask.
    """
    return BaseChains(netns)
