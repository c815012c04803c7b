"""Which conditions ask about the packet's connection, or about marks.

Follows xt_conntrack.c, xt_state.c, xt_mark.c, xt_connmark.c, xt_helper.c, xt_connlimit.c. A packet carries an entry if its
state is NEW, ESTABLISHED or RELATED; before conntrack has looked at it (raw table) it counts as INVALID, as in the kernel.
"""

from collections.abc import Callable

from tasks.skoop.model.addr import ip_int, ip_version
from tasks.skoop.model.packet import CtState
from tasks.skoop.model.state import ConntrackEntry, Tuple
from tasks.skoop.netstack.xtables.header_matches import each
from tasks.skoop.netstack.xtables.spelling import (
    Option,
    Options,
    address_mask,
    names,
    number,
    only,
    ports,
    protocol_number,
    value_mask,
)
from tasks.skoop.netstack.xtables.truth import Chance, Condition, NotUnderstood, Truth, negated, unknown
from tasks.skoop.netstack.xtables.view import PacketView

STATES = frozenset(("NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED"))
STATUSES = frozenset(("NONE", "EXPECTED", "SEEN_REPLY", "ASSURED", "CONFIRMED"))
NAT_STATES = frozenset(("SNAT", "DNAT"))
CLOSED = frozenset(("TIME_WAIT", "CLOSE"))


def mark(options: Options, _: int) -> Condition:
    """`-m mark`."""
    (option,) = options
    (value, mask), negate = value_mask(only(option)), option[1]
    if option[0] != "mark":
        raise NotUnderstood(f"--{option[0]}")
    if negate:
        return lambda view: view.mark & mask != value
    return lambda view: view.mark & mask == value


def connmark(options: Options, _: int) -> Condition:
    """`-m connmark`: never holds for a packet without a connection, negated or not."""
    (option,) = options
    (value, mask), negate = value_mask(only(option)), option[1]
    if option[0] != "mark":
        raise NotUnderstood(f"--{option[0]}")
    return lambda view: view.tracked and (view.connmark & mask == value) != negate


def state(options: Options, _: int) -> Condition:
    """`-m state`."""
    (option,) = options
    wanted, negate = names(only(option), STATES), option[1]
    return lambda view: (_state(view) in wanted) != negate


def _state(view: PacketView) -> str:
    return view.packet.ct_state or CtState.INVALID


def conntrack(options: Options, family: int) -> Condition:
    """`-m conntrack`. Without an entry a rule with `--ctstate` looks at nothing else, and one without it never holds."""
    of_state = tuple(_ctstate(option) for option in options if option[0] == "ctstate")
    others = tuple(_ct_condition(option, family) for option in options if option[0] != "ctstate")
    if len(of_state) == 1 and not others:
        return of_state[0]
    rest = each(tuple(option for option in options if option[0] != "ctstate"), lambda o: _ct_condition(o, family))

    def holds(view: PacketView) -> Truth:
        if any(condition(view) is False for condition in of_state):
            return False
        return rest(view) if view.tracked else bool(of_state)

    return holds


def _ctstate(option: Option) -> Condition:
    wanted, negate = names(only(option), STATES | NAT_STATES), option[1]
    plain, translated = wanted & STATES, wanted & NAT_STATES
    if not translated:
        return lambda view: (_state(view) in plain) != negate

    def holds(view: PacketView) -> Truth:
        hit = _state(view) in plain or (view.tracked and not translated.isdisjoint(view.context.connection.status))
        return hit != negate

    return holds


TupleTest = Callable[[Tuple], bool]


def _ct_condition(option: Option, family: int) -> Condition:
    """Return one further condition on a connection that exists."""
    name, negate, _ = option
    text = only(option)
    if name == "ctproto":
        wanted = protocol_number(text)
        return lambda view: (view.protocol == wanted) != negate
    if name == "ctdir":
        if text.upper() not in ("ORIGINAL", "REPLY"):
            raise NotUnderstood(f"--ctdir {text}")
        reply = (text.upper() == "REPLY") != negate
        return lambda view: view.context.connection.is_reply == reply
    if name == "ctstatus":
        bits = names(text, STATUSES) - {"NONE"}
        return lambda view: (not bits.isdisjoint(view.context.connection.status)) != negate
    if name == "ctexpire":
        return lambda _: unknown("how long the conntrack entry has still to live")
    direction, field = name[2:6], name[6:]
    if name[:2] != "ct" or direction not in ("orig", "repl"):
        raise NotUnderstood(f"--{name}")
    return negated(_tuple_condition(direction, _tuple_test(field, text, family)), negate)


def _tuple_test(field: str, text: str, family: int) -> TupleTest:
    if field in ("src", "dst"):
        value, mask = address_mask(text, family)
        if field == "src":
            return lambda flow: ip_int(flow.src) & mask == value
        return lambda flow: ip_int(flow.dst) & mask == value
    low, high = ports(text)
    if field == "srcport":
        return lambda flow: low <= flow.sport <= high
    if field == "dstport":
        return lambda flow: low <= flow.dport <= high
    raise NotUnderstood(f"--ct…{field}")


def _tuple_condition(direction: str, test: TupleTest) -> Condition:
    def holds(view: PacketView) -> Truth:
        connection = view.context.connection
        flow = connection.original if direction == "orig" else connection.reply
        return unknown(f"the {direction} tuple of the connection") if flow is None else test(flow)

    return holds


def helper(options: Options, _: int) -> Condition:
    """`-m helper`: only connections that a helper expected have one."""
    negate = options[0][1] if options else False

    def holds(view: PacketView) -> Truth:
        if not view.tracked:
            return negate
        if "EXPECTED" in view.context.connection.status:
            return unknown("which conntrack helper expected the connection")
        return negate

    return holds


def connlimit(options: Options, entries: tuple[ConntrackEntry, ...] | None) -> Condition:
    """`-m connlimit`: certain where even all collected connections of the address stay within the limit.

    The kernel counts those that met this rule, which a dump does not show, so beyond that it is open. `entries` is None if
    the table of connections was not collected.
    """
    given = {name: (negate, values) for name, negate, values in options}
    above = "connlimit-above" in given
    name = "connlimit-above" if above else "connlimit-upto"
    if name not in given or not set(given) <= {name, "connlimit-mask", "connlimit-saddr", "connlimit-daddr"}:
        raise NotUnderstood(f"connlimit {' '.join('--' + option for option in given)}")
    limit, over = number(given[name][1][0]), above != given[name][0]
    by_source = "connlimit-daddr" not in given
    width = given.get("connlimit-mask", (False, ("",)))[1][0]

    def holds(view: PacketView) -> Truth:
        if limit == 0:
            return over
        if entries is not None:
            bits = 32 if view.family == 4 else 128
            shift = bits - min(int(width), bits) if width.isdigit() else 0
            own = (view.src if by_source else view.dst) >> shift
            if _connections(entries, view.family, by_source, own, shift) < limit:
                return not over
        return Chance(key=f"connlimit {limit} {width} {by_source}", inverted=not over)

    return holds


def _connections(entries: tuple[ConntrackEntry, ...], family: int, by_source: bool, own: int, shift: int) -> int:
    """Return how many collected connections have this client (or server) prefix."""
    count = 0
    for entry in entries:
        ip = entry.original.src if by_source else entry.original.dst
        if ip_version(ip) == family and entry.state not in CLOSED and ip_int(ip) >> shift == own:
            count += 1
    return count
