"""What `set` statements write: marks, connection marks, zones, header fields.

Follows nft_meta.c, nft_ct.c, nft_payload.c. What the model does not carry (priorities, checksums, TCP options) may be
written without any difference.
"""

from collections.abc import Callable

from tasks.skoop.model.packet import CtState
from tasks.skoop.netstack.nftables import datatypes as dt
from tasks.skoop.netstack.nftables.expressions import Compiler
from tasks.skoop.netstack.nftables.header_fields import UNSEEN, WRITABLE
from tasks.skoop.netstack.nftables.jsonform import Json, fields, named, text
from tasks.skoop.netstack.nftables.outcomes import Draw, Getter, Unsure, lifted
from tasks.skoop.netstack.nftables.way import Flow, Rule, Statement, Way, noted
from tasks.skoop.netstack.xtables.api import TableResult
from tasks.skoop.netstack.xtables.truth import NotUnderstood


def mangle(content: Json, compiler: Compiler) -> Statement:
    """Return what `… set …` does to the packet or its connection. Raises NotUnderstood for other fields."""
    name, where = named(fields(content).get("key"))
    value = fields(content).get("value")
    match name:
        case "meta":
            return _set_meta(text(where, "key"), value, compiler)
        case "ct":
            return _set_ct(text(where, "key"), where, value, compiler)
        case "payload":
            return _set_payload(where, value, compiler)
        case "tcp option":
            return _unless_protocol(6)
    raise NotUnderstood(f"{name} set")


def _set_meta(key: str, value: Json, compiler: Compiler) -> Statement:
    if key != "mark":
        return Statement(noted("match", f"meta {key}"), passive=True)
    get = compiler.expression(value, dt.MARK).get

    def write(way: Way, rule: Rule, number: int) -> None:
        way.view.change(mark=number & 0xFFFFFFFF)
        way.note(rule, "mark", f"0x{way.view.mark:x}")

    return _writing(get, write, "meta mark")


def _set_ct(key: str, where: Json, value: Json, compiler: Compiler) -> Statement:
    if key in ("helper", "event", "label", "secmark"):
        return Statement(noted("match", f"ct {key}"), passive=True)
    if key == "zone" and "dir" not in fields(where):
        return _writing(compiler.expression(value, dt.INTEGER).get, _write_zone, "ct zone")
    if key != "mark":
        raise NotUnderstood(f"ct {key} set")
    return _writing(compiler.expression(value, dt.MARK).get, _write_connmark, "ct mark")


def _set_payload(where: Json, value: Json, compiler: Compiler) -> Statement:
    found = compiler.expression({"payload": where})
    protocol, field = text(where, "protocol", ""), text(where, "field", "")
    present = found.get
    if field in UNSEEN:
        return Statement(lambda way, _: Flow.BREAK if present(way.view) is None else Flow.NEXT)
    change = WRITABLE.get((protocol, field))
    if change is None:
        raise NotUnderstood(f"{protocol} {field} set")
    get = compiler.expression(value, found.types[0]).get

    def write(way: Way, rule: Rule, number: int) -> None:
        change(way.view, number)
        way.note(rule, "mark", f"{protocol} {field} {way.view.packet}")

    return _writing(lambda view: None if present(view) is None else get(view), write, f"{protocol} {field}")


def _writing(get: Getter, write: Callable[[Way, Rule, int], TableResult | None], what: str) -> Statement:
    def act(way: Way, rule: Rule) -> Flow | TableResult:
        value = lifted(get(way.view), lambda each: each)
        if isinstance(value, int):
            return write(way, rule, value) or Flow.NEXT
        if value is None:
            return Flow.BREAK
        if isinstance(value, Draw):
            return way.draw(value)
        assert isinstance(value, Unsure)
        return way.cannot_tell(rule, f"{what} set: {value.reason or value.key}")

    return Statement(act)


def _write_connmark(way: Way, rule: Rule, number: int) -> None:
    if not way.view.tracked:
        way.note(rule, "connmark", "no connection")
        return
    way.view.connmark = number & 0xFFFFFFFF
    way.wrote_connmark = True
    way.note(rule, "connmark", f"0x{way.view.connmark:x}")


def _write_zone(way: Way, rule: Rule, number: int) -> TableResult | None:
    if way.notrack:  # the template takes the place of the mark that it is not to be tracked
        way.notrack = False
        way.view.change(ct_state=CtState.NONE)
    if way.view.packet.ct_state in (CtState.INVALID, CtState.UNTRACKED):
        return way.cannot_tell(rule, "a conntrack zone for a packet that conntrack has left alone")
    if way.view.packet.ct_state == CtState.NONE and way.zone is None:
        way.zone, way.view.template = number & 0xFFFF, True
        way.note(rule, "match", f"zone {way.zone}")
    else:
        way.note(rule, "match", "the packet has a connection already")
    return None


def _unless_protocol(number: int) -> Statement:
    """Return a statement that changes nothing we look at, in packets of one protocol."""
    return Statement(lambda way, _: Flow.NEXT if way.view.protocol == number else Flow.BREAK)
