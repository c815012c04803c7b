"""What happens to a packet at a netfilter hook: every table of every back end, conntrack and NAT, in order of priority.

Priorities are those of include/uapi/linux/netfilter_ipv4.h. ACCEPT ends one table only; DROP is final (docs/kernel.md, Hooks).
A native nftables base chain stands there like a table. Of tables with equal priority the dumps do not tell which runs
first: where that makes a difference each is followed as the first.
"""

from collections.abc import Iterator
from enum import Enum, auto
from itertools import groupby
from typing import NamedTuple

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.packet import CtState, Packet
from tasks.skoop.model.state import Section
from tasks.skoop.model.trace import Outcome, Place, Reason, Stage
from tasks.skoop.netstack import ipvs, nat, tracking
from tasks.skoop.netstack.asking import context_of, dropped_at, refuse, save_connmark, ways_of
from tasks.skoop.netstack.namespace import Namespace
from tasks.skoop.netstack.nat import NAT_SOURCE, Groups
from tasks.skoop.netstack.reroute import reroute
from tasks.skoop.netstack.skb import Skb
from tasks.skoop.netstack.xtables.api import CompiledTable, Hook, TableResult, Verdict

_TABLES = {
    Hook.PREROUTING: (("raw", -300), ("mangle", -150)),
    Hook.INPUT: (("mangle", -150), ("filter", 0), ("security", 50)),
    Hook.FORWARD: (("mangle", -150), ("filter", 0), ("security", 50)),
    Hook.OUTPUT: (("raw", -300), ("mangle", -150), ("filter", 0), ("security", 50)),
    Hook.POSTROUTING: (("mangle", -150),),
}
_NAT_DESTINATION = {Hook.PREROUTING, Hook.OUTPUT}
_CONNTRACK = -200
_NAT_DST = -100
_NAT_SRC = 100
_CONFIRM = 1 << 31


class OpKind(Enum):
    """What stands at a hook."""

    TABLE = auto()
    TRACK = auto()
    NAT = auto()
    CONFIRM = auto()
    IPVS = auto()


class Op(NamedTuple):
    """One function registered at a hook. `tables` are what it evaluates: one, or for NAT all, in groups.

    `reroutes`: a packet that it changes is looked up again (ipt_mangle_out, nf_route_table_hook4).
    """

    priority: int
    kind: OpKind
    tables: Groups = ()
    reroutes: bool = False
    balancing: ipvs.Way | None = None


def plan(ns: Namespace, family: int, hook: Hook) -> tuple[Op, ...]:
    """Return what runs at a hook, in order of priority."""
    ops: list[Op] = []
    native = ns.base_chains.at(family, hook)
    for name, priority in _TABLES[hook]:
        ops += [
            Op(priority, OpKind.TABLE, ((table,),), reroutes=name == "mangle" and hook == Hook.OUTPUT)
            for table in ns.tables.tables.get((family, name), ())
            if table.has_chain(hook)
        ]
    ops += [
        Op(chain.priority, OpKind.TABLE, ((chain,),), reroutes=chain.type == "route")
        for chain in native
        if chain.type != "nat"
    ]
    if ns.tracks(family):
        if hook in (Hook.PREROUTING, Hook.OUTPUT):
            ops.append(Op(_CONNTRACK, OpKind.TRACK))
        if hook in _NAT_DESTINATION:
            ops.append(Op(_NAT_DST, OpKind.NAT, _nat_tables(ns, family, hook, _NAT_DST)))
        if hook in NAT_SOURCE:
            ops.append(Op(_NAT_SRC, OpKind.NAT, _nat_tables(ns, family, hook, _NAT_SRC)))
            ops.append(Op(_CONFIRM, OpKind.CONFIRM))
    if ipvs.runs(ns):
        ops += [Op(priority, OpKind.IPVS, balancing=way) for priority, way in ipvs.HOOKS.get(hook, ())]
    return tuple(_together(sorted(ops, key=lambda op: op.priority)))


def _together(ops: list[Op]) -> Iterator[Op]:
    """Join tables of the same priority: which of them was registered last, and so runs first, no dump tells."""
    for (_, kind, reroutes), group in groupby(ops, key=lambda op: (op.priority, op.kind, op.reroutes)):
        one, *more = group
        if kind == OpKind.TABLE and more:
            yield Op(one.priority, kind, (tuple(op.tables[0][0] for op in (one, *more)),), reroutes=reroutes)
        else:
            yield from (one, *more)


def _nat_tables(ns: Namespace, family: int, hook: Hook, usual: int) -> Groups:
    """Return what decides about NAT at a hook by priority; all are called from one place (nf_nat_register_fn)."""
    found: dict[int, tuple[CompiledTable, ...]] = {}
    tables: list[tuple[int, CompiledTable]] = [
        (usual, table) for table in ns.tables.tables.get((family, "nat"), ()) if table.has_chain(hook)
    ]
    tables += [(chain.priority, chain) for chain in ns.base_chains.at(family, hook) if chain.type == "nat"]
    for priority, table in tables:
        found[priority] = (*found.get(priority, ()), table)
    return tuple(group for _, group in sorted(found.items()))


