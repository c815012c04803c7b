"""May a packet with this source address come in on this device?

Follows fib_validate_source, __fib_validate_source and fib_info_nh_uses_dev (net/ipv4/fib_frontend.c): reverse path filter, own addresses as source,
src_valid_mark. IPv6 has no such check. ARP requests go through it as well (arp_process asks ip_route_input).
"""

from msgspec import Struct

from tasks.skoop.model.packet import Packet
from tasks.skoop.model.trace import Place, Reason, Stage
from tasks.skoop.netstack.fib import FlowKey
from tasks.skoop.netstack.namespace import Namespace


class Objection(Struct, frozen=True, gc=False, kw_only=True):
    """Why the source is not accepted, and which sysctl or address decides."""

    reason: Reason
    place: Place
    detail: str


def objects_to_source(ns: Namespace, packet: Packet, dev: str, *, out_dev: str = "") -> Objection | None:
    """Return why an IPv4 packet's source may not come in on `dev`, or None if it may.

    `out_dev` is the device by which the packet would be forwarded ("" or lo: it is for this host).
    """
    if dev == "lo":
        return None
    rp_filter = ns.highest("rp_filter", dev)
    accept_local = ns.either("accept_local", dev)
    router = ns.routers[4]
    if not rp_filter and (accept_local or not (router.custom_rules or router.custom_locals)):
        own = not accept_local and ns.has_address(packet.src)
        return _own_address(ns, packet, dev) if own else None
    mark = packet.mark if ns.either("src_valid_mark", dev) else 0
    vrf = dev if ns.is_vrf(dev) else ns.vrf_of(dev)
    key = FlowKey(
        dst=packet.src, src=packet.dst, iif=vrf or ("" if out_dev == "lo" else out_dev), mark=mark, tos=packet.tos
    )
    found = router.lookup(key, ignore_linkdown=ns.ignore_linkdown)
    if found is None or found.errno:
        return _filtered(ns, dev, f"no route back to {packet.src}") if rp_filter else None
    if found.type != "unicast" and not (found.type == "local" and accept_local):
        return _own_address(ns, packet, dev)
    if any(leg.dev == dev or ns.vrf_of(leg.dev) == dev for leg in found.legs) or rp_filter != 1:
        return None
    back = ", ".join(leg.dev for leg in found.legs) or found.type
    return _filtered(ns, dev, f"the way back to {packet.src} is {back}, not {dev} (rp_filter=1)")


def _filtered(ns: Namespace, dev: str, detail: str) -> Objection:
    deciding = "all" if ns.conf("rp_filter", "all") >= ns.conf("rp_filter", dev) else dev
    place = ns.place(Stage.SYSCTL, dev=dev, key=f"net/ipv4/conf/{deciding}/rp_filter")
    return Objection(reason=Reason.IP_RPFILTER, place=place, detail=detail)


def _own_address(ns: Namespace, packet: Packet, dev: str) -> Objection:
    place = ns.place(Stage.ROUTE, dev=dev, key=packet.src)
    detail = f"{packet.src} is an address of this host itself (accept_local=0)"
    return Objection(reason=Reason.IP_LOCAL_SOURCE, place=place, detail=detail)
