"""When does a match statement hold? The left side's value against a constant, a range, bits, a set, or another expression.

Follows nft_cmp.c, nft_range.c, nft_bitwise.c and nft_lookup.c, as nft writes them in JSON: `in` with a bit mask's words asks
whether one of the bits is set, `!` whether none is, `==` and `!=` compare the whole.
"""

from collections.abc import Callable

from tasks.skoop.netstack.nftables import datatypes as dt
from tasks.skoop.netstack.nftables.datatypes import Datatype, number, span
from tasks.skoop.netstack.nftables.elements import Element, Span
from tasks.skoop.netstack.nftables.expressions import Compiler, Expression
from tasks.skoop.netstack.nftables.jsonform import Json, compact, fields, is_named, text
from tasks.skoop.netstack.nftables.outcomes import HIDDEN, Draw, Getter, Outcome, Unsure, lifted
from tasks.skoop.netstack.nftables.view import PacketView
from tasks.skoop.netstack.xtables.truth import Chance, NotUnderstood, Truth, opposite

Gate = Callable[[PacketView, Element], Truth]
"""Whether an element's own statements (limits) let a hit count."""

Answer = bool | None | Chance | Draw
"""What a condition says: None if the packet does not have what is asked for; a Draw that has to be made first."""

Condition = Callable[[PacketView], Answer]

STATUS_BITS = "ct_status"
NAT_BITS = dt.CT_STATUS.symbols["snat"] | dt.CT_STATUS.symbols["dnat"]


def match(content: Json, compiler: Compiler, gate: Gate) -> Condition:
    """Return the condition of a match statement. Raises NotUnderstood for what is not simulated."""
    op, right = text(content, "op"), fields(content).get("right")
    left = compiler.expression(fields(content).get("left"))
    key = compact(content)
    if left.types == (dt.MOMENT,):
        return _asked(left.get, bool, key)
    if is_named(right, "set") or (isinstance(right, str) and right.startswith("@")):
        if op not in ("==", "in", "!="):
            raise NotUnderstood(f"{op} a set")
        return _in_set(compiler, left, right, gate, key, negate=op == "!=")
    if len(left.types) != 1:
        raise NotUnderstood("a concatenation that is not looked up")
    if isinstance(right, bool):  # exists, missing
        return _asked(left.get, lambda value: (value != 0) == (right if op == "==" else not right), key)
    if isinstance(right, dict) and not is_named(right, "prefix", "range", "|"):
        return _compared(left, compiler.expression(right, left.types[0]), op, key)
    kind = left.types[0]
    if op in ("in", "!") and (kind.bitmask or op == "!"):
        bits = number(right, kind)
        return _asked(left.get, _bits_set(bits, negate=op == "!"), key)
    if kind.name == STATUS_BITS and kind.bitmask:
        return _whole_status(left.get, number(right, kind), op)
    return _within(left.get, _span(op, right, kind), op == "!=", key)


def _bits_set(bits: int, *, negate: bool) -> Callable[[Outcome], Outcome]:
    def test(value: Outcome) -> Outcome:
        assert isinstance(value, int)
        return (
            Unsure("a field of the packet that is not simulated", "")
            if value == HIDDEN
            else (value & bits != 0) != negate
        )

    return test


def _whole_status(get: Getter, wanted: int, op: str) -> Condition:
    """Compare the whole conntrack status, of which some bits are not in the model; but with NAT the bits that it is done are set."""
    if op not in ("==", "!=") or not wanted & NAT_BITS:
        raise NotUnderstood("the whole conntrack status")
    return lambda view: None if get(view) is None else op == "!="


def _span(op: str, right: Json, kind: Datatype) -> Span:
    low, high = span(right, kind)
    top = (1 << max(kind.bits, 1)) - 1
    match op:
        case "==" | "!=" | "in":
            return low, high
        case "<":
            return 0, low - 1
        case "<=":
            return 0, low
        case ">":
            return high + 1, top
        case ">=":
            return high, top
    raise NotUnderstood(f"the comparison {op}")


