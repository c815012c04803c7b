"""Which translation a nat statement asks for: `snat`, `dnat`, `masquerade`, `redirect`.

Follows nft_nat.c, nft_masq.c, nft_redir.c. Addresses and ports may come out of maps, also both at once. Which address
of a range is taken, and which port, is the walk's business (nf_nat_core.c).
"""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from tasks.skoop.model.addr import Ip
from tasks.skoop.netstack.nftables import datatypes as dt
from tasks.skoop.netstack.nftables.datatypes import Datatype, span
from tasks.skoop.netstack.nftables.elements import Element
from tasks.skoop.netstack.nftables.expressions import Compiler
from tasks.skoop.netstack.nftables.jsonform import Json, fields, is_named, items, text
from tasks.skoop.netstack.nftables.outcomes import Draw, Outcome, Unsure, lifted
from tasks.skoop.netstack.nftables.view import PacketView
from tasks.skoop.netstack.nftables.way import Flow, Rule, Statement, Way
from tasks.skoop.netstack.xtables.api import NatAction, NatKind, TableResult, Verdict

Span = tuple[int, int]
Target = Callable[[PacketView], Outcome]
"""Gives a pair of spans (addresses, ports), either of which may be None; or None, Unsure, a Draw."""

KINDS = {
    "snat": NatKind.SNAT,
    "dnat": NatKind.DNAT,
    "masquerade": NatKind.MASQUERADE,
    "redirect": NatKind.REDIRECT,
}
VERSIONS = {"ip": 4, "ip6": 6}


def nat(name: str, content: Json, compiler: Compiler) -> Statement:
    """Return what a nat statement does: it ends the base chain with a translation."""
    given = fields(content)
    family = text(given, "family", compiler.family)
    version = VERSIONS.get(family, 0)
    kind = KINDS[name]
    if "netmap" in items(given.get("flags", [])) or "prefix" in items(given.get("type_flags", [])):
        kind = NatKind.NETMAP
    address_type = dt.IPV6 if family == "ip6" else dt.IPV4
    address = _target(given.get("addr"), (address_type, dt.SERVICE), compiler)
    port = _target(given.get("port"), (dt.SERVICE,), compiler)

    def act(way: Way, rule: Rule) -> Flow | TableResult:
        view = way.view
        if version and version != view.version:
            return Flow.BREAK
        found = lifted(address(view), lambda first: lifted(port(view), lambda second: (first, second)))
        if found is None:
            return Flow.BREAK
        if isinstance(found, Draw):
            return way.draw(found)
        if isinstance(found, Unsure):
            return way.cannot_tell(rule, f"{name}: {found.reason or 'a value of the moment'}")
        action = _action(kind, view.version, found)
        way.note(rule, str(action.kind), _described(action))
        return way.finish(Verdict.ACCEPT, nat=action)

    return Statement(act)


def _target(value: Json, types: tuple[Datatype, ...], compiler: Compiler) -> Target:
    """Return how to get the spans of an address or port; out of a map both may come at once."""
    if value is None:
        return lambda _: ()
    if is_named(value, "map"):
        content = fields(fields(value)["map"])
        lookup = compiler.lookup(content.get("key"), content.get("data"))

        def spans_of(element: Outcome) -> Outcome:
            assert isinstance(element, Element)
            return _spans(element.data, types)

        return lambda view: lifted(lookup(view), spans_of)
    if is_named(value, "range", "prefix", "concat") or not isinstance(value, dict):
        fixed = _spans(value, types)
        return lambda _: fixed
    expression = compiler.expression(value, types[0])
    return lambda view: lifted(expression.get(view), lambda number: ((number, number),))


def _spans(value: Json, types: tuple[Datatype, ...]) -> tuple[Span, ...]:
    parts = items(fields(value)["concat"]) if is_named(value, "concat") else [value]
    return tuple(span(part, kind) for part, kind in zip(parts, types, strict=False))


def _action(kind: NatKind, version: int, found: Outcome) -> NatAction:
    assert isinstance(found, tuple)
    address, port = found
    ports = port[0] if port else address[1] if len(address) > 1 else None
    addresses = (tuple(_ip(number, version) for number in address[0]),) if address else ()
    return NatAction(kind=kind, addresses=addresses, ports=ports)  # type: ignore[arg-type]  # pairs of addresses


def _ip(number: int, version: int) -> Ip:
    return Ip(str(IPv4Address(number) if version == 4 else IPv6Address(number)))


def _described(action: NatAction) -> str:
    """Return the target in words: `to 10.0.0.1:80`."""
    address = "-".join(dict.fromkeys(action.addresses[0])) if action.addresses else ""
    port = "-".join(str(number) for number in dict.fromkeys(action.ports)) if action.ports else ""
    if port and ":" in address:
        address = f"[{address}]"
    return f"to {address}{':' if port else ''}{port}" if address or port else ""


def tproxy(content: Json, compiler: Compiler) -> Statement:
    """Return what `tproxy` does: hand the packet to a local socket, if there is one, and go on (nft_tproxy.c)."""
    given = fields(content)
    family = text(given, "family", compiler.family)
    version = VERSIONS.get(family, 0)
    address = _target(given.get("addr"), (dt.IPV6 if family == "ip6" else dt.IPV4,), compiler)
    port = _target(given.get("port"), (dt.SERVICE,), compiler)

    def act(way: Way, rule: Rule) -> Flow | TableResult:
        view = way.view
        if version and version != view.version:
            return Flow.BREAK
        found = lifted(address(view), lambda first: lifted(port(view), lambda second: (first, second)))
        if found is None:
            return Flow.BREAK
        if isinstance(found, Draw):
            return way.draw(found)
        if isinstance(found, Unsure):
            return way.cannot_tell(rule, f"tproxy: {found.reason or 'a value of the moment'}")
        action = _action(NatKind.REDIRECT, view.version, found)
        ip = action.addresses[0][0] if action.addresses else Ip("::" if view.version == 6 else "0.0.0.0")
        to = action.ports[0] if action.ports else view.dport
        wanted = view.packet.with_(dst=ip if action.addresses else view.packet.dst, dport=to)
        listening = view.context.facts.has_socket(wanted, transparent=True, wildcard=True)
        if listening is False:
            return Flow.BREAK
        way.tproxy = (ip, to)
        way.note(rule, "match", f"tproxy to {ip} port {to}")
        return Flow.NEXT if listening else way.finish(Verdict.ACCEPT)  # the walk says what is not known of sockets

    return Statement(act)
