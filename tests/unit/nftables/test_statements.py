"""What statements do: verdicts and the way through chains, maps, NAT, marks, sets that rules fill, and what is not known."""

from typing import Any

import pytest

from tasks.skoop.netstack.xtables.api import Hook, NatAction, NatKind, TableResult, Verdict
from tests.unit.nftables.scene import (
    ACCEPT,
    CONTINUE,
    DROP,
    RETURN,
    Json,
    acts,
    concat,
    ct,
    evaluate,
    goto,
    jump,
    mapped,
    match,
    meta,
    named,
    numgen,
    only,
    payload,
    prefix,
    put,
    span,
    table,
    vmap,
)
from tests.unit.xtables.scene import FixedFacts, context

MARK, SADDR, DADDR, DPORT = meta("mark"), payload("ip saddr"), payload("ip daddr"), payload("tcp dport")
NAT = (("base", "nat", "prerouting", -100, "accept"),)
PRE = (("base", "filter", "prerouting", -300, "accept"),)
OUT = (("base", "nat", "postrouting", 100, "accept"),)


def marked(number: int) -> Json:
    return put(MARK, number)


# --- the way through chains ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chains", "steps", "verdict"),
    [
        pytest.param({"base": [[ACCEPT], [DROP]]}, ["base#1 accept"], Verdict.ACCEPT, id="accept ends the base chain"),
        pytest.param({"base": [[CONTINUE], [DROP]]}, ["base#1 match", "base#2 drop"], Verdict.DROP, id="continue"),
        pytest.param(
            {"base": [[jump("a")], [DROP]], "a": [[RETURN], [ACCEPT]]},
            ["base#1 jump", "a#1 return", "base#2 drop"],
            Verdict.DROP,
            id="return goes behind the jump",
        ),
        pytest.param(
            {"base": [[jump("a")], [DROP]], "a": [[goto("b")], [ACCEPT]], "b": []},
            ["base#1 jump", "a#1 goto", "base#2 drop"],
            Verdict.DROP,
            id="the end of a chain gone to returns to the jump before",
        ),
        pytest.param(
            {"base": [[goto("a")], [DROP]], "a": [[RETURN]]},
            ["base#1 goto", "a#1 return", "base#0 accept"],
            Verdict.ACCEPT,
            id="after a goto from the base chain its policy decides",
        ),
        pytest.param(
            {"base": [[RETURN], [DROP]]},
            ["base#1 return", "base#0 accept"],
            Verdict.ACCEPT,
            id="return in the base chain",
        ),
        pytest.param(
            {"base": [[marked(1), match(DPORT, 22), DROP], [match(MARK, 1), DROP]]},
            ["base#1 mark", "base#2 drop"],
            Verdict.DROP,
            id="what a rule did before it failed to match is done",
        ),
        pytest.param(
            {"base": [[vmap(DPORT, [80, jump("a")], [22, ACCEPT])], [DROP]], "a": []},
            ["base#1 jump", "base#2 drop"],
            Verdict.DROP,
            id="a verdict out of a map",
        ),
        pytest.param(
            {"base": [[vmap(DPORT, [22, ACCEPT])], [DROP]]}, ["base#2 drop"], Verdict.DROP, id="not in the map"
        ),
        pytest.param(
            {"base": [[vmap(DPORT, [22, ACCEPT], ["*", DROP])]]}, ["base#1 drop"], Verdict.DROP, id="the map's wildcard"
        ),
        pytest.param(
            {"base": [[vmap(DPORT, [80, CONTINUE]), marked(3)], [match(MARK, 3), DROP]]},
            ["base#1 mark", "base#2 drop"],
            Verdict.DROP,
            id="continue out of a map goes on with the rule",
        ),
        pytest.param(
            {"base": [[{"counter": None}], [{"log": None}, {"counter": {"packets": 1, "bytes": 2}}], [DROP]]},
            ["base#1 match", "base#2 log", "base#3 drop"],
            Verdict.DROP,
            id="counting and logging end nothing",
        ),
    ],
)
def test_the_way_through_chains(chains: dict[str, list[list[Json]]], steps: list[str], verdict: Verdict) -> None:
    result = only(table(chains))
    assert acts(result) == steps
    assert result.verdict == verdict


