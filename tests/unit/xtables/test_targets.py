"""Each target: what it does to the packet, the connection and the way."""

from typing import Any

import pytest
from msgspec.structs import replace

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.packet import CtState
from tasks.skoop.netstack.xtables.api import ConnectionView, Hook, NatAction, NatKind, TableResult, Verdict
from tests.unit.xtables.scene import Field, context, minimal, table_of


def _one(
    rules: str, *, table: str = "mangle", hook: Hook = Hook.PREROUTING, family: int = 4, **scene: Field
) -> TableResult:
    (result,) = table_of(rules, table=table, chain=hook, family=family).evaluate(context(hook, family=family, **scene))
    return result


MARKS = [
    ("--set-xmark 0x4000/0x4000", 0x8001, 0xC001),
    ("--set-xmark 0x4000/0x0", 0xC000, 0x8000),
    ("--set-xmark 0x4000/0x0", 0x8000, 0xC000),
    ("--set-xmark 0x53a/0xffffffff", 0xFFFF, 0x53A),
    ("--set-xmark 0x0/0xff", 0x1234, 0x1200),
    ("--set-mark 0x1/0xf", 0x12, 0x11),
    ("--set-mark 0x10/0xf", 0x11, 0x10),
    ("--set-mark 7", 0xFFFF, 7),
    ("--and-mark 0xff00", 0x12345, 0x2300),
    ("--or-mark 0x10", 0x01, 0x11),
    ("--xor-mark 0x11", 0x01, 0x10),
]


@pytest.mark.parametrize(("option", "before", "after"), MARKS)
def test_mark(option: str, before: int, after: int) -> None:
    result = _one(f"-A PREROUTING -j MARK {option}\n-A PREROUTING -m mark --mark 0x{after:x} -j DROP", mark=before)
    assert result.packet.mark == after
    assert result.verdict == Verdict.DROP
    assert result.steps[0].packet == result.packet
    assert minimal(result)[0] == f"PREROUTING#1 mark 0x{after:x}"


CONNMARKS = [
    ("--set-xmark 0x10/0xff", 0, 0x1234, 0x1210, 0),
    ("--save-mark --nfmask 0xffffffff --ctmask 0xffffffff", 0xABC, 5, 0xABC, 0xABC),
    ("--save-mark --nfmask 0xf0 --ctmask 0xff", 0xABC, 0x1200, 0x12B0, 0xABC),
    ("--restore-mark --nfmask 0xffffffff --ctmask 0xffffffff", 1, 0x77, None, 0x77),
    ("--restore-mark --nfmask 0xff --ctmask 0xf0", 0x1201, 0x77, None, 0x1270),
    ("--restore-mark --mask 0xf", 0x1201, 0x77, None, 0x1207),
    ("--or-mark 0x1", 0, 0x10, 0x11, 0),
]


@pytest.mark.parametrize(("option", "mark", "connmark", "new_connmark", "new_mark"), CONNMARKS)
def test_connmark(option: str, mark: int, connmark: int, new_connmark: int | None, new_mark: int) -> None:
    at = {"connection": ConnectionView(mark=connmark)}
    result = _one(f"-A PREROUTING -j CONNMARK {option}", mark=mark, at=at)
    assert (result.connmark, result.packet.mark) == (new_connmark, new_mark)


def test_connmark_is_seen_by_later_rules() -> None:
    rules = "-A PREROUTING -j CONNMARK --set-xmark 0x5/0xffffffff\n-A PREROUTING -m connmark --mark 0x5 -j DROP"
    assert _one(rules).verdict == Verdict.DROP


def test_connmark_does_nothing_without_a_connection() -> None:
    result = _one("-A PREROUTING -j CONNMARK --set-xmark 0x5/0xff", ct_state=CtState.INVALID)
    assert result.connmark is None
    assert minimal(result)[0] == "PREROUTING#1 connmark no connection"


def _nat(kind: NatKind, first: str, last: str, ports: tuple[int, int] | None = None) -> NatAction:
    return NatAction(kind=kind, addresses=((Ip(first), Ip(last)),), ports=ports)


