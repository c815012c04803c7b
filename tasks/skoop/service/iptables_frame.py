"""Is the frame of kube-proxy's rules whole? The jumps into its chains, the mark, and the masquerade at the end.

These rules are the same on every node and for every Service; if one is missing, everything of its kind fails.
"""

from collections.abc import Collection, Iterator

from tasks.skoop.assertions.codes import suspect
from tasks.skoop.assertions.rules import TableView, conditions, has_match, mentions, network, target_option
from tasks.skoop.model.addr import Ip, contains
from tasks.skoop.model.ids import NodeName
from tasks.skoop.model.suspicion import Suspicion
from tasks.skoop.model.xtables import Rule
from tasks.skoop.service import iptables_names as names
from tasks.skoop.service.iptables_chain import delete_rule, insert_rule

NAT_JUMPS = (
    ("PREROUTING", names.SERVICES, "kubernetes service portals"),
    ("OUTPUT", names.SERVICES, "kubernetes service portals"),
    ("POSTROUTING", names.POSTROUTING, "kubernetes postrouting rules"),
)
FILTER_JUMPS = (("FORWARD", names.FORWARD, "kubernetes forwarding rules"),)

STEALING = frozenset(("DNAT", "REDIRECT", "ACCEPT", "RETURN", "NETMAP"))
"""Targets that keep later nat rules from seeing the connection."""


def frame_suspicions(nat: TableView, filters: TableView | None, node: NodeName) -> Iterator[Suspicion]:
    """Yield what is missing from the frame, or stands in its way."""
    yield from _jumps(nat, node, NAT_JUMPS)
    if filters is not None:
        yield from _jumps(filters, node, FILTER_JUMPS)
    yield from _mark(nat, node)
    yield from _masquerade(nat, node)


def _jumps(view: TableView, node: NodeName, jumps: tuple[tuple[str, str, str], ...]) -> Iterator[Suspicion]:
    for hook, chain, comment in jumps:
        if chain in view.chains and mentions(view.rules(hook), chain) is None:
            rule = f'-m comment --comment "{comment}" -j {chain}'
            yield suspect(
                "KP-SVC-009",
                f"{hook} of table {view.name} on {node} does not call {chain}",
                subject=view.netns,
                place=view.place(hook, hook=hook),
                expected=f"-A {hook} {rule}",
                changes=(insert_rule(view, hook, 1, rule),),
            )


def _mark(nat: TableView, node: NodeName) -> Iterator[Suspicion]:
    rules = nat.rules(names.MARK_CHAIN)
    if names.MARK_CHAIN in nat.chains and not any(rule.target.name == "MARK" for rule in rules):
        rule = f"-j MARK --set-xmark {names.DEFAULT_MARK}"
        yield suspect(
            "KP-SVC-008",
            f"{names.MARK_CHAIN} on {node} sets no mark",
            subject=nat.netns,
            place=nat.place(names.MARK_CHAIN),
            seen=f"{len(rules)} rules, none with target MARK",
            expected=f"-A {names.MARK_CHAIN} {rule}",
            changes=(insert_rule(nat, names.MARK_CHAIN, 1, rule),),
        )


def _masquerade(nat: TableView, node: NodeName) -> Iterator[Suspicion]:
    rules = nat.rules(names.POSTROUTING)
    if names.POSTROUTING in nat.chains and not any(rule.target.name == "MASQUERADE" for rule in rules):
        rule = '-m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully'
        yield suspect(
            "KP-SVC-007",
            f"{names.POSTROUTING} on {node} does not masquerade what is marked",
            subject=nat.netns,
            place=nat.place(names.POSTROUTING, hook="POSTROUTING"),
            expected=f"-A {names.POSTROUTING} {rule}",
            changes=(insert_rule(nat, names.POSTROUTING, 0, rule),),
        )


def stealing_suspicions(nat: TableView, node: NodeName, service_addresses: Collection[str]) -> Iterator[Suspicion]:
    """Yield rules that take Services' connections before kube-proxy's rules see them.

    In kube-proxy's own table those before its jump, whatever address they take; in the table of the other back end (which may
    run first) those that translate the address of a Service.
    """
    own = names.SERVICES in nat.chains
    for hook in ("PREROUTING", "OUTPUT"):
        last = (mentions(nat.rules(hook), names.SERVICES) or 0) if own else len(nat.rules(hook)) + 1
        for position, rule in nat.numbered(hook):
            if position >= last:
                break
            if rule.target.name in STEALING and _takes(rule, service_addresses, anything=own):
                to = target_option(rule, "to-destination") or target_option(rule, "to-ports") or ""
                yield suspect(
                    "KP-SVC-017",
                    f"a rule of iptables-{nat.backend} in {hook} on {node} takes connections of Services "
                    f"({rule.target.name} {to})".replace(" )", ")"),
                    subject=nat.netns,
                    place=nat.place(hook, position, hook=hook),
                    line=f"-A {hook} {rule.raw}",
                    seen=f"conditions: {', '.join(conditions(rule)) or 'none'}",
                    changes=(delete_rule(nat, hook, position, rule.raw),),
                )


def _takes(rule: Rule, service_addresses: Collection[str], *, anything: bool) -> bool:
    """Say whether a rule may match a connection to a Service; `anything`: also where it names no address."""
    if has_match(rule, "addrtype") or has_match(rule, "set"):
        return False
    target = network(rule, "dst")
    if target is None:
        return anything and not any(name == "dst" for name in conditions(rule))
    return any(contains(target, Ip(ip)) for ip in service_addresses)
