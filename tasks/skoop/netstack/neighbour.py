"""To which link-layer address does the packet go, and who answers when we ask?

Follows neigh_resolve_output and arp_process (net/ipv4/arp.c), ndisc_recv_ns (net/ipv6/ndisc.c). An entry that has an address is
used as it is, right or wrong (KERNEL.md 4.4); one that failed before is asked for again.
"""

from tasks.skoop.model.addr import Ip, Mac, is_multicast
from tasks.skoop.model.packet import Packet
from tasks.skoop.model.state import Section
from tasks.skoop.model.trace import IcmpError, Outcome, Reason, Stage
from tasks.skoop.netstack import icmp
from tasks.skoop.netstack.fib import FlowKey, select_source
from tasks.skoop.netstack.iptunnel import tell_on
from tasks.skoop.netstack.namespace import Namespace
from tasks.skoop.netstack.skb import At, Response, Skb
from tasks.skoop.netstack.source import objects_to_source

# Devices that carry IP without link-layer addresses: nothing to resolve.
_POINT_TO_POINT = {"ipip", "sit", "gre", "ip6tnl", "ip6gre", "wireguard", "tun", "vti", "ppp"}


def neigh_output(ns: Namespace, skb: Skb) -> list[Skb]:
    """Fill in the destination's link-layer address."""
    link = ns.links[skb.out_dev]
    skb.at = At.DEV_XMIT
    skb.src_mac = link.mac
    if skb.out_dev == "lo" or link.noarp or link.kind in _POINT_TO_POINT:
        skb.dst_mac = ""
        return [skb]
    target = skb.next_hop or skb.packet.dst
    if is_multicast(target):
        skb.dst_mac = ""
        return [skb]
    if not link.up:
        return [skb]
    entry = ns.neighbour(skb.out_dev, target)
    place = ns.place(Stage.NEIGHBOUR, dev=skb.out_dev, key=target)
    if entry is not None and entry.mac is not None:
        skb.dst_mac = entry.mac
        skb.step(place, "neighbour", f"{target} lladdr {entry.mac} {entry.state}")
        return [skb]
    answers = ns.wire.resolve(ns.id, skb.out_dev, target, _asker(ns, skb, target))
    if answers.macs:
        ways = []
        for mac in answers.macs:
            way = skb if len(answers.macs) == 1 else skb.clone()
            way.probability /= len(answers.macs)
            way.dst_mac = mac
            way.step(place, "neighbour", f"{target} answers with {mac}")
            ways.append(way)
        return ways
    if not answers.outside or ns.neighbours.get((skb.out_dev, target)) is not None:
        skb.record(answers.stopped)
        return [failed(ns, skb, target)]
    # beyond what was collected: nobody here can say that it does not answer
    skb.assumed = (*skb.assumed, f"{target} answers on {ns.id} {skb.out_dev}")
    skb.dst_mac = ""
    skb.step(place, "assume", f"{target} is outside of what was collected; taken to answer")
    return [skb]


def _asker(ns: Namespace, skb: Skb, target: Ip) -> Ip | None:
    """arp_solicit: the packet's own source if it is ours, else an address of the device."""
    if ns.is_local(skb.packet.src):
        return skb.packet.src
    return select_source(ns.state.interfaces, skb.out_dev, target)


def failed(ns: Namespace, skb: Skb, target: Ip) -> Skb:
    """neigh_invalidate: the sender hears EHOSTUNREACH, after three tries of a second each."""
    place = ns.place(Stage.NEIGHBOUR, dev=skb.out_dev, key=target)
    detail = f"nobody answers for {target} on {skb.out_dev}"
    if ns.state.lacks(Section.NEIGHBOURS) and not ns.state.neighbours:
        skb.assumed = (*skb.assumed, f"{ns.id}: neighbour table not collected")
    if skb.originated and not skb.packet.is_icmp_error:
        told = tell_on(ns, skb.packet)
        outcome = Outcome.UNREACHABLE if told else Outcome.DROPPED
        return skb.finish(outcome, Reason.NEIGH_FAILED, place, detail, response=told)
    if skb.local:
        code = 3 if skb.packet.version == 6 else 1
        kind = 1 if skb.packet.version == 6 else 3
        error = IcmpError(type=kind, code=code, sender=skb.packet.src, local=True, errno="EHOSTUNREACH")
        return skb.finish(Outcome.UNREACHABLE, Reason.NEIGH_FAILED, place, detail, error=error)
    answer = icmp.error_about(ns, skb.packet, icmp.HOST_UNREACH, to_local=False, in_dev=skb.in_dev)
    if answer is None:
        return skb.finish(Outcome.DROPPED, Reason.NEIGH_FAILED, place, detail)
    response = Response(packet=answer, conn=skb.conn, is_reply=not skb.is_reply)
    return skb.finish(Outcome.UNREACHABLE, Reason.NEIGH_FAILED, place, detail, response=response)


def answers_for(ns: Namespace, dev: str, target: Ip, sender: Ip | None) -> Mac | None:
    """Return the address with which this namespace answers a request for `target` that comes in on `dev`, or None."""
    link = ns.links.get(dev)
    if link is None or not link.up or link.noarp:
        return None
    answers = _answers6(ns, dev, target) if ":" in target else _answers4(ns, dev, target, sender)
    return link.mac if answers else None


def _answers4(ns: Namespace, dev: str, target: Ip, sender: Ip | None) -> bool:
    if sender is not None and objects_to_source(ns, Packet(src=sender, dst=target), dev) is not None:
        return False
    if ns.is_local_on(target, dev):
        if not _ignore_allows(ns, dev, target):
            return False
        if ns.either("arp_filter", dev) and sender is not None:
            found = ns.routers[4].lookup(FlowKey(dst=sender, src=target))
            return found is not None and any(leg.dev == dev for leg in found.legs)
        return True
    if not ns.forwards(dev, 4):
        return False
    if (dev, target) in ns.proxied:
        return True
    if not ns.either("proxy_arp", dev):
        return False
    found = ns.routers[4].lookup(FlowKey(dst=target, iif=dev))
    return found is not None and not found.errno and any(leg.dev != dev for leg in found.legs)


def _ignore_allows(ns: Namespace, dev: str, target: Ip) -> bool:
    level = ns.highest("arp_ignore", dev)
    if level == 0:
        return True
    link = ns.links[dev]
    if level in (1, 2):
        return any(address.ip == target for address in link.addresses)
    return level not in (4, 5, 6, 7, 8)


def _answers6(ns: Namespace, dev: str, target: Ip) -> bool:
    link = ns.links[dev]
    if ns.conf("disable_ipv6", dev, family=6):
        return False
    if any(address.ip == target and not address.tentative and not address.dadfailed for address in link.addresses):
        return True
    return bool(ns.conf("proxy_ndp", "all", family=6) or ns.conf("proxy_ndp", dev, family=6)) and (
        (dev, target) in ns.proxied
    )
