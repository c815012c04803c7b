"""What do SNPT and DNPT make of an IPv6 address? Stateless translation of prefixes that leaves checksums as they are (RFC 6296).

Follows ip6t_npt_map_pfx and ip6t_npt_checkentry (net/ipv6/netfilter/ip6t_NPT.c).
"""

from ipaddress import IPv6Address, IPv6Network
from typing import NamedTuple

from tasks.skoop.model.addr import Ip, ip_int
from tasks.skoop.netstack.xtables.spelling import Options, only
from tasks.skoop.netstack.xtables.truth import NotUnderstood

_LONGEST = 64
_WORD = 0xFFFF


class Mapping(NamedTuple):
    """A prefix in place of another, and the number that keeps the sum of the address's 16-bit words the same."""

    prefix: int
    length: int
    adjustment: int

    def of(self, ip: Ip) -> Ip | None:
        """Return the address with the other prefix; None where no word of it can take the adjustment."""
        low = (1 << (128 - self.length)) - 1
        number = (ip_int(ip) & low) | self.prefix
        words = [number >> shift & _WORD for shift in range(112, -1, -16)]
        if self.length <= 48:
            index = 3
        else:
            index = next((at for at in range(4, 8) if words[at] != _WORD), -1)
            if index < 0:
                return None
        words[index] = _folded(words[index] + self.adjustment)
        if words[index] == _WORD:
            words[index] = 0
        return Ip(str(IPv6Address(sum(word << shift for word, shift in zip(words, range(112, -1, -16), strict=True)))))


def _folded(number: int) -> int:
    while number > _WORD:
        number = (number & _WORD) + (number >> 16)
    return number


def mapping(options: Options) -> Mapping:
    """Return what the options of SNPT or DNPT ask for. Raises NotUnderstood."""
    given = {option[0]: only(option) for option in options}
    if set(given) != {"src-pfx", "dst-pfx"}:
        raise NotUnderstood(f"--{', --'.join(given)}")
    src, dst = (IPv6Network(given[name], strict=False) for name in ("src-pfx", "dst-pfx"))
    length = max(src.prefixlen, dst.prefixlen)
    if length > _LONGEST:
        raise NotUnderstood(f"a prefix of {length} bits")
    sums = [
        _folded(sum(int(net.network_address) >> shift & _WORD for shift in range(0, 128, 16))) for net in (src, dst)
    ]
    return Mapping(int(dst.network_address), length, _folded(sums[0] + (_WORD ^ sums[1])))
