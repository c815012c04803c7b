"""What a rule's statements do, in order: matches, verdicts, verdict maps, and whatever changes the packet or is only noted.

Follows nft_immediate.c, nft_lookup.c, nft_meta.c, nft_ct.c, nft_payload.c, nft_reject*.c, nft_dynset.c, nft_limit.c, nft_quota.c,
nft_connlimit.c. A rate limit is taken to have tokens left, since one packet is asked about. A statement that is not known ends
the way with UNKNOWN; a match that is not known splits it.
"""

from collections.abc import Callable, Mapping

from tasks.skoop.model.packet import CtState
from tasks.skoop.netstack.nftables import datatypes as dt
from tasks.skoop.netstack.nftables.elements import Element
from tasks.skoop.netstack.nftables.expressions import Compiler
from tasks.skoop.netstack.nftables.header_fields import UNSEEN, WRITABLE
from tasks.skoop.netstack.nftables.jsonform import Json, compact, fields, is_named, items, named, text, whole
from tasks.skoop.netstack.nftables.matching import match
from tasks.skoop.netstack.nftables.nat import KINDS, nat, tproxy
from tasks.skoop.netstack.nftables.outcomes import Draw, Getter, Unsure, lifted
from tasks.skoop.netstack.nftables.view import PacketView
from tasks.skoop.netstack.nftables.way import Chain, Flow, Rule, Statement, Way
from tasks.skoop.netstack.xtables.api import TableResult, Verdict
from tasks.skoop.netstack.xtables.truth import Chance, NotUnderstood, Truth, both, unknown

Act = Callable[[Way, Rule], Flow | TableResult]
ChainOf = Callable[[str], Chain | None]

WITHIN_LIMIT = "the rate limit is not used up"
FEW_CONNECTIONS = "it is the only connection that counts"
UNITS = {"bytes": 1, "kbytes": 1 << 10, "mbytes": 1 << 20, "gbytes": 1 << 30}
DYNAMIC = frozenset(("add", "update", "delete"))

PASSIVE: Mapping[str, str] = {
    "counter": "",
    "log": "log",
    "last": "",
    "dup": "match",
    "secmark": "match",
    "ct helper": "match",
    "ct timeout": "match",
    "ct expectation": "match",
}
"""Statements after which the next one follows, and that change nothing the simulator looks at → the word for their step."""

REJECT_WORDS: Mapping[tuple[str, str], tuple[str, str]] = {
    **{
        ("icmp", word): (f"icmp-{kernel}", "")
        for word, kernel in (
            ("net-unreachable", "net-unreachable"),
            ("host-unreachable", "host-unreachable"),
            ("prot-unreachable", "proto-unreachable"),
            ("port-unreachable", "port-unreachable"),
            ("net-prohibited", "net-prohibited"),
            ("host-prohibited", "host-prohibited"),
            ("admin-prohibited", "admin-prohibited"),
        )
    },
    ("icmpv6", "no-route"): ("", "icmp6-no-route"),
    ("icmpv6", "admin-prohibited"): ("", "icmp6-adm-prohibited"),
    ("icmpv6", "addr-unreachable"): ("", "icmp6-addr-unreachable"),
    ("icmpv6", "port-unreachable"): ("", "icmp6-port-unreachable"),
    ("icmpv6", "policy-fail"): ("", "icmp6-adm-prohibited"),  # the sender is told the same (EACCES)
    ("icmpv6", "reject-route"): ("", "icmp6-adm-prohibited"),
    ("icmpx", "port-unreachable"): ("icmp-port-unreachable", "icmp6-port-unreachable"),
    ("icmpx", "admin-prohibited"): ("icmp-admin-prohibited", "icmp6-adm-prohibited"),
    ("icmpx", "no-route"): ("icmp-net-unreachable", "icmp6-no-route"),
    ("icmpx", "host-unreachable"): ("icmp-host-unreachable", "icmp6-addr-unreachable"),
}
"""(type, code) of `reject` → what iptables calls it for IPv4 and IPv6; "" where the rule is not for that family."""


