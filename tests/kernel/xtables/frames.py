"""Packets as bytes on an Ethernet, made from the model's packets and read back."""

import struct
from ipaddress import ip_address

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.packet import PROTOCOL_NUMBERS, Packet, Protocol, TcpFlags

FLAG_BITS = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16}
PROTOCOLS = {number: protocol for protocol, number in PROTOCOL_NUMBERS.items()}
ETHERTYPES = {4: 0x0800, 6: 0x86DD}


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def frame(packet: Packet, src_mac: str, dst_mac: str, serial: int) -> bytes:
    """Return the frame of a packet; its last eight bytes are `serial`."""
    body = _transport(packet, packet.length - (20 if packet.version == 4 else 40), serial)
    number = PROTOCOL_NUMBERS[packet.protocol]
    src, dst = (ip_address(ip).packed for ip in (packet.src, packet.dst))
    if packet.version == 4:
        fixed = struct.pack("!BBHHHBB", 0x45, packet.tos, 20 + len(body), serial & 0xFFFF, 0, packet.ttl, number)
        header = fixed + struct.pack("!H", checksum(fixed + b"\0\0" + src + dst)) + src + dst
    else:
        header = struct.pack("!IHBB", 6 << 28 | packet.tos << 20, len(body), number, packet.ttl) + src + dst
    macs = bytes.fromhex((dst_mac + src_mac).replace(":", ""))
    return macs + struct.pack("!H", ETHERTYPES[packet.version]) + header + body


def _transport(packet: Packet, length: int, serial: int) -> bytes:
    if packet.protocol == Protocol.TCP:
        flags = sum(FLAG_BITS[name] for name in str(packet.tcp_flags).split(","))
        head, at = struct.pack("!HHIIBBHHH", packet.sport, packet.dport, 1, 1, 0x50, flags, 512, 0, 0), 16
    elif packet.protocol == Protocol.UDP:
        head, at = struct.pack("!HHHH", packet.sport, packet.dport, length, 0), 6
    else:
        head, at = struct.pack("!BBHHH", packet.icmp_type, packet.icmp_code, 0, packet.sport, 1), 2
    body = head + bytes(length - len(head) - 8) + struct.pack("!Q", serial)
    pseudo = b""
    if packet.protocol != Protocol.ICMP:
        src, dst = (ip_address(ip).packed for ip in (packet.src, packet.dst))
        pseudo = src + dst + struct.pack("!II", length, PROTOCOL_NUMBERS[packet.protocol])
    summed = checksum(pseudo + body) or 0xFFFF
    return body[:at] + struct.pack("!H", summed) + body[at + 2 :]


def read(data: bytes) -> tuple[int, Packet] | None:
    """Return (serial, packet) of a frame that `frame` made, as it arrived; None for any other frame."""
    (kind,) = struct.unpack("!H", data[12:14])
    if kind == ETHERTYPES[4]:
        tos, length, ttl, number = data[15], struct.unpack("!H", data[16:18])[0], data[22], data[23]
        src, dst, rest = data[26:30], data[30:34], data[34 : 14 + length]
    elif kind == ETHERTYPES[6]:
        word, length, number, ttl = struct.unpack("!IHBB", data[14:22])
        tos, length = word >> 20 & 0xFF, length + 40
        src, dst, rest = data[22:38], data[38:54], data[54 : 14 + length]
    else:
        return None
    protocol = PROTOCOLS.get(number)
    if protocol not in (Protocol.TCP, Protocol.UDP, Protocol.ICMP, Protocol.ICMPV6) or len(rest) < 16:
        return None
    icmp = protocol in (Protocol.ICMP, Protocol.ICMPV6)
    sport, dport = struct.unpack("!HH", rest[4:8] if icmp else rest[:4])
    names = [name for name, bit in FLAG_BITS.items() if protocol == Protocol.TCP and rest[13] & bit]
    flags = next((flags for flags in TcpFlags if set(str(flags).split(",")) == set(names)), TcpFlags.NONE)
    packet = Packet(
        src=Ip(str(ip_address(src))),
        dst=Ip(str(ip_address(dst))),
        protocol=protocol,
        sport=sport,
        dport=0 if icmp else dport,
        ttl=ttl,
        tos=tos,
        length=length,
        tcp_flags=flags,
        icmp_type=rest[0] if icmp else -1,
        icmp_code=rest[1] if icmp else 0,
    )
    return struct.unpack("!Q", rest[-8:])[0], packet
