"""nftables' JSON: tables with their objects and hooks, and which of them belong to iptables-nft."""

import json

import pytest

from tasks.skoop.model.state import NftTable
from tasks.skoop.model.xtables import Backend, XTable
from tasks.skoop.parse.errors import ParseError
from tasks.skoop.parse.nft import lacks_devices, parse_nft, with_devices, without_iptables

METAINFO = {"metainfo": {"version": "1.1.3", "release_name": "x", "json_schema_version": 1}}
CHAIN = {
    "chain": {
        "family": "inet",
        "table": "stray",
        "name": "forward",
        "handle": 1,
        "type": "filter",
        "hook": "forward",
        "prio": 10,
        "policy": "drop",
    }
}
MAP = {
    "map": {"family": "inet", "name": "m", "table": "stray", "type": ["ipv4_addr", "inet_service"], "map": "verdict"}
}
OBJECTS = [
    {"table": {"family": "inet", "name": "stray", "handle": 5}},
    {"table": {"family": "ip", "name": "nat", "handle": 6}},
    {"table": {"family": "ip6", "name": "nat", "handle": 7}},
    CHAIN,
    MAP,
    {
        "chain": {
            "family": "ip",
            "table": "nat",
            "name": "PREROUTING",
            "type": "nat",
            "hook": "prerouting",
            "prio": -100,
        }
    },
    {"rule": {"family": "inet", "table": "stray", "chain": "forward", "handle": 2, "expr": [{"drop": None}]}},
]
TEXT = json.dumps({"nftables": [METAINFO, *OBJECTS]})


def test_tables_objects_and_hooks() -> None:
    stray, nat, nat6 = parse_nft(TEXT)
    assert [json.loads(text) for text in stray.objects] == [OBJECTS[0], CHAIN, MAP, OBJECTS[6]]
    assert (stray.family, stray.name, stray.hooks) == ("inet", "stray", (("forward", "filter", "forward", 10, "drop"),))
    assert nat.hooks == (("PREROUTING", "nat", "prerouting", -100, "accept"),)
    assert nat6 == NftTable(family="ip6", name="nat", objects=(json.dumps(OBJECTS[2]),))


def test_no_tables() -> None:
    assert parse_nft(json.dumps({"nftables": [METAINFO]})) == ()


def test_tables_of_iptables_nft_are_left_out_by_family_and_name() -> None:
    mine = XTable(backend=Backend.NFT, family=4, name="nat")
    legacy = XTable(backend=Backend.LEGACY, family=6, name="nat")
    left = without_iptables(parse_nft(TEXT), (mine, legacy))
    assert [(table.family, table.name) for table in left] == [("inet", "stray"), ("ip6", "nat")]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("", "ends in the middle", id="nothing"),
        pytest.param(TEXT[:-5], "ends in the middle", id="cut short"),
        pytest.param('{"nftables": [{"rule": {"table": "x"}}]}', "object 0", id="object without family"),
        pytest.param("table ip nat {\n}", "not JSON", id="the text form"),
    ],
)
def test_refuses(text: str, problem: str) -> None:
    with pytest.raises(ParseError, match=problem):
        parse_nft(text)


def test_every_cut_is_noticed() -> None:
    for cut in range(0, len(TEXT), 7):
        with pytest.raises(ParseError):
            parse_nft(TEXT[:cut])


QUIET = """{"nftables": [{"metainfo": {"version": "1.0.6", "release_name": "x", "json_schema_version": 1}},
{"table": {"family": "netdev", "name": "t", "handle": 1}},
{"chain": {"family": "netdev", "table": "t", "name": "in", "handle": 1, "type": "filter", "hook": "ingress", "prio": 0, "policy": "accept"}},
{"chain": {"family": "netdev", "table": "t", "name": "more", "handle": 2, "type": "filter", "hook": "egress", "prio": 0, "policy": "drop"}},
{"chain": {"family": "netdev", "table": "t", "name": "plain", "handle": 3}}]}"""
PRINTED = """table netdev t {
\tchain in {
\t\ttype filter hook ingress device "eth0" priority filter; policy accept;
\t}

\tchain more {
\t\ttype filter hook egress devices = { "eth1", eth2 } priority filter; policy drop;
\t}

\tchain plain {
\t}
}
"""


def test_devices_that_the_json_keeps_quiet_about_are_taken_from_the_text() -> None:
    (table,) = parse_nft(QUIET)
    assert lacks_devices(table)
    whole = with_devices(table, PRINTED)
    assert not lacks_devices(whole)
    chains = [json.loads(text).get("chain", {}) for text in whole.objects]
    assert [chain.get("dev") for chain in chains] == [None, "eth0", ["eth1", "eth2"], None]
    assert with_devices(whole, PRINTED) == whole
