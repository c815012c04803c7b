"""What is a table asked about a packet at a hook, and what becomes of one that it refuses?

`context_of` is what ipt_do_table and nft_do_chain see of a packet (struct nf_hook_state); `refuse` follows nf_hook_slow for drops,
nf_send_reset and nf_send_unreach for rejections (net/ipv4/netfilter/nf_reject_ipv4.c).
"""

from msgspec.structs import replace

from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.trace import IcmpError, Outcome, Place, Reason, Stage
from tasks.skoop.netstack import conntrack, icmp
from tasks.skoop.netstack.fib import FlowKey
from tasks.skoop.netstack.namespace import Namespace
from tasks.skoop.netstack.skb import Response, Skb
from tasks.skoop.netstack.xtables.api import ConnectionView, Hook, HookContext, TableResult, Verdict

_NO_CONNECTION = ConnectionView()


def _view(ns: Namespace, skb: Skb) -> ConnectionView:
    if skb.conn < 0:
        return _NO_CONNECTION
    conn = skb.flow[ns.id][skb.conn]
    seen = skb.view
    if seen is not None and seen[0] is conn and seen[1] == skb.is_reply:
        return seen[2]
    view = ConnectionView(
        original=conn.original,
        reply=conn.reply,
        is_reply=skb.is_reply,
        status=conn.status(),
        mark=conn.mark,
        zone=conn.zone,
    )
    skb.view = (conn, skb.is_reply, view)
    return view


def _in_dev(skb: Skb, hook: Hook) -> str:
    """POSTROUTING is told skb->dev (ip_output): where a forwarded packet came in, or the tunnel that wrapped one; not on a bridge."""
    if hook == Hook.POSTROUTING:
        return "" if skb.phys_out else skb.in_dev or skb.wrapped_by
    return "" if hook == Hook.OUTPUT else skb.in_dev


def context_of(ns: Namespace, skb: Skb, hook: Hook) -> HookContext:
    """Return what a table at a hook sees of the packet."""
    return HookContext(
        netns=ns.id,
        hook=hook,
        packet=skb.packet,
        facts=ns,
        in_dev=_in_dev(skb, hook),
        out_dev="" if hook in (Hook.PREROUTING, Hook.INPUT) else skb.hook_out,
        phys_in=skb.phys_in,
        phys_out=skb.phys_out,
        connection=_view(ns, skb),
        sent_by=skb.sent_by,
        local_uid=skb.uid,
        local_gid=skb.gid,
        mac=skb.src_mac,
    )


def ways_of(skb: Skb, results: tuple[TableResult, ...]) -> list[tuple[Skb, TableResult]]:
    """Return the packet once for each way through a table, as that way has left it."""
    if len(results) == 1:
        _go(skb, results[0])
        return [(skb, results[0])]
    pairs = [(skb.clone(), result) for result in results]
    for way, result in pairs:
        _go(way, result)
    return pairs


def _go(way: Skb, result: TableResult) -> None:
    way.probability *= result.probability
    way.record(result.steps)
    way.packet = result.packet
    if result.assumed:
        way.assumed = (*way.assumed, *result.assumed)
    if result.missing:
        way.missing = (*way.missing, *result.missing)


def save_connmark(ns: Namespace, skb: Skb, result: TableResult) -> None:
    """Note in the packet's connection the mark that a rule gave it."""
    if result.connmark is not None and skb.conn >= 0:
        conn = replace(skb.flow[ns.id][skb.conn], mark=result.connmark)
        skb.flow = conntrack.with_conn(skb.flow, ns.id, skb.conn, conn)


def refuse(ns: Namespace, skb: Skb, hook: Hook, result: TableResult) -> Skb:
    """End the way of a packet that a table does not accept."""
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
    """Say whether a drop in OUTPUT makes send() fail: not once IPVS has taken the packet over.

    A datagram socket for ICMPv6 does not look at what became of its echo request (ping_v6_sendmsg, net/ipv6/ping.c).
    """
    return skb.local and not skb.ipvs and skb.packet.protocol not in (Protocol.TCP, Protocol.ICMPV6)


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
        if direct and not _leads_back(ns, skb):
            answer = None
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
            by_socket=kind != "tcp-reset",
            conn=skb.conn,
            is_reply=not skb.is_reply,
            port=skb.phys_in if direct else "",
            macs=(skb.frame_dst, skb.src_mac) if direct else None,
        ),
    )


def _leads_back(ns: Namespace, skb: Skb) -> bool:
    """nf_send_reset: even a reset that goes straight out of the bridge's port must find a route (ip_route_me_harder)."""
    found = ns.routers[skb.packet.version].lookup(FlowKey(dst=skb.packet.src), ignore_linkdown=ns.ignore_linkdown)
    return found is not None and not found.errno
