"""Which conditions look at addresses, devices, protocol, ports and TCP flags.

Follows ip_packet_match and ip6_packet_match (ip_tables.c, ip6_tables.c), xt_tcpudp.c, xt_sctp.c, xt_multiport.c and
xt_iprange.c. Packets of the simulator are whole (no fragments) and carry no IPv6 extension headers.
"""

from collections.abc import Callable

from tasks.skoop.model.packet import TcpFlags
from tasks.skoop.netstack.xtables.spelling import (
    Option,
    Options,
    address_mask,
    address_range,
    only,
    ports,
    protocol_number,
)
from tasks.skoop.netstack.xtables.truth import Condition, NotUnderstood, Truth, every, unknown
from tasks.skoop.netstack.xtables.view import OTHER_PROTOCOL, PacketView

TCP, UDP, ICMP, ICMPV6, SCTP = 6, 17, 1, 58, 132
PORT_PROTOCOLS = frozenset((TCP, UDP, SCTP))

FLAG_NAMES = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")
SYN_MASK = frozenset(("SYN", "RST", "ACK", "FIN"))
FLAGS_OF = {flags: frozenset(flags.split(",")) for flags in TcpFlags if flags}


def each(options: Options, build: Callable[[Option], Condition]) -> Condition:
    """Return the condition that every option, built one by one, holds."""
    return every(tuple(build(option) for option in options)) if options else _always


def _always(_: PacketView) -> Truth:
    return True


def _never(_: PacketView) -> Truth:
    return False


def source(options: Options, family: int) -> Condition:
    """`-s`."""
    (option,) = options
    value, mask = address_mask(only(option), family)
    if option[1]:
        return lambda view: view.src & mask != value
    return lambda view: view.src & mask == value


def destination(options: Options, family: int) -> Condition:
    """`-d`."""
    (option,) = options
    value, mask = address_mask(only(option), family)
    if option[1]:
        return lambda view: view.dst & mask != value
    return lambda view: view.dst & mask == value


def device_test(name: str) -> Callable[[str], bool]:
    """Return whether a device's name fits `name`, which may end in the wildcard `+`."""
    if name.endswith("+"):
        prefix = name[:-1]
        return lambda dev: dev.startswith(prefix)
    return lambda dev: dev == name


def in_device(options: Options, _: int) -> Condition:
    """`-i`."""
    (option,) = options
    fits, negate = device_test(only(option)), option[1]
    return lambda view: fits(view.in_dev) != negate


def out_device(options: Options, _: int) -> Condition:
    """`-o`."""
    (option,) = options
    fits, negate = device_test(only(option)), option[1]
    return lambda view: fits(view.out_dev) != negate


def protocol(options: Options, _: int) -> Condition:
    """`-p`; `all` and 0 are no condition."""
    (option,) = options
    wanted, negate = protocol_number(only(option)), option[1]
    if wanted == 0:
        return _always
    named = wanted in (TCP, UDP, ICMP, ICMPV6, SCTP, 4, 47, 50)

    def holds(view: PacketView) -> Truth:
        if view.protocol == OTHER_PROTOCOL and not named:
            return unknown("the number of the packet's protocol")
        return (view.protocol == wanted) != negate

    return holds


def fragment(options: Options, _: int) -> Condition:
    """`-f`: the second and later fragments."""
    return _always if options[0][1] else _never


def no_extension_header(_: Options, __: int) -> Condition:
    """Match of an IPv6 extension header (`-m frag`, hbh, `-m dst`, rt, mh, srh): taken as not there in the packets that are asked about."""
    return _never


_HEADERS = {
    **dict.fromkeys(("hop-by-hop", "hop"), 1 << 7),
    **dict.fromkeys(("ipv6-opts", "dst"), 1 << 6),
    **dict.fromkeys(("ipv6-route", "route"), 1 << 5),
    **dict.fromkeys(("ipv6-frag", "frag"), 1 << 4),
    **dict.fromkeys(("auth", "ah"), 1 << 3),
    "esp": 1 << 2,
    **dict.fromkeys(("ipv6-nonxt", "none"), 1 << 1),
    **dict.fromkeys(("protocol", "proto", "prot"), 1),
}
_UPPER, _ESP, _AH, _NONE = 1, 50, 51, 59
_ONLY = {_ESP: 1 << 2, _AH: 1 << 3, _NONE: 1 << 1}


def ipv6header(options: Options, _: int) -> Condition:
    """`-m ipv6header`: which headers follow IPv6's own (ipv6header_mt6); the packet has only the last, of its protocol."""
    soft = any(option[0] == "soft" for option in options)
    told = [option for option in options if option[0] == "header"]
    if len(told) != 1 or len(told) + soft != len(options):
        raise NotUnderstood(" ".join(f"--{option[0]}" for option in options))
    name, negate, _values = told[0]
    wanted = 0
    for word in only(told[0]).split(","):
        if word not in _HEADERS:
            raise NotUnderstood(f"--{name} {word}")
        wanted |= _HEADERS[word]

    def holds(view: PacketView) -> Truth:
        there = _ONLY.get(view.protocol, _UPPER)
        if soft:
            return (there & wanted) == (0 if negate else wanted)
        return (there == wanted) != negate

    return holds