class StatementCompiler:
    """Makes the statements of one table."""

    def __init__(self, compiler: Compiler, chain_of: ChainOf) -> None:
        self.compiler = compiler
        self.chain_of = chain_of
        self._verdicts: dict[int, Act] = {}

    def statement(self, value: Json) -> Statement:
        """Return the statement; one that is not understood ends the way, or splits it if it is a match."""
        try:
            return self._statement(value)
        except (NotUnderstood, ValueError, OverflowError) as reason:
            said = f"{compact(value)[:200]}: {reason}"
            if is_named(value, "match", "limit", "quota", "ct count", "meter"):
                return _taken(unknown(said, compact(value)))
            return Statement(lambda way, rule: way.cannot_tell(rule, said))

    def _statement(self, value: Json) -> Statement:
        if isinstance(value, str):  # what this nft has no JSON for, as text
            if value.split(" ")[0] in DYNAMIC:
                return Statement(_noted("match", "changes a map"), passive=True)
            raise NotUnderstood(value)
        name, content = named(value)
        if name == "match":
            return _conditional(match(content, self.compiler, self._gate))
        if name in VERDICTS:
            return Statement(self.verdict(value))
        if name in PASSIVE:
            return self._passive(name, content)
        if name in KINDS:
            return nat(name, content, self.compiler)
        if name in ("limit", "quota", "ct count", "meter"):
            return self._limit(name, content)
        match name:
            case "vmap":
                return self._vmap(content)
            case "mangle":
                return self._mangle(content)
            case "reject":
                return Statement(self._reject(content))
            case "notrack":
                return Statement(_notrack)
            case "set":
                return self._dynamic(content)
            case "map":
                return Statement(_noted("match", "changes a map"), passive=True)
            case "tproxy":
                return tproxy(content, self.compiler)
            case "flow":
                return _taken(Chance(0.5, key=f"flow {compact(content)}"))
            case "xt" if text(content, "name", "") == "comment":
                return Statement(_nothing, passive=True)
        raise NotUnderstood(f"the statement {name} is not simulated")

    # --- verdicts ------------------------------------------------------------------------------------------------

    def verdict(self, value: Json) -> Act:
        """Return what a verdict does. Raises NotUnderstood for one that is not known, or a chain that is not there."""
        name, content = named(value)
        if name not in VERDICTS:
            raise NotUnderstood(f"the verdict {name}")
        act = VERDICTS[name]
        if act is not None:
            return act
        target = text(content, "target")
        chain = self.chain_of(target)
        if chain is None:
            raise NotUnderstood(f"the chain {target}, which is not listed")
        return _to_chain(name, chain)

    def _vmap(self, content: Json) -> Statement:
        lookup = self.compiler.lookup(fields(content).get("key"), fields(content).get("data"))

        def act(way: Way, rule: Rule) -> Flow | TableResult:
            found = lookup(way.view)
            if isinstance(found, Element):
                if found.gates:
                    flow = _go_on(way, rule, self._gate(way.view, found))
                    if flow is not Flow.NEXT:
                        return flow
                return self._verdict_of(found)(way, rule)
            if found is None:
                return Flow.BREAK
            if isinstance(found, Draw):
                return way.draw(found)
            assert isinstance(found, Unsure)
            return way.cannot_tell(rule, f"which verdict of the map applies: {found.reason or found.key}")

        return Statement(act)

    def _verdict_of(self, element: Element) -> Act:
        act = self._verdicts.get(id(element))
        if act is None:
            try:
                act = self.verdict(element.data)
            except NotUnderstood as reason:
                said = str(reason)

                def act(way: Way, rule: Rule) -> TableResult:
                    return way.cannot_tell(rule, said)

            self._verdicts[id(element)] = act
        return act

    def _reject(self, content: Json) -> Act:
        kind, code = text(content, "type", ""), text(content, "expr", "port-unreachable")
        if kind == "tcp reset":
            return _reset
        words = REJECT_WORDS.get((kind or "icmpx", code))
        if words is None:
            raise NotUnderstood(f"reject with {kind} {code}")

        def act(way: Way, rule: Rule) -> Flow | TableResult:
            word = words[1] if way.view.version == 6 else words[0]
            if not word:
                return Flow.BREAK
            way.note(rule, "reject", f"with {word}")
            return way.finish(Verdict.REJECT, reject=word)

        return act

    # --- limits --------------------------------------------------------------------------------------------------

    def _gate(self, _: PacketView, element: Element) -> Truth:
        """Say whether the statements that an element carries let a hit count."""
        result: Truth = True
        for value in element.gates:
            name, content = named(value)
            try:
                result = both(result, self._below(name, content))
            except NotUnderstood as reason:
                result = both(result, unknown(f"{compact(value)}: {reason}"))
        return result

    def _limit(self, name: str, content: Json) -> Statement:
        if is_named(content, "map"):
            inner = fields(fields(content)["map"])
            return self._named_by_map(name, inner)
        if name == "meter":
            key = self.compiler.expression(fields(content).get("key"))
            inside, what = named(fields(content).get("stmt"))
            return _taken(self._below(inside, what), key.get)
        return _taken(self._below(name, content))

    def _named_by_map(self, name: str, content: dict[str, Json]) -> Statement:
        lookup = self.compiler.lookup(content.get("key"), content.get("data"))

        def act(way: Way, rule: Rule) -> Flow | TableResult:
            found = lookup(way.view)
            if isinstance(found, Element):
                return Flow.NEXT if name == "counter" else _go_on(way, rule, self._below(name, found.data))
            if isinstance(found, Draw):
                return way.draw(found)
            return Flow.BREAK if found is None else way.cannot_tell(rule, f"which {name} of the map applies")

        return Statement(act)

    def _below(self, name: str, content: Json) -> Truth:
        """Return whether a limit, quota or connection count lets the packet go on."""
        if isinstance(content, str):
            found = self.compiler.source.named.get((name, content))
            if found is None:
                raise NotUnderstood(f"the {name} {content}, which is not listed")
            content = found
        over = bool(fields(content).get("inv", False))
        match name:
            case "limit":
                return Chance(0.0 if over else 1.0, assumed=(WITHIN_LIMIT,))
            case "ct count":
                many = whole(content, "val") < 1
                return Chance(1.0 if many == over else 0.0, assumed=(FEW_CONNECTIONS,))
            case "quota":
                used_up = _bytes(content, "used") >= _bytes(content, "bytes" if "bytes" in fields(content) else "val")
                return Chance(1.0 if used_up == over else 0.0, assumed=("the quota is used as far as it was listed",))
            case "counter" | "last":
                return True
        raise NotUnderstood(f"the statement {name}")

    def _dynamic(self, content: Json) -> Statement:
        """`add`, `update`, `delete` of an element: seen by the statements that follow (nft_dynset.c)."""
        given = fields(content)
        there, name = text(given, "op") != "delete", text(given, "set").removeprefix("@")
        element = given.get("elem")
        if is_named(element, "elem"):
            element = fields(fields(element)["elem"]).get("val")
        key = self.compiler.expression(element)
        limits: Truth = True
        for value in items(given.get("stmt", [])):
            limits = both(limits, self._below(*named(value)))

        def act(way: Way, rule: Rule) -> Flow | TableResult:
            found = key.get(way.view)
            if found is None:
                return Flow.BREAK
            if isinstance(found, Draw):
                return way.draw(found)
            if not isinstance(found, Unsure):
                way.view.listed[name, found] = there
            flow = _go_on(way, rule, limits)
            if flow is Flow.NEXT:
                way.note(rule, "match", f"{given['op']} @{name}")
            return flow

        return Statement(act)

    # --- what changes the packet ---------------------------------------------------------------------------------

    def _mangle(self, content: Json) -> Statement:
        name, where = named(fields(content).get("key"))
        value = fields(content).get("value")
        match name:
            case "meta":
                return self._set_meta(text(where, "key"), value)
            case "ct":
                return self._set_ct(text(where, "key"), where, value)
            case "payload":
                return self._set_payload(where, value)
            case "tcp option":
                return _unless_protocol(6)
        raise NotUnderstood(f"{name} set")

    def _set_meta(self, key: str, value: Json) -> Statement:
        if key != "mark":
            return Statement(_noted("match", f"meta {key}"), passive=True)
        get = self.compiler.expression(value, dt.MARK).get

        def write(way: Way, rule: Rule, number: int) -> None:
            way.view.change(mark=number & 0xFFFFFFFF)
            way.note(rule, "mark", f"0x{way.view.mark:x}")

        return _writing(get, write, "meta mark")

    def _set_ct(self, key: str, where: Json, value: Json) -> Statement:
        if key in ("helper", "event", "label", "secmark"):
            return Statement(_noted("match", f"ct {key}"), passive=True)
        if key == "zone" and "dir" not in fields(where):
            return _writing(self.compiler.expression(value, dt.INTEGER).get, _write_zone, "ct zone")
        if key != "mark":
            raise NotUnderstood(f"ct {key} set")
        return _writing(self.compiler.expression(value, dt.MARK).get, _write_connmark, "ct mark")

    def _set_payload(self, where: Json, value: Json) -> Statement:
        found = self.compiler.expression({"payload": where})
        protocol, field = text(where, "protocol", ""), text(where, "field", "")
        present = found.get
        if field in UNSEEN:
            return Statement(lambda way, _: Flow.BREAK if present(way.view) is None else Flow.NEXT)
        change = WRITABLE.get((protocol, field))
        if change is None:
            raise NotUnderstood(f"{protocol} {field} set")
        get = self.compiler.expression(value, found.types[0]).get

        def write(way: Way, rule: Rule, number: int) -> None:
            change(way.view, number)
            way.note(rule, "mark", f"{protocol} {field} {way.view.packet}")

        return _writing(lambda view: None if present(view) is None else get(view), write, f"{protocol} {field}")

    def _passive(self, name: str, content: Json) -> Statement:
        if name == "counter" and is_named(content, "map"):
            return self._named_by_map(name, fields(fields(content)["map"]))
        word = PASSIVE[name]
        return Statement(_noted(word, "") if word else _nothing, passive=True)


