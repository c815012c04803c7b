"""What a rule's statements do: matches, verdicts, verdict maps, rejects, sets that rules fill.

Follows nft_immediate.c, nft_lookup.c, nft_reject*.c, nft_dynset.c. A statement that is not known ends the way with
UNKNOWN; a match that is not known splits it.
"""

from collections.abc import Callable, Mapping

from tasks.skoop.model.packet import CtState, Protocol, TcpFlags
from tasks.skoop.netstack.nftables import datatypes as dt
from tasks.skoop.netstack.nftables.elements import Element, element_of
from tasks.skoop.netstack.nftables.expressions import Compiler
from tasks.skoop.netstack.nftables.jsonform import Json, compact, fields, is_named, items, named, text
from tasks.skoop.netstack.nftables.limits import below
from tasks.skoop.netstack.nftables.matching import match
from tasks.skoop.netstack.nftables.nat import KINDS, nat, tproxy
from tasks.skoop.netstack.nftables.outcomes import Draw, Getter, Unsure
from tasks.skoop.netstack.nftables.view import PacketView
from tasks.skoop.netstack.nftables.way import Chain, Flow, Rule, Statement, Way, noted
from tasks.skoop.netstack.nftables.writes import mangle
from tasks.skoop.netstack.xtables.api import TableResult, Verdict
from tasks.skoop.netstack.xtables.truth import Chance, NotUnderstood, Truth, both, unknown

Act = Callable[[Way, Rule], Flow | TableResult]
ChainOf = Callable[[str], Chain | None]

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
"""Statements after which the next one follows, and that change nothing the simulator looks at → the word for their
step.
"""

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
    ("icmpv6", "policy-fail"): ("", "icmp6-policy-fail"),
    ("icmpv6", "reject-route"): ("", "icmp6-reject-route"),
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
        found = self._statement_or_why(value)
        if isinstance(found, Statement):
            return found
        said = found
        if is_named(value, "match", "limit", "quota", "ct count", "meter"):
            return _taken(unknown(said, compact(value)))
        return Statement(lambda way, rule: way.cannot_tell(rule, said))

    def objections(self, value: Json) -> list[str]:
        """Return why it cannot be told what a statement does, or what a verdict of its map does; [] if it can."""
        found = self._statement_or_why(value)
        if isinstance(found, str):
            return [found]
        if not is_named(value, "vmap"):
            return []
        data = fields(named(value)[1]).get("data")
        if isinstance(data, str):
            elements = self.compiler.source.listed(data.removeprefix("@"))
        else:
            elements = [element_of(each, mapping=True) for each in items(fields(data)["set"])]
        return [said for element in elements for said in self._verdict_objections(element.data)]

    def _verdict_objections(self, verdict: Json) -> list[str]:
        try:
            self.verdict(verdict)
        except (NotUnderstood, ValueError) as reason:
            return [f"{compact(verdict)[:200]}: {reason}"]
        return []

    def _statement_or_why(self, value: Json) -> Statement | str:
        try:
            return self._statement(value)
        except (NotUnderstood, ValueError, OverflowError) as reason:
            return f"{compact(value)[:200]}: {reason}"

    def _statement(self, value: Json) -> Statement:
        if isinstance(value, str):  # what this nft has no JSON for, as text
            if value.split(" ")[0] in DYNAMIC:
                return Statement(noted("match", "changes a map"), passive=True)
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
                return mangle(content, self.compiler)
            case "reject":
                return Statement(self._reject(content))
            case "notrack":
                return Statement(_notrack)
            case "set":
                return self._dynamic(content)
            case "map":
                return Statement(noted("match", "changes a map"), passive=True)
            case "tproxy":
                return tproxy(content, self.compiler)
            case "flow":
                return Statement(_offload(Chance(0.5, key=f"flow {compact(content)}")))
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
                result = both(result, below(name, content, self.compiler.source))
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
            return _taken(below(inside, what, self.compiler.source), key.get)
        return _taken(below(name, content, self.compiler.source))

    def _named_by_map(self, name: str, content: dict[str, Json]) -> Statement:
        lookup = self.compiler.lookup(content.get("key"), content.get("data"))

        def act(way: Way, rule: Rule) -> Flow | TableResult:
            found = lookup(way.view)
            if isinstance(found, Element):
                return (
                    Flow.NEXT if name == "counter" else _go_on(way, rule, below(name, found.data, self.compiler.source))
                )
            if isinstance(found, Draw):
                return way.draw(found)
            return Flow.BREAK if found is None else way.cannot_tell(rule, f"which {name} of the map applies")

        return Statement(act)

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
            limits = both(limits, below(*named(value), self.compiler.source))

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

    def _passive(self, name: str, content: Json) -> Statement:
        if name == "counter" and is_named(content, "map"):
            return self._named_by_map(name, fields(fields(content)["map"]))
        word = PASSIVE[name]
        return Statement(noted(word, "") if word else _nothing, passive=True)


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


def _offload(chance: Chance) -> Act:
    """nft_flow_offload_eval: never for a connection's first packet, nor for a handshake's or a last segment; later it may do so, once."""

    def act(way: Way, rule: Rule) -> Flow:
        packet = way.view.packet
        stands = packet.protocol != Protocol.TCP or packet.tcp_flags in (TcpFlags.ACK, TcpFlags.PSH_ACK)
        may = packet.protocol in (Protocol.TCP, Protocol.UDP) and packet.ct_state in (
            CtState.ESTABLISHED,
            CtState.RELATED,
        )
        return way.take(rule, chance) if may and stands else Flow.BREAK

    return act


def _notrack(way: Way, rule: Rule) -> Flow | TableResult:
    if way.view.packet.ct_state in (CtState.NONE, CtState.INVALID) and way.zone is None:
        way.notrack = True
        way.view.change(ct_state=CtState.UNTRACKED)
        way.note(rule, "notrack")
    else:
        way.note(rule, "notrack", "the packet has a connection already")
    return Flow.NEXT


def _nothing(_: Way, __: Rule) -> Flow:
    return Flow.NEXT


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
