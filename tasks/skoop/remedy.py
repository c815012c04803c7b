"""What the collected state would be after a change: the remedy applied to a copy, as the kernel would apply it.

Pure: `apply` returns a new state and leaves the old one alone. It does what the kernel does on the way (forwarding copied to
every interface, routes that go with a link that goes down, connected routes that come back) and refuses what the kernel
would refuse (a rule that is not there, a route over a device that is down). What user space would do afterwards (a network
daemon that sets its routes again) is not done: that would prove too much.
"""

from collections.abc import Iterable, Sequence
from typing import assert_never

from msgspec.structs import replace

from tasks.skoop.errors import KubeprobeError
from tasks.skoop.model.addr import Mac, parse_ip
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.state import FdbEntry, Interface, Neighbour, NetNS
from tasks.skoop.model.suspicion import (
    AcceptConnections,
    AddAddress,
    AddChain,
    AddRoute,
    AddSocket,
    Change,
    DeletePolicyRule,
    DeleteRoute,
    DeleteRule,
    FlushConntrack,
    ForgetPathMtu,
    InsertRule,
    SetFdb,
    SetLink,
    SetNeighbour,
    SetPolicy,
    SetSysctl,
)
from tasks.skoop.model.xtables import Backend, Chain, Rule, XTable
from tasks.skoop.parse.iptables_rule import RuleReader, SpecError
from tasks.skoop.remedy_commands import commands_for
from tasks.skoop.remedy_links import add_address, set_link, set_sysctl

__all__ = ["RemedyError", "apply", "commands_for", "in_order"]


class RemedyError(KubeprobeError):
    """A change cannot be applied to this state: `change` is what, `why` is why the kernel would refuse it."""

    def __init__(self, change: Change, why: str) -> None:
        self.change = change
        self.why = why
        super().__init__(
            f"cannot apply {type(change).__name__} to {change.netns}: {why}; was the state collected before something changed?"
        )


def apply(state: ClusterState, changes: Sequence[Change]) -> ClusterState:
    """Return the state after the changes, applied one after another. Raises RemedyError, and then changes nothing."""
    namespaces = dict(state.netns)
    for change in changes:
        before = namespaces.get(change.netns)
        if before is None:
            raise RemedyError(change, "this namespace was not collected")
        namespaces[change.netns] = _applied(before, change)
        if isinstance(change, SetLink) and change.up is not None:
            _tell_peer(namespaces, change)
    return replace(state, netns=namespaces)


def in_order(remedies: Iterable[Sequence[Change]]) -> tuple[Change, ...]:
    """Return the changes of several remedies in an order in which none moves what another one names.

    The changes of one remedy stay together and in their order. Remedies that only delete rules come first, from the last
    position to the first; then links and sysctls, inserted rules, and what needs a link that is up. Doubles are left out.
    """
    found: list[Change] = []
    for remedy in sorted(remedies, key=_order):
        found += [change for change in remedy if change not in found or isinstance(change, InsertRule)]
    return tuple(found)


def _order(remedy: Sequence[Change]) -> tuple[int, int]:
    ranks = [_rank(change) for change in remedy if not isinstance(change, DeleteRule)]
    last = max((change.rule for change in remedy if isinstance(change, DeleteRule)), default=0)
    return min(ranks, default=0), -last


def _rank(change: Change) -> int:
    match change:
        case SetLink() | SetSysctl() | AddAddress() | AddChain() | SetPolicy():
            return 1
        case InsertRule():
            return 2
        case _:
            return 3


