"""What happens to a packet at a netfilter hook: every table of every back end, conntrack and NAT, in order of priority.

Priorities are those of include/uapi/linux/netfilter_ipv4.h. ACCEPT ends one table only; DROP is final (docs/kernel.md, Hooks).
A native nftables base chain stands there like a table. Of tables with equal priority the dumps do not tell which runs
first; they are taken in the order collected, which can matter only for the name of the dropper and for which of two NAT
rules wins.
"""

from enum import Enum, auto
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from msgspec.structs import replace

from tasks.skoop.model.addr import Ip, ip_int
from tasks.skoop.model.packet import CtState, Packet, Protocol, TcpFlags
from tasks.skoop.model.state import Section
from tasks.skoop.model.trace import IcmpError, Outcome, Place, Reason, Stage
from tasks.skoop.netstack import conntrack, icmp, ipvs
from tasks.skoop.netstack.fib import FlowKey, Found, Leg, select_source
from tasks.skoop.netstack.multipath import legs_for, remember_leg
from tasks.skoop.netstack.namespace import Namespace
from tasks.skoop.netstack.skb import Response, Skb
from tasks.skoop.netstack.xtables.api import (
    CompiledTable,
    ConnectionView,
    Hook,
    HookContext,
    NatAction,
    NatKind,
    TableResult,
    Verdict,
)

_TABLES = {
    Hook.PREROUTING: (("raw", -300), ("mangle", -150)),
    Hook.INPUT: (("mangle", -150), ("filter", 0), ("security", 50)),
    Hook.FORWARD: (("mangle", -150), ("filter", 0), ("security", 50)),
    Hook.OUTPUT: (("raw", -300), ("mangle", -150), ("filter", 0), ("security", 50)),
    Hook.POSTROUTING: (("mangle", -150),),
}
_NAT_DESTINATION = {Hook.PREROUTING, Hook.OUTPUT}
_NAT_SOURCE = {Hook.INPUT, Hook.POSTROUTING}
_CONNTRACK = -200
_NAT_DST = -100
_NAT_SRC = 100
_CONFIRM = 1 << 31
_DRAWN = 65000
"""Stands for ports that the kernel draws at random."""


class OpKind(Enum):
    """What stands at a hook."""

    TABLE = auto()
    TRACK = auto()
    NAT = auto()
    CONFIRM = auto()
    IPVS = auto()


Groups = tuple[tuple[CompiledTable, ...], ...]
"""Tables in the order in which they run; those of one group in an order that is not known."""


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
        if hook in _NAT_SOURCE:
            ops.append(Op(_NAT_SRC, OpKind.NAT, _nat_tables(ns, family, hook, _NAT_SRC)))
            ops.append(Op(_CONFIRM, OpKind.CONFIRM))
    if ipvs.runs(ns):
        ops += [Op(priority, OpKind.IPVS, balancing=way) for priority, way in ipvs.HOOKS.get(hook, ())]
    return tuple(sorted(ops, key=lambda op: op.priority))


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
    family = skb.packet.version
    if (why := ns.state.lacks(Section.IPTABLES)) is not None:
        place = Place(netns=ns.id, stage=Stage.NETFILTER, hook=hook, table="*", chain=hook)
        skb.missing = (*skb.missing, f"{ns.id}: iptables rules ({why})")
        return [skb.finish(Outcome.UNKNOWN, Reason.MISSING_STATE, place, f"rules not collected: {why}")]
    ways = [skb]
    skb.hook_out = skb.out_dev
    for op in ns.plan(family, hook):
        ways = [after for way in ways for after in ((way,) if way.end or way.stolen else _apply(ns, way, hook, op))]
    return ways


