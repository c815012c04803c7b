"""Which packets a match statement fits: each kind of expression with what fits, what does not, and what cannot be said."""

from typing import Any

import pytest

from tasks.skoop.model.state import Tuple
from tasks.skoop.netstack.xtables.api import ConnectionView, Hook, Verdict
from tests.unit.nftables.scene import DROP, Json, concat, ct, evaluate, match, meta, numgen, payload, prefix, span, table
from tests.unit.xtables.scene import FixedFacts, context

YES, NO, UNKNOWN = "fits", "does not fit", "cannot be said"
FLOW = ConnectionView(
    original=Tuple("10.1.0.2", "10.96.0.1", 40000, 80),  # type: ignore[arg-type]  # canonical text
    reply=Tuple("10.2.0.2", "10.1.0.2", 8080, 40000),  # type: ignore[arg-type]  # canonical text
    status=frozenset(("DNAT",)),
    mark=5,
    zone=7,
)


def answer(statement: Json, family: int = 4, hook: Hook = Hook.FORWARD, **changes: Any) -> str:
    at = {key: changes.pop(key) for key in ("connection", "mac", "local_uid", "in_dev") if key in changes}
    facts = changes.pop("facts", None)
    hooks = (("base", "filter", hook.lower(), 0, "accept"),)
    source = table({"base": [[statement, DROP]]}, hooks=hooks)
    results = evaluate(source, context(hook, family=family, at=at, facts=facts, **changes))
    if any(result.missing for result in results):
        return UNKNOWN
    (result,) = results
    return YES if result.verdict == Verdict.DROP else NO


SADDR, DADDR, DPORT = payload("ip saddr"), payload("ip daddr"), payload("tcp dport")
FLAGS, STATE, MARK = payload("tcp flags"), ct("state"), meta("mark")
PAIR = concat(DADDR, meta("l4proto"), payload("th dport"))