def _applied(netns: NetNS, change: Change) -> NetNS:
    match change:
        case SetSysctl():
            return set_sysctl(netns, change.key, change.value)
        case DeleteRule() | InsertRule() | SetPolicy() | AddChain():
            return _with_table(netns, change)
        case AddRoute():
            return _add_route(netns, change)
        case DeleteRoute():
            if change.route not in netns.routes:
                raise RemedyError(change, f"there is no route {change.route.dst} like that")
            return replace(netns, routes=tuple(route for route in netns.routes if route != change.route))
        case DeletePolicyRule():
            return _delete_policy_rule(netns, change)
        case SetLink():
            _require_link(netns, change, change.dev)
            problem, changed = set_link(netns, change)
            if problem:
                raise RemedyError(change, problem)
            return changed
        case AddAddress():
            _require_link(netns, change, change.dev)
            return add_address(netns, change.dev, change.address)
        case SetNeighbour():
            return _set_neighbour(netns, change)
        case SetFdb():
            return replace(netns, fdb=_fdb(netns.fdb, change.entry, remove=change.remove))
        case AddSocket():
            return replace(netns, sockets=(*netns.sockets, change.socket))
        case AcceptConnections():
            drained = (
                replace(known, recv_queue=0) if known.port == change.port and known.state == "LISTEN" else known
                for known in netns.sockets
            )
            return replace(netns, sockets=tuple(drained))
        case FlushConntrack():
            kept = tuple(
                entry
                for entry in netns.conntrack
                if entry.original.dst != change.dst or (change.dport and entry.original.dport != change.dport)
            )
            return replace(netns, conntrack=kept)
        case ForgetPathMtu():
            return replace(netns, route_exceptions=tuple(known for known in netns.route_exceptions if not known.mtu))
        case _:
            assert_never(change)


def _require_link(netns: NetNS, change: Change, dev: str) -> Interface:
    link = netns.interface(dev)
    if link is None:
        raise RemedyError(change, f"there is no interface {dev}")
    return link


def _tell_peer(namespaces: dict[NetnsId, NetNS], change: SetLink) -> None:
    """Give the other end of a veth its carrier: there is one while both ends are up (veth_open, veth_close)."""
    link = namespaces[change.netns].interface(change.dev)
    if link is None or link.kind != "veth" or link.peer is None:
        return
    far_netns, far_name = link.peer
    far = namespaces.get(far_netns)
    far_link = far.interface(far_name) if far else None
    if far is None or far_link is None:
        return
    carrier = link.up and far_link.up
    for netns, name in ((change.netns, change.dev), (far_netns, far_name)):
        namespaces[netns] = _with_link(namespaces[netns], name, carrier=carrier)


def _with_link(netns: NetNS, name: str, *, carrier: bool) -> NetNS:
    links = tuple(
        _with_carrier(netns, link, carrier=carrier) if link.name == name else link for link in netns.interfaces
    )
    return replace(netns, interfaces=links)


def _with_carrier(netns: NetNS, link: Interface, *, carrier: bool) -> Interface:
    """Return an interface that got or lost its carrier; a port of a bridge that is up follows (br_port_carrier_check)."""
    bridge = netns.interface(link.master) if link.master else None
    port = link.port
    if port is not None and bridge is not None and bridge.up:
        port = replace(port, state="forwarding" if carrier and link.up else "disabled")
    return replace(link, carrier=carrier, operstate="UP" if carrier and link.up else "DOWN", port=port)


TableChange = DeleteRule | InsertRule | SetPolicy | AddChain


def _with_table(netns: NetNS, change: TableChange) -> NetNS:
    """Change one iptables table; AddChain and InsertRule make the table if the back end has none of that name yet."""
    wanted = (change.backend, change.family, change.table)
    for index, table in enumerate(netns.tables):
        if (table.backend, table.family, table.name) == wanted:
            changed = replace(table, chains=_with_chain(table.chains, change))
            return replace(netns, tables=(*netns.tables[:index], changed, *netns.tables[index + 1 :]))
    if isinstance(change, DeleteRule):
        raise RemedyError(change, f"there is no table {change.table} in iptables-{change.backend}")
    empty = XTable(
        backend=Backend(change.backend), family=change.family, name=change.table, chains=BUILT_IN[change.table]
    )
    return replace(netns, tables=(*netns.tables, replace(empty, chains=_with_chain(empty.chains, change))))


def _built_in(*names: str) -> tuple[Chain, ...]:
    return tuple(Chain(name, "ACCEPT") for name in names)