def _apply(ns: Namespace, skb: Skb, hook: Hook, op: Op) -> list[Skb]:
    match op.kind:
        case OpKind.TRACK:
            track(ns, skb)
            return [skb]
        case OpKind.CONFIRM:
            _confirm(ns, skb)
            return [skb]
        case OpKind.NAT:
            return _nat(ns, skb, hook, op.tables)
        case OpKind.TABLE:
            return _filter(ns, skb, hook, op.tables[0][0], reroutes=op.reroutes)
        case OpKind.IPVS:
            assert op.balancing is not None
            return ipvs.apply(ns, skb, hook, op.balancing)


def _view(ns: Namespace, skb: Skb) -> ConnectionView:
    conn = skb.connection(ns.id)
    if conn is None:
        return ConnectionView()
    return ConnectionView(
        original=conn.original,
        reply=conn.reply,
        is_reply=skb.is_reply,
        status=conn.status(),
        mark=conn.mark,
        zone=conn.zone,
    )


def _context(ns: Namespace, skb: Skb, hook: Hook) -> HookContext:
    return HookContext(
        netns=ns.id,
        hook=hook,
        packet=skb.packet,
        facts=ns,
        # POSTROUTING is told where a forwarded packet came in (ip_output), but not of one that stays on a bridge
        in_dev="" if hook == Hook.OUTPUT or (hook == Hook.POSTROUTING and skb.phys_out) else skb.in_dev,
        out_dev="" if hook in (Hook.PREROUTING, Hook.INPUT) else skb.hook_out,
        phys_in=skb.phys_in,
        phys_out=skb.phys_out,
        connection=_view(ns, skb),
        local_uid=skb.uid if skb.local or skb.originated else None,
        mac=skb.src_mac,
    )


def _ways(skb: Skb, results: tuple[TableResult, ...]) -> list[tuple[Skb, TableResult]]:
    alone = len(results) == 1
    pairs = [(skb if alone else skb.clone(), result) for result in results]
    for way, result in pairs:
        way.probability *= result.probability
        way.record(result.steps)
        way.packet = result.packet
        if result.missing:
            way.missing = (*way.missing, *result.missing)
    return pairs


def _filter(ns: Namespace, skb: Skb, hook: Hook, table: CompiledTable, *, reroutes: bool) -> list[Skb]:
    before = skb.packet
    done = []
    for way, result in _ways(skb, table.evaluate(_context(ns, skb, hook))):
        if result.verdict != Verdict.ACCEPT:
            done.append(_refuse(ns, way, hook, result))
            continue
        if result.notrack:
            way.untracked = True
            way.packet = way.packet.with_(ct_state=CtState.UNTRACKED)
        if result.zone is not None:
            way.zone = result.zone
        _save_connmark(ns, way, result)
        if reroutes and _routed_by(way.packet) != _routed_by(before):
            done += reroute(ns, way)
        else:
            done.append(way)
    return done


def _routed_by(packet: Packet) -> tuple[int, int, Ip, Ip]:
    return packet.mark, packet.tos, packet.src, packet.dst


def _save_connmark(ns: Namespace, skb: Skb, result: TableResult) -> None:
    if result.connmark is not None and skb.conn >= 0:
        conn = replace(skb.flow[ns.id][skb.conn], mark=result.connmark)
        skb.flow = conntrack.with_conn(skb.flow, ns.id, skb.conn, conn)


def _refuse(ns: Namespace, skb: Skb, hook: Hook, result: TableResult) -> Skb:
    place = result.steps[-1].place if result.steps else Place(netns=ns.id, stage=Stage.NETFILTER, hook=hook)
    if result.verdict == Verdict.DROP:
        return dropped_at(skb, hook, place, "dropped by this rule" if place.rule else "dropped by the chain's policy")
    if result.verdict == Verdict.REJECT:
        return _reject(ns, skb, hook, place, result.reject)
    return skb.finish(Outcome.UNKNOWN, Reason.UNSUPPORTED, place, "; ".join(result.missing))


