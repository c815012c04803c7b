"""The names that iproute2 prints for numbers of rtnetlink, and back: tables, scopes, protocols, IP protocols.

As in iproute2's own defaults (lib/rt_names.c); a site's additions to /etc/iproute2/rt_tables come as an argument.
"""

from collections.abc import Mapping

from tasks.skoop.model.packet import PROTOCOL_NUMBERS, Protocol

TABLES: Mapping[str, int] = {"unspec": 0, "default": 253, "main": 254, "local": 255}
SCOPES: Mapping[str, str] = {"0": "global", "200": "site", "253": "link", "254": "host", "255": "nowhere"}
PROTOCOLS: Mapping[str, str] = {
    "0": "unspec",
    "1": "redirect",
    "2": "kernel",
    "3": "boot",
    "4": "static",
    "8": "gated",
    "9": "ra",
    "10": "mrt",
    "11": "zebra",
    "12": "bird",
    "13": "dnrouted",
    "14": "xorp",
    "15": "ntk",
    "16": "dhcp",
    "18": "keepalived",
    "42": "babel",
    "186": "bgp",
    "187": "isis",
    "188": "ospf",
    "189": "rip",
    "192": "eigrp",
}
ROUTE_TYPES: Mapping[str, str] = {
    "0": "none",
    "1": "unicast",
    "2": "local",
    "3": "broadcast",
    "4": "anycast",
    "5": "multicast",
    "6": "blackhole",
    "7": "unreachable",
    "8": "prohibit",
    "9": "throw",
    "10": "nat",
    "11": "xresolve",
}
"""RTN_* by number; FR_ACT_* of policy rules have the same numbers for what they share."""
IP_PROTOCOLS: Mapping[str, Protocol] = {
    **{str(number): protocol for protocol, number in PROTOCOL_NUMBERS.items()},
    **{protocol.value: protocol for protocol in Protocol},
    "ipv6-icmp": Protocol.ICMPV6,
    "ipencap": Protocol.IPIP,
    "ipv4": Protocol.IPIP,
}


def table_number(name: str, site: Mapping[str, int]) -> int | None:
    """Return the number of a routing table by its printed name or number; None for a name that nobody has defined."""
    if name.isdigit():
        return int(name)
    return site.get(name, TABLES.get(name))


def read_rt_tables(text: str) -> dict[str, int]:
    """Return name → number of a file in the form of /etc/iproute2/rt_tables; lines that are not so are passed over."""
    found = {}
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if len(words) == 2 and words[0].isdigit():
            found[words[1]] = int(words[0])
    return found


def scope_name(text: str) -> str:
    """Return the name of an address or route scope: global, site, link, host or nowhere; other numbers stay."""
    return SCOPES.get(text, text)


def route_protocol(text: str) -> str:
    """Return the name of what made a route (`kernel`, `boot`, `static`, …); unknown numbers stay."""
    return PROTOCOLS.get(text, text)


def route_type(text: str) -> str:
    """Return the name of a route's type or of a policy rule's action (`ip -N` prints numbers); unknown numbers stay."""
    return ROUTE_TYPES.get(text, text)


def ip_protocol(text: str) -> Protocol:
    """Return the transport protocol of a name or number; OTHER for one that the model does not name."""
    return IP_PROTOCOLS.get(text.lower(), Protocol.OTHER)