@pytest.mark.parametrize(
    ("statement", "changes", "expected"),
    [
        (match(SADDR, "10.1.0.2"), {}, YES),
        (match(SADDR, "10.1.0.3"), {}, NO),
        (match(SADDR, "10.1.0.3", "!="), {}, YES),
        (match(SADDR, prefix("10.1.0.0", 24)), {}, YES),
        (match(SADDR, prefix("10.1.0.0", 24), "!="), {}, NO),
        (match(SADDR, span("10.1.0.2", "10.1.0.9")), {}, YES),
        (match({"&": [SADDR, "255.0.0.255"]}, "10.0.0.2"), {}, YES),
        pytest.param(match(SADDR, "10.1.0.3", "!="), {"family": 6}, NO, id="an IPv6 packet has no ip saddr, != or not"),
        (match(payload("ip6 saddr"), prefix("fd00:1::", 64)), {"family": 6}, YES),
        (match(DPORT, 80), {}, YES),
        pytest.param(match(DPORT, 81, "!="), {"protocol": "udp"}, NO, id="a datagram has no tcp dport, != or not"),
        (match(DPORT, {"set": [22, span(70, 90)]}), {}, YES),
        (match(DPORT, {"set": [22, span(70, 79)]}), {}, NO),
        (match(DPORT, {"set": [80]}, "!="), {}, NO),
        (match(DPORT, 80, "<"), {}, NO),
        (match(DPORT, 80, "<="), {}, YES),
        (match(DPORT, 79, ">"), {}, YES),
        (match(DPORT, 81, ">="), {}, NO),
        (match(DPORT, "http"), {}, YES),
        pytest.param(match(DPORT, "gopher"), {}, UNKNOWN, id="a service name that is not known"),
        pytest.param(match(payload("th dport"), 80), {"protocol": "icmp"}, NO, id="the bytes there are a checksum"),
        pytest.param(match(payload("th dport"), span(1, 99)), {"protocol": "icmp"}, UNKNOWN, id="a checksum in a range"),
        (match(payload("th sport"), 2048), {"protocol": "icmp", "icmp_type": 8}, YES),
        (match(PAIR, {"set": [concat("10.2.0.2", "tcp", 80)]}), {}, YES),
        (match(PAIR, {"set": [concat("10.2.0.2", "udp", 80)]}), {}, NO),
        (match(PAIR, {"set": [concat(prefix("10.2.0.0", 24), "tcp", span(1, 99))]}), {}, YES),
        (match(PAIR, {"set": [concat(prefix("10.2.0.0", 24), "udp", span(1, 99))]}), {}, NO),
        (match(FLAGS, "syn", "in"), {"tcp_flags": "SYN,ACK"}, YES),
        (match(FLAGS, "syn"), {"tcp_flags": "SYN,ACK"}, NO),
        (match(FLAGS, ["syn", "rst"], "in"), {"tcp_flags": "RST"}, YES),
        (match(FLAGS, ["syn", "rst"], "!"), {"tcp_flags": "RST"}, NO),
        (match(FLAGS, "syn", "!"), {"tcp_flags": "ACK"}, YES),
        (match(FLAGS, 18, "!="), {"tcp_flags": "SYN,ACK"}, NO),
        (match({"&": [FLAGS, ["fin", "syn", "rst", "ack"]]}, "syn"), {}, YES),
        pytest.param(match({"&": [FLAGS, {"|": ["syn", "ack"]}]}, "syn"), {"tcp_flags": "SYN,ACK"}, NO, id="masked"),
        (match(STATE, "new", "in"), {}, YES),
        (match(STATE, ["established", "related"], "in"), {}, NO),
        (match(STATE, {"set": ["new", "untracked"]}), {}, YES),
        (match(STATE, "new", "!="), {}, NO),
        pytest.param(match(STATE, "invalid", "in"), {"ct_state": ""}, YES, id="before conntrack a packet is invalid"),
        (match(STATE, "untracked", "in"), {"ct_state": "UNTRACKED"}, YES),
        (match(ct("status"), "dnat", "in"), {"connection": FLOW}, YES),
        (match(ct("status"), "snat", "in"), {"connection": FLOW}, NO),
        pytest.param(match(ct("status"), "dnat"), {"connection": FLOW}, NO, id="with dnat another bit is set too"),
        pytest.param(match(ct("status"), "confirmed"), {"connection": FLOW}, UNKNOWN, id="all bits of the status"),
        (match(ct("mark"), 5), {"connection": FLOW}, YES),
        pytest.param(match(ct("mark"), 5, "!="), {"ct_state": "INVALID"}, NO, id="without connection there is no mark"),
        (match(ct("zone"), 7), {"connection": FLOW}, YES),
        (match(ct("direction"), "original"), {"connection": FLOW}, YES),
        (match(ct("ip daddr", dir="original"), "10.96.0.1"), {"connection": FLOW}, YES),
        (match(ct("ip saddr", dir="reply"), "10.2.0.2"), {"connection": FLOW}, YES),
        (match(ct("saddr", dir="reply", family="ip"), "10.2.0.2"), {"connection": FLOW}, YES),
        (match(ct("proto-dst", dir="original"), 80), {"connection": FLOW}, YES),
        (match(ct("label"), 5, "in"), {"connection": FLOW}, UNKNOWN),
        (match(MARK, 4), {"mark": 4}, YES),
        (match({"&": [MARK, 4]}, 0, "!="), {"mark": 6}, YES),
        (match({"|": [MARK, 1]}, 3), {"mark": 2}, YES),
        (match({"^": [MARK, 1]}, 3), {"mark": 2}, YES),
        (match({"<<": [MARK, 1]}, 4), {"mark": 2}, YES),
        (match({"|": [MARK, 1, 4]}, 7), {"mark": 2}, YES),
        (match(MARK, ct("mark")), {"mark": 5, "connection": FLOW}, YES),
        (match(meta("l4proto"), "ipv6-icmp"), {"protocol": "icmpv6", "family": 6}, YES),
        (match(meta("nfproto"), "ipv6"), {"family": 6}, YES),
        (match(meta("protocol"), {"set": ["ip", "ip6"]}), {}, YES),
        (match(meta("iifname"), "rc"), {}, YES),
        (match(meta("iifname"), "r*"), {}, YES),
        (match(meta("iifname"), "x*", "!="), {}, YES),
        (match(meta("iifname"), {"set": ["eth0", "r*"]}), {}, YES),
        pytest.param(match(meta("iifname"), "rc", "!="), {"hook": Hook.OUTPUT}, YES, id="no device is not that device"),
        (match(meta("iif"), "rc"), {}, YES),
        pytest.param(match(meta("iif"), "gone0"), {}, UNKNOWN, id="a device that is not there"),
        (match(meta("iifgroup"), "default"), {}, YES),
        (match(meta("iiftype"), "ether"), {}, YES),
        (match(meta("oifkind"), "veth"), {}, YES),
        (match(meta("length"), span(40, 60)), {}, YES),
        (match(meta("pkttype"), "host"), {}, YES),
        pytest.param(match(meta("skuid"), 0), {}, NO, id="nobody here has sent a packet that only passes"),
        (match(meta("skuid"), 1000), {"hook": Hook.OUTPUT, "local_uid": 1000}, YES),
        (match(meta("skuid"), 1000), {"hook": Hook.OUTPUT}, UNKNOWN),
        (match(meta("cgroup"), 5), {}, UNKNOWN),
        (match(payload("ip dscp"), "ef"), {"tos": 0xB8}, YES),
        (match(payload("ip ecn"), "ce"), {"tos": 3}, YES),
        (match(payload("ip ttl"), 63), {}, YES),
        (match(payload("icmp type"), "echo-request"), {"protocol": "icmp", "icmp_type": 8}, YES),
        (match(payload("icmp type"), "echo-request", "!="), {}, NO),
        (match(payload("icmpv6 type"), "nd-neighbor-solicit"), {"protocol": "icmpv6", "icmp_type": 135, "family": 6}, YES),
        (match(payload("ether saddr"), "02:00:00:00:00:09"), {"mac": "02:00:00:00:00:09"}, YES),
        (match(payload("ether saddr"), "02:00:00:00:00:09", "!="), {}, NO),
        (match(payload("ether daddr"), "02:00:00:00:00:09"), {"mac": "02:00:00:00:00:01"}, UNKNOWN),
        (match(payload("tcp window"), 5), {}, NO),
        (match(payload("tcp window"), 5, ">"), {}, UNKNOWN),
        (match({"payload": {"base": "th", "offset": 16, "len": 16}}, 80), {}, YES),
        (match({"payload": {"base": "nh", "offset": 8, "len": 8}}, 0), {}, UNKNOWN),
        (match({"exthdr": {"name": "frag"}}, True), {}, NO),
        (match({"exthdr": {"name": "frag"}}, False), {}, YES),
        (match({"fib": {"result": "type", "flags": ["daddr"]}}, "local"), {"dst": "10.1.0.1"}, YES),
        (match({"fib": {"result": "type", "flags": ["daddr", "iif"]}}, "local"), {"dst": "10.2.0.1"}, NO),
        (match({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, True), {}, YES),
        pytest.param(match({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, True), {"src": "10.2.0.9"}, NO, id="reverse path"),
        (match({"fib": {"result": "oif", "flags": ["saddr"]}}, False), {"src": "192.0.2.1"}, YES),
        (match({"fib": {"result": "oifname", "flags": ["daddr"]}}, "rs"), {}, YES),
        (match({"fib": {"result": "oif", "flags": ["daddr"]}}, "rs"), {}, YES),
        (match({"socket": {"key": "transparent"}}, 1), {"hook": Hook.PREROUTING, "facts": FixedFacts(socket=True)}, YES),
        (match({"socket": {"key": "transparent"}}, 1), {"hook": Hook.PREROUTING, "facts": FixedFacts(socket=False)}, NO),
        (match({"socket": {"key": "transparent"}}, 1), {"hook": Hook.PREROUTING}, UNKNOWN),
        (match({"rt": {"key": "nexthop", "family": "ip"}}, "10.2.0.2"), {}, UNKNOWN),
        (match({"osf": {"key": "name"}}, "Linux"), {}, UNKNOWN),
        (match({"tcp option": {"name": "maxseg"}}, True), {}, UNKNOWN),
        (match({"tcp option": {"name": "maxseg"}}, True), {"protocol": "udp"}, NO),
        (match(numgen(1), 0), {}, YES),
        (match(numgen(4, 10), 3, "<"), {}, NO),
        (match({"of tomorrow": {}}, 1), {}, UNKNOWN),
        (match(DPORT, 80, "~"), {}, UNKNOWN),
        (match(DPORT, "@nowhere"), {}, UNKNOWN),
        ({"limit": {"rate": 1, "per": "second"}}, {}, YES),
        ({"limit": {"rate": 1, "per": "second", "inv": True}}, {}, NO),
        ({"quota": {"val": 1, "val_unit": "mbytes", "used": 5}}, {}, YES),
        ({"quota": {"val": 1, "val_unit": "kbytes", "used": 2, "used_unit": "kbytes"}}, {}, NO),
        ({"quota": {"val": 1, "val_unit": "kbytes", "used": 1024, "inv": True}}, {}, YES),
        ({"ct count": {"val": 10, "inv": True}}, {}, NO),
        ({"ct count": {"val": 10}}, {}, YES),
        ({"meter": {"key": SADDR, "name": "m", "stmt": {"limit": {"rate": 1, "per": "second"}}}}, {}, YES),
        ({"limit": "nowhere"}, {}, UNKNOWN),
        ({"xt": {"type": "match", "name": "comment"}}, {}, YES),
    ],
)  # fmt: skip
def test_a_match_fits(statement: Json, changes: dict[str, Any], expected: str) -> None:
    assert answer(statement, **changes) == expected


def test_two_answers_of_chance_are_as_likely_as_they_are() -> None:
    results = evaluate(table({"base": [[match(numgen(10), 3, "<"), DROP]]}))
    assert {result.verdict: pytest.approx(result.probability) for result in results} == {
        Verdict.DROP: 0.3,
        Verdict.ACCEPT: 0.7,
    }


def test_large_draws_are_weighed_without_being_gone_through() -> None:
    results = evaluate(table({"base": [[match(numgen(1 << 30), 1 << 28, "<"), DROP]]}))
    assert {result.verdict: result.probability for result in results} == {Verdict.DROP: 0.25, Verdict.ACCEPT: 0.75}


def test_what_hangs_on_the_clock_goes_both_ways_without_missing_anything() -> None:
    results = evaluate(table({"base": [[match(meta("hour"), span("10:00", "11:00")), DROP]]}))
    assert {result.verdict for result in results} == {Verdict.DROP, Verdict.ACCEPT}
    assert not any(result.missing for result in results)


def test_the_same_unknown_match_has_one_answer_per_packet() -> None:
    unknown = match(meta("cgroup"), 5)
    results = evaluate(table({"base": [[unknown, put_mark(1)], [unknown, put_mark(2)]]}))
    assert {result.packet.mark for result in results} == {0, 2}


def test_an_unknown_match_before_nothing_but_counting_parts_no_ways() -> None:
    (result,) = evaluate(table({"base": [[match(meta("cgroup"), 5), {"counter": None}, {"log": None}]]}))
    assert not result.missing


def put_mark(number: int) -> Json:
    return {"mangle": {"key": MARK, "value": number}}