def dropped_at(skb: Skb, hook: Hook, place: Place, detail: str) -> Skb:
    """End the way at a drop. A local datagram's sender is told at once (EPERM); a TCP connect() is not (docs/kernel.md, Errors)."""
    if hook == Hook.OUTPUT and _tells_sender(skb) and not skb.packet.is_icmp_error:
        error = IcmpError(type=-1, code=0, local=True, errno="EPERM")
        return skb.finish(Outcome.UNREACHABLE, Reason.NETFILTER_DROP, place, detail, error=error)
    return skb.finish(Outcome.DROPPED, Reason.NETFILTER_DROP, place, detail)


def _tells_sender(skb: Skb) -> bool:
    """Say whether a drop in OUTPUT makes send() fail: not once IPVS has taken the packet over."""
    return skb.local and not skb.ipvs and skb.packet.protocol != Protocol.TCP


def _reject(ns: Namespace, skb: Skb, hook: Hook, place: Place, kind: str) -> Skb:
    if hook == Hook.OUTPUT and _tells_sender(skb):
        error = IcmpError(type=-1, code=0, local=True, errno="EPERM")
        return skb.finish(
            Outcome.UNREACHABLE, Reason.NETFILTER_REJECT, place, f"rejected with {kind}", action="reject", error=error
        )
    if kind == "tcp-reset":
        answer = icmp.reset_for(skb.packet)
        refused = True
        direct = bool(skb.phys_in) and ns.bridge_calls_iptables(skb.bridge, skb.packet.version)
    else:
        default = icmp.PORT_UNREACH
        answer = icmp.error_about(
            ns,
            skb.packet,
            icmp.REJECT_WITH.get(kind, default),
            to_local=hook == Hook.INPUT or skb.local,
            in_dev=skb.in_dev,
        )
        refused = icmp.REJECT_WITH.get(kind, default) == icmp.PORT_UNREACH
        direct = False
    if answer is None:
        return skb.finish(
            Outcome.DROPPED, Reason.NETFILTER_REJECT, place, "rejected without an answer", action="reject"
        )
    return skb.finish(
        Outcome.REFUSED if refused else Outcome.UNREACHABLE,
        Reason.NETFILTER_REJECT,
        place,
        f"rejected with {kind or 'icmp-port-unreachable'}",
        action="reject",
        response=Response(
            packet=answer,
            conn=skb.conn,
            is_reply=not skb.is_reply,
            port=skb.phys_in if direct else "",
            macs=(skb.frame_dst, skb.src_mac) if direct else None,
        ),
    )


# --- conntrack -------------------------------------------------------------------------------------------------------


def track(ns: Namespace, skb: Skb) -> None:
    """Attach the packet to its connection (nf_conntrack_in): sets `conn`, `is_reply` and the packet's ct_state."""
    if skb.untracked or skb.conn >= 0:  # NOTRACK, or seen before (over lo, or made in answer to a tracked packet)
        return
    packet = skb.packet
    if packet.inner is not None:
        hit = conntrack.find_quoted(skb.flow, ns.id, packet.inner, skb.zone)
        if hit is None and (old := ns.known.find_quoted(packet.inner, skb.zone)) is not None:
            hit = len(skb.flow.get(ns.id, ())), old[1]
            skb.flow = conntrack.with_conn(skb.flow, ns.id, hit[0], old[0])
        if hit is None:
            skb.packet = packet.with_(ct_state=CtState.INVALID)
            return
        skb.conn, skb.is_reply = hit
        skb.packet = packet.with_(ct_state=CtState.RELATED)
        return
    hit = conntrack.find(skb.flow, ns.id, packet, skb.zone)
    if hit is None:
        conn = ns.known.find(packet, skb.zone)
        if conn is None:
            loose = bool(ns.sysctl("net/netfilter/nf_conntrack_tcp_loose", 1))
            if not conntrack.starts_connection(packet, loose=loose):
                skb.packet = packet.with_(ct_state=CtState.INVALID)
                return
            conn = conntrack.new_conn(packet, skb.zone)
        else:
            skb.step(
                ns.place(Stage.CONNTRACK, key=str(packet)), "established", "an old conntrack entry knows this flow"
            )
        skb.conn = len(skb.flow.get(ns.id, ()))
        skb.is_reply = bool(conntrack.direction(conn, packet))
        skb.flow = conntrack.with_conn(skb.flow, ns.id, skb.conn, conn)
    else:
        skb.conn, skb.is_reply = hit
        conn = skb.flow[ns.id][skb.conn]
        if conntrack.out_of_state(conn, packet, skb.is_reply):
            skb.packet = packet.with_(ct_state=CtState.INVALID)
            skb.conn = -1
            return
        met = replace(conn, seen_reply=conn.seen_reply or skb.is_reply, assured=conn.assured or _assures(conn, skb))
        if met != conn:
            conn = met
            skb.flow = conntrack.with_conn(skb.flow, ns.id, skb.conn, conn)
    skb.packet = packet.with_(ct_state=conntrack.state_of(conn, skb.is_reply))


