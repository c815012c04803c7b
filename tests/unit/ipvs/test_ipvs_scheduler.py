"""Which real servers each scheduler may choose."""

import pytest

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.packet import Packet
from tasks.skoop.model.state import IpvsDestination, IpvsService
from tasks.skoop.netstack.ipvs_scheduler import candidates, group_of

A, B, C = (IpvsDestination(Ip(f"10.244.1.{n}"), 8080) for n in (1, 2, 3))
CLOSED = IpvsDestination(Ip("10.244.1.9"), 8080, "masq", 0)
HEAVY = IpvsDestination(Ip("10.244.1.8"), 8080, "masq", 3)


def syn(src: str = "10.244.1.3", sport: int = 40000) -> Packet:
    return Packet(src=Ip(src), dst=Ip("10.96.0.1"), sport=sport, dport=80)


def chosen(service: IpvsService, packet: Packet | None = None) -> dict[str, float]:
    return {server.ip: round(share, 3) for server, share in candidates(service, packet or syn())}


def service(
    scheduler: str, *servers: IpvsDestination, ordered: bool = True, flags: tuple[str, ...] = ()
) -> IpvsService:
    return IpvsService(
        ip=Ip("10.96.0.1"), port=80, scheduler=scheduler, destinations=servers, ordered=ordered, flags=flags
    )


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        pytest.param(service("rr", A, B, HEAVY), {A.ip: 0.333, B.ip: 0.333, HEAVY.ip: 0.333}, id="rr knows no weight"),
        pytest.param(service("rr", A, CLOSED), {A.ip: 1.0}, id="weight 0 is closed"),
        pytest.param(service("rr", CLOSED), {}, id="all closed"),
        pytest.param(service("rr"), {}, id="none there"),
        pytest.param(service("wrr", A, HEAVY), {A.ip: 0.25, HEAVY.ip: 0.75}, id="wrr goes by weight"),
        pytest.param(service("wlc", A, HEAVY, CLOSED), {A.ip: 0.25, HEAVY.ip: 0.75}, id="wlc: by weight, a set"),
        pytest.param(service("fo", A, HEAVY, B), {HEAVY.ip: 1.0}, id="fo: the heaviest"),
        pytest.param(service("fo", B, A), {B.ip: 1.0}, id="fo: of equals the kernel's first"),
        pytest.param(service("fo", B, A, ordered=False), {A.ip: 0.5, B.ip: 0.5}, id="fo: unknown order, either"),
        pytest.param(
            service("sh", A, HEAVY, ordered=False), {A.ip: 0.25, HEAVY.ip: 0.75}, id="sh: unknown order, a set"
        ),
        pytest.param(service("dh", A, HEAVY, ordered=False), {A.ip: 0.5, HEAVY.ip: 0.5}, id="dh: unknown order, a set"),
        pytest.param(service("brandnew", A, CLOSED), {A.ip: 1.0}, id="a scheduler we never heard of: whoever is open"),
    ],
)
def test_candidates(one: IpvsService, expected: dict[str, float]) -> None:
    assert chosen(one) == expected


def hash_32(number: int) -> int:
    """Knuth's multiplicative hash as include/linux/hash.h has it, worked out the long way."""
    product = number * 0x61C88647
    return (product % 2**32) // 2**24


def test_source_hash_fills_256_buckets_in_turn_by_weight() -> None:
    one = service("sh", A, HEAVY, B)
    turns = [A, HEAVY, HEAVY, HEAVY, B]
    for last in range(1, 255):
        bucket = hash_32(0x0AF40100 + last)
        assert chosen(one, syn(f"10.244.1.{last}")) == {turns[bucket % 5].ip: 1.0}


def test_source_hash_by_port_only_if_told() -> None:
    plain, by_port = service("sh", A, B, C), service("sh", A, B, C, flags=("sh-port",))
    assert len({str(chosen(plain, syn(sport=port))) for port in range(1000, 1100)}) == 1
    assert len({str(chosen(by_port, syn(sport=port))) for port in range(1000, 1100)}) == 3


def test_a_closed_server_refuses_what_hashes_to_it_unless_there_is_a_fallback() -> None:
    strict, lenient = service("sh", A, CLOSED), service("sh", A, CLOSED, flags=("sh-fallback",))
    clients = [f"10.244.1.{n}" for n in range(1, 65)]
    assert {str(chosen(strict, syn(one))) for one in clients} == {"{}", str({A.ip: 1.0})}
    assert all(chosen(lenient, syn(one)) == {A.ip: 1.0} for one in clients)


def test_source_hash_folds_ipv6() -> None:
    one = service("sh", A, B)
    number = (0xFD000010 ^ 0x02440001 ^ 0 ^ 5, 0)[0]
    packet = Packet(src=Ip("fd00:10:244:1::5"), dst=Ip("fd00:10:96::1"), dport=80)
    assert chosen(one, packet) == {(A, B)[hash_32(number) % 2].ip: 1.0}


def test_destination_hash_knows_no_weight() -> None:
    bucket = hash_32(0x0A600001)
    assert chosen(service("dh", A, HEAVY, B)) == {(A, HEAVY, B)[bucket % 3].ip: 1.0}


@pytest.mark.parametrize(
    ("client", "mask", "group"),
    [
        ("10.1.2.3", "", "10.1.2.3"),
        ("10.1.2.3", "255.255.0.0", "10.1.0.0"),
        ("fd00::1:2", "112", "fd00::1:0"),
    ],
)
def test_groups_of_clients(client: str, mask: str, group: str) -> None:
    assert group_of(Ip(client), mask) == group
