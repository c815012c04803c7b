"""What the kernel told of one packet at one point, and how its records become that: names instead of numbers, nothing judged."""

import socket
import struct
from collections.abc import Callable, Mapping
from enum import StrEnum

from msgspec import Struct

RECORD = struct.Struct("=IIQQQ8I6H10B2x16s16s16s16s16s")
"""A record of watch.bpf.c (struct event) with the ring buffer's own header before it."""
RECORD_BYTES = RECORD.size - 8
_DISCARDED = 1 << 30

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58


class Kind(StrEnum):
    """What happened to the packet."""

    DROP = "drop"
    RX = "rx"
    TX = "tx"


class Form(StrEnum):
    """What the second pair of addresses is: none, the outer header of a vxlan, or the packet an ICMP error is about."""

    PLAIN = ""
    VXLAN = "vxlan"
    ERROR = "error"


_KINDS = (Kind.DROP, Kind.DROP, Kind.RX, Kind.TX)
_FORMS = (Form.PLAIN, Form.VXLAN, Form.ERROR)


class Event(Struct, frozen=True, gc=False):
    """One packet, taken in (rx) or sent (tx) by a device, or thrown away (drop).

    `netns` is the name given to the oracle. `skb` is the kernel's own address of the packet: the same as long as it lives, and
    free for another afterwards. In a vxlan `src` … `length` are the carried packet's and `other_…` the outer header's; in an
    ICMP error `other_…` are those of the packet it is about. `sport` of an echo is its identifier. `sock_port`, `sock_netns`:
    local port and namespace of the socket it belongs to, as far as the kernel knows one. `reason` and `function` (who threw it
    away) are "" but for a drop; there `dev` is "" where the packet had no device yet.
    """

    at_ns: int
    kind: Kind
    netns: str
    dev: str
    ifindex: int
    skb: int
    protocol: int
    src: str
    sport: int
    dst: str
    dport: int
    ttl: int
    length: int
    mark: int
    flags: int
    seq: int
    ack: int
    icmp_type: int
    icmp_code: int
    fragment: bool
    form: Form
    other_protocol: int
    other_src: str
    other_sport: int
    other_dst: str
    other_dport: int
    vni: int
    sock_netns: str
    sock_port: int
    reason: str
    function: str

    @property
    def is_error(self) -> bool:
        """Say whether it is an ICMP error."""
        return self.form is Form.ERROR

    def __str__(self) -> str:
        tunnel = f" [{self.form} {self.other_src}:{self.other_sport} > {self.other_dst}:{self.other_dport}]"
        return (
            f"{self.kind:4} {self.netns} {self.dev or '-'} {self.protocol} {self.src}:{self.sport} > {self.dst}:{self.dport}"
            f" ttl {self.ttl} len {self.length}"
            + (f" mark {self.mark:#x}" if self.mark else "")
            + (tunnel if self.form else "")
            + (f" {self.reason} {self.function}" if self.kind is Kind.DROP else "")
        )


class _Addresses(dict[bytes, str]):
    """16 bytes → text; an IPv4 address is told as ::ffff:a.b.c.d."""

    def __missing__(self, raw: bytes) -> str:
        mapped = raw[:12] == b"\0" * 10 + b"\xff\xff"
        text = socket.inet_ntop(socket.AF_INET, raw[12:]) if mapped else socket.inet_ntop(socket.AF_INET6, raw)
        self[raw] = text
        return text


class _Devices(dict[bytes, str]):
    def __missing__(self, raw: bytes) -> str:
        self[raw] = text = raw.partition(b"\0")[0].decode(errors="replace")
        return text


class Decoder:
    """Turns records into events; keeps the texts that it has made."""

    def __init__(
        self, namespaces: Mapping[int, str], reasons: Mapping[int, str], function_at: Callable[[int], str]
    ) -> None:
        self._namespaces = namespaces
        self._reasons = reasons
        self._function_at = function_at
        self._addresses = _Addresses()
        self._addresses[bytes(16)] = ""
        self._devices = _Devices()

    def decode(self, data: bytes) -> list[Event]:
        """Return the events of whole records."""
        spaces, addresses, devices = self._namespaces, self._addresses, self._devices
        return [
            Event(
                at_ns,
                _KINDS[kind],
                spaces[netns],
                devices[dev],
                ifindex,
                skb,
                protocol,
                addresses[src],
                sport,
                addresses[dst],
                dport,
                ttl,
                length,
                mark,
                flags,
                seq,
                ack,
                icmp_type,
                icmp_code,
                fragment == 1,
                _FORMS[form],
                other_protocol,
                addresses[other_src],
                other_sport,
                addresses[other_dst],
                other_dport,
                vni,
                spaces.get(sock_netns, "") if sock_netns else "",
                sock_port,
                self._reasons.get(reason, str(reason)) if reason else "",
                self._function_at(location) if reason else "",
            )
            for (
                header,
                _,
                at_ns,
                skb,
                location,
                netns,
                ifindex,
                mark,
                reason,
                seq,
                ack,
                vni,
                sock_netns,
                length,
                sport,
                dport,
                sock_port,
                other_sport,
                other_dport,
                kind,
                _version,
                protocol,
                ttl,
                flags,
                icmp_type,
                icmp_code,
                form,
                fragment,
                other_protocol,
                src,
                dst,
                other_src,
                other_dst,
                dev,
            ) in RECORD.iter_unpack(data)
            if not header & _DISCARDED and netns in spaces
        ]
