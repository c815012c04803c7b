"""To which link-layer address does the packet go, and who answers when we ask?

Follows neigh_resolve_output and arp_process (net/ipv4/arp.c), ndisc_recv_ns (net/ipv6/ndisc.c). An entry that has an address is
used as it is, right or wrong (docs/kernel.md); one that failed before is asked for again.
"""

from tasks.skoop.model.addr import Ip, Mac, contains, is_link_local, is_multicast
from tasks.skoop.model.packet import Packet
from tasks.skoop.model.state import Section
from tasks.skoop.model.trace import Outcome, Reason, Stage
from tasks.skoop.netstack import icmp
from tasks.skoop.netstack.conntrack import History, learnt_neighbour
from tasks.skoop.netstack.fib import FlowKey, subnet_of, usable_addresses
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
    if skb.out_dev == "lo" or link.kind in _POINT_TO_POINT:
        skb.dst_mac = ""
        return [skb]
    target = skb.next_hop or skb.packet.dst
    if is_multicast(target) or (skb.found is not None and skb.found.type == "broadcast"):
        skb.dst_mac = ""
        return [skb]
    if not link.up:
        return [skb]
    place = ns.place(Stage.NEIGHBOUR, dev=skb.out_dev, key=target)
    if (gap := ns.gap(Section.NEIGHBOURS)) is not None:
        return [skb.unknown(gap, place)]
    entry = ns.neighbour(skb.out_dev, target)
    if entry is not None and entry.mac is not None:
        skb.dst_mac = entry.mac
        skb.step(place, "neighbour", f"{target} lladdr {entry.mac} {entry.state}")
        return [skb]
    if link.noarp:  # arp_constructor, ndisc_constructor: nobody is asked, the device's own address is put in
        skb.dst_mac = link.mac
        skb.step(place, "neighbour", f"{target} lladdr {link.mac} NOARP")
        return [skb]
    learnt = learnt_neighbour(skb.flow, ns.id, skb.out_dev, target)
    if learnt is not None:
        skb.dst_mac = learnt
        skb.step(place, "neighbour", f"{target} lladdr {learnt}, learnt when it asked")
        return [skb]
    asker = asker_of(ns, skb.packet.src, skb.out_dev, target)
    if asker is None and ":" in target:
        return [failed(ns, skb, target, f"{skb.out_dev} has no link-local address to ask for {target} with")]
    answers = ns.wire.resolve(ns.id, skb.out_dev, target, asker)
    if answers.macs:
        skb.flow = History(skb.flow).heard(link.mac, *answers.macs)
    if answers.macs and asker is not None and answers.by:
        skb.flow = History(skb.flow).taught(answers.by, asker, link.mac)
    if answers.macs:
        ways = []
        for mac in answers.macs:
            way = skb if len(answers.macs) == 1 else skb.clone()
            way.probability /= len(answers.macs)
            way.dst_mac = mac
            if len(answers.macs) > 1:  # the first answer stays for the packets that follow
                way.flow = History(way.flow).taught(((ns.id, way.out_dev),), target, mac)
            way.step(place, "neighbour", f"{target} answers with {mac}")
            ways.append(way)
        return ways
    if answers.missing:
        for gap in answers.missing:
            skb.unknown(gap, place, f"whether anybody answers for {target}")
        return [skb]
    if not answers.outside or ns.neighbours.get((skb.out_dev, target)) is not None:
        skb.record(answers.stopped)
        return [failed(ns, skb, target)]
    # beyond what was collected: nobody here can say that it does not answer
    skb.assumed = (*skb.assumed, f"{target} answers on {ns.id} {skb.out_dev}")
    skb.dst_mac = ""
    skb.step(place, "assume", f"{target} is outside of what was collected; taken to answer")
    return [skb]


def asker_of(ns: Namespace, src: Ip, dev: str, target: Ip) -> Ip | None:
    """Return in whose name a packet's next hop is asked for.

    arp_solicit: the packet's own source if it is ours and arp_announce allows, else an address of the device. ndisc_solicit: the
    packet's source if the device has it, else the device's link-local address; without one nobody is asked.
    """
    if ":" in src:
        own = [address.ip for address in usable_addresses(ns.links[dev], 6)]
        return src if src in own else next((ip for ip in own if is_link_local(ip)), None)
    announce = ns.highest("arp_announce", dev)
    if ns.is_local(src) and (announce == 0 or (announce == 1 and _on_link(ns, dev, src, target))):
        return src
    return ns.source_for(dev, target)


