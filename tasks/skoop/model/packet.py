"""The packet that is walked: headers as far as any rule, route or socket looks at them."""

from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from tasks.skoop.model.addr import Ip, Mac


class Protocol(StrEnum):
    """Transport protocols that endpoints name."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"
    ICMP = "icmp"
    ICMPV6 = "icmpv6"
    IPIP = "ipip"
    IPV6 = "ipv6"
    GRE = "gre"
    ESP = "esp"
    OTHER = "other"


PROTOCOL_NUMBERS: dict[Protocol, int] = {
    Protocol.TCP: 6,
    Protocol.UDP: 17,
    Protocol.SCTP: 132,
    Protocol.ICMP: 1,
    Protocol.ICMPV6: 58,
    Protocol.IPIP: 4,
    Protocol.IPV6: 41,
    Protocol.GRE: 47,
    Protocol.ESP: 50,
}


class CtState(StrEnum):
    """What `-m conntrack --ctstate` sees of a packet (`NONE`: conntrack has not looked at it)."""

    NONE = ""
    NEW = "NEW"
    ESTABLISHED = "ESTABLISHED"
    RELATED = "RELATED"
    INVALID = "INVALID"
    UNTRACKED = "UNTRACKED"


class TcpFlags(StrEnum):
    """Which segment of a connection this is; `NONE` for other protocols."""

    NONE = ""
    SYN = "SYN"
    SYN_ACK = "SYN,ACK"
    ACK = "ACK"
    PSH_ACK = "PSH,ACK"
    RST = "RST"
    RST_ACK = "RST,ACK"
    FIN_ACK = "FIN,ACK"


class Packet(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One IP packet.

    `sport`/`dport` are 0 where the protocol has none; for ICMP echo `sport` is the identifier. `length` is the whole IP
    packet in bytes. `inner` is the packet quoted by an ICMP error; `encap` the packet carried by a tunnel (vxlan, IPIP).
    `vni` and `encap_mac` are the network identifier of a vxlan header (or the key of a GRE one, -1 for none) and the inner
    frame's destination; `cipher` is the public key of the wireguard device that encrypted it.
    `mark` is the kernel's skb mark; it does not leave a network namespace. `ct_state` is what conntrack of the namespace
    being crossed said last. `tos` is the IPv4 TOS octet or the IPv6 traffic class. `uid` is the user of the socket that sent it, for
    rules that ask; it, too, does not leave a namespace, and is None where it is not known.
    """

    src: Ip
    dst: Ip
    protocol: Protocol = Protocol.TCP
    sport: int = 0
    dport: int = 0
    mark: int = 0
    ttl: int = 64
    length: int = 60
    df: bool = False
    tcp_flags: TcpFlags = TcpFlags.NONE
    icmp_type: int = -1
    icmp_code: int = 0
    icmp_mtu: int = 0
    ct_state: CtState = CtState.NONE
    tos: int = 0
    uid: int | None = None
    encap: "Packet | None" = None
    vni: int = 0
    encap_mac: Mac = Mac("")
    cipher: str = ""
    inner: "Packet | None" = None

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.dst else 4

    @property
    def is_icmp_error(self) -> bool:
        """Say whether this packet reports an error about the packet in `inner`."""
        return self.inner is not None

    def with_(self, **changes: object) -> "Packet":
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    def __str__(self) -> str:
        protocol = self.protocol
        if protocol in _PORTLESS:
            return f"{protocol} {self.src} > {self.dst}"
        return f"{protocol} {_end(self.src, self.sport)} > {_end(self.dst, self.dport)}"


_PORTLESS = (Protocol.ICMP, Protocol.ICMPV6)


def _end(ip: Ip, port: int) -> str:
    if not port:
        return ip
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


class Frame(Struct, frozen=True, gc=False):
    """A packet on a link, with the addresses of its Ethernet header ("" on a device that has none), and its VLAN (0: untagged)."""

    packet: Packet
    src_mac: Mac = Mac("")
    dst_mac: Mac = Mac("")
    vlan: int = 0
