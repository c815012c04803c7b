"""What stands on the left of a match, in a key, or as a value to be set: JSON made into functions of the packet."""

from collections.abc import Callable, Mapping
from functools import partial
from operator import and_, lshift, or_, rshift, xor
from typing import NamedTuple

from tasks.skoop.model.state import NetNS
from tasks.skoop.netstack.nftables import datatypes as dt
from tasks.skoop.netstack.nftables.datatypes import Datatype, number
from tasks.skoop.netstack.nftables.elements import Element, Elements, element_of
from tasks.skoop.netstack.nftables.fib_lookup import Routes, fib
from tasks.skoop.netstack.nftables.header_fields import payload
from tasks.skoop.netstack.nftables.jsonform import Json, compact, fields, is_named, items, named, whole
from tasks.skoop.netstack.nftables.outcomes import HIDDEN, MAX_DRAWN, Draw, Getter, Outcome, Unsure, lifted
from tasks.skoop.netstack.nftables.packet_facts import ct, meta, rt, socket
from tasks.skoop.netstack.nftables.source import TableSource
from tasks.skoop.netstack.nftables.view import PacketView
from tasks.skoop.netstack.xtables.truth import NotUnderstood


class Expression(NamedTuple):
    """How to get a value from a packet, and its types: several for a concatenation."""

    get: Getter
    types: tuple[Datatype, ...]


Lookup = Callable[[PacketView], Outcome]
"""Gives the Element that holds a key, None, Unsure or a Draw of these."""

OPERATORS: Mapping[str, Callable[[int, int], int]] = {"&": and_, "|": or_, "^": xor, "<<": lshift, ">>": rshift}


class Compiler:
    """Makes expressions of one table; `netns` is where the packet is."""

    def __init__(self, netns: NetNS, source: TableSource, routes: Routes) -> None:
        self.links = {link.name: link for link in netns.interfaces}
        self.routes = routes
        self.source = source
        self.family = source.table.family
        self._draws = 0

    def expression(self, value: Json, kind: Datatype | None = None) -> Expression:
        """Return the expression; a constant needs the type that it stands for. Raises NotUnderstood."""
        if not isinstance(value, dict):
            return self._constant(value, kind)
        name, content = named(value)
        match name:
            case "payload":
                return _single(payload(content))
            case "meta":
                return _single(meta(content, self.links))
            case "ct":
                get, kind = ct(content)
                # what conntrack of the bridge itself (nf_conntrack_bridge) has seen is not simulated
                return Expression(get if self.family != "bridge" else lambda _: _OF_THE_BRIDGE, (kind,))
            case "fib":
                get, kind = fib(content, self.links, self.routes)
                return Expression(lambda view: get(view) if view.version else None, (kind,))
            case "rt":
                return _single(rt(content))
            case "socket":
                return _single(socket(content))
            case "concat":
                return self._concat(items(content))
            case "map":
                return self._map(content, kind)
            case "numgen" | "jhash" | "symhash":
                return self._draw(name, content)
            case "exthdr" | "ip option" | "sctp chunk":  # the model's packets carry none
                return Expression(_missing_header(content), (dt.BOOLEAN,))
            case "tcp option":
                answer = Unsure(f"the TCP options of the packet ({compact(content)})", compact(value))
                return Expression(lambda view: answer if view.protocol == 6 else None, (dt.INTEGER,))
            case "elem":
                return self.expression(fields(content).get("val"), kind)
            case "prefix" | "range" | "set":
                raise NotUnderstood(compact(value))
        if name in OPERATORS:
            return self._binary(name, items(content), kind)
        raise NotUnderstood(f"the expression {name}")

    def _constant(self, value: Json, kind: Datatype | None) -> Expression:
        if isinstance(value, str) and value.startswith("@"):
            raise NotUnderstood(value)
        kind = kind or dt.INTEGER
        fixed = number(value, kind)
        return Expression(lambda _: fixed, (kind,))

    def _concat(self, values: list[Json]) -> Expression:
        parts = [self.expression(value) for value in values]
        getters = tuple(part.get for part in parts)

        def get(view: PacketView) -> Outcome:
            found = [getter(view) for getter in getters]
            for value in found:
                if type(value) is not int:
                    return _whole(found)
            return tuple(found)

        return Expression(get, tuple(kind for part in parts for kind in part.types))

    def _binary(self, name: str, values: list[Json], kind: Datatype | None) -> Expression:
        first = self.expression(values[0], kind)
        for value in values[1:]:
            first = _combined(name, first, self.expression(value, _operand_type(name, first)))
        return first

    def _draw(self, name: str, content: Json) -> Expression:
        size, low = whole(content, "mod"), whole(content, "offset", 0)
        if size < 1:
            raise NotUnderstood(f"{name} mod {size}")
        sticky = name != "numgen"
        key = compact({name: content})
        if not sticky:  # each one draws anew, even if it is written the same
            self._draws += 1
            key = f"{key} {self._draws}"
        draw: Outcome = Draw(key, low, size, sticky)
        if sticky and size > MAX_DRAWN:
            draw = Unsure("", key)
        if sticky:
            return Expression(lambda view: view.hashed.get(key, draw), (dt.INTEGER,))
        return Expression(lambda view: view.drawn.get(key, draw), (dt.INTEGER,))

    def _map(self, content: Json, kind: Datatype | None) -> Expression:
        lookup = self.lookup(fields(content).get("key"), fields(content).get("data"))
        types = (kind,) if kind else self._data_types(fields(content).get("data"))
        if len(types) != 1:
            raise NotUnderstood("a map that gives more than one value")

        def value_of(element: Outcome) -> Outcome:
            assert isinstance(element, Element)
            return number(element.data, types[0])

        return Expression(lambda view: lifted(lookup(view), value_of), types)

    def _data_types(self, data: Json) -> tuple[Datatype, ...]:
        if isinstance(data, str):
            return self.source.data_types(data.removeprefix("@"))
        return (dt.INTEGER,)

    def lookup(self, key: Json, data: Json) -> Lookup:
        """Return how to find a key's element in a map: a named one (`@name`) or an anonymous one."""
        expression = self.expression(key)
        return self.finder(expression, data, mapping=True)

    def finder(self, expression: Expression, data: Json, *, mapping: bool = False) -> Lookup:
        """Return how to find the element of a set or map that holds what the expression gives."""
        get = expression.get
        if isinstance(data, str) and data.startswith("@"):
            name = data[1:]
            if self.source.elements(name, expression.types) is None:
                raise NotUnderstood(f"the set {name}, which is not listed")
            return lambda view: lifted(get(view), partial(self._listed, name, expression.types, view))
        if not is_named(data, "set"):
            raise NotUnderstood(compact(data))
        found = (element_of(value, mapping=mapping) for value in items(fields(data)["set"]))
        elements = Elements(found, expression.types)
        return lambda view: lifted(get(view), elements.find)

    def _listed(self, name: str, types: tuple[Datatype, ...], view: PacketView, value: Outcome) -> Outcome:
        if view.listed and (name, value) in view.listed:
            return _PUT_IN if view.listed[name, value] else None
        elements = self.source.elements(name, types)
        assert elements is not None
        return elements.find(value)


