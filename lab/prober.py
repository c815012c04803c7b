"""What does a client really see? One connection (or datagram, or echo request) from a namespace of the lab.

The kernel decides; this module only opens the socket there and listens: for the answer, for errno, and on the socket's
error queue for the ICMP message behind it and who sent it. Many attempts run at once, the lab's servers with them.
"""

import ctypes
import errno
import json
import os
import select
import socket
import struct
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

from lab.netns import Netns
from lab.servers import Servers
from tasks.skoop.model.trace import View

IP_RECVERR, IPV6_RECVERR, MSG_ERRQUEUE = 11, 25, 0x2000
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_DO, PMTUDISC_DONT = 10, 23, 2, 0
_ORIGIN_LOCAL = 1
_libc = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What to try. `payload` bytes go each way after the connection stands (UDP, ICMP: in the one datagram)."""

    src: str
    """Namespace id of the client."""
    dst: str
    dport: int = 0
    protocol: str = "tcp"
    sport: int = 0
    src_ip: str = ""
    payload: int = 0
    df: bool = False
    tos: int = 0
    """TOS octet of what the client sends (IPv6: the traffic class)."""
    uid: int = 0
    """The user that the socket belongs to."""
    timeout_s: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Icmp:
    """An ICMP error from the socket's error queue; `local`: the own kernel said so without a packet."""

    type: int
    code: int
    sender: str = ""
    mtu: int = 0
    local: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What the client saw.

    `answer` is "ok", or what became of the data on a connection that stands: none, reset, eof. `server` is the namespace id
    that answered, `seen_src`/`seen_port` what it saw as the client's address. `sport` is the client's own port (ICMP: id).
    """

    ask: Ask
    view: View
    errno: str = ""
    icmp: Icmp | None = None
    answer: str = ""
    server: str = ""
    seen_src: str = ""
    seen_port: int = 0
    local_ip: str = ""
    sport: int = 0
    ms: float = 0.0


@dataclass(slots=True)
class _Try:
    ask: Ask
    sock: socket.socket
    result: Attempt
    started: float
    connected: bool = False
    done: bool = False
    came: bytearray = field(default_factory=bytearray)
    goes: bytes = b""

    def finish(self, **changes: object) -> None:
        ms = (time.perf_counter() - self.started) * 1e3
        self.result = replace(self.result, ms=round(ms, 3), **changes)  # type: ignore[arg-type]  # names are fields
        self.done = True


class Early(Protocol):
    """Somebody who sees what becomes of the packets, so that silence need not be waited for."""

    @property
    def fd(self) -> int:
        """Becomes readable when `hopeless` may have something new to say, and stays so until it is asked."""

    def begin(self, attempts: Sequence[Attempt]) -> None:
        """Look at these tries from now on; their first packets are out already."""

    def hopeless(self) -> Collection[int]:
        """Return the positions (in `attempts`) of tries that will hear nothing more."""


_AT_ONCE = 128
_STARVED_S = 5.0


def attempt_all(
    asks: Sequence[Ask], spaces: dict[str, Netns], servers: Servers, early: Early | None = None
) -> list[Attempt]:
    """Try everything, many at once, and return what each client saw, in order."""
    return [
        result
        for start in range(0, len(asks), _AT_ONCE)
        for result in _attempt_some(asks[start : start + _AT_ONCE], spaces, servers, early)
    ]


def _attempt_some(
    asks: Sequence[Ask], spaces: dict[str, Netns], servers: Servers, early: Early | None
) -> list[Attempt]:
    tries = [_start(ask, spaces[ask.src]) for ask in asks]
    try:
        with select.epoll() as poller:
            poller.register(servers.fd, select.EPOLLIN)
            if early is not None:
                early.begin([one.result for one in tries])
                poller.register(early.fd, select.EPOLLIN)
            for one in tries:
                if not one.done:
                    poller.register(one.sock.fileno(), select.EPOLLOUT if one.ask.protocol == "tcp" else select.EPOLLIN)
            _wait(tries, poller, servers, early)
        return [one.result for one in tries]
    finally:
        for one in tries:
            one.sock.close()


def _wait(tries: Sequence[_Try], poller: select.epoll, servers: Servers, early: Early | None) -> None:
    by_fd = {one.sock.fileno(): one for one in tries}
    waited_since = time.perf_counter()  # starting them all took its time, which is not theirs
    idle = True
    while waiting := [one for one in tries if not one.done]:
        now = time.perf_counter()
        for one in waiting:
            late = now - waited_since - one.ask.timeout_s
            if late >= 0 and (idle or late > _STARVED_S):  # what lies there is read first, however busy the machine is
                _give_up(one)
        left = min(one.ask.timeout_s for one in waiting) - (now - waited_since)
        ready = [fd for fd, _ in poller.poll(max(0.0, min(left, 0.05)), 256)]
        idle = not ready or (early is not None and ready == [early.fd])
        for fd in ready:
            if fd == servers.fd:
                servers.turn()
            elif fd in by_fd:
                _step(by_fd[fd], poller)
        if early is not None and idle and ready:  # nobody has anything to read: what is lost now is lost
            for one in [tries[number] for number in early.hopeless()]:
                if not one.done:
                    _give_up(one)
                    _leave_if_done(one, poller)


def _give_up(one: _Try) -> None:
    if one.connected:
        one.finish(view=View.CONNECTED, answer="none")
    else:
        one.finish(view=View.TIMEOUT, icmp=_error_queue(one.sock))


def _socket(ask: Ask) -> socket.socket:
    six = ":" in ask.dst
    family = socket.AF_INET6 if six else socket.AF_INET
    if ask.protocol == "tcp":
        return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    number = 0 if ask.protocol == "udp" else (socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP)
    return socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, number)


@contextmanager
def _as_user(uid: int) -> Iterator[None]:
    """Be that user where files, hence sockets, are made; only this thread is (setfsuid(2))."""
    if uid:
        _libc.setfsuid(uid)
    try:
        yield
    finally:
        if uid:
            _libc.setfsuid(os.geteuid())


def _start(ask: Ask, netns: Netns) -> _Try:
    six = ":" in ask.dst
    with netns.inside(), _as_user(ask.uid):
        sock = _socket(ask)
    level, recverr = (socket.IPPROTO_IPV6, IPV6_RECVERR) if six else (socket.IPPROTO_IP, IP_RECVERR)
    sock.setsockopt(level, recverr, 1)
    if ask.protocol == "tcp":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    else:
        option = IPV6_MTU_DISCOVER if six else IP_MTU_DISCOVER
        sock.setsockopt(level, option, PMTUDISC_DO if ask.df else PMTUDISC_DONT)
    if ask.tos:
        name = socket.IPV6_TCLASS if six else socket.IP_TOS
        sock.setsockopt(level, name, ask.tos)
    one = _Try(ask, sock, Attempt(ask=ask, view=View.UNKNOWN), time.perf_counter())
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ask.sport or ask.src_ip:
            sock.bind((ask.src_ip or ("::" if six else "0.0.0.0"), ask.sport))
        code = sock.connect_ex((ask.dst, ask.dport or 1))
        if code not in (0, errno.EINPROGRESS):
            _failed(one, code)
            return one
        _note_local(one)
        if ask.protocol != "tcp":
            sock.send(_datagram(ask))
    except OSError as error:
        _failed(one, error.errno or 0)
    return one


def _note_local(one: _Try) -> None:
    name = one.sock.getsockname()
    one.result = replace(one.result, local_ip=str(name[0]), sport=int(name[1]))


def _datagram(ask: Ask) -> bytes:
    if ask.protocol == "udp":
        return (b"want=%d " % ask.payload).ljust(ask.payload, b".")
    kind = 128 if ":" in ask.dst else 8
    return struct.pack(">BBHHH", kind, 0, 0, 0, 1) + os.urandom(8).ljust(ask.payload, b".")


def _request(ask: Ask) -> bytes:
    head = b"POST /?want=%d HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % (ask.payload, ask.payload)
    return head + b"." * ask.payload


_VIEWS = {errno.ECONNREFUSED: View.REFUSED, errno.ETIMEDOUT: View.TIMEOUT, errno.ECONNRESET: View.REFUSED}


def _failed(one: _Try, code: int) -> None:
    view = _VIEWS.get(code, View.UNREACHABLE)
    one.finish(view=view, errno=errno.errorcode.get(code, str(code)), icmp=_error_queue(one.sock))


def _error_queue(sock: socket.socket) -> Icmp | None:
    """Return the newest error of the socket's error queue (struct sock_extended_err and the offender's address)."""
    newest = None
    while True:
        try:
            _, ancillary, _, _ = sock.recvmsg(512, 512, MSG_ERRQUEUE)
        except OSError:
            return newest
        for level, kind, value in ancillary:
            four = (level, kind) == (socket.IPPROTO_IP, IP_RECVERR)
            if not four and (level, kind) != (socket.IPPROTO_IPV6, IPV6_RECVERR):
                continue
            _, origin, icmp_type, code, _, info, _ = struct.unpack_from("=IBBBBII", value)
            raw = value[20:24] if four else value[24:40]
            sender = ""
            if any(raw):
                sender = socket.inet_ntop(socket.AF_INET if four else socket.AF_INET6, raw)
            newest = Icmp(type=icmp_type, code=code, sender=sender, mtu=info, local=origin == _ORIGIN_LOCAL)


def _step(one: _Try, poller: select.epoll) -> None:
    if one.done:
        return
    try:
        if one.ask.protocol == "tcp":
            _step_tcp(one, poller)
        else:
            _step_datagram(one)
    except BlockingIOError:
        return
    except OSError as error:
        if one.connected:
            one.finish(view=View.CONNECTED, answer="reset", errno=errno.errorcode.get(error.errno or 0, ""))
        else:
            _failed(one, error.errno or 0)
    _leave_if_done(one, poller)


def _leave_if_done(one: _Try, poller: select.epoll) -> None:
    if one.done:
        poller.unregister(one.sock.fileno())


def _step_tcp(one: _Try, poller: select.epoll) -> None:
    if not one.connected:
        code = one.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            _failed(one, code)
            return
        one.connected = True
        _note_local(one)
        one.goes = _request(one.ask)
    if one.goes:
        one.goes = one.goes[one.sock.send(one.goes) :]
        if not one.goes:
            poller.modify(one.sock.fileno(), select.EPOLLIN)
        return
    data = one.sock.recv(1 << 16)
    if not data:
        one.finish(view=View.CONNECTED, answer="eof")
        return
    one.came += data
    head, end, body = bytes(one.came).partition(b"\r\n\r\n")
    if end and len(body) >= int(head.rpartition(b": ")[2]):
        _answered(one, body)


def _step_datagram(one: _Try) -> None:
    data = one.sock.recv(1 << 16)
    if one.ask.protocol == "icmp":
        one.finish(view=View.CONNECTED, answer="ok")
    else:
        _answered(one, data)


def _answered(one: _Try, body: bytes) -> None:
    said = json.loads(body)
    one.finish(
        view=View.CONNECTED,
        answer="ok",
        server=said["server"],
        seen_src=said["seen"],
        seen_port=said["seen_port"],
    )