def _assures(conn: conntrack.Conn, skb: Skb) -> bool:
    """nf_conntrack_tcp_packet: the client's ACK after a SYN-ACK makes a connection assured."""
    packet = skb.packet
    acks = packet.protocol == Protocol.TCP and packet.tcp_flags in (TcpFlags.ACK, TcpFlags.PSH_ACK)
    return acks and conn.seen_reply and not skb.is_reply


def _confirm(ns: Namespace, skb: Skb) -> None:
    conn = skb.connection(ns.id)
    if conn is not None and not conn.confirmed and not skb.is_reply:
        skb.flow = conntrack.with_conn(skb.flow, ns.id, skb.conn, replace(conn, confirmed=True))
        skb.redraw = False


# --- NAT -------------------------------------------------------------------------------------------------------------


def _nat(ns: Namespace, skb: Skb, hook: Hook, tables: Groups) -> list[Skb]:
    conn = skb.connection(ns.id)
    if conn is None or skb.untracked:
        return [skb]
    source = hook in _NAT_SOURCE
    if skb.packet.inner is not None:
        before = skb.packet
        skb.packet = conntrack.translate_error(before, conn, skb.is_reply, source=source)
        return reroute(ns, skb) if hook == Hook.OUTPUT and skb.packet.dst != before.dst else [skb]
    done = conn.src_done if source else conn.dst_done
    ways = [skb]
    if not done and not skb.is_reply:
        ways = _consult(ns, skb, hook, tables, source=source)
    after_nat = [
        after for way in ways for after in ([way] if way.end is not None else _rewrite(ns, way, hook, source=source))
    ]
    # nf_nat_ipv4_local_fn sees two tuples that differ, as after a DNAT, and routes what IPVS balanced again
    again = hook == Hook.OUTPUT and not skb.is_reply and conn.original.dst != conn.reply.src
    return [
        after for way in after_nat for after in (reroute(ns, way) if again and way.ipvs and way.end is None else [way])
    ]


def _consult(ns: Namespace, skb: Skb, hook: Hook, groups: Groups, *, source: bool) -> list[Skb]:
    """Ask the nat tables what to do with a new connection; the first that says something wins, none is a null binding.

    Of tables with equal priority the one registered last runs first, which no dump tells: where two of them would
    translate in different ways, each is followed as the first (docs/kernel.md, Hooks).
    """
    undecided: list[Skb] = [skb]
    decided: list[Skb] = []
    for group in groups:
        still: list[Skb] = []
        for way in undecided:
            for part, tables in _orders(ns, way, hook, group):
                for after in _ask(ns, part, hook, tables):
                    translated = after.end is not None or _is_done(ns, after, source=source)
                    (decided if translated else still).append(after)
        undecided = still
    for way in undecided:
        conn = way.flow[ns.id][way.conn]
        null = replace(conn, src_done=True) if source else replace(conn, dst_done=True)
        way.flow = conntrack.with_conn(way.flow, ns.id, way.conn, null)
    return decided + undecided