def _within(get: Getter, wanted: Span, negate: bool, key: str) -> Condition:
    low, high = wanted
    if low == high:

        def equals(view: PacketView) -> Answer:
            value = get(view)
            if type(value) is int:
                return (value == low) != negate
            return _uncertain(value, lambda each: each == low, key, negate, (low, high))

        return equals

    def inside(view: PacketView) -> Answer:
        value = get(view)
        if type(value) is int and value != HIDDEN:
            return (low <= value <= high) != negate
        return _uncertain(value, _in_span(low, high), key, negate, (low, high))

    return inside


def _in_span(low: int, high: int) -> Callable[[Outcome], Outcome]:
    def test(value: Outcome) -> Outcome:
        assert isinstance(value, int)
        return _HIDDEN if value == HIDDEN else low <= value <= high

    return test


_HIDDEN = Unsure("a field of the packet that is not simulated", "")


def _asked(get: Getter, test: Callable[[Outcome], Outcome], key: str) -> Condition:
    def condition(view: PacketView) -> Answer:
        return _uncertain(get(view), test, key)

    return condition


def _uncertain(
    value: Outcome, test: Callable[[Outcome], Outcome], key: str, negate: bool = False, wanted: Span | None = None
) -> Answer:
    """Return the answer of a test to a value of any kind; `wanted` is the span that the test asks for, if it is one."""
    if isinstance(value, Draw) and value.results is None and wanted and not value.part and not value.sticky:
        inside = min(value.low + value.size - 1, wanted[1]) - max(value.low, wanted[0]) + 1
        return _chance(max(inside, 0) / value.size, negate)
    found = lifted(value, test)
    if found is None:
        return None
    if isinstance(found, bool):
        return found != negate
    if isinstance(found, Unsure):
        answer = Chance(0.5, missing=(found.reason,) if found.reason else (), key=key.replace('"!="', '"=="'))
        return _turned(answer, '"op":"!="' in key or negate)
    assert isinstance(found, Draw)
    outcomes = found.each()
    if found.sticky or found.part or not all(each is None or isinstance(each, bool) for each in outcomes):
        return found
    if None in outcomes:
        return found
    return _chance(sum(each is True for each in outcomes) / len(outcomes), negate)


def _chance(probability: float, negate: bool) -> Answer:
    if probability in (0.0, 1.0):
        return (probability == 1.0) != negate
    return Chance(1.0 - probability if negate else probability)


def _turned(answer: Chance, negate: bool) -> Chance:
    turned = opposite(answer) if negate else answer
    assert isinstance(turned, Chance)
    return turned


def _in_set(compiler: Compiler, left: Expression, right: Json, gate: Gate, key: str, *, negate: bool) -> Condition:
    find = compiler.finder(left, right)
    get = left.get

    def condition(view: PacketView) -> Answer:
        found = find(view)
        if isinstance(found, Element):
            if not found.gates:
                return not negate
            passed = gate(view, found)
            return opposite(passed) if negate else passed
        if found is None:
            return None if get(view) is None else negate
        if isinstance(found, Draw) and not found.part:
            found = found._replace(results=tuple(each is not None for each in found.each()))
        return _uncertain(found, bool, key, negate)

    return condition


def _compared(left: Expression, right: Expression, op: str, key: str) -> Condition:
    if op not in ("==", "!="):
        raise NotUnderstood(f"two values of the packet with {op}")

    def condition(view: PacketView) -> Answer:
        first, second = left.get(view), right.get(view)
        if first is None or second is None:
            return None
        if isinstance(first, int) and isinstance(second, int) and HIDDEN not in (first, second):
            return (first == second) == (op == "==")
        reason = "two values that are not both known"
        return Chance(0.5, missing=(reason,), key=key)

    return condition
