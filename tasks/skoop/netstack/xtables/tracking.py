"""Does any rule make the kernel track connections in this namespace?

Conntrack hooks are registered with the first rule that needs them, per family (nf_ct_netns_get; docs/kernel.md). NAT targets,
matches and targets on connections do; NOTRACK, `CT --notrack` and tables without such rules do not. Native nftables rules
count as well: their JSON is searched for `ct`, NAT statements and the like.
"""

import re

from tasks.skoop.model.state import NetNS, NftTable
from tasks.skoop.model.xtables import Rule
from tasks.skoop.netstack.xtables.nat_targets import NAT_TARGETS

MATCHES = frozenset(("conntrack", "state", "connmark", "connbytes", "connlabel", "connlimit", "helper", "cluster"))
TARGETS = frozenset((*NAT_TARGETS, "CONNMARK", "CONNSECMARK", "SYNPROXY", "CLUSTERIP"))

NFT_FAMILIES = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}
NFT_NEEDS = re.compile(
    r'"(?:ct|ct (?:helper|timeout|expectation|count)|snat|dnat|masquerade|redirect|synproxy|flow)"\s*:'
)
"""A key of an nft object in JSON that needs conntrack; inside a value the quotes would be escaped."""


def needs_conntrack(netns: NetNS, family: int) -> bool:
    """Say whether a rule of any table of this family needs conntrack. Stops at the first that does."""
    return any(
        _rule_needs(rule)
        for table in netns.tables
        if table.family == family
        for chain in table.chains
        for rule in chain.rules
    ) or any(_nft_needs(table) for table in netns.nft if family in NFT_FAMILIES.get(table.family, ()))


def _rule_needs(rule: Rule) -> bool:
    for match in rule.matches:
        if match.name in MATCHES:
            return True
    name = rule.target.name
    return name in TARGETS or (name == "CT" and all(option != "notrack" for option, _, _ in rule.target.options))


def _nft_needs(table: NftTable) -> bool:
    return any(NFT_NEEDS.search(text) for text in table.objects)
