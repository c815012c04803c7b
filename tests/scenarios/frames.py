"""Packets as bytes on an Ethernet, ICMP errors included, and what was on the wire as packets."""

import struct
from ipaddress import ip_address

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.packet import PROTOCOL_NUMBERS, Packet, Protocol, TcpFlags
from tests.kernel.xtables.frames import FLAG_BITS, checksum

ETHERTYPES = {4: 0x0800, 6: 0x86DD}
PROTOCOLS = {number: protocol for protocol, number in PROTOCOL_NUMBERS.items()}
ICMP = (Protocol.ICMP, Protocol.ICMPV6)


def frame(packet: Packet, src_mac: str, dst_mac: str) -> bytes:
    """Return the frame of a packet."""
    macs = bytes.fromhex((dst_mac + src_mac).replace(":", ""))
    return macs + struct.pack("!H", ETHERTYPES[packet.version]) + _ip(packet)


def _ip(packet: Packet) -> bytes:
    body = _transport(packet, packet.length - (20 if packet.version == 4 else 40))
    number = PROTOCOL_NUMBERS[packet.protocol]
    src, dst = (ip_address(ip).packed for ip in (packet.src, packet.dst))
    if packet.version == 6:
        return struct.pack("!IHBB", 6 << 28 | packet.tos << 20, len(body), number, packet.ttl) + src + dst + body
    fragment = 0x4000 if packet.df else 0
    fixed = struct.pack("!BBHHHBB", 0x45, packet.tos, 20 + len(body), 77, fragment, packet.ttl, number)
    return fixed + struct.pack("!H", checksum(fixed + b"\0\0" + src + dst)) + src + dst + body


def _transport(packet: Packet, length: int) -> bytes:
    if packet.protocol == Protocol.TCP:
        flags = sum(FLAG_BITS[name] for name in str(packet.tcp_flags).split(","))
        head, at = struct.pack("!HHIIBBHHH", packet.sport, packet.dport, 1000, 1, 0x50, flags, 512, 0, 0), 16
    elif packet.protocol == Protocol.UDP:
        head, at = struct.pack("!HHHH", packet.sport, packet.dport, length, 0), 6
    elif packet.inner is not None:
        inner = _ip(packet.inner)
        head = struct.pack("!BBHI", packet.icmp_type, packet.icmp_code, 0, packet.icmp_mtu) + inner
        length, at = max(length, len(head)), 2
    else:
        head, at = struct.pack("!BBHHH", packet.icmp_type, packet.icmp_code, 0, packet.sport, 1), 2
    body = head + bytes(length - len(head))
    pseudo = b""
    if packet.protocol != Protocol.ICMP:
        src, dst = (ip_address(ip).packed for ip in (packet.src, packet.dst))
        pseudo = src + dst + struct.pack("!II", length, PROTOCOL_NUMBERS[packet.protocol])
    return body[:at] + struct.pack("!H", checksum(pseudo + body) or 0xFFFF) + body[at + 2 :]


def read(data: bytes) -> Packet | None:
    """Return the packet in a frame; None for ARP, neighbour discovery and the like, and for fragments but the first."""
    (kind,) = struct.unpack("!H", data[12:14])
    return _read_ip(data[14:]) if kind in ETHERTYPES.values() else None


def _read_ip(data: bytes) -> Packet | None:
    if data[0] >> 4 == 4:
        tos, length, _, fragment, ttl, number = struct.unpack("!xBHHHBB", data[:10])
        src, dst, rest = data[12:16], data[16:20], data[(data[0] & 15) * 4 :]
        if fragment & 0x1FFF:
            return None
    else:
        word, length, number, ttl = struct.unpack("!IHBB", data[:8])
        tos, fragment = word >> 20 & 0xFF, 0
        src, dst, rest = data[8:24], data[24:40], data[40:]
    protocol = PROTOCOLS.get(number)
    if protocol not in (Protocol.TCP, Protocol.UDP, *ICMP) or len(rest) < 8:
        return None
    packet = Packet(
        src=Ip(str(ip_address(src))),
        dst=Ip(str(ip_address(dst))),
        protocol=protocol,
        ttl=ttl,
        tos=tos,
        length=length,
        df=bool(fragment & 0x4000),
    )
    return _read_icmp(packet, rest) if protocol in ICMP else _read_ports(packet, rest)


def _read_ports(packet: Packet, rest: bytes) -> Packet:
    sport, dport = struct.unpack("!HH", rest[:4])
    names = {
        name for name, bit in FLAG_BITS.items() if packet.protocol == Protocol.TCP and rest[13:] and rest[13] & bit
    }
    flags = next((flags for flags in TcpFlags if set(str(flags).split(",")) == names), TcpFlags.NONE)
    return packet.with_(sport=sport, dport=dport, tcp_flags=flags)


def _read_icmp(packet: Packet, rest: bytes) -> Packet | None:
    kind, code, _, number, more = struct.unpack("!BBHHH", rest[:8])
    if packet.protocol == Protocol.ICMPV6 and kind >= 130:
        return None
    errors = (3, 4, 5, 11, 12) if packet.protocol == Protocol.ICMP else (1, 2, 3, 4)
    packet = packet.with_(icmp_type=kind, icmp_code=code)
    if kind not in errors:
        return packet.with_(sport=number)
    mtu = 0
    if (packet.protocol, kind, code) == (Protocol.ICMP, 3, 4):
        mtu = more
    elif (packet.protocol, kind) == (Protocol.ICMPV6, 2):
        mtu = number << 16 | more
    return packet.with_(inner=_read_ip(rest[8:]), icmp_mtu=mtu)
