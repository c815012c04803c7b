"""Which real servers may a scheduler of IPVS choose for a packet, and how likely is each?

Follows net/netfilter/ipvs/ip_vs_{rr,wrr,lc,wlc,sh,dh,sed,nq,fo,ovf,lblc,lblcr,mh,twos}.c, v6.1 (the hash of sh and dh is that
of v4.18 and later). Schedulers that go by turns or by the load of the moment give a set: no dump tells whose turn it is. sh and
dh are exact where the servers' order is the kernel's.
"""

from ipaddress import ip_address, ip_network
from itertools import cycle

from tasks.skoop.model.addr import Ip, ip_int
from tasks.skoop.model.packet import Packet
from tasks.skoop.model.state import IpvsDestination, IpvsService

Chances = tuple[tuple[IpvsDestination, float], ...]
"""Real servers that may be chosen, each with its probability; none: the packet is refused."""

_BUCKETS_BITS = 8
_BUCKETS = 1 << _BUCKETS_BITS
_GOLDEN_RATIO_32 = 0x61C88647
_WORD = 0xFFFFFFFF
_BY_TURNS = frozenset(("rr", "lc"))
"""Schedulers to which a weight is only open or closed."""


def candidates(service: IpvsService, packet: Packet) -> Chances:
    """Return the real servers that the service's scheduler may give a new connection to, with probabilities that add up to 1."""
    is_open = tuple(server for server in service.destinations if server.weight > 0)
    match service.scheduler:
        case "sh":
            return _source_hash(service, packet) if service.ordered else _hashed_unordered(service, is_open)
        case "dh":
            return _destination_hash(service, packet) if service.ordered else _hashed_unordered(service, is_open)
        case "fo":
            highest = max((server.weight for server in is_open), default=0)
            first = tuple(server for server in is_open if server.weight == highest)
            return _even(first[:1] if service.ordered else first)
        case name if name in _BY_TURNS:
            return _even(is_open)
        case _:
            return _spread(is_open)


def _even(servers: tuple[IpvsDestination, ...]) -> Chances:
    return tuple((server, 1 / len(servers)) for server in servers)


def _spread(servers: tuple[IpvsDestination, ...]) -> Chances:
    total = sum(server.weight for server in servers)
    return tuple((server, server.weight / total) for server in servers if server.weight)


def _hashed_unordered(service: IpvsService, is_open: tuple[IpvsDestination, ...]) -> Chances:
    return _even(is_open) if service.scheduler == "dh" else _spread(is_open)


def _hash_32(value: int) -> int:
    return ((value & _WORD) * _GOLDEN_RATIO_32 & _WORD) >> (32 - _BUCKETS_BITS)


def _fold(ip: Ip) -> int:
    number = ip_int(ip)
    if ":" not in ip:
        return number
    return (number >> 96) ^ (number >> 64 & _WORD) ^ (number >> 32 & _WORD) ^ (number & _WORD)


def _source_hash(service: IpvsService, packet: Packet) -> Chances:
    """ip_vs_sh: a server fills as many buckets as it has weight, in turn, one at least; a closed one refuses what falls to it.

    With sh-fallback the buckets after it are tried.
    """
    if not service.destinations:
        return ()
    buckets: list[IpvsDestination] = []
    for server in cycle(service.destinations):
        buckets += [server] * max(server.weight, 1)
        if len(buckets) >= _BUCKETS:
            break
    by_port = "sh-port" in service.flags or "flag-2" in service.flags
    first = _hash_32((packet.sport if by_port else 0) + _fold(packet.src))
    fallback = "sh-fallback" in service.flags or "flag-1" in service.flags
    # The kernel adds the first bucket's number once more to each further one that it tries.
    further = [(2 * first + offset) % _BUCKETS for offset in range(_BUCKETS)] if fallback else []
    for bucket in (first, *further):
        if buckets[bucket].weight > 0:
            return ((buckets[bucket], 1.0),)
    return ()


def _destination_hash(service: IpvsService, packet: Packet) -> Chances:
    """ip_vs_dh: servers take turns in the buckets, whatever their weight; a closed one refuses what falls to it."""
    if not service.destinations:
        return ()
    server = service.destinations[_hash_32(_fold(packet.dst)) % len(service.destinations)]
    return ((server, 1.0),) if server.weight > 0 else ()


def group_of(client: Ip, netmask: str) -> Ip:
    """Return the address by which a persistent service knows a client: masked where it has a netmask."""
    if not netmask:
        return client
    return Ip(str(ip_network(f"{ip_address(client)}/{netmask}", strict=False).network_address))