def _bytes(content: Json, name: str) -> int:
    """Return an amount of a quota in bytes, 0 where it is not listed."""
    unit = text(content, f"{name}_unit", "bytes")
    if unit not in UNITS:
        raise NotUnderstood(f"a quota in {unit}")
    return whole(content, name, 0) * UNITS[unit]


def _go_on(way: Way, rule: Rule, truth: Truth) -> Flow:
    if isinstance(truth, Chance):
        return way.take(rule, truth)
    return Flow.NEXT if truth else Flow.BREAK


def _conditional(condition: Callable[[PacketView], object]) -> Statement:
    def act(way: Way, rule: Rule) -> Flow | TableResult:
        answer = condition(way.view)
        if answer is True:
            return Flow.NEXT
        if answer is False or answer is None:
            return Flow.BREAK
        if isinstance(answer, Draw):
            return way.draw(answer)
        assert isinstance(answer, Chance)
        return way.take(rule, answer)

    return Statement(act)


def _taken(truth: Truth, needs: Getter | None = None) -> Statement:
    """Return a statement that holds or not whatever the packet, if the packet has what it `needs`."""

    def act(way: Way, rule: Rule) -> Flow | TableResult:
        if needs is not None and needs(way.view) is None:
            return Flow.BREAK
        return _go_on(way, rule, truth)

    return Statement(act)


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