BUILT_IN = {
    "raw": _built_in("PREROUTING", "OUTPUT"),
    "mangle": _built_in("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": _built_in("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": _built_in("INPUT", "FORWARD", "OUTPUT"),
    "security": _built_in("INPUT", "FORWARD", "OUTPUT"),
}
"""Built-in chains of each table, as the kernel makes them when the table is first used."""


def _with_chain(chains: tuple[Chain, ...], change: TableChange) -> tuple[Chain, ...]:
    index = next((index for index, chain in enumerate(chains) if chain.name == change.chain), None)
    if isinstance(change, AddChain):
        return chains if index is not None else (*chains, Chain(change.chain))
    if index is None:
        raise RemedyError(change, f"there is no chain {change.chain} in table {change.table}")
    return (*chains[:index], _changed_chain(chains[index], change), *chains[index + 1 :])


def _changed_chain(chain: Chain, change: DeleteRule | InsertRule | SetPolicy) -> Chain:
    match change:
        case SetPolicy():
            if not chain.policy:
                raise RemedyError(change, f"{chain.name} is a user's chain and has no policy")
            return replace(chain, policy=change.policy)
        case DeleteRule():
            at = change.rule - 1
            if not 0 <= at < len(chain.rules) or chain.rules[at].raw != change.raw:
                raise RemedyError(change, f"rule {change.rule} of {chain.name} is not `{change.raw}`")
            return replace(chain, rules=(*chain.rules[:at], *chain.rules[at + 1 :]))
        case InsertRule():
            at = len(chain.rules) if change.rule == 0 else change.rule - 1
            if not 0 <= at <= len(chain.rules):
                raise RemedyError(
                    change, f"{chain.name} has {len(chain.rules)} rules: there is no position {change.rule}"
                )
            return replace(chain, rules=(*chain.rules[:at], _read_rule(change), *chain.rules[at:]))
        case _:
            assert_never(change)


def _read_rule(change: InsertRule) -> Rule:
    try:
        return RuleReader().rule(change.raw)
    except SpecError as error:
        raise RemedyError(change, f"`{change.raw}` is not a rule: {error.problem}") from error


def _add_route(netns: NetNS, change: AddRoute) -> NetNS:
    """Replace the route of the same prefix, table, metric and TOS, as `ip route replace` does."""
    for hop in change.route.nexthops:
        if hop.dev:
            link = _require_link(netns, change, hop.dev)
            if not link.up:
                raise RemedyError(change, f"{hop.dev} is down (the kernel takes no route over it)")

    def same(route_key: tuple[str, int, int, int]) -> bool:
        return route_key == (change.route.dst, change.route.table, change.route.metric, change.route.tos)

    kept = tuple(route for route in netns.routes if not same((route.dst, route.table, route.metric, route.tos)))
    return replace(netns, routes=(*kept, change.route))


def _delete_policy_rule(netns: NetNS, change: DeletePolicyRule) -> NetNS:
    for index, rule in enumerate(netns.rules):
        if (rule.family, rule.priority, rule.table) == (change.family, change.priority, change.table):
            return replace(netns, rules=(*netns.rules[:index], *netns.rules[index + 1 :]))
    raise RemedyError(change, f"there is no rule with preference {change.priority} for table {change.table}")


def _set_neighbour(netns: NetNS, change: SetNeighbour) -> NetNS:
    _require_link(netns, change, change.dev)

    def other(entry: Neighbour) -> bool:
        return entry.proxy or (entry.ip, entry.dev) != (change.ip, change.dev)

    kept = tuple(entry for entry in netns.neighbours if other(entry))
    if change.mac is None:
        return replace(netns, neighbours=kept)
    entry = Neighbour(ip=parse_ip(change.ip), dev=change.dev, mac=Mac(change.mac), state=change.state)
    return replace(netns, neighbours=(*kept, entry))


def _fdb(entries: tuple[FdbEntry, ...], entry: FdbEntry, *, remove: bool) -> tuple[FdbEntry, ...]:
    def other(known: FdbEntry) -> bool:
        return (known.mac, known.dev, known.master, known.vlan) != (entry.mac, entry.dev, entry.master, entry.vlan)

    kept = tuple(known for known in entries if other(known))
    return kept if remove else (*kept, entry)
