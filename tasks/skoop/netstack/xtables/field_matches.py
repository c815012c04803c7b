"""Which conditions look at the smaller fields of the headers: ICMP type, length, TTL, TOS.

Follows xt_tcpudp.c (icmp), xt_length.c, xt_hl.c, xt_dscp.c, xt_ecn.c. Holds also the names that people write for ICMP types,
TOS and DSCP values; dumps have numbers.
"""

from tasks.skoop.netstack.xtables.header_matches import ICMP, ICMPV6, TCP, each, for_protocol
from tasks.skoop.netstack.xtables.spelling import Option, Options, number, only, span, value_mask
from tasks.skoop.netstack.xtables.truth import Condition, NotUnderstood, Truth, unknown
from tasks.skoop.netstack.xtables.view import PacketView

ICMP_NAMES = {
    "any": (255, None),
    "echo-reply": (0, None),
    "pong": (0, None),
    "destination-unreachable": (3, None),
    "network-unreachable": (3, 0),
    "host-unreachable": (3, 1),
    "protocol-unreachable": (3, 2),
    "port-unreachable": (3, 3),
    "fragmentation-needed": (3, 4),
    "source-quench": (4, None),
    "redirect": (5, None),
    "echo-request": (8, None),
    "ping": (8, None),
    "router-advertisement": (9, None),
    "router-solicitation": (10, None),
    "time-exceeded": (11, None),
    "ttl-exceeded": (11, None),
    "ttl-zero-during-transit": (11, 0),
    "parameter-problem": (12, None),
    "timestamp-request": (13, None),
    "timestamp-reply": (14, None),
    "address-mask-request": (17, None),
    "address-mask-reply": (18, None),
}
"""Names of ICMP types that people write → (type, code or None for any); dumps have numbers."""

ICMPV6_NAMES = {
    "destination-unreachable": (1, None),
    "no-route": (1, 0),
    "communication-prohibited": (1, 1),
    "beyond-scope": (1, 2),
    "address-unreachable": (1, 3),
    "port-unreachable": (1, 4),
    "packet-too-big": (2, None),
    "time-exceeded": (3, None),
    "ttl-exceeded": (3, None),
    "ttl-zero-during-transit": (3, 0),
    "parameter-problem": (4, None),
    "echo-request": (128, None),
    "ping": (128, None),
    "echo-reply": (129, None),
    "pong": (129, None),
    "router-solicitation": (133, None),
    "router-advertisement": (134, None),
    "neighbour-solicitation": (135, None),
    "neighbor-solicitation": (135, None),
    "neighbour-advertisement": (136, None),
    "neighbor-advertisement": (136, None),
    "redirect": (137, None),
}


def icmp(options: Options, family: int) -> Condition:
    """`-m icmp` and `-m icmp6`: type and code."""
    own = ICMP if family == 4 else ICMPV6
    known = ICMP_NAMES if family == 4 else ICMPV6_NAMES

    def build(option: Option) -> Condition:
        if option[0] not in ("icmp-type", "icmpv6-type"):
            raise NotUnderstood(f"--{option[0]}")
        wanted, low, high = _icmp_type(only(option), known)
        negate = option[1]

        def holds(view: PacketView) -> Truth:
            packet = view.packet
            if view.protocol != own:
                return False
            if wanted == 255 and family == 4:
                return not negate
            if packet.icmp_type < 0:
                return unknown("the packet's ICMP type")
            return (packet.icmp_type == wanted and low <= packet.icmp_code <= high) != negate

        return holds

    return each(options, build)


def _icmp_type(text: str, known: dict[str, tuple[int, int | None]]) -> tuple[int, int, int]:
    """Return (type, lowest code, highest code)."""
    kind, code = known.get(text.lower(), (-1, None))
    if kind < 0:
        head, slash, tail = text.partition("/")
        kind = span(head, 255)[0]
        return (kind, *span(tail, 255)) if slash else (kind, 0, 255)
    return (kind, 0, 255) if code is None else (kind, code, code)


def length(options: Options, _: int) -> Condition:
    """`-m length`: of the whole IP packet, in bytes."""

    def build(option: Option) -> Condition:
        if option[0] != "length":
            raise NotUnderstood(f"--{option[0]}")
        (low, high), negate = span(only(option), 0xFFFF), option[1]
        return lambda view: (low <= view.packet.length <= high) != negate

    return each(options, build)


def hop_limit(options: Options, _: int) -> Condition:
    """`-m ttl` and `-m hl`."""

    def build(option: Option) -> Condition:
        name, negate, _ = option
        wanted = number(only(option))
        if name in ("ttl-eq", "ttl", "hl-eq", "hl"):
            return lambda view: (view.packet.ttl == wanted) != negate
        if name in ("ttl-lt", "hl-lt"):
            return lambda view: (view.packet.ttl < wanted) != negate
        if name in ("ttl-gt", "hl-gt"):
            return lambda view: (view.packet.ttl > wanted) != negate
        raise NotUnderstood(f"--{name}")

    return each(options, build)


TOS_NAMES = {
    "minimize-delay": 0x10,
    "maximize-throughput": 0x08,
    "maximize-reliability": 0x04,
    "minimize-cost": 0x02,
    "normal-service": 0x00,
}

DSCP_CLASSES = {
    "be": 0x00,
    "ef": 0x2E,
    **{f"cs{step}": step << 3 for step in range(8)},
    **{f"af{group}{drop}": group << 3 | drop << 1 for group in range(1, 5) for drop in range(1, 4)},
}


def tos_value(text: str) -> tuple[int, int]:
    """Return (value, mask) of a TOS by name or number; names leave the two ECN bits alone."""
    named = TOS_NAMES.get(text.lower())
    return (named, 0x3F) if named is not None else value_mask(text, 0xFF)


def dscp_value(option: Option) -> int:
    """Return the DSCP (0 to 63) of `--dscp`, `--dscp-class` and the options of the target."""
    text = only(option)
    if not option[0].endswith("-class"):
        return number(text)
    if text.lower() not in DSCP_CLASSES:
        raise NotUnderstood(f"the DSCP class {text!r}")
    return DSCP_CLASSES[text.lower()]


def tos(options: Options, _: int) -> Condition:
    """`-m tos`."""

    def build(option: Option) -> Condition:
        if option[0] != "tos":
            raise NotUnderstood(f"--{option[0]}")
        (value, mask), negate = tos_value(only(option)), option[1]
        return lambda view: (view.packet.tos & mask == value) != negate

    return each(options, build)


def dscp(options: Options, _: int) -> Condition:
    """`-m dscp`."""

    def build(option: Option) -> Condition:
        if option[0] not in ("dscp", "dscp-class"):
            raise NotUnderstood(f"--{option[0]}")
        value, negate = dscp_value(option), option[1]
        return lambda view: (view.packet.tos >> 2 == value) != negate

    return each(options, build)


def ecn(options: Options, _: int) -> Condition:
    """`-m ecn`: the bits of the IP header; those of TCP are not in the model of a packet."""

    def build(option: Option) -> Condition:
        if option[0] == "ecn-ip-ect":
            value, negate = number(only(option)), option[1]
            return lambda view: (view.packet.tos & 3 == value) != negate
        return for_protocol(TCP, lambda _: unknown("the packet's ECN flags"))

    return each(options, build)
