"""Rules as nft 1.0.6 lists them: every one is written as the user sees it, and all but a few are evaluated."""

import json
from pathlib import Path

import pytest

from tasks.skoop.model.ids import node_netns
from tasks.skoop.model.state import NetNS, NftTable
from tasks.skoop.netstack.nftables.expressions import Compiler
from tasks.skoop.netstack.nftables.fib_lookup import Routes
from tasks.skoop.netstack.nftables.render import rendered
from tasks.skoop.netstack.nftables.source import TableSource
from tasks.skoop.netstack.nftables.statements import StatementCompiler
from tasks.skoop.netstack.nftables.table import Table
from tasks.skoop.netstack.xtables.truth import NotUnderstood
from tests.unit.nftables.scene import LINKS, Json

LISTING = json.loads(Path(__file__).with_name("listing.json").read_text())
SPELT_DIFFERENTLY = frozenset(
    (
        *(
            "ct expiration > 10s",
            "tcp flags != 0x12",
            "ip6 dscp 0x03",
            "@nh,8,8 0x0",
            "@ll,0,48 0x5",
            'osf name "Linux"',
        ),
        *("fib saddr . iif oif 0", "sctp chunk init exists", "frag more-fragments 1", "rt type 0", "ipsec in reqid 1"),
        *("meter mm size 65535 { ip saddr limit rate 5/second }", "synproxy mss 1460 wscale 7 timestamp sack-perm"),
    )
)
"""Rules of which the text is not nft's own, but still says all."""
NOT_EVALUATED = frozenset(
    (
        *("@nh,8,8 0x0", "@ll,0,48 0x5", 'osf name "Linux"', "ipsec in reqid 1"),
        *("synproxy mss 1460 wscale 7 timestamp sack-perm", "ct original zone set 5", "meta priority 1:2"),
        *('meta sdif "lo"', "meta nfproto ipv4 igmp type membership-query"),
    )
)
"""Rules with something that is not understood when it is read; what can only be asked of a packet is not among them."""


@pytest.mark.parametrize("rule", LISTING["rules"], ids=lambda rule: rule["text"])
def test_a_rule_is_written_as_nft_lists_it(rule: Json) -> None:
    said = rendered(rule["expr"], family="inet", comment=rule.get("comment", ""))
    assert (said != rule["text"]) == (rule["text"] in SPELT_DIFFERENTLY)


def test_all_but_a_few_rules_are_understood() -> None:
    netns = NetNS(id=node_netns("n1"), interfaces=LINKS)
    source = NftTable(family="inet", name="t", objects=tuple(json.dumps(each) for each in LISTING["objects"]))
    table = Table(source, netns, Routes(netns))
    compiler = StatementCompiler(Compiler(netns, TableSource(source), Routes(netns)), table.chain)
    failed = set()
    for rule in LISTING["rules"]:
        for statement in rule["expr"]:
            try:
                compiler._statement(statement)
            except (NotUnderstood, ValueError):
                failed.add(rule["text"])
    assert failed == NOT_EVALUATED