def _is_done(ns: Namespace, skb: Skb, *, source: bool) -> bool:
    conn = skb.flow[ns.id][skb.conn]
    return conn.src_done if source else conn.dst_done


def _orders(
    ns: Namespace, skb: Skb, hook: Hook, group: tuple[CompiledTable, ...]
) -> list[tuple[Skb, tuple[CompiledTable, ...]]]:
    """Return the packet with each order of tables that makes a difference; each takes its share of the probability."""
    if len(group) == 1:
        return [(skb, group)]
    wishes = {}
    for table in group:
        wish = [result.nat for result in table.evaluate(_context(ns, skb, hook))]
        if any(wish):
            wishes[table] = wish
    if len(wishes) < 2 or all(wish == next(iter(wishes.values())) for wish in wishes.values()):
        return [(skb, group)]
    found = []
    for first in wishes:
        way = skb.clone()
        way.probability /= len(wishes)
        what = f"the {first.backend} table {first.name} is taken to run first"
        way.step(Place(netns=ns.id, stage=Stage.NETFILTER, backend=first.backend, table=first.name), "assume", what)
        found.append((way, (first, *(table for table in group if table is not first))))
    return found


def _ask(ns: Namespace, skb: Skb, hook: Hook, tables: tuple[CompiledTable, ...]) -> list[Skb]:
    """Ask tables in this order; ways that one of them ended or translated do not see the next."""
    undecided, decided = [skb], []
    for table in tables:
        still = []
        for way in undecided:
            results = table.evaluate(_context(ns, way, hook))
            for after, result in _ways(way, results):
                if len(results) > 1:
                    after.redraw = True
                if result.verdict != Verdict.ACCEPT:
                    decided.append(_refuse(ns, after, hook, result))
                    continue
                _save_connmark(ns, after, result)
                if result.nat is None:
                    still.append(after)
                else:
                    decided.append(_set_up(ns, after, hook, result.nat, result))
        undecided = still
    return decided + undecided


def _set_up(ns: Namespace, skb: Skb, hook: Hook, action: NatAction, result: TableResult) -> Skb:
    conn = skb.flow[ns.id][skb.conn]
    packet = skb.packet
    match action.kind:
        case NatKind.MASQUERADE:
            src = select_source(ns.state.interfaces, skb.out_dev, skb.next_hop or packet.dst, "global")
            if src is None:
                place = result.steps[-1].place
                return skb.finish(
                    Outcome.DROPPED,
                    Reason.MASQUERADE_NO_ADDRESS,
                    place,
                    f"{skb.out_dev} has no address to masquerade with",
                )
            conn = conntrack.set_up_source(conn, src, _port(action, conn.reply.dport))
        case NatKind.SNAT:
            conn = conntrack.set_up_source(conn, _address(action, packet.src), _port(action, conn.reply.dport))
        case NatKind.DNAT:
            conn = conntrack.set_up_destination(conn, _address(action, packet.dst), _port(action, conn.reply.sport))
        case NatKind.REDIRECT:
            target = _redirect_to(ns, skb, hook)
            conn = conntrack.set_up_destination(conn, target, _port(action, conn.reply.sport))
        case NatKind.NETMAP:
            if hook in _NAT_SOURCE:
                conn = conntrack.set_up_source(conn, _netmap(action, packet.src), conn.reply.dport)
            else:
                conn = conntrack.set_up_destination(conn, _netmap(action, packet.dst), conn.reply.sport)
    skb.flow = conntrack.with_conn(skb.flow, ns.id, skb.conn, conn)
    return skb


def _address(action: NatAction, current: Ip) -> Ip:
    return action.addresses[0][0] if action.addresses else current