def test_the_policy_drops() -> None:
    result = only(table({"base": [[match(DPORT, 22), ACCEPT]]}, hooks=(("base", "filter", "forward", 0, "drop"),)))
    assert result.verdict == Verdict.DROP
    assert (result.steps[-1].place.rule, result.steps[-1].place.table, result.steps[-1].place.backend) == (
        0,
        "inet t",
        "nft",
    )


def test_chains_that_call_each_other_end_unknown() -> None:
    result = only(table({"base": [[goto("a")]], "a": [[goto("b")]], "b": [[goto("a")]]}))
    assert result.verdict == Verdict.UNKNOWN
    assert "circle" in result.missing[0]


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param({"queue": {"num": 5}}, id="queue"),
        pytest.param({"synproxy": {"mss": 1460}}, id="synproxy"),
        pytest.param({"xt": {"type": "target", "name": "TCPMSS"}}, id="a target of iptables"),
        pytest.param({"of tomorrow": {}}, id="a statement not known"),
        pytest.param("tomorrow's statement", id="a statement that nft prints as text"),
        pytest.param(jump("nowhere"), id="a chain that is not listed"),
        pytest.param(vmap(DPORT, [80, jump("nowhere")]), id="a chain that is not listed, in a map"),
        pytest.param(vmap(meta("cgroup"), [80, ACCEPT]), id="a map of what is not known"),
        pytest.param(put(MARK, ct("label")), id="a mark out of what is not known"),
        pytest.param({"reject": {"type": "icmp", "expr": "of tomorrow"}}, id="a reject not known"),
    ],
)
def test_what_is_not_known_never_passes(statement: Json) -> None:
    result = only(table({"base": [[statement], [ACCEPT]]}))
    assert result.verdict == Verdict.UNKNOWN
    assert result.missing


# --- chance ------------------------------------------------------------------------------------------------------------


def split(results: tuple[TableResult, ...]) -> dict[int, float]:
    """Return how likely each mark is."""
    found: dict[int, float] = {}
    for result in results:
        found[result.packet.mark] = found.get(result.packet.mark, 0.0) + result.probability
    return {mark: round(share, 6) for mark, share in found.items()}


@pytest.mark.parametrize(
    ("chains", "expected"),
    [
        pytest.param(
            {"base": [[vmap(numgen(3), *([n, goto(f"e{n}")] for n in range(3)))]], **{f"e{n}": [[marked(n)]] for n in range(3)}},
            {0: 0.333333, 1: 0.333333, 2: 0.333333},
            id="endpoints of a service",
        ),
        pytest.param(
            {"base": [[vmap(numgen(10), [span(0, 6), goto("a")], [span(7, 9), goto("b")])]], "a": [[marked(1)]], "b": [[marked(2)]]},
            {1: 0.7, 2: 0.3},
            id="weights",
        ),
        pytest.param({"base": [[put(MARK, numgen(4, 100))]]}, {100: 0.25, 101: 0.25, 102: 0.25, 103: 0.25}, id="a value"),
        pytest.param(
            {"base": [[put(MARK, {"|": [numgen(2), 4]})]]}, {4: 0.5, 5: 0.5}, id="a value with something done to it"
        ),
        pytest.param(
            {"base": [[put(MARK, mapped(numgen(4), [0, 7], [1, 7], [2, 8]))]]}, {7: 0.5, 8: 0.25, 0: 0.25}, id="out of a map"
        ),
        pytest.param(
            {"base": [[match(concat(numgen(2), DPORT), {"set": [concat(0, 80)]}), marked(1)]]},
            {0: 0.5, 1: 0.5},
            id="part of a concatenation",
        ),
        pytest.param(
            {"base": [[put(MARK, {"jhash": {"mod": 2, "expr": SADDR}})], [match({"jhash": {"mod": 2, "expr": SADDR}}, 0), put(MARK, {"|": [MARK, 8]})]]},
            {8: 0.5, 1: 0.5},
            id="a hash gives the same number again",
        ),
        pytest.param(
            {"base": [[put(MARK, numgen(2))], [match(numgen(2), 0), put(MARK, {"|": [MARK, 8]})]]},
            {0: 0.25, 1: 0.25, 8: 0.25, 9: 0.25},
            id="a random number is drawn anew",
        ),
    ],
)  # fmt: skip
def test_draws_part_the_ways(chains: dict[str, list[list[Json]]], expected: dict[int, float]) -> None:
    assert split(evaluate(table(chains))) == expected


