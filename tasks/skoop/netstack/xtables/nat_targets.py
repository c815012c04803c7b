"""Which translation a NAT target asks for: addresses and ports as iptables-save writes them.

Follows libxt_NAT.c (the options) and xt_nat.c, xt_MASQUERADE.c, xt_REDIRECT.c, xt_NETMAP.c. Which address of a range is
taken, and which port, is the walk's business (nf_nat_core.c).
"""

from collections.abc import Callable, Mapping
from ipaddress import ip_address

from tasks.skoop.model.addr import Ip
from tasks.skoop.netstack.xtables.api import NatAction, NatKind
from tasks.skoop.netstack.xtables.spelling import Options, address, address_mask, only, ports
from tasks.skoop.netstack.xtables.truth import NotUnderstood

HARMLESS = frozenset(("random", "random-fully", "persistent"))
"""Options that choose how a free port or address of a range is drawn."""


def to_addresses(options: Options, family: int, name: str, kind: NatKind) -> NatAction:
    """Return what `--to-destination` or `--to-source` asks for: `[address[-address]][:port[-port]]`."""
    text = ""
    for option in options:
        if option[0] in (name, "to") and not text:
            text = only(option)
        elif option[0] not in HARMLESS:
            raise NotUnderstood(f"--{option[0]}" + (", more than once" if option[0] == name else ""))
    if not text:
        raise NotUnderstood(f"no --{name}")
    head, tail = _split_port(text, family)
    ranges = (_range(head, family),) if head else ()
    return NatAction(kind=kind, addresses=ranges, ports=_ports(tail), random=_random(options))


def _split_port(text: str, family: int) -> tuple[str, str]:
    """Return (addresses, ports) of the text; IPv6 addresses with a port stand in brackets."""
    if family == 4:
        head, _, tail = text.partition(":")
        return head, tail
    if text.startswith("["):
        head, _, tail = text[1:].partition("]")
        return head, tail.removeprefix(":")
    if text.startswith(":") and not text.startswith("::"):
        return "", text[1:]
    return text, ""


def _range(text: str, family: int) -> tuple[Ip, Ip]:
    low, dash, high = text.partition("-")
    first = address(low, family)
    return first, address(high, family) if dash else first


def _ports(text: str) -> tuple[int, int] | None:
    if "/" in text:
        raise NotUnderstood(f"the shifted ports {text}")
    return ports(text, "-") if text else None


def _dnat(options: Options, family: int) -> NatAction:
    return to_addresses(options, family, "to-destination", NatKind.DNAT)


def _snat(options: Options, family: int) -> NatAction:
    return to_addresses(options, family, "to-source", NatKind.SNAT)


def _to_ports(options: Options, kind: NatKind) -> NatAction:
    wanted: tuple[int, int] | None = None
    for option in options:
        if option[0] in ("to-ports", "to-port"):
            wanted = ports(only(option), "-")
        elif option[0] not in HARMLESS:
            raise NotUnderstood(f"--{option[0]}")
    return NatAction(kind=kind, ports=wanted, random=_random(options))


def _random(options: Options) -> bool:
    return any(option[0] in ("random", "random-fully") for option in options)


def _masquerade(options: Options, _: int) -> NatAction:
    return _to_ports(options, NatKind.MASQUERADE)


def _redirect(options: Options, _: int) -> NatAction:
    return _to_ports(options, NatKind.REDIRECT)


def _netmap(options: Options, family: int) -> NatAction:
    if len(options) != 1 or options[0][0] != "to":
        raise NotUnderstood("a NETMAP without --to")
    value, mask = address_mask(only(options[0]), family)
    last = value | (~mask & ((1 << (32 if family == 4 else 128)) - 1))
    return NatAction(kind=NatKind.NETMAP, addresses=((_ip(value, family), _ip(last, family)),))


def _ip(value: int, family: int) -> Ip:
    return Ip(str(ip_address(value.to_bytes(4 if family == 4 else 16, "big"))))


NAT_TARGETS: Mapping[str, Callable[[Options, int], NatAction]] = {
    "DNAT": _dnat,
    "SNAT": _snat,
    "MASQUERADE": _masquerade,
    "REDIRECT": _redirect,
    "NETMAP": _netmap,
}
"""Name of a NAT target → what makes its NatAction of options and family. Raises NotUnderstood."""


def described(action: NatAction) -> str:
    """Return the translation in a few words: `to 10.2.0.2:8080`."""
    addresses = ",".join(first if first == last else f"{first}-{last}" for first, last in action.addresses)
    if action.ports is None:
        return f"to {addresses}" if addresses else ""
    low, high = action.ports
    span = str(low) if low == high else f"{low}-{high}"
    if not addresses:
        return f"to port {span}"
    return f"to [{addresses}]:{span}" if ":" in addresses else f"to {addresses}:{span}"
