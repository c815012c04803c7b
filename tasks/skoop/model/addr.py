"""Which addresses and prefixes exist, in one canonical text form each.

An address travels as canonical text (`Ip`), a prefix as `address/length` with host bits zero (`Net`), a MAC as lower-case
hex pairs (`Mac`). Text is what JSON, reports and users need; the numbers that matching needs are cached here.
"""

from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import NamedTuple, NewType

Ip = NewType("Ip", str)
"""Canonical text of an IPv4 or IPv6 address, as `str(ipaddress.ip_address(x))` gives it."""
Net = NewType("Net", str)
"""Canonical text of a prefix, always with its length: `10.244.1.0/24`, `::/0`."""
Mac = NewType("Mac", str)
"""Link-layer address: `02:42:ac:12:00:11`."""


class AddressError(ValueError):
    """Text that should be an address or a prefix is not."""

    def __init__(self, text: str, wanted: str) -> None:
        self.text = text
        self.wanted = wanted
        super().__init__(f"{text!r} is not {wanted}")


class Bounds(NamedTuple):
    """A prefix as numbers: IP version (4 or 6), first and last address, prefix length in bits."""

    version: int
    first: int
    last: int
    length: int


@lru_cache(maxsize=1 << 17)
def parse_ip(text: str) -> Ip:
    """Return the canonical form of an address; an IPv6 zone (`%eth0`) is dropped. Raises AddressError."""
    try:
        return Ip(str(ip_address(text.partition("%")[0])))
    except ValueError:
        raise AddressError(text, "an IP address") from None


@lru_cache(maxsize=1 << 17)
def parse_net(text: str) -> Net:
    """Return the canonical prefix of `a.b.c.d`, `a.b.c.d/len` or `a.b.c.d/mask`, host bits cleared. Raises AddressError."""
    try:
        return Net(str(ip_network(text, strict=False)))
    except ValueError:
        raise AddressError(text, "an IP prefix") from None


@lru_cache(maxsize=1 << 17)
def ip_int(ip: Ip) -> int:
    """Return the address as an unsigned number of 32 or 128 bits."""
    return int(ip_address(ip))


@lru_cache(maxsize=1 << 17)
def bounds(net: Net) -> Bounds:
    """Return the numbers of a prefix."""
    parsed = ip_network(net)
    return Bounds(parsed.version, int(parsed.network_address), int(parsed.broadcast_address), parsed.prefixlen)


def ip_version(ip: str) -> int:
    """Return 4 or 6 for canonical text of an address or prefix."""
    return 6 if ":" in ip else 4


def contains(net: Net, ip: Ip) -> bool:
    """Say whether the prefix holds the address; never true across families."""
    box = bounds(net)
    return box.version == ip_version(ip) and box.first <= ip_int(ip) <= box.last


def host_net(ip: Ip) -> Net:
    """Return the /32 or /128 of an address."""
    return Net(f"{ip}/128" if ":" in ip else f"{ip}/32")


@lru_cache(maxsize=1 << 15)
def is_multicast(ip: Ip) -> bool:
    """Say whether the address is in 224.0.0.0/4 or ff00::/8."""
    return ip_address(ip).is_multicast


@lru_cache(maxsize=1 << 15)
def is_loopback(ip: Ip) -> bool:
    """Say whether the address is in 127.0.0.0/8 or is ::1."""
    return ip_address(ip).is_loopback


@lru_cache(maxsize=1 << 15)
def is_link_local(ip: Ip) -> bool:
    """Say whether the address is in 169.254.0.0/16 or fe80::/10."""
    return ip_address(ip).is_link_local
