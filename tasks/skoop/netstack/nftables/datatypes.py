"""Which number stands behind a word of a ruleset: nft's data types and their symbols.

Follows src/datatype.c, src/proto.c, src/ct.c, src/meta.c and src/fib.c of nftables. All values are numbers here,
interface names too (their 16 bytes, as the kernel compares them), so that prefixes, ranges and wildcards are spans of
numbers.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from tasks.skoop.model.addr import AddressError, ip_int, parse_ip
from tasks.skoop.netstack.nftables.jsonform import Json, compact, fields, is_named, items, pair, text, whole
from tasks.skoop.netstack.xtables.truth import NotUnderstood

NO_SYMBOLS: Mapping[str, int] = {}


class Datatype(NamedTuple):
    """A type: its width, its words, and whether a bare word asks for bits to be set rather than for equality."""

    name: str
    bits: int
    symbols: Mapping[str, int] = NO_SYMBOLS
    bitmask: bool = False


INTEGER = Datatype("integer", 128)
BOOLEAN = Datatype("boolean", 1, {"exists": 1, "missing": 0})
IPV4 = Datatype("ipv4_addr", 32)
IPV6 = Datatype("ipv6_addr", 128)
ETHER = Datatype("ether_addr", 48)
MARK = Datatype("mark", 32)
IFNAME = Datatype("ifname", 128)
STRING = Datatype("string", 128)
MOMENT = Datatype("moment", 64)
"""Times, days, hours: never compared, as both answers can come."""
SERVICE = Datatype(
    "inet_service",
    16,
    {
        **{"ftp": 21, "ssh": 22, "telnet": 23, "smtp": 25, "domain": 53, "bootps": 67, "bootpc": 68, "http": 80},
        **{"pop3": 110, "sunrpc": 111, "ntp": 123, "imap2": 143, "snmp": 161, "bgp": 179, "ldap": 389, "https": 443},
        **{"ldaps": 636, "domain-s": 853, "imaps": 993, "pop3s": 995, "nfs": 2049, "mysql": 3306, "postgresql": 5432},
    },
)
PROTO = Datatype(
    "inet_proto",
    8,
    {
        **{"ip": 0, "icmp": 1, "igmp": 2, "ipencap": 4, "tcp": 6, "udp": 17, "dccp": 33, "ipv6": 41, "gre": 47},
        **{"esp": 50, "ah": 51, "icmpv6": 58, "ipv6-icmp": 58, "ospf": 89, "ipip": 94, "pim": 103, "comp": 108},
        **{"ipcomp": 108, "vrrp": 112, "l2tp": 115, "sctp": 132, "mobility-header": 135, "udplite": 136},
    },
)
NFPROTO = Datatype("nf_proto", 8, {"ipv4": 2, "ipv6": 10})
ETHERTYPE = Datatype(
    "ether_type", 16, {"ip": 0x0800, "arp": 0x0806, "ip6": 0x86DD, "vlan": 0x8100, "8021q": 0x8100, "8021ad": 0x88A8}
)
ETHERTYPES = {0: 0x0806, 4: 0x0800, 6: 0x86DD}
"""Version of the IP packet in a frame (0: it carries ARP) → the frame's type."""
ARP_OP = Datatype(
    "arp_op",
    16,
    {"request": 1, "reply": 2, "rrequest": 3, "rreply": 4, "inrequest": 8, "inreply": 9, "nak": 10},
)
CT_STATE = Datatype(
    "ct_state", 32, {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64}, bitmask=True
)
CT_DIR = Datatype("ct_dir", 8, {"original": 0, "reply": 1})
CT_STATUS = Datatype(
    "ct_status",
    32,
    {"expected": 1, "seen-reply": 2, "assured": 4, "confirmed": 8, "snat": 16, "dnat": 32, "dying": 512},
    bitmask=True,
)
TCP_FLAG = Datatype(
    "tcp_flag",
    8,
    {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ecn": 64, "cwr": 128},
    bitmask=True,
)
ICMP_TYPE = Datatype(
    "icmp_type",
    8,
    {
        **{"echo-reply": 0, "destination-unreachable": 3, "source-quench": 4, "redirect": 5, "echo-request": 8},
        **{"router-advertisement": 9, "router-solicitation": 10, "time-exceeded": 11, "parameter-problem": 12},
        **{"timestamp-request": 13, "timestamp-reply": 14, "info-request": 15, "info-reply": 16},
        **{"address-mask-request": 17, "address-mask-reply": 18},
    },
)
ICMP_CODE = Datatype(
    "icmp_code",
    8,
    {
        **{"net-unreachable": 0, "host-unreachable": 1, "prot-unreachable": 2, "port-unreachable": 3},
        **{"frag-needed": 4, "net-prohibited": 9, "host-prohibited": 10, "admin-prohibited": 13},
    },
)
ICMPV6_TYPE = Datatype(
    "icmpv6_type",
    8,
    {
        **{"destination-unreachable": 1, "packet-too-big": 2, "time-exceeded": 3, "parameter-problem": 4},
        **{"echo-request": 128, "echo-reply": 129, "mld-listener-query": 130, "mld-listener-report": 131},
        **{"mld-listener-done": 132, "mld-listener-reduction": 132, "nd-router-solicit": 133, "nd-router-advert": 134},
        **{"nd-neighbor-solicit": 135, "nd-neighbor-advert": 136, "nd-redirect": 137, "router-renumbering": 138},
        **{"ind-neighbor-solicit": 141, "ind-neighbor-advert": 142, "mld2-listener-report": 143},
    },
)
ICMPV6_CODE = Datatype(
    "icmpv6_code",
    8,
    {
        **{"no-route": 0, "admin-prohibited": 1, "addr-unreachable": 3, "port-unreachable": 4},
        **{"policy-fail": 5, "reject-route": 6},
    },
)
DSCP = Datatype(
    "dscp",
    6,
    {
        **{f"cs{number}": 8 * number for number in range(8)},
        **{f"af{row}{column}": 8 * row + 2 * column for row in range(1, 5) for column in range(1, 4)},
        **{"df": 0, "be": 0, "lephb": 1, "va": 44, "ef": 46},
    },
)
ECN = Datatype("ecn", 2, {"not-ect": 0, "ect1": 1, "ect0": 2, "ce": 3})
PKTTYPE = Datatype("pkt_type", 8, {"host": 0, "unicast": 0, "broadcast": 1, "multicast": 2, "other": 3})
ADDRTYPE = Datatype(
    "fib_addrtype",
    32,
    {
        **{"unspec": 0, "unicast": 1, "local": 2, "broadcast": 3, "anycast": 4, "multicast": 5, "blackhole": 6},
        **{"unreachable": 7, "prohibit": 8, "throw": 9, "nat": 10, "xresolve": 11},
    },
)
IFTYPE = Datatype(
    "iface_type",
    16,
    {"ether": 1, "infiniband": 32, "ppp": 512, "ipip": 768, "ipip6": 769, "loopback": 772, "sit": 776, "ipgre": 778},
)
DEVGROUP = Datatype("devgroup", 32, {"default": 0})
UID = Datatype("uid", 32, {"root": 0})
GID = Datatype("gid", 32, {"root": 0})

TYPES: Mapping[str, Datatype] = {
    each.name: each
    for each in (
        *(INTEGER, BOOLEAN, IPV4, IPV6, ETHER, MARK, IFNAME, STRING, SERVICE, PROTO, NFPROTO, ETHERTYPE, CT_STATE),
        *(CT_DIR, CT_STATUS, TCP_FLAG, ICMP_TYPE, ICMP_CODE, ICMPV6_TYPE, ICMPV6_CODE, DSCP, ECN, PKTTYPE, ADDRTYPE),
        *(IFTYPE, DEVGROUP, UID, GID, ARP_OP),
    )
}
"""Types by the name that sets and maps are declared with."""

WILDCARD = "*"


@lru_cache(maxsize=1 << 12)
def name_number(name: str) -> int:
    """Return an interface's name as the kernel compares it: its bytes, filled up to 16 with zeros."""
    return int.from_bytes(name.encode()[:16].ljust(16, b"\0"))


def number(value: Json, kind: Datatype) -> int:
    """Return a constant as a number. Raises NotUnderstood for words that the type does not have."""
    if isinstance(value, int):  # True and False as well
        return int(value)
    if isinstance(value, str):
        return _word(value, kind)
    if isinstance(value, list) or is_named(value, "|"):
        parts = value if isinstance(value, list) else items(fields(value)["|"])
        result = 0
        for part in parts:
            result |= number(part, kind)
        return result
    raise NotUnderstood(f"the {kind.name} {compact(value)}")


def _word(word: str, kind: Datatype) -> int:
    found = kind.symbols.get(word)
    if found is not None:
        return found
    if kind is IFNAME or kind is STRING:
        return name_number(word.removesuffix("\\*") + "*" if word.endswith("\\*") else word)
    if kind is ETHER:
        return int(word.replace(":", ""), 16)
    if word.isdecimal():
        return int(word)
    if word.startswith("0x"):
        return int(word, 16)
    if kind in (IPV4, IPV6, INTEGER):
        try:
            return ip_int(parse_ip(word))
        except AddressError:
            pass
    raise NotUnderstood(f"the {kind.name} {word}")


def span(value: Json, kind: Datatype) -> tuple[int, int]:
    """Return (first, last) of the numbers that a constant, prefix, range or wildcard stands for."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, str):
        if kind is IFNAME and value.endswith("*") and not value.endswith("\\*"):
            head = value[:-1].encode()
            free = 8 * (16 - len(head))
            first = int.from_bytes(head) << free
            return first, first | (1 << free) - 1
        if value == WILDCARD:
            return 0, (1 << kind.bits) - 1
    elif is_named(value, "prefix"):
        prefix = fields(fields(value)["prefix"])
        free = kind.bits - whole(prefix, "len")
        first = number(prefix.get("addr"), kind) >> free << free
        return first, first | (1 << free) - 1
    elif is_named(value, "range"):
        low, high = pair(fields(value)["range"])
        return number(low, kind), number(high, kind)
    found = number(value, kind)
    return found, found


def declared(value: Json) -> tuple[Datatype, ...]:
    """Return the types that a set or map says it has (`type`, `map`); an unknown or `typeof` one counts as integer."""
    if isinstance(value, str):
        return tuple(TYPES.get(name.strip(), INTEGER) for name in value.split(" . "))
    if isinstance(value, list):
        return tuple(TYPES.get(text(name), INTEGER) for name in value)
    return (INTEGER,)