NATS = [
    ("DNAT --to-destination 10.2.0.2:8080", _nat(NatKind.DNAT, "10.2.0.2", "10.2.0.2", ports=(8080, 8080)), "to 10.2.0.2:8080"),
    ("DNAT --to-destination 10.2.0.2", _nat(NatKind.DNAT, "10.2.0.2", "10.2.0.2"), "to 10.2.0.2"),
    ("DNAT --to-destination 1.1.1.1-1.1.1.9:10-20 --random", replace(_nat(NatKind.DNAT, "1.1.1.1", "1.1.1.9", ports=(10, 20)), random=True), "to 1.1.1.1-1.1.1.9:10-20"),
    ("DNAT --to-destination :8080", NatAction(kind=NatKind.DNAT, ports=(8080, 8080)), "to port 8080"),
    ("SNAT --to-source 10.0.0.1 --random-fully --persistent", replace(_nat(NatKind.SNAT, "10.0.0.1", "10.0.0.1"), random=True), "to 10.0.0.1"),
    ("SNAT --to 10.0.0.1", _nat(NatKind.SNAT, "10.0.0.1", "10.0.0.1"), "to 10.0.0.1"),
    ("MASQUERADE --random-fully", NatAction(kind=NatKind.MASQUERADE, random=True), ""),
    ("MASQUERADE --to-ports 1024-65535", NatAction(kind=NatKind.MASQUERADE, ports=(1024, 65535)), "to port 1024-65535"),
    ("REDIRECT --to-ports 15001", NatAction(kind=NatKind.REDIRECT, ports=(15001, 15001)), "to port 15001"),
    ("NETMAP --to 192.168.4.0/24", _nat(NatKind.NETMAP, "192.168.4.0", "192.168.4.255"), "to 192.168.4.0-192.168.4.255"),
]  # fmt: skip

NATS_IN_IPV6 = [
    ("DNAT --to-destination [fd00::1]:80", _nat(NatKind.DNAT, "fd00::1", "fd00::1", ports=(80, 80)), "to [fd00::1]:80"),
    ("DNAT --to-destination fd00::1-fd00::9", _nat(NatKind.DNAT, "fd00::1", "fd00::9"), "to fd00::1-fd00::9"),
    ("DNAT --to-destination :80", NatAction(kind=NatKind.DNAT, ports=(80, 80)), "to port 80"),
    ("NETMAP --to fd00:5::/64", _nat(NatKind.NETMAP, "fd00:5::", "fd00:5::ffff:ffff:ffff:ffff"), "to fd00:5::-fd00:5::ffff:ffff:ffff:ffff"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "target", "action", "detail"), [(4, *case) for case in NATS] + [(6, *case) for case in NATS_IN_IPV6]
)
def test_nat_ends_the_table(family: int, target: str, action: NatAction, detail: str) -> None:
    result = _one(f"-A PREROUTING -j {target}\n-A PREROUTING -j DROP", table="nat", family=family)
    assert (result.verdict, result.nat) == (Verdict.ACCEPT, action)
    assert minimal(result) == [f"PREROUTING#1 {action.kind} {detail}".rstrip()]


@pytest.mark.parametrize(
    ("family", "option", "word"),
    [
        (4, "", "icmp-port-unreachable"),
        (6, "", "icmp6-port-unreachable"),
        (4, "--reject-with icmp-admin-prohibited", "icmp-admin-prohibited"),
        (4, "--reject-with tcp-reset", "tcp-reset"),
        (6, "--reject-with adm-prohibited", "icmp6-adm-prohibited"),
        (6, "--reject-with port-unreach", "icmp6-port-unreachable"),
    ],
)
def test_reject(family: int, option: str, word: str) -> None:
    result = _one(f"-A FORWARD -j REJECT {option}", table="filter", hook=Hook.FORWARD, family=family)
    assert (result.verdict, result.reject) == (Verdict.REJECT, word)


@pytest.mark.parametrize(
    "target",
    ["", "-j LOG --log-prefix \"x \"", "-j NFLOG --nflog-group 5", "-j TRACE", "-j TCPMSS --clamp-mss-to-pmtu",
     "-j CHECKSUM --checksum-fill", "-j CLASSIFY --set-class 1:1", "-j SET --add-set x src", "-j AUDIT --type accept"],
)  # fmt: skip
def test_target_after_which_the_next_rule_is_tried(target: str) -> None:
    result = _one(f"-A PREROUTING {target}\n-A PREROUTING -j DROP")
    assert result.verdict == Verdict.DROP
    assert [step.place.rule for step in result.steps] == [1, 2]


