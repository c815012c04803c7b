"""How does one tell the kernel to make links, addresses, routes, neighbours: rtnetlink messages, packed by hand.

Follows include/uapi/linux/{rtnetlink,if_link,neighbour}.h. Only what the lab builds is here; messages are queued and sent
in batches, which is what makes a lab of twenty namespaces a matter of milliseconds. No message asks for an index: the
caller chooses interface indexes himself.
"""

import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 1, 4, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
RTM_NEWLINK, RTM_GETLINK, RTM_SETLINK = 16, 18, 19
RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWNEIGH = 20, 24, 28
NLMSG_ERROR, NLMSG_DONE = 2, 3
IFF_UP = 1
NUD_PERMANENT, NTF_SELF = 0x80, 2
RTNH_F_ONLINK = 4
AF_BRIDGE = 7
NETLINK_NETFILTER = 12
IFA_F_NODAD = 2
_HEADER = struct.Struct("=IHHII")


class NetlinkError(OSError):
    """The kernel refused a message; `context` says which one."""

    def __init__(self, code: int, context: str) -> None:
        super().__init__(code, f"{os.strerror(code)} ({context})")


def _pad(length: int) -> int:
    return (length + 3) & ~3


def attr(kind: int, value: bytes | int | str) -> bytes:
    """Return one attribute: int as u32, str NUL-terminated, bytes as they are."""
    if isinstance(value, int):
        value = struct.pack("=I", value)
    elif isinstance(value, str):
        value = value.encode() + b"\0"
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + b"\0" * (_pad(length) - length)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (type, value) of packed attributes; nested and byte-order flags are taken off."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += _pad(length)


def mac_bytes(mac: str) -> bytes:
    """Return the six bytes of `02:42:…`."""
    return bytes.fromhex(mac.replace(":", ""))


def ip_bytes(ip: str) -> bytes:
    """Return the 4 or 16 bytes of an address."""
    return ip_address(ip).packed


def family_of(ip: str) -> int:
    """Return AF_INET or AF_INET6 for the text of an address or prefix."""
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


class Rtnl:
    """A netlink socket of the namespace in which it was made. Messages are queued with `queue` and sent by `flush`."""

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.bind((0, 0))
        self._sequence = 1
        self._queued: list[tuple[bytes, str]] = []

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def queue(self, kind: int, body: bytes, flags: int = NLM_F_CREATE | NLM_F_EXCL, context: str = "") -> None:
        """Queue one message for `flush`."""
        self._sequence += 1
        header = _HEADER.pack(16 + len(body), kind, flags | NLM_F_REQUEST | NLM_F_ACK, self._sequence, 0)
        self._queued.append((header + body, context or f"message type {kind}"))

    def flush(self) -> None:
        """Send what is queued and wait for every acknowledgement. Raises NetlinkError for the first that failed."""
        queued, self._queued = self._queued, []
        for start in range(0, len(queued), 64):
            chunk = queued[start : start + 64]
            self._socket.send(b"".join(message for message, _ in chunk))
            done = 0
            while done < len(chunk):
                for kind, body in _messages(self._socket.recv(1 << 16)):
                    if kind != NLMSG_ERROR:
                        continue
                    (code,) = struct.unpack_from("=i", body)
                    if code:
                        raise NetlinkError(-code, chunk[done][1])
                    done += 1

    def send(self, kind: int, body: bytes, flags: int = NLM_F_CREATE | NLM_F_EXCL, context: str = "") -> None:
        """Send one message at once."""
        self.queue(kind, body, flags, context)
        self.flush()

    def dump(self, kind: int, body: bytes) -> Iterator[bytes]:
        """Yield the bodies of a dump."""
        self._sequence += 1
        header = _HEADER.pack(16 + len(body), kind, NLM_F_REQUEST | NLM_F_DUMP, self._sequence, 0)
        self._socket.send(header + body)
        while True:
            for answer, data in _messages(self._socket.recv(1 << 18)):
                if answer == NLMSG_DONE:
                    return
                if answer == NLMSG_ERROR:
                    raise NetlinkError(-struct.unpack_from("=i", data)[0], "dump")
                yield data


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset < len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        yield kind, data[offset + 16 : offset + length]
        offset += _pad(length)


def ifinfo(index: int = 0, *, up: bool | None = None) -> bytes:
    """Return a struct ifinfomsg; `up` None leaves the flags alone."""
    return struct.pack("=BxHiII", 0, 0, index, IFF_UP if up else 0, 0 if up is None else IFF_UP)


