"""What do the nat tables do with a new connection, and how are its packets rewritten?

Follows nf_nat_inet_fn, nf_nat_packet (net/netfilter/nf_nat_core.c), nf_nat_masquerade.c, nf_nat_redirect.c. The first packet of a
connection asks the tables; what they set up is applied to all of them. Of tables with equal priority no dump tells which was
registered last and runs first: where that matters each order is followed.
"""

from ipaddress import IPv4Address, IPv6Address

from msgspec.structs import replace

from tasks.skoop.model.addr import Ip, ip_int
from tasks.skoop.model.trace import Outcome, Place, Reason, Stage
from tasks.skoop.netstack import conntrack
from tasks.skoop.netstack.asking import context_of, refuse, save_connmark, ways_of
from tasks.skoop.netstack.namespace import Namespace
from tasks.skoop.netstack.reroute import reroute
from tasks.skoop.netstack.skb import Skb
from tasks.skoop.netstack.xtables.api import CompiledTable, Hook, NatAction, NatKind, TableResult, Verdict

NAT_SOURCE = {Hook.INPUT, Hook.POSTROUTING}
"""Hooks where the source is translated; at PREROUTING and OUTPUT it is the destination."""
_DRAWN = 65000
"""Stands for ports that the kernel draws at random."""

Groups = tuple[tuple[CompiledTable, ...], ...]
"""Tables in the order in which they run; those of one group in an order that is not known."""


def translate(ns: Namespace, skb: Skb, hook: Hook, tables: Groups) -> list[Skb]:
    """Set the connection's translation up if it is new, and rewrite the packet (nf_nat_inet_fn)."""
    conn = skb.connection(ns.id)
    if conn is None or skb.untracked:
        return [skb]
    source = hook in NAT_SOURCE
    if skb.packet.inner is not None:
        before = skb.packet
        skb.packet = conntrack.translate_error(before, conn, skb.is_reply, source=source)
        return reroute(ns, skb) if hook == Hook.OUTPUT and skb.packet.dst != before.dst else [skb]
    done = conn.src_done if source else conn.dst_done
    ways = [skb]
    if not done and not skb.is_reply:
        ways = _consult(ns, skb, hook, tables, source=source)
    if len(ways) == 1:
        after_nat = ways if ways[0].end is not None else _rewrite(ns, ways[0], hook, source=source)
    else:
        after_nat = [
            after
            for way in ways
            for after in ([way] if way.end is not None else _rewrite(ns, way, hook, source=source))
        ]
    # nf_nat_ipv4_local_fn sees two tuples that differ, as after a DNAT, and routes what IPVS balanced again
    again = hook == Hook.OUTPUT and not skb.is_reply and conn.original.dst != conn.reply.src
    if not again:
        return after_nat
    return [after for way in after_nat for after in (reroute(ns, way) if way.ipvs and way.end is None else [way])]


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
        null = replace(_unique(ns, way, conn), src_done=True) if source else replace(conn, dst_done=True)
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
        wish = [_effect(skb, result) for result in table.evaluate(context_of(ns, skb, hook))]
        if any(any(effect) for effect in wish):
            wishes[table] = wish
    translates = any(effect[0] is not None for wish in wishes.values() for effect in wish)
    if not translates or all(wish == next(iter(wishes.values())) for wish in wishes.values()):
        return [(skb, group)]
    found = []
    for first in wishes:
        way = skb.clone()
        way.probability /= len(wishes)
        what = f"the {first.backend} table {first.name} is taken to run first"
        way.step(Place(netns=ns.id, stage=Stage.NETFILTER, backend=first.backend, table=first.name), "assume", what)
        found.append((way, (first, *(table for table in group if table is not first))))
    return found


def _effect(skb: Skb, result: TableResult) -> tuple[object, ...]:
    """Return what a table would do: none of it is done once another table has translated."""
    marked = None if result.packet == skb.packet else result.packet
    refused = None if result.verdict == Verdict.ACCEPT else result.verdict
    return (result.nat, marked, result.connmark, refused)


