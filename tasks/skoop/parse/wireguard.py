"""What a wireguard device does: `wg show all`, the form for people, which hides private and preshared keys.

Follows wireguard-tools 1.0 (show.c, pretty_print). Keys that a setting of the environment has made visible are passed over.
"""

import re

from tasks.skoop.model.addr import AddressError, Ip, Net, parse_ip, parse_net
from tasks.skoop.model.state import WireGuard, WireGuardPeer
from tasks.skoop.parse.errors import ParseError

ENDPOINT = re.compile(r"\[?([0-9a-fA-F.:]+?)(?:%\w+)?\]?:(\d+)$")


def parse_wireguard(text: str, source: str = "wg-show.txt") -> dict[str, WireGuard]:
    """Return each wireguard device's settings by its name. Raises ParseError with the line."""
    found: dict[str, WireGuard] = {}
    name = ""
    own: dict[str, str] = {}
    peers: list[dict[str, str]] = []

    def close(number: int) -> None:
        if name:
            found[name] = _device(own, peers, source, number)

    number = 0
    for number, line in enumerate(text.splitlines(), 1):
        key, colon, value = line.strip().partition(": ")
        key, value = key.rstrip(":"), value.strip()
        if not key:
            continue
        if key == "interface":
            close(number)
            name, own, peers = value, {}, []
        elif not name or not (colon or line.rstrip().endswith(":")):
            raise ParseError(source, number, 1, f"not what wg show prints: {line.strip()!r}")
        elif key == "peer":
            peers.append({key: value})
        elif key not in ("private key", "preshared key"):
            (peers[-1] if peers else own)[key] = value
    close(number)
    return found


def _device(own: dict[str, str], peers: list[dict[str, str]], source: str, number: int) -> WireGuard:
    try:
        return WireGuard(
            public_key=own.get("public key", ""),
            port=int(own.get("listening port", "0")),
            fwmark=int(own["fwmark"], 0) if own.get("fwmark", "off") != "off" else 0,
            peers=tuple(_peer(one) for one in peers),
        )
    except (ValueError, AddressError) as error:
        raise ParseError(source, number, 1, f"not what wg show prints: {error}") from None


def _peer(row: dict[str, str]) -> WireGuardPeer:
    endpoint = ENDPOINT.match(row.get("endpoint", ""))
    allowed = row.get("allowed ips", "(none)")
    nets: tuple[Net, ...] = () if allowed == "(none)" else tuple(parse_net(net.strip()) for net in allowed.split(","))
    seconds = re.search(r"(\d+) seconds?", row.get("persistent keepalive", ""))
    ip: Ip | None = parse_ip(endpoint.group(1)) if endpoint else None
    return WireGuardPeer(
        public_key=row["peer"],
        endpoint=ip,
        endpoint_port=int(endpoint.group(2)) if endpoint else 0,
        allowed_ips=nets,
        keepalive_s=int(seconds.group(1)) if seconds else 0,
        handshake="latest handshake" in row,
    )
