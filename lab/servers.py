"""Who answers in the pods of a lab: one process, one epoll, sockets in every namespace.

TCP: a little HTTP; the answer says which pod it is and which address and port the connection seemed to come from. UDP: the
same as one datagram, sent from the address that was asked. A request may say how many bytes it wants (`want=1400`), so
that large packets travel both ways.
"""

import json
import re
import select
import socket
import struct
from dataclasses import dataclass, field

from lab.netns import Netns
from lab.plan import Listener

_WANT = re.compile(rb"want=(\d+)")
_LENGTH = re.compile(rb"(?i)content-length: *(\d+)")
IPV6_RECVPKTINFO, IPV6_PKTINFO, IP_PKTINFO = 49, 50, 8


@dataclass(slots=True, eq=False)
class _Open:
    """A socket in the epoll: what it is, whose it is, what came in and what is still to go out."""

    sock: socket.socket
    netns: str
    listener: Listener
    peer: tuple[str, int] = ("", 0)
    came: bytearray = field(default_factory=bytearray)
    goes: bytes = b""


class Servers:
    """All servers of a lab. `fd` becomes readable when `turn` has something to do."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._open: dict[int, _Open] = {}

    @property
    def fd(self) -> int:
        """The epoll's own descriptor (it can be polled)."""
        return self._epoll.fileno()

    def listen(self, netns: Netns, listener: Listener, families: tuple[int, ...], *, backlog: int = 512) -> None:
        """Open the sockets of a listener in a namespace. Raises OSError (address in use …)."""
        if listener.protocol == "udp" or listener.address:
            wanted = [6 if ":" in listener.address else 4] if listener.address else list(families)
        else:
            wanted = [6] if 6 in families else [4]
        for family in wanted:
            with netns.inside():
                sock = _bound(listener, family, backlog, dual=listener.protocol == "tcp" and not listener.address)
            self._add(_Open(sock, netns.name, listener), select.EPOLLIN)

    def close_listener(self, netns: str, protocol: str, port: int) -> tuple[Listener, ...]:
        """Close the listening sockets of a port; return the listeners that were closed."""
        closed = []
        for entry in list(self._open.values()):
            if entry.netns == netns and (entry.listener.protocol, entry.listener.port) == (protocol, port):
                if entry.peer == ("", 0) and entry.listener not in closed:
                    closed.append(entry.listener)
                self._drop(entry)
        return tuple(closed)

    def choke(self, netns: Netns, port: int, families: tuple[int, ...]) -> None:
        """Let a TCP server stop accepting, its queue of one place full (the kernel then drops new connections)."""
        for listener in self.close_listener(netns.name, "tcp", port):
            self.listen(netns, listener, families, backlog=0)
        for entry in self._listening(netns.name, port):
            self._epoll.modify(entry.sock.fileno(), 0)
        family, address = (socket.AF_INET6, "::1") if 4 not in families else (socket.AF_INET, "127.0.0.1")
        with netns.inside(), socket.socket(family, socket.SOCK_STREAM) as filler:
            filler.connect((address, port))

    def unchoke(self, netns: Netns, port: int, families: tuple[int, ...]) -> None:
        """Undo `choke`."""
        for listener in self.close_listener(netns.name, "tcp", port):
            self.listen(netns, listener, families)

    def _listening(self, netns: str, port: int) -> list[_Open]:
        chosen = (netns, port, "tcp", ("", 0))
        return [e for e in self._open.values() if (e.netns, e.listener.port, e.listener.protocol, e.peer) == chosen]

    def turn(self) -> None:
        """Serve everything that is ready, without waiting."""
        while ready := self._epoll.poll(0, 64):
            for fd, _ in ready:
                entry = self._open.get(fd)
                if entry is not None:
                    self._serve(entry)

    def close(self) -> None:
        """Close every socket."""
        for entry in list(self._open.values()):
            self._drop(entry)
        self._epoll.close()

    def _add(self, entry: _Open, events: int) -> None:
        self._open[entry.sock.fileno()] = entry
        self._epoll.register(entry.sock.fileno(), events)

    def _drop(self, entry: _Open) -> None:
        self._open.pop(entry.sock.fileno(), None)
        self._epoll.unregister(entry.sock.fileno())
        entry.sock.close()

    def _serve(self, entry: _Open) -> None:
        try:
            if entry.listener.protocol == "udp":
                _answer_datagram(entry)
            elif entry.peer == ("", 0):
                self._accept(entry)
            else:
                self._talk(entry)
        except BlockingIOError:
            return
        except OSError:
            if entry.peer != ("", 0):
                self._drop(entry)

    def _accept(self, entry: _Open) -> None:
        sock, peer = entry.sock.accept()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._add(_Open(sock, entry.netns, entry.listener, _plain(peer)), select.EPOLLIN)

    def _talk(self, entry: _Open) -> None:
        if not entry.goes:
            data = entry.sock.recv(1 << 16)
            if not data:
                self._drop(entry)
                return
            entry.came += data
            entry.goes = _answer(entry)
        if entry.goes:
            entry.goes = entry.goes[entry.sock.send(entry.goes) :]
            if not entry.goes:
                entry.came.clear()
            self._epoll.modify(entry.sock.fileno(), select.EPOLLOUT if entry.goes else select.EPOLLIN)