# --- NAT ---------------------------------------------------------------------------------------------------------------


def nat(kind: NatKind, first: str = "", last: str = "", ports: tuple[int, int] | None = None) -> NatAction:
    addresses: Any = ((first, last or first),) if first else ()
    return NatAction(kind=kind, addresses=addresses, ports=ports)


@pytest.mark.parametrize(
    ("statement", "hook", "expected"),
    [
        ({"dnat": {"family": "ip", "addr": "10.2.0.3"}}, Hook.PREROUTING, nat(NatKind.DNAT, "10.2.0.3")),
        ({"dnat": {"addr": "10.2.0.3", "port": 8080}}, Hook.PREROUTING, nat(NatKind.DNAT, "10.2.0.3", ports=(8080, 8080))),
        ({"dnat": {"port": span(80, 90)}}, Hook.PREROUTING, nat(NatKind.DNAT, ports=(80, 90))),
        ({"dnat": {"family": "ip", "addr": span("10.2.0.3", "10.2.0.9")}}, Hook.PREROUTING, nat(NatKind.DNAT, "10.2.0.3", "10.2.0.9")),
        (
            {"dnat": {"family": "ip", "addr": mapped(DPORT, [80, "10.2.0.7"])}},
            Hook.PREROUTING,
            nat(NatKind.DNAT, "10.2.0.7"),
        ),
        (
            {"dnat": {"family": "ip", "addr": mapped(concat(DADDR, DPORT), [concat("10.2.0.2", 80), concat("10.2.0.7", 8080)])}},
            Hook.PREROUTING,
            nat(NatKind.DNAT, "10.2.0.7", ports=(8080, 8080)),
        ),
        (
            {"dnat": {"family": "ip", "addr": "10.2.0.7", "port": mapped(DPORT, [80, 8080])}},
            Hook.PREROUTING,
            nat(NatKind.DNAT, "10.2.0.7", ports=(8080, 8080)),
        ),
        (
            {"dnat": {"family": "ip", "addr": mapped(DADDR, [prefix("10.2.0.0", 24), prefix("10.9.0.0", 24)]), "flags": "netmap", "type_flags": "prefix"}},
            Hook.PREROUTING,
            nat(NatKind.NETMAP, "10.9.0.0", "10.9.0.255"),
        ),
        ({"redirect": None}, Hook.PREROUTING, nat(NatKind.REDIRECT)),
        ({"redirect": {"port": 8080}}, Hook.PREROUTING, nat(NatKind.REDIRECT, ports=(8080, 8080))),
        ({"masquerade": None}, Hook.POSTROUTING, nat(NatKind.MASQUERADE)),
        ({"masquerade": {"flags": "fully-random"}}, Hook.POSTROUTING, nat(NatKind.MASQUERADE)),
        ({"snat": {"family": "ip", "addr": "192.0.2.1"}}, Hook.POSTROUTING, nat(NatKind.SNAT, "192.0.2.1")),
        pytest.param({"dnat": {"family": "ip6", "addr": "fd00::1"}}, Hook.PREROUTING, None, id="of the other family"),
        pytest.param({"dnat": {"family": "ip", "addr": mapped(DPORT, [22, "10.2.0.7"])}}, Hook.PREROUTING, None, id="not in the map"),
    ],
)  # fmt: skip
def test_nat_asks_for(statement: Json, hook: Hook, expected: NatAction | None) -> None:
    hooks = NAT if hook == Hook.PREROUTING else OUT
    result = only(table({"base": [[statement]]}, hooks=hooks), context(hook))
    assert result.nat == expected
    assert result.verdict == Verdict.ACCEPT


# --- rejects, marks, conntrack, headers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "family", "protocol", "expected"),
    [
        ({"reject": None}, 4, "tcp", "icmp-port-unreachable"),
        ({"reject": None}, 6, "tcp", "icmp6-port-unreachable"),
        ({"reject": {"type": "icmpx", "expr": "admin-prohibited"}}, 4, "udp", "icmp-admin-prohibited"),
        ({"reject": {"type": "icmpx", "expr": "no-route"}}, 6, "udp", "icmp6-no-route"),
        ({"reject": {"type": "icmp", "expr": "prot-unreachable"}}, 4, "udp", "icmp-proto-unreachable"),
        ({"reject": {"type": "icmp", "expr": "host-unreachable"}}, 6, "udp", ""),
        ({"reject": {"type": "icmpv6", "expr": "addr-unreachable"}}, 6, "udp", "icmp6-addr-unreachable"),
        ({"reject": {"type": "tcp reset"}}, 4, "tcp", "tcp-reset"),
        ({"reject": {"type": "tcp reset"}}, 4, "udp", ""),
    ],
)
def test_reject_answers(statement: Json, family: int, protocol: str, expected: str) -> None:
    result = only(table({"base": [[statement]]}), context(family=family, protocol=protocol))
    assert result.reject == expected
    assert result.verdict == (Verdict.REJECT if expected else Verdict.ACCEPT)