_OF_THE_BRIDGE = Unsure("the bridge's own connection tracking", "ct of the bridge")
_PUT_IN = Element(None, None, ())


def _whole(parts: list[Outcome]) -> Outcome:
    """Return what a concatenation gives if not all its parts are numbers: nothing, unknown, or a draw to be made
    first.
    """
    if None in parts:
        return None
    for value in parts:
        if isinstance(value, Unsure):
            return value
    draw = next(value for value in parts if isinstance(value, Draw))
    return Unsure("", draw.key) if draw.size > MAX_DRAWN else draw._replace(part=True)


def _single(found: tuple[Getter, Datatype]) -> Expression:
    return Expression(found[0], (found[1],))


def _missing_header(content: Json) -> Getter:
    if "field" in fields(content):
        return lambda _: None
    return lambda _: 0


def _operand_type(name: str, first: Expression) -> Datatype:
    return dt.INTEGER if name in ("<<", ">>") else first.types[0]


def _combined(name: str, first: Expression, second: Expression) -> Expression:
    """Return one number combined with another; of a bit mask's words only the numbers count any more."""
    operate, limit = OPERATORS[name], (1 << first.types[0].bits) - 1
    hidden = Unsure("a field of the packet that is not simulated", f"hidden {name}")

    def get(view: PacketView) -> Outcome:
        return lifted(first.get(view), lambda left: lifted(second.get(view), partial(both, left)))

    def both(left: Outcome, right: Outcome) -> Outcome:
        assert isinstance(left, int)
        assert isinstance(right, int)
        return hidden if HIDDEN in (left, right) else operate(left, right) & limit

    kind = first.types[0]
    return Expression(get, (kind._replace(bitmask=False),))