def _notrack(way: Way, rule: Rule) -> Flow | TableResult:
    if way.view.packet.ct_state in (CtState.NONE, CtState.INVALID) and way.zone is None:
        way.notrack = True
        way.view.change(ct_state=CtState.UNTRACKED)
        way.note(rule, "notrack")
    else:
        way.note(rule, "notrack", "the packet has a connection already")
    return Flow.NEXT


def _unless_protocol(number: int) -> Statement:
    """Return a statement that changes nothing we look at, in packets of one protocol."""
    return Statement(lambda way, _: Flow.NEXT if way.view.protocol == number else Flow.BREAK)


def _nothing(_: Way, __: Rule) -> Flow:
    return Flow.NEXT


def _noted(word: str, detail: str) -> Act:
    def act(way: Way, rule: Rule) -> Flow:
        way.note(rule, word, detail)
        return Flow.NEXT

    return act


def _to_chain(word: str, chain: Chain) -> Act:
    detail, push = f"to {chain.name}", word == "jump"

    def act(way: Way, rule: Rule) -> Flow | TableResult:
        way.note(rule, word, detail)
        return way.enter(chain, push=push)

    return act


def _accept(way: Way, rule: Rule) -> TableResult:
    way.note(rule, "accept")
    return way.finish(Verdict.ACCEPT)


def _drop(way: Way, rule: Rule) -> TableResult:
    way.note(rule, "drop")
    return way.finish(Verdict.DROP)


def _return(way: Way, rule: Rule) -> Flow | TableResult:
    way.note(rule, "return")
    result = way.leave()
    return Flow.MOVED if result is None else result


def _reset(way: Way, rule: Rule) -> Flow | TableResult:
    if way.view.protocol != dt.PROTO.symbols["tcp"]:
        return Flow.BREAK
    way.note(rule, "reject", "with tcp-reset")
    return way.finish(Verdict.REJECT, reject="tcp-reset")


VERDICTS: Mapping[str, Act | None] = {
    "accept": _accept,
    "drop": _drop,
    "return": _return,
    "continue": _nothing,
    "jump": None,
    "goto": None,
}
"""Verdicts; None for those that lead to a chain."""