@pytest.mark.parametrize(
    ("key", "value", "field", "expected"),
    [
        (MARK, 7, "mark", 7),
        (MARK, {"|": [{"&": [MARK, 0xFFFFFF00]}, 0x12]}, "mark", 0x12),
        (MARK, mapped(DPORT, [80, 3]), "mark", 3),
        (MARK, mapped(DPORT, [22, 3]), "mark", 0),
        (payload("ip dscp"), "ef", "tos", 0xB8),
        (payload("ip ecn"), "ce", "tos", 3),
        (payload("ip ttl"), 5, "ttl", 5),
        (payload("ip daddr"), "10.2.0.9", "dst", "10.2.0.9"),
        (payload("ip6 daddr"), "fd00::9", "dst", "10.2.0.2"),
        (payload("tcp dport"), 8080, "dport", 8080),
        (payload("udp dport"), 8080, "dport", 80),
        ({"tcp option": {"name": "maxseg", "field": "size"}}, {"rt": {"key": "mtu"}}, "length", 60),
        (meta("priority"), "1:2", "mark", 0),
        (payload("udp checksum"), 0, "dport", 80),
    ],
)
def test_a_statement_sets(key: Json, value: Json, field: str, expected: object) -> None:
    result = only(table({"base": [[put(key, value)]]}))
    assert getattr(result.packet, field) == expected
    assert not result.missing


def test_later_rules_see_what_was_written() -> None:
    result = only(table({"base": [[put(DADDR, "10.2.0.9")], [match(DADDR, "10.2.0.9"), DROP]]}))
    assert result.verdict == Verdict.DROP


def test_connmarks_are_kept_for_tracked_packets_only() -> None:
    source = table({"base": [[put(ct("mark"), 5)], [match(ct("mark"), 5), DROP]]})
    assert only(source).connmark == 5
    assert only(source).verdict == Verdict.DROP
    assert only(source, context(ct_state="INVALID")).connmark is None


def test_notrack_and_zones_are_for_packets_that_conntrack_has_not_seen() -> None:
    chains = {"base": [[{"notrack": None}], [match(ct("state"), "untracked", "in"), DROP]]}
    early = only(table(chains, hooks=PRE), context(Hook.PREROUTING, ct_state=""))
    assert (early.notrack, early.verdict) == (True, Verdict.DROP)
    assert not only(table(chains, hooks=PRE), context(Hook.PREROUTING)).notrack
    zone = only(table({"base": [[put(ct("zone"), 5)], [match(ct("state"), "new", "in"), DROP]]}, hooks=PRE), context(Hook.PREROUTING, ct_state=""))  # fmt: skip
    assert (zone.zone, zone.verdict) == (5, Verdict.DROP)
    both = only(table({"base": [[{"notrack": None}], [put(ct("zone"), 5)]]}, hooks=PRE), context(Hook.PREROUTING, ct_state=""))  # fmt: skip
    assert (both.zone, both.notrack) == (5, False)


@pytest.mark.parametrize(
    ("socket", "verdict", "target"),
    [
        (True, Verdict.DROP, ("127.0.0.1", 50080)),
        (False, Verdict.ACCEPT, None),
        (None, Verdict.ACCEPT, ("127.0.0.1", 50080)),
    ],
)
def test_tproxy_goes_on_if_there_is_a_socket(socket: bool | None, verdict: Verdict, target: object) -> None:
    source = table({"base": [[{"tproxy": {"family": "ip", "addr": "127.0.0.1", "port": 50080}}, DROP]]}, hooks=PRE)
    result = only(source, context(Hook.PREROUTING, facts=FixedFacts(socket=socket)))
    assert (result.verdict, result.tproxy) == (verdict, target)