def traverse(ns: Namespace, skb: Skb, hook: Hook) -> list[Skb]:
    """Return every way of the packet through a hook; a way that ended there has its `end` set."""
    family = 6 if ":" in skb.packet.dst else 4
    if ns.state.missing and (why := ns.state.lacks(Section.IPTABLES)) is not None:
        place = Place(netns=ns.id, stage=Stage.NETFILTER, hook=hook, table="*", chain=hook)
        skb.missing = (*skb.missing, f"{ns.id}: iptables rules ({why})")
        return [skb.finish(Outcome.UNKNOWN, Reason.MISSING_STATE, place, f"rules not collected: {why}")]
    ways = [skb]
    skb.hook_out = skb.out_dev
    for op in ns.plan(family, hook):
        if len(ways) == 1:
            if ways[0].end is None and not ways[0].stolen:
                ways = _apply(ns, ways[0], hook, op)
        else:
            ways = [after for way in ways for after in ((way,) if way.end or way.stolen else _apply(ns, way, hook, op))]
    return ways


def _apply(ns: Namespace, skb: Skb, hook: Hook, op: Op) -> list[Skb]:
    match op.kind:
        case OpKind.TRACK:
            tracking.track(ns, skb)
            return [skb]
        case OpKind.CONFIRM:
            tracking.confirm(ns, skb)
            return [skb]
        case OpKind.NAT:
            return nat.translate(ns, skb, hook, op.tables)
        case OpKind.TABLE:
            (tables,) = op.tables
            if len(tables) > 1:
                return _filter_in_any_order(ns, skb, hook, tables, reroutes=op.reroutes)
            return _filter(ns, skb, hook, tables[0], reroutes=op.reroutes)
        case OpKind.IPVS:
            assert op.balancing is not None
            return ipvs.apply(ns, skb, hook, op.balancing)


def _filter_in_any_order(
    ns: Namespace, skb: Skb, hook: Hook, tables: tuple[CompiledTable, ...], *, reroutes: bool
) -> list[Skb]:
    """Let tables of one priority see the packet; where it matters which comes first, each does in its share of the cases."""
    context = context_of(ns, skb, hook)
    if not any(_acts(skb, result) for table in tables for result in table.evaluate(context)):
        return _filter_in_order(ns, skb, hook, tables, reroutes=reroutes)
    found: dict[object, list[Skb]] = {}
    for first in tables:
        order = (first, *(table for table in tables if table is not first))
        ways = _filter_in_order(ns, skb.clone(), hook, order, reroutes=reroutes)
        found.setdefault(tuple(_came_to(way) for way in ways), ways)
    for ways in found.values():
        for way in ways:
            way.probability /= len(found)
    return [way for ways in found.values() for way in ways]


def _filter_in_order(
    ns: Namespace, skb: Skb, hook: Hook, tables: tuple[CompiledTable, ...], *, reroutes: bool
) -> list[Skb]:
    ways = [skb]
    for table in tables:
        ways = [
            after
            for way in ways
            for after in ([way] if way.end is not None else _filter(ns, way, hook, table, reroutes=reroutes))
        ]
    return ways


def _acts(skb: Skb, result: TableResult) -> bool:
    changes = result.packet is not skb.packet and result.packet != skb.packet
    told = result.notrack or result.zone is not None or result.connmark is not None or result.tproxy is not None
    return changes or told or result.verdict != Verdict.ACCEPT


def _came_to(way: Skb) -> tuple[object, ...]:
    end = None if way.end is None else (way.end.outcome, way.end.reason, way.end.error, way.end.response)
    return (way.packet, way.untracked, way.zone, end)


def _filter(ns: Namespace, skb: Skb, hook: Hook, table: CompiledTable, *, reroutes: bool) -> list[Skb]:
    before = skb.packet
    done = []
    for way, result in ways_of(skb, table.evaluate(context_of(ns, skb, hook))):
        if result.verdict != Verdict.ACCEPT:
            done.append(refuse(ns, way, hook, result))
            continue
        if result.notrack:
            way.untracked = True
            way.packet = way.packet.with_(ct_state=CtState.UNTRACKED)
        if result.zone is not None:
            way.zone = result.zone
        save_connmark(ns, way, result)
        if result.tproxy is not None and not _assigned(ns, way, hook, result):
            done.append(way)
            continue
        if reroutes and _routed_by(way.packet) != _routed_by(before):
            done += reroute(ns, way)
        else:
            done.append(way)
    return done


def _assigned(ns: Namespace, skb: Skb, hook: Hook, result: TableResult) -> bool:
    """tproxy_tg4, nf_tproxy_assign_sock: give the packet to the socket that listens there; where none does it is dropped.

    A native `tproxy` without a socket does not match, so that it does not get here.
    """
    assert result.tproxy is not None
    place = result.steps[-1].place
    if (why := ns.state.lacks(Section.SOCKETS)) is not None:
        skb.unknown(f"{ns.id}: sockets ({why})", place)
        return False
    ip, port = result.tproxy
    if ns.listener(ns.tproxied(skb.packet, ip, port, skb.in_dev), skb.in_dev) is None:
        dropped_at(skb, hook, place, f"TPROXY finds no socket that listens on port {port}")
        return False
    skb.tproxy = result.tproxy
    skb.assumed = (*skb.assumed, f"{place}: the socket on port {port} has IP_TRANSPARENT")
    return True


def _routed_by(packet: Packet) -> tuple[int, int, Ip, Ip]:
    return packet.mark, packet.tos, packet.src, packet.dst