def _port(action: NatAction, current: int) -> int:
    """nf_nat_l4proto_unique_tuple: the port asked for, or a drawn one (here: some other one), or the one there is."""
    if action.random and action.ports is None:
        return _DRAWN - current % 8191
    return action.ports[0] if action.ports else current


def _netmap(action: NatAction, current: Ip) -> Ip:
    first, last = (ip_int(ip) for ip in action.addresses[0])
    number = first | (ip_int(current) & (first ^ last))
    return Ip(str(IPv6Address(number) if ":" in current else IPv4Address(number)))


def _redirect_to(ns: Namespace, skb: Skb, hook: Hook) -> Ip:
    """nf_nat_redirect: the loopback address for local packets, else the first address of the input device."""
    v6 = skb.packet.version == 6
    if hook == Hook.OUTPUT:
        return Ip("::1" if v6 else "127.0.0.1")
    link = ns.links.get(skb.in_dev)
    own = [address.ip for address in link.addresses if (":" in address.ip) == v6] if link else []
    return own[0] if own else skb.packet.dst


def _rewrite(ns: Namespace, skb: Skb, hook: Hook, *, source: bool) -> list[Skb]:
    conn = skb.flow[ns.id][skb.conn]
    before = skb.packet
    after = conntrack.translate(before, conn, skb.is_reply, source=source)
    if after == before:
        return [skb]
    skb.packet = after
    what = "snat" if source else "dnat"
    skb.step(ns.place(Stage.CONNTRACK, key=hook), f"un-{what}" if skb.is_reply else what, f"{before} -> {after}")
    return reroute(ns, skb) if hook == Hook.OUTPUT and after.dst != before.dst else [skb]


def reroute(ns: Namespace, skb: Skb) -> list[Skb]:
    """Look the route up again after OUTPUT changed what it hangs on (ip_route_me_harder, net/ipv4/netfilter.c)."""
    packet = skb.packet
    router = ns.routers[packet.version]
    src = packet.src if skb.ipvs or ns.is_local(packet.src) else None
    found = router.lookup(replace(FlowKey.of(packet), src=src), ignore_linkdown=ns.ignore_linkdown)
    place = ns.place(Stage.ROUTE, key=packet.dst)
    if found is None or found.errno or not found.legs:
        detail = f"no route to {packet.dst} after NAT"
        if packet.protocol == Protocol.TCP or skb.originated or skb.ipvs:
            skb.finish(Outcome.DROPPED, Reason.IP_INNOROUTES, place, detail)
        else:
            errno = found.errno if found and found.errno else "ENETUNREACH"
            skb.finish(
                Outcome.UNREACHABLE,
                Reason.IP_INNOROUTES,
                place,
                detail,
                error=IcmpError(type=-1, code=0, local=True, errno=errno),
            )
        return [skb]
    ways = []
    legs = legs_for(ns, skb, found, src="", dst=packet.dst)
    for leg in legs:
        way = skb if len(legs) == 1 else skb.clone()
        way.probability *= leg.share
        remember_leg(ns, way, found, leg, src="", dst=packet.dst)
        _goes_by(ns, way, found, leg)
        ways.append(way)
    return ways


def _goes_by(ns: Namespace, skb: Skb, found: Found, leg: Leg) -> None:
    packet = skb.packet
    skb.found = found
    skb.leg = leg
    skb.local_route = found.type == "local" or leg.dev == "lo"
    skb.out_dev = "lo" if skb.local_route else skb.leg.dev
    skb.next_hop = skb.leg.nexthop.via or packet.dst
    if packet.src.startswith("127.") and skb.out_dev != "lo" and not ns.either("route_localnet", skb.out_dev):
        key = f"net/ipv4/conf/{skb.out_dev}/route_localnet"
        skb.finish(
            Outcome.DROPPED,
            Reason.IP_LOCALNET,
            ns.place(Stage.SYSCTL, dev=skb.out_dev, key=key),
            "a 127.0.0.0/8 source may not leave (route_localnet=0)",
        )
