"""What IPVS balances: the text of `ipvsadm -Sn`.

Follows ipvsadm 1.31. Thresholds, netmasks of persistence and flags of schedulers are passed over.
"""

from msgspec.structs import replace

from tasks.skoop.model.addr import AddressError, Ip, parse_ip
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import IpvsDestination, IpvsService
from tasks.skoop.parse.errors import ParseError

KINDS = {
    "-t": Protocol.TCP,
    "--tcp-service": Protocol.TCP,
    "-u": Protocol.UDP,
    "--udp-service": Protocol.UDP,
    "--sctp-service": Protocol.SCTP,
}
METHODS = {"-m": "masq", "-g": "route", "-i": "tunnel"}
Key = tuple[Protocol, Ip | None, int, int]


def parse_ipvsadm(text: str, source: str = "ipvsadm-Sn.txt") -> tuple[IpvsService, ...]:
    """Return the virtual services with their real servers, in order. Raises ParseError."""
    services: dict[Key, IpvsService] = {}
    servers: dict[Key, list[IpvsDestination]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            key = _key(words)
            if words[0] == "-A" and key not in services:
                services[key] = _service(key, words)
                servers[key] = []
                continue
            if words[0] == "-a":
                servers[key].append(_server(words))
                continue
        except (AddressError, ValueError, KeyError, IndexError):
            pass
        raise ParseError(source, number, 1, f"{line[:100]!r} is not a line of ipvsadm -Sn", "take it with ipvsadm -Sn")
    return tuple(replace(service, destinations=tuple(servers[key])) for key, service in services.items())


def _key(words: list[str]) -> Key:
    if words[1] in ("-f", "--fwmark-service"):
        return Protocol.TCP, None, 0, int(words[2])
    ip, port = _end(words[2])
    return KINDS[words[1]], ip, port, 0


def _service(key: Key, words: list[str]) -> IpvsService:
    protocol, ip, port, mark = key
    return IpvsService(
        protocol=protocol,
        ip=ip,
        port=port,
        fwmark=mark,
        scheduler=words[words.index("-s") + 1] if "-s" in words else "wlc",
        persistent_s=_persistence(words),
    )


def _persistence(words: list[str]) -> int:
    """Return the seconds of `-p [seconds]`; 300 where the number is left out, 0 without -p."""
    if "-p" not in words:
        return 0
    at = words.index("-p") + 1
    return int(words[at]) if at < len(words) and words[at].isdigit() else 300


def _server(words: list[str]) -> IpvsDestination:
    ip, port = _end(words[words.index("-r") + 1])
    method = next(METHODS[word] for word in words if word in METHODS)
    return IpvsDestination(ip, port, method, int(words[words.index("-w") + 1]) if "-w" in words else 1)


def _end(text: str) -> tuple[Ip, int]:
    host, _, port = text.rpartition(":")
    if not port.isdigit():
        raise ValueError(text)
    return parse_ip(host.strip("[]")), int(port)