# --- sets --------------------------------------------------------------------------------------------------------------


CLIENTS = named("set", "clients", ["10.1.0.2", {"elem": {"val": "10.1.0.9", "expires": 5}}], type="ipv4_addr")
WHERE = named(
    "map",
    "where",
    [
        [concat("10.2.0.2", "tcp", 80), goto("a")],
        [{"elem": {"val": concat("10.2.0.2", "udp", 53), "comment": "c"}}, DROP],
    ],
    type=["ipv4_addr", "inet_proto", "inet_service"],
    map="verdict",
)
KEY = concat(DADDR, meta("l4proto"), payload("th dport"))


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        pytest.param({}, ["base#1 match", "base#2 goto", "a#1 drop"], id="in the set, in the map"),
        pytest.param(
            {"src": "10.1.0.9", "dport": 81}, ["base#1 match", "base#3 accept"], id="an element with a timeout"
        ),
        pytest.param(
            {"src": "10.1.0.3", "protocol": "udp", "dport": 53}, ["base#2 drop"], id="an element with a comment"
        ),
        pytest.param(
            {"src": "10.1.0.3", "protocol": "icmp"}, ["base#3 accept"], id="what has no ports is in no such map"
        ),
    ],
)
def test_named_sets_and_maps(changes: dict[str, Any], steps: list[str]) -> None:
    chains = {
        "base": [[match(SADDR, "@clients"), {"counter": None}], [{"vmap": {"key": KEY, "data": "@where"}}], [ACCEPT]],
        "a": [[DROP]],
    }
    assert acts(only(table(chains, objects=(CLIENTS, WHERE)), context(**changes))) == steps


@pytest.mark.parametrize("op", ["add", "update"])
def test_rules_after_it_see_what_a_rule_put_into_a_set(op: str) -> None:
    put_in = {"set": {"op": op, "elem": SADDR, "set": "@clients"}}
    chains = {"base": [[put_in], [match(SADDR, "@clients"), DROP]]}
    empty = named("set", "clients", [], type="ipv4_addr", flags=["dynamic"])
    assert only(table(chains, objects=(empty,))).verdict == Verdict.DROP
    chains["base"].reverse()
    assert only(table(chains, objects=(empty,))).verdict == Verdict.ACCEPT


def test_rules_after_it_miss_what_a_rule_took_out_of_a_set() -> None:
    chains = {"base": [[{"set": {"op": "delete", "elem": SADDR, "set": "@clients"}}], [match(SADDR, "@clients"), DROP]]}
    assert only(table(chains, objects=(CLIENTS,))).verdict == Verdict.ACCEPT


def test_a_set_that_limits_lets_the_first_packet_pass() -> None:
    limit = {"limit": {"rate": 5, "per": "second", "inv": True}}
    put_in = {"set": {"op": "update", "elem": SADDR, "set": "@clients", "stmt": [limit]}}
    result = only(table({"base": [[put_in, DROP]]}, objects=(CLIENTS,)))
    assert result.verdict == Verdict.ACCEPT
    assert "limit" in result.assumed[0]


def test_elements_listed_apart_from_their_set_belong_to_it() -> None:
    more = {"element": {"family": "inet", "table": "t", "name": "clients", "elem": ["10.1.0.77"]}}
    chains = {"base": [[match(SADDR, "@clients"), DROP]]}
    assert only(table(chains, objects=(CLIENTS, more)), context(src="10.1.0.77")).verdict == Verdict.DROP


def test_named_limits_and_quotas() -> None:
    limit = {"limit": {"family": "inet", "table": "t", "name": "wide", "rate": 1, "per": "hour", "inv": True}}
    quota = {"quota": {"family": "inet", "table": "t", "name": "much", "bytes": 100, "used": 200, "inv": True}}
    chains = {"base": [[{"limit": "wide"}, DROP], [{"quota": "much"}, DROP]]}
    assert acts(only(table(chains, objects=(limit, quota)))) == ["base#2 drop"]


def test_a_counter_named_by_a_map_needs_its_element() -> None:
    counted = {"counter": {"map": {"key": SADDR, "data": {"set": [["10.1.0.3", "cn"]]}}}}
    assert only(table({"base": [[counted, DROP]]})).verdict == Verdict.ACCEPT
    assert only(table({"base": [[counted, DROP]]}), context(src="10.1.0.3")).verdict == Verdict.DROP
