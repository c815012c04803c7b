"""What a rule does once it matches: every target that is simulated, as an effect on the way.

Follows ip_tables.c for verdicts, xt_mark.c, xt_connmark.c, xt_CT.c, xt_DSCP.c, xt_HL.c, xt_TPROXY.c, ipt_REJECT.c. A target
that is not known, or has an option that is not, ends the way with UNKNOWN: what it would do to the packet cannot be told.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache

from tasks.skoop.model.addr import ip_int
from tasks.skoop.model.packet import CtState
from tasks.skoop.model.xtables import Target
from tasks.skoop.netstack.xtables.api import TableResult, Verdict
from tasks.skoop.netstack.xtables.field_matches import dscp_value, tos_value
from tasks.skoop.netstack.xtables.nat_targets import NAT_TARGETS, described
from tasks.skoop.netstack.xtables.prefix_translation import mapping
from tasks.skoop.netstack.xtables.spelling import ALL_MARK, Options, address, number, only, value_mask
from tasks.skoop.netstack.xtables.truth import NotUnderstood
from tasks.skoop.netstack.xtables.way import CompiledRule, Effect, RuleChain, Way

Act = Callable[[Way, CompiledRule], TableResult | None]

PASSIVE: Mapping[str, str] = {
    "": "match",
    "LOG": "log",
    "NFLOG": "log",
    "ULOG": "log",
    "TRACE": "log",
    "AUDIT": "log",
    "CHECKSUM": "match",
    "CLASSIFY": "match",
    "CONNSECMARK": "match",
    "ECN": "match",
    "IDLETIMER": "match",
    "LED": "match",
    "NFACCT": "match",
    "RATEEST": "match",
    "SECMARK": "match",
    "TCPMSS": "match",
    "TCPOPTSTRIP": "match",
    "TEE": "match",
}
"""Targets after which the next rule is tried, and that change nothing the simulator looks at → the word for their step."""

REJECT_WORDS = {
    "net-unreach": "icmp-net-unreachable",
    "host-unreach": "icmp-host-unreachable",
    "proto-unreach": "icmp-proto-unreachable",
    "net-prohib": "icmp-net-prohibited",
    "host-prohib": "icmp-host-prohibited",
    "admin-prohib": "icmp-admin-prohibited",
    "tcp-rst": "tcp-reset",
    "no-route": "icmp6-no-route",
    "adm-prohibited": "icmp6-adm-prohibited",
    "addr-unreach": "icmp6-addr-unreachable",
    "policy-fail": "icmp6-policy-fail",
    "reject-route": "icmp6-reject-route",
}
"""Short forms of `--reject-with` → what a dump has. `port-unreach` is in both families."""


def compile_target(target: Target, family: int, chain_of: Callable[[str], RuleChain | None]) -> Effect:
    """Return the effect of a target; `chain_of` gives a user chain of the table by name."""
    found = _effect_or_why(target, family, chain_of)
    return Effect(_unknown(found)) if isinstance(found, str) else found


def objection(target: Target, family: int, chain_of: Callable[[str], RuleChain | None]) -> str:
    """Return why it cannot be told what a target does, "" if it can."""
    found = _effect_or_why(target, family, chain_of)
    return found if isinstance(found, str) else ""


def _effect_or_why(target: Target, family: int, chain_of: Callable[[str], RuleChain | None]) -> Effect | str:
    name = target.name
    chain = chain_of(name) if name else None
    if chain is not None:
        return Effect(_goto(chain) if target.goto else _jump(chain))
    return _of_options(target, family)


@lru_cache(maxsize=1 << 13)
def _of_options(target: Target, family: int) -> Effect | str:
    """Return the effect of a target that is no chain, or why it cannot be told: the same wherever it stands."""
    name = target.name
    try:
        if name in PASSIVE:
            return Effect(_passive(PASSIVE[name]), passive=True)
        if name in NAT_TARGETS:
            return Effect(_translate(name, target.options, family))
        if name in PREFIX_TARGETS and family == 6:
            return Effect(_npt(name, target.options))
        return Effect(TARGETS.get(name, _not_simulated)(target.options, family))
    except NotUnderstood as reason:
        return f"-j {name}: {reason}"
    except (ValueError, IndexError):
        return f"-j {name}: its options are incomplete"


def _not_simulated(_: Options, __: int) -> Act:
    raise NotUnderstood("it is not simulated")


def _jump(chain: RuleChain) -> Act:
    detail = f"to {chain.name}"

    def act(way: Way, rule: CompiledRule) -> TableResult | None:
        way.note(rule, "jump", detail)
        return way.enter(chain, push=True)

    return act


def _goto(chain: RuleChain) -> Act:
    detail = f"to {chain.name}"

    def act(way: Way, rule: CompiledRule) -> TableResult | None:
        way.note(rule, "goto", detail)
        return way.enter(chain, push=False)

    return act


def _passive(word: str) -> Act:
    def act(way: Way, rule: CompiledRule) -> None:
        way.note(rule, word)

    return act


def _unknown(reason: str) -> Act:
    def act(way: Way, rule: CompiledRule) -> TableResult:
        way.note(rule, "match", "what it does cannot be told")
        return way.finish(Verdict.UNKNOWN, missing=(f"{rule.place(way.hook)}: {reason}",))

    return act


def _translate(name: str, options: Options, family: int) -> Act:
    action = NAT_TARGETS[name](options, family)
    word, detail = str(action.kind), described(action)

    def act(way: Way, rule: CompiledRule) -> TableResult:
        way.note(rule, word, detail)
        return way.finish(Verdict.ACCEPT, nat=action)

    return act


def _accept(_: Options, __: int) -> Act:
    def act(way: Way, rule: CompiledRule) -> TableResult:
        way.note(rule, "accept")
        return way.finish(Verdict.ACCEPT)

    return act


def _drop(_: Options, __: int) -> Act:
    def act(way: Way, rule: CompiledRule) -> TableResult:
        way.note(rule, "drop")
        return way.finish(Verdict.DROP)

    return act


def _return(_: Options, __: int) -> Act:
    def act(way: Way, rule: CompiledRule) -> TableResult | None:
        way.note(rule, "return")
        return way.leave()

    return act


def _reject(options: Options, family: int) -> Act:
    word = "icmp-port-unreachable" if family == 4 else "icmp6-port-unreachable"
    for option in options:
        if option[0] != "reject-with":
            raise NotUnderstood(f"--{option[0]}")
        if only(option) != "port-unreach":
            word = REJECT_WORDS.get(only(option), only(option))

    def act(way: Way, rule: CompiledRule) -> TableResult:
        way.note(rule, "reject", f"with {word}")
        return way.finish(Verdict.REJECT, reject=word)

    return act


def _mark(options: Options, _: int) -> Act:
    (option,) = options
    value, mask = _mark_change(option[0], only(option))

    def act(way: Way, rule: CompiledRule) -> None:
        _set_mark(way, (way.view.mark & ~mask) ^ value)
        way.note(rule, "mark", f"0x{way.view.mark:x}")

    return act


def _mark_change(name: str, text: str) -> tuple[int, int]:
    """Return (value, mask) of mark = (mark & ~mask) ^ value."""
    value, mask = value_mask(text)
    match name:
        case "set-xmark":
            return value, mask
        case "set-mark":
            return value, mask | value
        case "and-mark":
            return 0, ~value & ALL_MARK
        case "or-mark":
            return value, value
        case "xor-mark":
            return value, 0
    raise NotUnderstood(f"--{name}")


def _set_mark(way: Way, mark: int) -> None:
    way.view.change(mark=mark & ALL_MARK)


def _connmark(options: Options, _: int) -> Act:
    given = {option[0]: option for option in options}
    masks = {"nfmask": ALL_MARK, "ctmask": ALL_MARK}
    for name in ("nfmask", "ctmask", "mask"):
        if name in given:
            mask = number(only(given.pop(name)))
            masks.update({"nfmask": mask, "ctmask": mask} if name == "mask" else {name: mask})
    if len(given) != 1:
        raise NotUnderstood(f"--{', --'.join(given)}")
    (option,) = given.values()
    nfmask, ctmask = masks["nfmask"], masks["ctmask"]
    if option[0] == "restore-mark":
        return _restore_mark(nfmask, ctmask)
    if option[0] == "save-mark":
        return _write_connmark(lambda way: (way.view.connmark & ~ctmask) ^ (way.view.mark & nfmask))
    value, mask = _mark_change(option[0], only(option))
    return _write_connmark(lambda way: (way.view.connmark & ~mask) ^ value)


def _write_connmark(new: Callable[[Way], int]) -> Act:
    def act(way: Way, rule: CompiledRule) -> None:
        if way.view.tracked:
            way.view.connmark = new(way) & ALL_MARK
            way.wrote_connmark = True
            way.note(rule, "connmark", f"0x{way.view.connmark:x}")
        else:
            way.note(rule, "connmark", "no connection")

    return act


def _restore_mark(nfmask: int, ctmask: int) -> Act:
    def act(way: Way, rule: CompiledRule) -> None:
        if way.view.tracked:
            _set_mark(way, (way.view.mark & ~nfmask) ^ (way.view.connmark & ctmask))
            way.note(rule, "mark", f"0x{way.view.mark:x}")
        else:
            way.note(rule, "mark", "no connection")

    return act


def _notrack(_: Options, __: int) -> Act:
    def act(way: Way, rule: CompiledRule) -> None:
        if way.view.packet.ct_state == CtState.NONE and way.zone is None:
            way.notrack = True
            way.view.change(ct_state=CtState.UNTRACKED)
            way.note(rule, "notrack")
        else:
            way.note(rule, "notrack", "the packet has a connection already")

    return act


CT_HARMLESS = frozenset(("helper", "ctevents", "expevents", "timeout"))


def _ct(options: Options, family: int) -> Act:
    given = {option[0]: option for option in options}
    if "notrack" in given:
        return _notrack(options, family)
    if not set(given) <= CT_HARMLESS | {"zone"}:
        raise NotUnderstood(f"--{', --'.join(given)}")
    text = only(given["zone"]) if "zone" in given else ""
    fixed = None if text == "mark" else number(text) if text else 0

    def act(way: Way, rule: CompiledRule) -> None:
        if way.view.packet.ct_state == CtState.NONE and way.zone is None:
            way.zone = way.view.mark & 0xFFFF if fixed is None else fixed
            way.note(rule, "match", f"zone {way.zone}")
        else:
            way.note(rule, "match", "the packet has a connection already")

    return act


def _tos(options: Options, _: int) -> Act:
    (option,) = options
    value, mask = tos_value(only(option))
    match option[0]:
        case "set-tos":
            pass
        case "and-tos":
            value, mask = 0, ~value & 0xFF
        case "or-tos":
            mask = value
        case "xor-tos":
            mask = 0
        case _:
            raise NotUnderstood(f"--{option[0]}")
    return _change_tos(value, mask)


def _dscp(options: Options, _: int) -> Act:
    (option,) = options
    if option[0] not in ("set-dscp", "set-dscp-class"):
        raise NotUnderstood(f"--{option[0]}")
    return _change_tos(dscp_value(option) << 2, 0xFC)


def _change_tos(value: int, mask: int) -> Act:
    def act(way: Way, rule: CompiledRule) -> None:
        packet = way.view.change(tos=((way.view.packet.tos & ~mask) ^ value) & 0xFF)
        way.note(rule, "mark", f"tos 0x{packet.tos:02x}")

    return act


def _hop_limit(options: Options, _: int) -> Act:
    (option,) = options
    name, amount = option[0].removeprefix("ttl-").removeprefix("hl-"), number(only(option))
    if name not in ("set", "inc", "dec"):
        raise NotUnderstood(f"--{option[0]}")

    def act(way: Way, rule: CompiledRule) -> None:
        now = way.view.packet.ttl
        ttl = amount if name == "set" else now + amount if name == "inc" else now - amount
        way.view.change(ttl=min(max(ttl, 0), 255))
        way.note(rule, "mark", f"ttl {way.view.packet.ttl}")

    return act


def _set(options: Options, _: int) -> Act:
    names = {option[0] for option in options}
    if "map-mark" in names:
        raise NotUnderstood("--map-mark: the mark that an ipset's element carries")

    def act(way: Way, rule: CompiledRule) -> None:
        way.note(rule, "match", "changes an ipset")

    return act


def _tproxy(options: Options, family: int) -> Act:
    ip, port, mark, mask = address("0.0.0.0" if family == 4 else "::", family), 0, 0, 0
    for option in options:
        match option[0]:
            case "on-port":
                port = number(only(option))
            case "on-ip":
                ip = address(only(option), family)
            case "tproxy-mark":
                mark, mask = value_mask(only(option))
            case _:
                raise NotUnderstood(f"--{option[0]}")

    def act(way: Way, rule: CompiledRule) -> TableResult:
        _set_mark(way, (way.view.mark & ~mask) ^ mark)
        to = port or way.view.packet.dport
        way.note(rule, "match", f"tproxy to {ip} port {to}")
        return way.finish(Verdict.ACCEPT, tproxy=(ip, to))

    return act


def _npt(name: str, options: Options) -> Act:
    """ip6t_SNPT, ip6t_DNPT: the rules behind see the new address; the answer is not translated back by itself."""
    translation = mapping(options)
    field = "src" if name == "SNPT" else "dst"

    def act(way: Way, rule: CompiledRule) -> TableResult | None:
        after = translation.of(getattr(way.view.packet, field))
        if after is None or rule.chain != way.base.name:
            where = f"{rule.place(way.hook)}: {name}"
            why = "no part of the address can be adjusted" if after is None else "in a chain that another leads to"
            return way.finish(Verdict.UNKNOWN, missing=(f"{where} {why}",))
        way.view.change(**{field: after})
        setattr(way.view, field, ip_int(after))
        way.note(rule, "match", f"{name.lower()} to {after}")
        way.rules, way.at = [one for one in way.base.candidates(way.view) if one.number > rule.number], 0
        return None

    return act


TARGETS: Mapping[str, Callable[[Options, int], Act]] = {
    "ACCEPT": _accept,
    "DROP": _drop,
    "RETURN": _return,
    "REJECT": _reject,
    "MARK": _mark,
    "CONNMARK": _connmark,
    "NOTRACK": _notrack,
    "CT": _ct,
    "TOS": _tos,
    "DSCP": _dscp,
    "TTL": _hop_limit,
    "HL": _hop_limit,
    "SET": _set,
    "TPROXY": _tproxy,
}
"""Targets with an effect of their own, beside those of PASSIVE and NAT_TARGETS; all others are unknown."""

PREFIX_TARGETS = ("SNPT", "DNPT")
"""Targets of ip6tables that translate prefixes without connections."""