def failed(ns: Namespace, skb: Skb, target: Ip, why: str = "") -> Skb:
    """neigh_invalidate: the sender hears EHOSTUNREACH, after three tries of a second each.

    A local one too is told by an ICMP error (ipv4_link_failure), which goes over lo and so through the packet filter.
    """
    place = ns.place(Stage.NEIGHBOUR, dev=skb.out_dev, key=target)
    detail = why or f"nobody answers for {target} on {skb.out_dev}"
    if skb.originated and not skb.packet.is_icmp_error:
        told = tell_on(ns, skb.packet)
        outcome = Outcome.UNREACHABLE if told else Outcome.DROPPED
        return skb.finish(outcome, Reason.NEIGH_FAILED, place, detail, response=told)
    answer = icmp.error_about(ns, skb.packet, icmp.HOST_UNREACH, to_local=False, in_dev=skb.in_dev)
    if answer is None:
        return skb.finish(Outcome.DROPPED, Reason.NEIGH_FAILED, place, detail)
    response = Response(packet=answer, conn=skb.conn, is_reply=not skb.is_reply)
    return skb.finish(Outcome.UNREACHABLE, Reason.NEIGH_FAILED, place, detail, response=response)


def cannot_tell(ns: Namespace, dev: str, target: Ip) -> str | None:
    """Return what is missing to know whether this namespace answers a request for `target` on `dev`, or None."""
    if ":" not in target:
        return ns.gap() or (None if ns.is_local(target) else ns.gap(Section.NEIGHBOURS))
    own = dev in ns.links and any(address.ip == target for address in ns.links[dev].addresses)
    return ns.gap(Section.LINKS, Section.SYSCTLS) or (None if own else ns.gap(Section.NEIGHBOURS))


def answers_for(ns: Namespace, dev: str, target: Ip, sender: Ip | None) -> Mac | None:
    """Return the address with which this namespace answers a request for `target` that comes in on `dev`, or None."""
    link = ns.links.get(dev)
    if link is None or not link.up or link.noarp:
        return None
    answers = _answers6(ns, dev, target) if ":" in target else _answers4(ns, dev, target, sender)
    return link.mac if answers else None


def _answers4(ns: Namespace, dev: str, target: Ip, sender: Ip | None) -> bool:
    own = ns.is_local_on(target, dev)
    if not own and not _proxies(ns, dev, target):
        return False
    if sender is not None and objects_to_source(ns, Packet(src=sender, dst=target), dev) is not None:
        return False
    if own:
        if not _ignore_allows(ns, dev, target, sender):
            return False
        if ns.either("arp_filter", dev) and sender is not None:
            found = ns.routers[4].lookup(FlowKey(dst=sender, src=target))
            return found is not None and any(leg.dev == dev for leg in found.legs)
    return True


def _proxies(ns: Namespace, dev: str, target: Ip) -> bool:
    """arp_process, the part for others' addresses: a host that forwards, and that has a way there."""
    if not ns.forwards(dev, 4):
        return False
    found = ns.routers[4].lookup(FlowKey(dst=target, iif=dev))
    if found is None or found.errno or found.type != "unicast":
        return False
    if all(leg.dev == dev for leg in found.legs):
        return ns.either("proxy_arp_pvlan", dev)
    return ns.either("proxy_arp", dev) or (dev, target) in ns.proxied


def _ignore_allows(ns: Namespace, dev: str, target: Ip, sender: Ip | None) -> bool:
    """arp_ignore (net/ipv4/arp.c) with inet_confirm_addr."""
    own = [address for address in ns.links[dev].addresses if address.ip == target]
    match ns.highest("arp_ignore", dev):
        case 1:
            return bool(own)
        case 2:
            return bool(own) and (sender is None or _on_link(ns, dev, target, sender))
        case 3:
            everywhere = (address for link in ns.state.interfaces for address in link.addresses)
            return any(address.ip == target and address.scope != "host" for address in everywhere)
        case 8:
            return False
    return True


def _on_link(ns: Namespace, dev: str, one: Ip, other: Ip) -> bool:
    """Say whether some network of the device holds both addresses (inet_addr_onlink)."""
    nets = (subnet_of(address) for address in ns.links[dev].addresses if ":" not in address.ip)
    return any(contains(net, one) and contains(net, other) for net in nets)


def _answers6(ns: Namespace, dev: str, target: Ip) -> bool:
    link = ns.links[dev]
    if ns.conf("disable_ipv6", dev, family=6):
        return False
    if any(address.ip == target and not address.tentative and not address.dadfailed for address in link.addresses):
        return True
    proxies = ns.conf("proxy_ndp", "all", family=6) or ns.conf("proxy_ndp", dev, family=6)
    return bool(proxies and ns.conf("forwarding", dev, family=6)) and (dev, target) in ns.proxied