def _ask(ns: Namespace, skb: Skb, hook: Hook, tables: tuple[CompiledTable, ...]) -> list[Skb]:
    """Ask tables in this order; ways that one of them ended or translated do not see the next."""
    undecided, decided = [skb], []
    for table in tables:
        still = []
        for way in undecided:
            results = table.evaluate(context_of(ns, way, hook))
            for after, result in ways_of(way, results):
                if len(results) > 1:
                    after.redraw = True
                if result.verdict != Verdict.ACCEPT:
                    decided.append(refuse(ns, after, hook, result))
                    continue
                save_connmark(ns, after, result)
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
            # IPv4 by the next hop (rt_nexthop), IPv6 by the destination (nat_ipv6_dev_get_saddr)
            towards = packet.dst if packet.version == 6 else skb.next_hop or packet.dst
            src = ns.source_for(skb.out_dev, towards, "global")
            if src is None:
                place = result.steps[-1].place
                return skb.finish(
                    Outcome.DROPPED,
                    Reason.MASQUERADE_NO_ADDRESS,
                    place,
                    f"{skb.out_dev} has no address to masquerade with",
                )
            conn = conntrack.set_up_source(conn, src, _port(ns, skb, action, conn.reply.dport))
        case NatKind.SNAT:
            conn = conntrack.set_up_source(conn, _address(action, packet.src), _port(ns, skb, action, conn.reply.dport))
        case NatKind.DNAT:
            conn = conntrack.set_up_destination(
                conn, _address(action, packet.dst), _port(ns, skb, action, conn.reply.sport)
            )
        case NatKind.REDIRECT:
            target = _redirect_to(ns, skb, hook)
            conn = conntrack.set_up_destination(conn, target, _port(ns, skb, action, conn.reply.sport))
        case NatKind.NETMAP:
            if hook in NAT_SOURCE:
                conn = conntrack.set_up_source(conn, _netmap(action, packet.src), conn.reply.dport)
            else:
                conn = conntrack.set_up_destination(conn, _netmap(action, packet.dst), conn.reply.sport)
    if hook in NAT_SOURCE:
        conn = _unique(ns, skb, conn)
    skb.flow = conntrack.with_conn(skb.flow, ns.id, skb.conn, conn)
    return skb


def _unique(ns: Namespace, skb: Skb, conn: conntrack.Conn) -> conntrack.Conn:
    """get_unique_tuple: no two connections are answered alike; the later one gets another port, even where no rule translates."""
    others = [one for index, one in enumerate(skb.flow.get(ns.id, ())) if index != skb.conn and one.zone == conn.zone]
    if all(one.protocol != conn.protocol or conn.reply not in (one.reply, one.original) for one in others):
        return conn
    used = {one.reply.dport for one in others}
    drawn = _DRAWN - conn.reply.dport % 8191
    while drawn in used:
        drawn -= 1
    return conntrack.set_up_source(conn, conn.reply.dst, drawn)


def _address(action: NatAction, current: Ip) -> Ip:
    return action.addresses[0][0] if action.addresses else current


def _port(ns: Namespace, skb: Skb, action: NatAction, current: int) -> int:
    """nf_nat_l4proto_unique_tuple: the port asked for, or a drawn one (here: some other, not used yet), or the one there is."""
    if action.random and action.ports is None:
        used = {conn.reply.dport for conn in skb.flow.get(ns.id, ())}
        drawn = _DRAWN - current % 8191
        while drawn in used:
            drawn -= 1
        return drawn
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
    if not conn.snat and not conn.dnat:
        return [skb]
    before = skb.packet
    after = conntrack.translate(before, conn, skb.is_reply, source=source)
    if after is before or after == before:
        return [skb]
    skb.packet = after
    # a reply's source is changed where the request's destination was, and the other way round
    what = "snat" if source != skb.is_reply else "dnat"
    skb.step(ns.place(Stage.CONNTRACK, key=hook), f"un-{what}" if skb.is_reply else what, f"{before} -> {after}")
    return reroute(ns, skb) if hook == Hook.OUTPUT and after.dst != before.dst else [skb]
