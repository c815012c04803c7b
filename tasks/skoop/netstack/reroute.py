"""Where does a packet of this host's own go after OUTPUT has changed it?

Follows ip_route_me_harder (net/ipv4/netfilter.c), ip6_route_me_harder (net/ipv6/netfilter.c).
"""

from msgspec.structs import replace

from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.trace import IcmpError, Outcome, Reason, Stage
from tasks.skoop.netstack.fib import FlowKey, Found, Leg
from tasks.skoop.netstack.multipath import legs_for, remember_leg
from tasks.skoop.netstack.namespace import Namespace
from tasks.skoop.netstack.skb import Skb


def reroute(ns: Namespace, skb: Skb) -> list[Skb]:
    """Look the route up again after OUTPUT changed what it hangs on (ip_route_me_harder, net/ipv4/netfilter.c)."""
    packet = skb.packet
    router = ns.routers[packet.version]
    src = packet.src if skb.ipvs or ns.is_local(packet.src) else None
    key = replace(FlowKey.of(packet), src=src)
    if packet.version == 4:
        key = replace(key, uid=None)  # the second look-up is root's, whoever sends; IPv6's is the sender's
    found = router.lookup(key, ignore_linkdown=ns.ignore_linkdown)
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