def _port_condition(of: int, option: Option) -> Condition:
    name, negate, _ = option
    low, high = ports(only(option))
    if name in ("dport", "destination-port"):
        if low == high and not negate:
            return lambda view: view.dport == low and view.protocol == of
        return lambda view: view.protocol == of and (low <= view.dport <= high) != negate
    return lambda view: view.protocol == of and (low <= view.sport <= high) != negate


PORT_OPTIONS = frozenset(("sport", "dport", "source-port", "destination-port"))


def tcp(options: Options, _: int) -> Condition:
    """`-m tcp`: ports, flags."""

    def build(option: Option) -> Condition:
        name, negate, values = option
        if name in PORT_OPTIONS:
            return _port_condition(TCP, option)
        if name == "syn":
            return _tcp_flags(SYN_MASK, frozenset(("SYN",)), negate)
        if name == "tcp-flags" and len(values) == 2:
            return _tcp_flags(_flag_names(values[0]), _flag_names(values[1]), negate)
        if name == "tcp-option":
            return for_protocol(TCP, lambda _: unknown("the packet's TCP options"))
        raise NotUnderstood(f"--{name}")

    return each(options, build)


def _flag_names(text: str) -> frozenset[str]:
    if text in ("ALL", "NONE"):
        return frozenset(FLAG_NAMES if text == "ALL" else ())
    found = frozenset(text.split(","))
    if not found <= frozenset(FLAG_NAMES):
        raise NotUnderstood(f"the TCP flags {text!r}")
    return found


def _tcp_flags(mask: frozenset[str], wanted: frozenset[str], negate: bool) -> Condition:
    def holds(view: PacketView) -> Truth:
        if view.protocol != TCP:
            return False
        flags = FLAGS_OF.get(view.packet.tcp_flags)
        if flags is None:
            return unknown("the packet's TCP flags")
        return (flags & mask == wanted) != negate

    return holds


def for_protocol(of: int, condition: Condition) -> Condition:
    """Return a condition that packets of other protocols never meet."""
    return lambda view: condition(view) if view.protocol == of else False


def udp(options: Options, _: int) -> Condition:
    """`-m udp`: ports."""
    return each(options, lambda option: _only_ports(UDP, option))


def sctp(options: Options, _: int) -> Condition:
    """`-m sctp`: ports; chunk types are not in the model of a packet."""

    def build(option: Option) -> Condition:
        if option[0] == "chunk-types":
            return for_protocol(SCTP, lambda _: unknown("the packet's SCTP chunks"))
        return _only_ports(SCTP, option)

    return each(options, build)


def _only_ports(of: int, option: Option) -> Condition:
    if option[0] not in PORT_OPTIONS:
        raise NotUnderstood(f"--{option[0]}")
    return _port_condition(of, option)


def unsimulated_protocol(options: Options, _: int) -> Condition:
    """Match of a protocol that has no ports or numbers in the model (dccp, udplite, ah, esp): what `-p` says decides first."""
    if not options:
        return _always
    return lambda view: False if view.protocol in (TCP, UDP, ICMP, ICMPV6, SCTP) else unknown("the packet's headers")


def multiport(options: Options, _: int) -> Condition:
    """`-m multiport`; `--ports` fits if either port does."""

    def build(option: Option) -> Condition:
        name, negate, _ = option
        boxes = tuple(ports(text) for text in only(option).split(","))
        singles = frozenset(low for low, high in boxes if low == high)
        ranges = tuple(box for box in boxes if box[0] != box[1])

        def fits(port: int) -> bool:
            return port in singles or any(low <= port <= high for low, high in ranges)

        if name in ("dports", "destination-ports", "dport", "destination-port"):
            return lambda view: view.protocol in PORT_PROTOCOLS and fits(view.dport) != negate
        if name in ("sports", "source-ports", "sport", "source-port"):
            return lambda view: view.protocol in PORT_PROTOCOLS and fits(view.sport) != negate
        if name in ("ports", "port"):
            return lambda view: view.protocol in PORT_PROTOCOLS and (fits(view.sport) or fits(view.dport)) != negate
        raise NotUnderstood(f"--{name}")

    return each(options, build)


def iprange(options: Options, family: int) -> Condition:
    """`-m iprange`."""

    def build(option: Option) -> Condition:
        name, negate, _ = option
        first, last = address_range(only(option), family)
        if name == "src-range":
            return lambda view: (first <= view.src <= last) != negate
        if name == "dst-range":
            return lambda view: (first <= view.dst <= last) != negate
        raise NotUnderstood(f"--{name}")

    return each(options, build)
