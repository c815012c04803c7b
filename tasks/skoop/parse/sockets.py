"""Who would take a packet: the text of `ss -H -n` for TCP, UDP, SCTP and raw sockets (`ss -tlnupH`, `ss -tanH`).

Follows ss of iproute2 4.14 to 6.15: `*:80` is the IPv6 wildcard that takes IPv4 as well, `[::]:80` the one that does not.
Kinds of sockets other than those of IP are passed over.
"""

import re

from tasks.skoop.model.addr import AddressError, Ip, parse_ip
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import Socket
from tasks.skoop.parse.errors import ParseError
from tasks.skoop.parse.rtnames import ip_protocol

KINDS = {"tcp": Protocol.TCP, "mptcp": Protocol.TCP, "udp": Protocol.UDP, "sctp": Protocol.SCTP, "raw": Protocol.OTHER}
OTHER_KINDS = re.compile(r"(u_\w+|nl|p_raw|p_dgr|v_str|v_dgr|ti_\w+|xdp|dccp|unix|\?\?\?)$")
STATE = re.compile(r"[A-Z][A-Z0-9-]+$")
PROCESS = re.compile(r'\("((?:[^"\\]|\\.)*)"')
MAPPED = "::ffff:"


def parse_sockets(text: str, source: str = "ss-tlnupH.txt", *, protocol: Protocol = Protocol.TCP) -> tuple[Socket, ...]:
    """Return the sockets, in order; `protocol` is that of lines without a kind (`ss -t` alone). Raises ParseError."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or OTHER_KINDS.match(words[0]) or words[0] in ("State", "Netid"):
            continue
        kind = protocol
        if words[0] in KINDS:
            kind = KINDS[words[0]]
            words = words[1:]
        try:
            found.append(_socket(words, kind))
        except (AddressError, ValueError, IndexError):
            raise ParseError(
                source, number, 1, f"{line.strip()!r} is not a line of ss", "take it with ss -H -n"
            ) from None
    return tuple(found)


def _socket(words: list[str], kind: Protocol) -> Socket:
    state, recv, send, local, remote, *rest = words
    if not STATE.match(state):
        raise ValueError(state)
    ip, dev, port_text = _end(local)
    peer, _, peer_port = _end(remote)
    extra = " ".join(rest)
    raw = kind == Protocol.OTHER
    port = 0 if port_text == "*" else int(port_text)
    return Socket(
        protocol=ip_protocol(str(port)) if raw else kind,
        ip=ip or Ip("::"),
        port=0 if raw else port,
        state=state,
        dev=dev,
        v6only=local.startswith("[::]:") or "v6only:1" in rest,
        recv_queue=int(recv),
        backlog=int(send) if state == "LISTEN" else 0,
        peer=None if peer_port == "*" else peer,
        peer_port=0 if peer_port == "*" else int(peer_port),
        process=",".join(dict.fromkeys(PROCESS.findall(extra))),
        uid=_uid(rest),
    )


def _uid(words: list[str]) -> int | None:
    """Return the user that `ss -e` tells: nothing for root, but then the inode stands there."""
    told = next((word[4:] for word in words if word.startswith("uid:")), None)
    if told is not None:
        return int(told)
    return 0 if any(word.startswith("ino:") for word in words) else None


def _end(text: str) -> tuple[Ip | None, str | None, str]:
    """Return address (None for `*`), device and port of `10.0.0.1%eth0:80`, `[fe80::1]%eth0:80`, `*:80`."""
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(text)
    host, _, dev = host.partition("%")
    host = host.strip("[]")
    if host == "*":
        return None, dev or None, port
    if host.startswith(MAPPED) and "." in host:
        host = host[len(MAPPED) :]
    return parse_ip(host), dev or None, port
