"""How numbers, ports, marks and addresses are written in rules, and what they are as numbers.

Follows what iptables-save prints and, where cheap, what the command line also takes. What is written otherwise raises
NotUnderstood, so that the match it stands in becomes unknown.
"""

from tasks.skoop.model.addr import AddressError, Ip, ip_int, ip_version, parse_ip
from tasks.skoop.netstack.xtables.truth import NotUnderstood

Option = tuple[str, bool, tuple[str, ...]]
Options = tuple[Option, ...]

ALL_MARK = 0xFFFFFFFF

PROTOCOLS = {
    "all": 0,
    "icmp": 1,
    "igmp": 2,
    "ipencap": 4,
    "ipip": 4,
    "ip-encap": 4,
    "ipv4": 4,
    "tcp": 6,
    "egp": 8,
    "udp": 17,
    "dccp": 33,
    "ipv6": 41,
    "ipv6-route": 43,
    "ipv6-frag": 44,
    "rsvp": 46,
    "gre": 47,
    "esp": 50,
    "ipv6-crypt": 50,
    "ah": 51,
    "ipv6-auth": 51,
    "ipv6-icmp": 58,
    "icmpv6": 58,
    "icmp6": 58,
    "ipv6-nonxt": 59,
    "ipv6-opts": 60,
    "ospf": 89,
    "pim": 103,
    "ipcomp": 108,
    "vrrp": 112,
    "l2tp": 115,
    "sctp": 132,
    "ipv6-mh": 135,
    "mh": 135,
    "mobility-header": 135,
    "udplite": 136,
}
"""Protocol names that iptables and /etc/protocols know → number; 0 stands for every protocol."""


def number(text: str) -> int:
    """Return a number written in decimal, in hex with 0x, or in octal with a leading 0."""
    try:
        if len(text) > 1 and text[0] == "0" and text[1].isdigit():
            return int(text, 8)
        return int(text, 0)
    except ValueError:
        raise NotUnderstood(f"{text!r} is not a number") from None


def only(option: Option) -> str:
    """Return the one value of an option."""
    name, _, values = option
    if len(values) != 1:
        raise NotUnderstood(f"--{name} has {len(values)} values instead of one")
    return values[0]


def protocol_number(text: str) -> int:
    """Return the number of a protocol by name or number."""
    known = PROTOCOLS.get(text.lower())
    if known is not None:
        return known
    if text.isdigit() and int(text) < 256:
        return int(text)
    raise NotUnderstood(f"the protocol {text!r}")


def span(text: str, last: int, separator: str = ":") -> tuple[int, int]:
    """Return (first, last) of `a`, `a:b`, `:b` or `a:`; `last` is the highest value."""
    low, colon, high = text.partition(separator)
    if not colon:
        low = high = text
    first, final = number(low) if low else 0, number(high) if high else last
    if not 0 <= first <= final <= last:
        raise NotUnderstood(f"the range {text!r}")
    return first, final


def ports(text: str, separator: str = ":") -> tuple[int, int]:
    """Return (first, last) of a port or a range of ports."""
    return span(text, 0xFFFF, separator)


def value_mask(text: str, full: int = ALL_MARK) -> tuple[int, int]:
    """Return (value, mask) of `value` or `value/mask`; without a mask it is `full`."""
    value, slash, mask = text.partition("/")
    found = number(value), number(mask) if slash else full
    if not all(0 <= part <= ALL_MARK for part in found):
        raise NotUnderstood(f"the mark {text!r}")
    return found


def address(text: str, family: int) -> Ip:
    """Return the canonical form of an address of this family; brackets around it are taken off."""
    try:
        ip = parse_ip(text.removeprefix("[").removesuffix("]"))
    except AddressError as error:
        raise NotUnderstood(str(error)) from None
    if ip_version(ip) != family:
        raise NotUnderstood(f"{text!r} is not an IPv{family} address")
    return ip


def prefix(text: str, family: int) -> tuple[int, int] | None:
    """Return (network, length) of `address/length` or a bare address; None for a mask in another form.

    Quick for IPv4, since chains of services have thousands of them. Raises NotUnderstood.
    """
    head, slash, tail = text.partition("/")
    bits = 32 if family == 4 else 128
    if slash and not tail.isdecimal():
        return None
    length = int(tail) if slash else bits
    try:
        octets = bytes(map(int, head.split("."))) if family == 4 else b""
    except ValueError:
        octets = b""
    if length > bits:
        raise NotUnderstood(f"the prefix {text!r}")
    value = int.from_bytes(octets, "big") if len(octets) == 4 else ip_int(address(head, family))
    return value >> (bits - length) << (bits - length), length


def address_mask(text: str, family: int) -> tuple[int, int]:
    """Return (network, mask) of `address`, `address/length` or `address/mask`; a mask may have holes."""
    plain = prefix(text, family)
    if plain is not None:
        full = 0xFFFFFFFF if family == 4 else (1 << 128) - 1
        return plain[0], full ^ (full >> plain[1])
    head, _, tail = text.partition("/")
    mask = ip_int(address(tail, family))
    return ip_int(address(head, family)) & mask, mask


def address_range(text: str, family: int) -> tuple[int, int]:
    """Return (first, last) of `a` or `a-b` as numbers."""
    low, dash, high = text.partition("-")
    first = ip_int(address(low, family))
    return first, ip_int(address(high, family)) if dash else first


def names(text: str, known: frozenset[str]) -> frozenset[str]:
    """Return the names of a comma list, in upper case; all must be `known`."""
    found = frozenset(text.upper().split(","))
    if not found <= known:
        raise NotUnderstood(f"{', '.join(sorted(found - known))}")
    return found