def link(
    name: str,
    kind: str,
    *,
    index: int,
    data: bytes = b"",
    up: bool = True,
    master: int = 0,
    mtu: int = 0,
    mac: str = "",
    gso_max_segs: int = 0,
    netns_fd: int = -1,
) -> bytes:
    """Return the body of RTM_NEWLINK for a new device."""
    body = ifinfo(index, up=up) + attr(3, name)
    if mac:
        body += attr(1, mac_bytes(mac))
    if mtu:
        body += attr(4, mtu)
    if master:
        body += attr(10, master)
    if gso_max_segs:
        body += attr(40, gso_max_segs)
    if netns_fd >= 0:
        body += attr(28, netns_fd)
    return body + attr(18, attr(1, kind) + (attr(2, data) if data else b""))


def veth_peer(name: str, *, index: int, netns_fd: int, mtu: int = 0, mac: str = "", gso_max_segs: int = 0) -> bytes:
    """Return the info data of a veth: its other end, made in another namespace, down (it cannot be made up)."""
    peer = ifinfo(index) + attr(3, name) + attr(28, netns_fd)
    if mtu:
        peer += attr(4, mtu)
    if mac:
        peer += attr(1, mac_bytes(mac))
    if gso_max_segs:
        peer += attr(40, gso_max_segs)
    return attr(1, peer)


def vxlan(vni: int, local: str, *, lower: int, port: int) -> bytes:
    """Return the info data of a vxlan device without learning, as flanneld makes it."""
    where = attr(17, ip_bytes(local)) if ":" in local else attr(4, ip_bytes(local))
    return attr(1, vni) + where + attr(3, lower) + attr(15, struct.pack(">H", port)) + attr(7, b"\0")


def set_link(index: int, *, up: bool | None = None, gso_max_segs: int = 0) -> bytes:
    """Return the body of RTM_SETLINK."""
    return ifinfo(index, up=up) + (attr(40, gso_max_segs) if gso_max_segs else b"")


def set_hairpin(index: int) -> bytes:
    """Return the body of RTM_SETLINK that turns a bridge port's hairpin mode on (IFLA_LINKINFO/IFLA_INFO_SLAVE_DATA)."""
    return ifinfo(index) + attr(18, attr(4, "bridge") + attr(5, attr(4, b"\1")))


def address(index: int, cidr: str) -> bytes:
    """Return the body of RTM_NEWADDR for `a.b.c.d/len` (global scope; IPv6 without duplicate detection)."""
    interface = ip_interface(cidr)
    packed = interface.ip.packed
    length = interface.network.prefixlen
    if interface.version == 6:
        return struct.pack("=BBBBi", socket.AF_INET6, length, IFA_F_NODAD, 0, index) + attr(1, packed)
    body = struct.pack("=BBBBi", socket.AF_INET, length, 0, 0, index) + attr(1, packed) + attr(2, packed)
    if length < 31:
        body += attr(4, interface.network.broadcast_address.packed)
    return body


def route(prefix: str, *, via: str = "", dev: int = 0, onlink: bool = False) -> bytes:
    """Return the body of RTM_NEWROUTE in the main table (protocol boot, as `ip route add` has it)."""
    net = ip_network(prefix)
    family = family_of(prefix)
    scope = 0 if via or family == socket.AF_INET6 else 253
    flags = RTNH_F_ONLINK if onlink else 0
    body = struct.pack("=BBBBBBBBI", family, net.prefixlen, 0, 0, 254, 3, scope, 1, flags)
    if net.prefixlen:
        body += attr(1, net.network_address.packed)
    if via:
        body += attr(5, ip_bytes(via))
    if dev:
        body += attr(4, dev)
    return body


def neighbour(index: int, ip: str, mac: str) -> bytes:
    """Return the body of RTM_NEWNEIGH for a permanent neighbour."""
    head = struct.pack("=BxxxiHBB", family_of(ip), index, NUD_PERMANENT, 0, 0)
    return head + attr(1, ip_bytes(ip)) + attr(2, mac_bytes(mac))


def fdb_entry(index: int, mac: str, remote: str) -> bytes:
    """Return the body of RTM_NEWNEIGH for a permanent vxlan forwarding entry."""
    head = struct.pack("=BxxxiHBB", AF_BRIDGE, index, NUD_PERMANENT, NTF_SELF, 0)
    return head + attr(1, ip_bytes(remote)) + attr(2, mac_bytes(mac))
