"""Which sockets of a network namespace can receive, read by sock_diag: TCP listeners, UDP and raw sockets.

The counterpart of `parse.sockets`, and equal to it in its values. Who holds a socket is found by its inode in /proc, as ss
does it; only the program's name is kept, never its command line.
"""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from tasks.skoop.collect.rtlinks import attributes
from tasks.skoop.model.addr import Ip, parse_ip
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import Socket
from tasks.skoop.parse.rtnames import ip_protocol

IPPROTO_TCP, IPPROTO_UDP = 6, 17
TCP_LISTEN, TCP_CLOSE, TCP_ESTABLISHED = 10, 7, 1
KINDS: tuple[tuple[int, Protocol, int], ...] = (
    (IPPROTO_TCP, Protocol.TCP, 1 << TCP_LISTEN),
    (IPPROTO_UDP, Protocol.UDP, 0xFFF),
)
"""IP protocol, ours, states asked for."""
STATES = {TCP_LISTEN: "LISTEN", TCP_CLOSE: "UNCONN", TCP_ESTABLISHED: "ESTAB"}
MAPPED = "::ffff:"


def read_sockets(
    messages: Iterable[tuple[Protocol, Any]], names: Mapping[int, str], owners: Mapping[int, str]
) -> tuple[Socket, ...]:
    """Return the sockets of (protocol, message of inet_diag), sorted; `owners` maps an inode to a program's name."""
    found = [_socket(protocol, message, names, owners) for protocol, message in messages]
    return tuple(
        sorted(found, key=lambda one: (one.protocol, one.port, one.ip, one.dev or "", one.peer or "", one.peer_port))
    )


def _socket(protocol: Protocol, message: Any, names: Mapping[int, str], owners: Mapping[int, str]) -> Socket:  # noqa: ANN401
    row = attributes(message)
    state = STATES.get(message["idiag_state"], str(message["idiag_state"]))
    listening = state == "LISTEN"
    connected = bool(message["idiag_dport"])
    return Socket(
        protocol=protocol,
        ip=_ip(message["idiag_src"]),
        port=message["idiag_sport"],
        state=state,
        dev=names.get(message["idiag_if"] or 0),
        v6only=bool(row.get("INET_DIAG_SKV6ONLY", 0)),
        recv_queue=message["idiag_rqueue"],
        backlog=message["idiag_wqueue"] if listening else 0,
        uid=message["idiag_uid"],
        peer=_ip(message["idiag_dst"]) if connected else None,
        peer_port=message["idiag_dport"],
        process=owners.get(message["idiag_inode"], ""),
    )


def _ip(text: str) -> Ip:
    return parse_ip(text[len(MAPPED) :] if text.startswith(MAPPED) and "." in text else text)


def raw_sockets(text: str, owners: Mapping[int, str]) -> tuple[Socket, ...]:
    """Return the raw sockets of /proc/net/raw or raw6: the port column is their IP protocol."""
    found = []
    for line in text.splitlines()[1:]:
        words = line.split()
        address, _, number = words[1].partition(":")
        found.append(
            Socket(
                protocol=ip_protocol(str(int(number, 16))),
                ip=_hex_ip(address),
                port=0,
                state="UNCONN",
                process=owners.get(int(words[9]), ""),
            )
        )
    return tuple(found)


def _hex_ip(text: str) -> Ip:
    """Return an address that /proc prints as 32-bit words in the host's byte order."""
    words = [bytes.fromhex(text[at : at + 8]) for at in range(0, len(text), 8)]
    data = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    return Ip(str(ip_address(data)))


def socket_owners(pids: Sequence[int]) -> dict[int, str]:
    """Return socket inode → names of the programs that hold it, of these processes, as far as we may look."""
    found: dict[int, dict[str, None]] = {}
    for pid in pids:
        try:
            with open(f"/proc/{pid}/comm") as file:  # noqa: PTH123 -- thousands of these; Path costs more than the read
                name = file.read().strip()
            links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]  # noqa: PTH115
        except OSError:
            continue  # gone meanwhile, or not ours to see: the socket is listed without a name
        for link in links:
            if link.startswith("socket:["):
                found.setdefault(int(link[8:-1]), {})[name] = None
    return {inode: ",".join(names) for inode, names in found.items()}