def _bound(listener: Listener, family: int, backlog: int, *, dual: bool) -> socket.socket:
    kind = socket.SOCK_STREAM if listener.protocol == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, kind | socket.SOCK_CLOEXEC)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == 6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
    if listener.protocol == "udp":
        level, option = (socket.IPPROTO_IPV6, IPV6_RECVPKTINFO) if family == 6 else (socket.IPPROTO_IP, IP_PKTINFO)
        sock.setsockopt(level, option, 1)
    sock.bind((listener.address or ("::" if family == 6 else "0.0.0.0"), listener.port))
    if listener.protocol == "tcp":
        sock.listen(backlog)
    return sock


def _plain(address: tuple[str | int, ...]) -> tuple[str, int]:
    """An accepted address with an IPv4-mapped one written as IPv4."""
    return str(address[0]).removeprefix("::ffff:"), int(address[1])


def _answer(entry: _Open) -> bytes:
    """Return the HTTP answer once the whole request is there, b"" before."""
    head, end, body = bytes(entry.came).partition(b"\r\n\r\n")
    length = _LENGTH.search(head)
    if not end or len(body) < (int(length[1]) if length else 0):
        return b""
    said = _who(entry.netns, entry.listener, entry.peer, _wanted(head))
    kind = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n"
    return kind + b"Content-Length: %d\r\n\r\n" % len(said) + said


def _wanted(request: bytes) -> int:
    found = _WANT.search(request[:256])
    return min(int(found[1]), 1 << 20) if found else 0


def _who(netns: str, listener: Listener, peer: tuple[str, int], size: int) -> bytes:
    said = {"server": netns, "port": listener.port, "seen": peer[0], "seen_port": peer[1]}
    return json.dumps(said).encode().ljust(size)


def _answer_datagram(entry: _Open) -> None:
    data, ancillary, _, peer = entry.sock.recvmsg(1 << 16, 256)
    said = _who(entry.netns, entry.listener, _plain(peer), _wanted(data))
    from_there = []
    for level, kind, value in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
            # struct in_pktinfo: ifindex 0 = route normally; ipi_spec_dst = the address that was asked
            from_there.append((level, kind, struct.pack("=i4s4s", 0, value[8:12], b"\0" * 4)))
        elif (level, kind) == (socket.IPPROTO_IPV6, IPV6_PKTINFO):
            from_there.append((level, kind, value[:16] + struct.pack("=i", 0)))
    entry.sock.sendmsg([said], from_there, 0, peer)
