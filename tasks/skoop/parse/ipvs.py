"""What IPVS balances: the text of `ipvsadm -Sn` or `-Ln`, of /proc/net/ip_vs and of /proc/net/ip_vs_conn.

Follows ipvsadm 1.31 and ip_vs_info_seq_show, ip_vs_conn_seq_show (net/netfilter/ipvs, v6.1). ipvsadm knows the schedulers'
flags and the seconds of a persistence, but sorts the real servers; /proc has them in the kernel's order, by which the hashing
schedulers choose. `in_kernel_order` puts both together. Thresholds are in neither and passed over.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address

from msgspec.structs import replace

from tasks.skoop.model.addr import AddressError, Ip, parse_ip
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import IpvsConnection, IpvsDestination, IpvsService
from tasks.skoop.parse.errors import ParseError

KINDS = {
    "-t": Protocol.TCP,
    "--tcp-service": Protocol.TCP,
    "-u": Protocol.UDP,
    "--udp-service": Protocol.UDP,
    "--sctp-service": Protocol.SCTP,
}
METHODS = {"-m": "masq", "-g": "route", "-i": "tunnel"}
PROC_METHODS = {"Masq": "masq", "Route": "route", "Tunnel": "tunnel", "Local": "local", "Bypass": "bypass"}
PROC_PROTOCOLS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP, "IP": Protocol.OTHER}
UNKNOWN_TIMEOUT_S = 300
"""Stands for the timeout of a persistence in /proc/net/ip_vs, which is in ticks of a length that is not told."""

Key = tuple[Protocol, Ip | None, int, int, int]
"""Protocol, address, port, mark, family (6 for a service by mark for IPv6, else 0)."""


# --- ipvsadm -Sn -----------------------------------------------------------------------------------------------------


def parse_ipvsadm(text: str, source: str = "ipvsadm-Sn.txt") -> tuple[IpvsService, ...]:
    """Return the virtual services with their real servers, in order; `ipvsadm -Ln` if the text begins so. Raises ParseError."""
    if text.startswith(LISTED):
        return _listed(text, source)
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


LISTED = "IP Virtual Server version"
"""How `ipvsadm -Ln` and /proc/net/ip_vs begin."""


def _listed(text: str, source: str) -> tuple[IpvsService, ...]:
    """Read `ipvsadm -Ln`: as /proc/net/ip_vs, with numbers for people; three lines of headings."""
    services: list[IpvsService] = []
    for number, line in enumerate(text.splitlines()[3:], 4):
        words = line.split()
        try:
            if not words:
                continue
            if words[0] == "->":
                server = IpvsDestination(*_end(words[1]), PROC_METHODS[words[2]], int(words[3]))
                services[-1] = replace(services[-1], destinations=(*services[-1].destinations, server))
            else:
                services.append(_listed_service(words))
        except (AddressError, ValueError, KeyError, IndexError):
            what = f"{line[:100]!r} is not a line of ipvsadm -Ln"
            raise ParseError(source, number, 1, what, "take it with ipvsadm -Sn") from None
    return tuple(services)


def _listed_service(words: list[str]) -> IpvsService:
    service = IpvsService(
        scheduler=words[2],
        persistent_s=int(_after(words, "persistent", "0")),
        netmask=_after(words, "mask", ""),
        flags=("ops",) if "ops" in words else (),
    )
    if words[0] == "FWM":
        six = words[2] == "IPv6"
        return replace(service, fwmark=int(words[1]), family=6 if six else 0, scheduler=words[3] if six else words[2])
    ip, port = _end(words[1])
    return replace(service, protocol=PROC_PROTOCOLS[words[0]], ip=ip, port=port)


def _key(words: list[str]) -> Key:
    if words[1] in ("-f", "--fwmark-service"):
        return Protocol.TCP, None, 0, int(words[2]), 6 if "-6" in words else 0
    ip, port = _end(words[2])
    return KINDS[words[1]], ip, port, 0, 0


def _service(key: Key, words: list[str]) -> IpvsService:
    protocol, ip, port, mark, family = key
    flags = ("ops",) if {"-o", "--ops"} & set(words) else ()
    return IpvsService(
        protocol=protocol,
        ip=ip,
        port=port,
        fwmark=mark,
        family=family,
        scheduler=_after(words, "-s", "wlc"),
        persistent_s=_persistence(words),
        netmask=_after(words, "-M", ""),
        flags=(*flags, *(flag for flag in _after(words, "-b", "").split(",") if flag)),
    )


def _after(words: list[str], option: str, default: str) -> str:
    return words[words.index(option) + 1] if option in words else default


def _persistence(words: list[str]) -> int:
    """Return the seconds of `-p [seconds]`; 300 where the number is left out, 0 without -p."""
    if "-p" not in words:
        return 0
    at = words.index("-p") + 1
    return int(words[at]) if at < len(words) and words[at].isdigit() else 300


def _server(words: list[str]) -> IpvsDestination:
    ip, port = _end(words[words.index("-r") + 1])
    method = METHODS[next((word for word in words if word in METHODS), "")]
    return IpvsDestination(
        ip,
        port,
        method,
        int(_after(words, "-w", "1")),
        _after(words, "--tun-type", "ipip"),
        int(_after(words, "-x", "0")),
    )


def _end(text: str) -> tuple[Ip, int]:
    host, _, port = text.rpartition(":")
    if not port.isdigit():
        raise ValueError(text)
    return parse_ip(host.strip("[]")), int(port)


# --- /proc/net/ip_vs -------------------------------------------------------------------------------------------------


def parse_ip_vs(text: str, source: str = "/proc/net/ip_vs") -> tuple[IpvsService, ...]:
    """Return the virtual services with their real servers in the kernel's order. Raises ParseError.

    A persistence counts as one of UNKNOWN_TIMEOUT_S.
    """
    services: list[IpvsService] = []
    for number, line in enumerate(text.splitlines()[3:], 4):
        words = line.split()
        try:
            if words[0] == "->":
                server = IpvsDestination(*_proc_end(words[1]), PROC_METHODS[words[2]], int(words[3]))
                services[-1] = replace(services[-1], destinations=(*services[-1].destinations, server))
            else:
                services.append(_proc_service(words))
        except (AddressError, ValueError, KeyError, IndexError):
            what = f"{line[:100]!r} is not a line of /proc/net/ip_vs"
            raise ParseError(
                source, number, 1, what, "take the file as it is, with its three lines of headings"
            ) from None
    return tuple(services)


def _proc_service(words: list[str]) -> IpvsService:
    persistent = "persistent" in words
    mask = words[words.index("persistent") + 2] if persistent else ""
    service = IpvsService(
        scheduler=words[2],
        persistent_s=UNKNOWN_TIMEOUT_S if persistent else 0,
        netmask="" if mask in ("", "FFFFFFFF", "00000080") else _proc_mask(mask),
        flags=("ops",) if "ops" in words else (),
        ordered=True,
    )
    if words[0] == "FWM":
        return replace(service, fwmark=int(words[1], 16))
    ip, port = _proc_end(words[1])
    return replace(service, protocol=PROC_PROTOCOLS[words[0]], ip=ip, port=port)


def _proc_mask(word: str) -> str:
    """An IPv4 mask, or for IPv6 a prefix length: both are printed as one number."""
    number = int(word, 16)
    return str(number) if number <= 128 else str(IPv4Address(number))


def _proc_end(text: str) -> tuple[Ip, int]:
    host, _, port = text.rpartition(":")
    return _proc_ip(host.strip("[]")), int(port, 16)


def _proc_ip(text: str) -> Ip:
    return parse_ip(text) if ":" in text else Ip(str(IPv4Address(int(text, 16))))


def parse_ip_vs_conn(text: str, source: str = "/proc/net/ip_vs_conn") -> tuple[IpvsConnection, ...]:
    """Return IPVS's own connections, persistence templates among them (protocol `other` if by mark). Raises ParseError."""
    found = []
    for number, line in enumerate(text.splitlines()[1:], 2):
        words = line.split()
        try:
            found.append(
                IpvsConnection(
                    protocol=PROC_PROTOCOLS[words[0]],
                    client=_proc_ip(words[1]),
                    client_port=int(words[2], 16),
                    virtual=_proc_ip(words[3]),
                    virtual_port=int(words[4], 16),
                    ip=_proc_ip(words[5]),
                    port=int(words[6], 16),
                    state=words[7],
                    expires_s=int(words[8]),
                )
            )
        except (AddressError, ValueError, KeyError, IndexError):
            raise ParseError(source, number, 1, f"{line[:100]!r} is not a line of /proc/net/ip_vs_conn") from None
    return tuple(found)


def in_kernel_order(saved: Iterable[IpvsService], listed: Iterable[IpvsService]) -> tuple[IpvsService, ...]:
    """Return what ipvsadm saved, each service's servers in the order that /proc lists them in.

    A service that differs between the two (it changed meanwhile) keeps ipvsadm's order and is not `ordered`.
    """
    order = {_identity(service): service.destinations for service in listed}

    def put(service: IpvsService) -> IpvsService:
        kernels = order.get(_identity(service), ())
        known = {(server.ip, server.port): server for server in service.destinations}
        if len(kernels) != len(known) or any((server.ip, server.port) not in known for server in kernels):
            return service
        return replace(service, destinations=tuple(known[server.ip, server.port] for server in kernels), ordered=True)

    return tuple(put(service) for service in saved)


def _identity(service: IpvsService) -> tuple[Protocol, Ip | None, int, int]:
    """Services by mark of both families look alike in /proc: whichever is there twice is told apart by its servers."""
    return service.protocol, service.ip, service.port, service.fwmark