@pytest.mark.parametrize("target", ["NOTRACK", "CT --notrack"])
def test_notrack(target: str) -> None:
    rules = (
        f"-A PREROUTING -j {target}\n-A PREROUTING -m conntrack --ctstate UNTRACKED -j ACCEPT\n-A PREROUTING -j DROP"
    )
    result = _one(rules, table="raw", ct_state=CtState.NONE)
    assert result.notrack
    assert minimal(result) == ["PREROUTING#1 notrack", "PREROUTING#2 accept"]


def test_notrack_leaves_a_packet_that_has_a_connection() -> None:
    assert not _one("-A PREROUTING -j CT --notrack", table="raw", ct_state=CtState.NEW).notrack


@pytest.mark.parametrize(("zone", "expected"), [("1", 1), ("mark", 0x777)])
def test_zone(zone: str, expected: int) -> None:
    result = _one(f"-A PREROUTING -j CT --zone {zone}", table="raw", ct_state=CtState.NONE, mark=0x10777)
    assert result.zone == expected


def test_the_first_of_zone_and_notrack_wins() -> None:
    result = _one("-A PREROUTING -j CT --zone 3\n-A PREROUTING -j NOTRACK", table="raw", ct_state=CtState.NONE)
    assert (result.zone, result.notrack) == (3, False)


@pytest.mark.parametrize(
    ("target", "field", "before", "after"),
    [
        ("TTL --ttl-set 5", "ttl", 63, 5),
        ("TTL --ttl-dec 70", "ttl", 63, 0),
        ("TTL --ttl-inc 200", "ttl", 63, 255),
        ("DSCP --set-dscp 0x2e", "tos", 0x03, 0xBB),
        ("DSCP --set-dscp-class AF11", "tos", 0, 0x28),
        ("TOS --set-tos 0x10/0x3f", "tos", 0xC4, 0xD0),
        ("TOS --and-tos 0xf0", "tos", 0xC4, 0xC0),
        ("TOS --or-tos 0x01", "tos", 0xC4, 0xC5),
        ("TOS --xor-tos 0x04", "tos", 0xC4, 0xC0),
    ],
)
def test_header_change(target: str, field: str, before: int, after: int) -> None:
    scene: dict[str, Any] = {field: before}
    result = _one(f"-A PREROUTING -j {target}", **scene)
    assert getattr(result.packet, field) == after


def test_tproxy() -> None:
    rule = "-A PREROUTING -p tcp -j TPROXY --on-port 15001 --on-ip 0.0.0.0 --tproxy-mark 0x539/0xffffffff"
    result = _one(rule)
    assert (result.verdict, result.tproxy, result.packet.mark) == (Verdict.ACCEPT, ("0.0.0.0", 15001), 0x539)
    assert _one("-A PREROUTING -p tcp -j TPROXY --on-port 0 --on-ip 10.1.0.1").tproxy == ("10.1.0.1", 80)


@pytest.mark.parametrize(
    "target",
    ["NFQUEUE --queue-num 1", "QUEUE", "SYNPROXY", "NOSUCHTARGET --x 1", "MARK --nonsense 1", "DNAT --to-destination 1.1.1.1:1-9/5",
     "CONNMARK --left-shift-mark 2", "CT --zone-orig 5", "HMARK --hmark-mod 2", "SET --map-set x src --map-mark"],
)  # fmt: skip
def test_target_that_cannot_be_told_is_unknown_and_names_itself(target: str) -> None:
    result = _one(f"-A PREROUTING -j {target}\n-A PREROUTING -j ACCEPT")
    assert result.verdict == Verdict.UNKNOWN
    assert result.missing[0].startswith(f"node/n1 mangle/PREROUTING#1: -j {target.split(maxsplit=1)[0]}")


@pytest.mark.parametrize("target", ["NFQUEUE --queue-num 1", "NOSUCHTARGET"])
def test_unknown_target_of_a_rule_that_does_not_match_does_not_matter(target: str) -> None:
    assert _one(f"-A PREROUTING -p udp -j {target}").verdict == Verdict.ACCEPT
