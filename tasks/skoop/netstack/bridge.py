"""The bridge: a frame comes in on a port, or from the host, and goes up, to a port, to all of them, or nowhere.

Follows br_handle_frame, br_handle_frame_finish, br_dev_xmit, should_deliver (net/bridge) and, for what br_netfilter adds,
br_nf_pre_routing, br_nf_forward_ip, br_nf_post_routing (net/bridge/br_netfilter_hooks.c). An unknown unicast address is flooded;
the walk follows only the copy that reaches a device with that address, since all others are thrown away there. What VLANs do is told
by `vlans`; frames with a tag are not shown to iptables (bridge-nf-filter-vlan-tagged is taken to be off, its default). Left out:
multicast snooping, learning during the walk.
"""

from tasks.skoop.model.addr import Mac
from tasks.skoop.model.state import FdbEntry, Interface, Section
from tasks.skoop.model.trace import Outcome, Reason, Stage
from tasks.skoop.netstack.conntrack import has_spoken
from tasks.skoop.netstack.fib import FlowKey, Leg
from tasks.skoop.netstack.multipath import legs_for, remember_leg
from tasks.skoop.netstack.namespace import Namespace
from tasks.skoop.netstack.neighbour import asker_of, failed
from tasks.skoop.netstack.netfilter import traverse
from tasks.skoop.netstack.nftables.link_hooks import on_bridge, on_device
from tasks.skoop.netstack.skb import At, Skb, onward
from tasks.skoop.netstack.vlans import filters, tag_of, unknown_vlans, vlan_of
from tasks.skoop.netstack.xtables.api import Hook


def br_handle_frame(ns: Namespace, skb: Skb) -> list[Skb]:
    """A frame comes in on a port; br_netfilter shows it to PREROUTING as coming from the bridge."""
    port = ns.links[skb.in_dev]
    bridge = ns.links.get(port.master or "")
    place = ns.place(Stage.BRIDGE, dev=port.name, key=port.master or "")
    if bridge is None or not bridge.up:
        return [skb.finish(Outcome.DROPPED, Reason.BRIDGE_STATE, place, f"bridge {port.master} is down")]
    if unknown_vlans(bridge, port):
        return [_lacks_vlans(ns, skb, bridge)]
    if port.port is not None and port.port.state != "forwarding":
        return [skb.finish(Outcome.DROPPED, Reason.BRIDGE_STATE, place, f"port {port.name} is {port.port.state}")]
    skb.phys_in, skb.frame_dst = port.name, skb.dst_mac
    skb.bridge = skb.in_dev = bridge.name
    skb.at = At.BR_FRAME_FINISH
    ways = on_bridge(ns, skb, Hook.PREROUTING, in_port=port.name, late=False)
    ways = onward(ways, lambda way: _br_nf_pre_routing(ns, way, bridge))
    return onward(ways, lambda way: on_bridge(ns, way, Hook.PREROUTING, in_port=port.name, late=True))


def _br_nf_pre_routing(ns: Namespace, skb: Skb, bridge: Interface) -> list[Skb]:
    if skb.vlan or not ns.bridge_calls_iptables(bridge.name, skb.packet.version):
        return [skb]
    before = skb.packet.dst
    done = []
    for way in traverse(ns, skb, Hook.PREROUTING):
        if way.end is None:
            way.pre_done = True
            done += _after_dnat(ns, way, bridge) if way.packet.dst != before else [way]
        else:
            done.append(way)
    return done


def _after_dnat(ns: Namespace, skb: Skb, bridge: Interface) -> list[Skb]:
    """br_nf_pre_routing_finish: a frame whose destination was translated goes to the bridge itself, unless it stays on it.

    With IPv4 only if the host forwards: else the route found leads nowhere and the frame goes up to be dropped there.
    """
    skb.dst_mac = bridge.mac
    packet = skb.packet
    found = ns.routers[packet.version].lookup(FlowKey.of(packet, iif=bridge.name), ignore_linkdown=ns.ignore_linkdown)
    if found is None or found.type != "unicast":
        return [skb]
    if packet.version == 4 and not ns.forwards(bridge.name, 4):
        return [skb]
    ways = []
    legs = legs_for(ns, skb, found, src=packet.src, dst=packet.dst)
    for leg in legs:
        way = skb if len(legs) == 1 else skb.clone()
        if len(legs) > 1:  # probabilities are drawn here; where the packet is routed later on it keeps to the leg
            way.probability *= leg.share
            remember_leg(ns, way, found, leg, src=packet.src, dst=packet.dst)
        ways += _bridged_dnat(ns, way, bridge, leg) if leg.dev == bridge.name else [way]
    return ways


def _bridged_dnat(ns: Namespace, skb: Skb, bridge: Interface, leg: Leg) -> list[Skb]:
    """The translated frame stays on the bridge: on to its new destination's link-layer address."""
    packet = skb.packet
    target = leg.nexthop.via or packet.dst
    place = ns.place(Stage.NEIGHBOUR, dev=bridge.name, key=target)
    if (gap := ns.gap(Section.NEIGHBOURS)) is not None:
        return [skb.unknown(gap, place)]
    entry = ns.neighbour(bridge.name, target)
    if entry is not None and entry.mac is not None:
        macs: tuple[Mac, ...] = (entry.mac,)
    else:
        asker = asker_of(ns, packet.src, bridge.name, target)
        answers = ns.wire.resolve(ns.id, bridge.name, target, asker)
        macs = answers.macs
        if not macs and answers.missing:
            return [skb.unknown(answers.missing[0], place)]
    if not macs:
        skb.out_dev = bridge.name
        return [failed(ns, skb, target)]
    ways = []
    for mac in macs:
        way = skb if len(macs) == 1 else skb.clone()
        way.probability /= len(macs)
        way.dst_mac = mac
        way.step(place, "bridge", f"translated on the bridge: on to {target} at {mac}")
        ways.append(way)
    return ways


def _lacks_vlans(ns: Namespace, skb: Skb, bridge: Interface) -> Skb:
    place = ns.place(Stage.BRIDGE, dev=bridge.name, key="vlan")
    skb.missing = (*skb.missing, f"{ns.id}: VLANs of bridge {bridge.name}")
    what = f"{bridge.name} filters by VLAN, and `bridge vlan show` was not collected"
    return skb.finish(Outcome.UNKNOWN, Reason.MISSING_STATE, place, what)


def _entry(ns: Namespace, bridge: Interface, mac: str, vid: int) -> FdbEntry | None:
    if filters(bridge):
        return ns.bridge_fdb_of_vlan.get((bridge.name, mac, vid))
    return ns.bridge_fdb.get((bridge.name, mac))


def br_frame_finish(ns: Namespace, skb: Skb) -> list[Skb]:
    """Look the destination up: ourselves, a port, or unknown."""
    bridge = ns.links[skb.bridge]
    if (gap := ns.gap(Section.FDB)) is not None:
        return [skb.unknown(gap, ns.place(Stage.BRIDGE, dev=bridge.name, key=skb.dst_mac))]
    ingress = ns.links[skb.phys_in]
    vid = vlan_of(bridge, ingress, skb.vlan)
    if vid is None:
        place = ns.place(Stage.BRIDGE, dev=ingress.name, key=f"vlan {skb.vlan or 'untagged'}")
        detail = f"{ingress.name} takes no {f'frames of VLAN {skb.vlan}' if skb.vlan else 'untagged frames'}"
        return [skb.finish(Outcome.DROPPED, Reason.VLAN_FILTER, place, detail)]
    entry = _entry(ns, bridge, skb.dst_mac, vid)
    if entry.permanent if entry else (skb.dst_mac == bridge.mac and not ns.bridge_fdb):
        return _pass_up(ns, skb, bridge, vid)
    learnt = ingress.port is None or ingress.port.learning
    if entry is None and learnt and skb.dst_mac == skb.src_mac:  # a pod that reaches itself: learnt as it came in
        port: Interface | None = ingress
    else:
        port = _egress(ns, skb, bridge, skb.dst_mac, ingress, vid)
    if port is None:
        return _flooded(ns, skb, bridge, ingress, vid)
    tag = tag_of(bridge, port, vid)
    refused = _may_not_deliver(port, ingress) or (f"it is not in VLAN {vid}" if tag is None else "")
    if refused:
        place = ns.place(Stage.BRIDGE, dev=port.name, key=refused)
        return [skb.finish(Outcome.DROPPED, Reason.BRIDGE_FORWARD, place, f"{ingress.name} to {port.name}: {refused}")]
    skb.vlan = tag or 0
    skb.step(ns.place(Stage.BRIDGE, dev=bridge.name, key=skb.dst_mac), "bridge", f"{ingress.name} to {port.name}")
    skb.phys_out = port.name
    ways = _shown_to_forward(ns, skb, ingress, port)
    ways = onward(ways, lambda way: on_bridge(ns, way, Hook.POSTROUTING, out_port=port.name))
    if not skb.vlan and ns.bridge_calls_iptables(bridge.name, skb.packet.version):  # br_nf_post_routing comes last
        ways = onward(ways, lambda way: traverse(ns, way, Hook.POSTROUTING))
    return [way if way.end or way.taken_over() else _to_port(ns, way, port) for way in ways]


def _shown_to_forward(ns: Namespace, skb: Skb, ingress: Interface, port: Interface) -> list[Skb]:
    """__br_forward: the bridge's own chains, and among them br_nf_forward, which asks iptables."""
    ways = on_bridge(ns, skb, Hook.FORWARD, in_port=ingress.name, out_port=port.name, late=False)
    if not skb.vlan and ns.bridge_calls_iptables(skb.bridge, skb.packet.version):
        for way in ways:
            way.out_dev = skb.bridge
        ways = onward(ways, lambda way: traverse(ns, way, Hook.FORWARD))
    return onward(
        ways, lambda way: on_bridge(ns, way, Hook.FORWARD, in_port=ingress.name, out_port=port.name, late=True)
    )


def _flooded(ns: Namespace, skb: Skb, bridge: Interface, ingress: Interface, vid: int) -> list[Skb]:
    """br_flood: a frame that nobody will take is still shown to FORWARD on its way to every port, where a rule may reject it."""
    place = ns.place(Stage.BRIDGE, dev=bridge.name, key=skb.dst_mac)
    detail = f"no port of {bridge.name} leads to {skb.dst_mac}"
    for port in ns.ports.get(bridge.name, ()):
        if port is ingress or (port.port and not port.port.flood) or _may_not_deliver(port, ingress):
            continue
        if tag_of(bridge, port, vid) == 0:
            skb.phys_out, skb.out_dev = port.name, bridge.name
            ways = _shown_to_forward(ns, skb, ingress, port)
            return [
                way if way.end is not None else way.finish(Outcome.DROPPED, Reason.NO_TX_TARGET, place, detail)
                for way in ways
            ]
    return [skb.finish(Outcome.DROPPED, Reason.NO_TX_TARGET, place, detail)]


def _pass_up(ns: Namespace, skb: Skb, bridge: Interface, vid: int) -> list[Skb]:
    """br_pass_frame_up: the host gets the frame, by the bridge or by a VLAN device on it; what stands at their ingress sees it."""
    ways = onward(on_bridge(ns, skb, Hook.INPUT, in_port=skb.phys_in), lambda way: [_up_by(ns, way, bridge, vid)])
    return onward(ways, lambda way: [way] if way.in_dev == bridge.name else on_device(ns, way, bridge.name))


def _up_by(ns: Namespace, skb: Skb, bridge: Interface, vid: int) -> Skb:
    tag = tag_of(bridge, bridge, vid)
    dev: str | None = bridge.name
    if tag is None:
        place = ns.place(Stage.BRIDGE, dev=bridge.name, key=f"vlan {vid}")
        return skb.finish(Outcome.DROPPED, Reason.VLAN_FILTER, place, f"{bridge.name} itself is not in VLAN {vid}")
    if tag:
        dev = next((link.name for link in ns.links.values() if link.lower == bridge.name and link.vlan_id == tag), None)
    if dev is None:
        place = ns.place(Stage.LINK, dev=bridge.name, key=f"vlan {tag}")
        return skb.finish(Outcome.DROPPED, Reason.OTHERHOST, place, f"{bridge.name} has no device for VLAN {tag}")
    if not ns.links[dev].up:
        return skb.finish(Outcome.DROPPED, Reason.LINK_DOWN, ns.place(Stage.LINK, dev=dev), f"{dev} is down")
    skb.in_dev = dev
    skb.dst_mac = ""
    skb.vlan = 0
    skb.at = At.NETIF_RECEIVE
    return skb


def known_port(ns: Namespace, bridge: Interface, mac: str, vid: int) -> Interface | None:
    """Return the port that the forwarding table has for an address, None if it has none and frames are flooded."""
    entry = _entry(ns, bridge, mac, vid)
    if entry is None or entry.permanent:
        return None
    port = ns.links.get(entry.dev)
    if port is None or port.master != bridge.name:
        return None
    return port if entry.sticky else _roamed(ns, bridge, mac, port, vid)


def _egress(
    ns: Namespace, skb: Skb, bridge: Interface, mac: str, ingress: Interface | None, vid: int
) -> Interface | None:
    if (port := known_port(ns, bridge, mac, vid)) is not None:
        return port
    for port in ns.ports.get(bridge.name, ()):
        floods = port.port is None or port.port.flood or (port.port.learning and has_spoken(skb.flow, mac))
        back = port is ingress and not (port.port and port.port.hairpin)
        tag = tag_of(bridge, port, vid)
        if tag is None or not floods or back or not port.up:
            continue
        if ns.wire.reaches(ns.id, port.name, Mac(mac), tag):
            return port
    return None


def _roamed(ns: Namespace, bridge: Interface, mac: str, port: Interface, vid: int) -> Interface:
    """br_fdb_update: an entry, static too, moves to the port where its device is heard; it spoke when it answered our ARP."""
    tag = tag_of(bridge, port, vid)
    if tag is None or ns.wire.reaches(ns.id, port.name, Mac(mac), tag):
        return port
    heard = (
        other
        for other in ns.ports.get(bridge.name, ())
        if other.up
        and (other.port is None or other.port.learning)
        and (tag := tag_of(bridge, other, vid)) is not None
        and ns.wire.reaches(ns.id, other.name, Mac(mac), tag)
    )
    return next(heard, port)


def _may_not_deliver(port: Interface, ingress: Interface | None) -> str:
    """should_deliver: return why a frame may not leave by the port, or ""."""
    settings = port.port
    if not port.up:
        return "port is down"
    if settings is not None and settings.state != "forwarding":
        return f"port is {settings.state}"
    if ingress is not None and ingress.name == port.name and not (settings and settings.hairpin):
        return "hairpin is off: a frame does not leave by the port it came in on"
    if settings and settings.isolated and ingress is not None and ingress.port and ingress.port.isolated:
        return "both ports are isolated"
    return ""


def _to_port(ns: Namespace, skb: Skb, port: Interface) -> Skb:
    if skb.packet.length > port.mtu + 4:  # br_dev_queue_push_xmit: is_skb_forwardable
        place = ns.place(Stage.MTU, dev=port.name, key=str(port.mtu))
        return skb.finish(
            Outcome.DROPPED,
            Reason.PEER_MTU,
            place,
            f"{skb.packet.length} bytes do not fit into {port.mtu} of {port.name}",
        )
    skb.narrow(port.mtu)
    skb.out_dev = port.name
    skb.at = At.DEV_XMIT
    return skb


def br_dev_xmit(ns: Namespace, skb: Skb) -> list[Skb]:
    """The host itself sends by the bridge."""
    bridge = ns.links[skb.out_dev]
    if unknown_vlans(bridge, bridge):
        return [_lacks_vlans(ns, skb, bridge)]
    vid = vlan_of(bridge, bridge, skb.vlan)
    if vid is None:
        place = ns.place(Stage.BRIDGE, dev=bridge.name, key=f"vlan {skb.vlan or 'untagged'}")
        detail = f"{bridge.name} itself is not in VLAN {skb.vlan}" if skb.vlan else f"{bridge.name} has no PVID"
        return [skb.finish(Outcome.DROPPED, Reason.VLAN_FILTER, place, detail)]
    place = ns.place(Stage.BRIDGE, dev=bridge.name, key=skb.dst_mac)
    if (gap := ns.gap(Section.FDB)) is not None:
        return [skb.unknown(gap, place)]
    port = _egress(ns, skb, bridge, skb.dst_mac, None, vid)
    if port is None:
        detail = f"no port of {bridge.name} leads to {skb.dst_mac}"
        return [skb.finish(Outcome.DROPPED, Reason.NO_TX_TARGET, place, detail)]
    tag = tag_of(bridge, port, vid)
    refused = _may_not_deliver(port, None) or (f"it is not in VLAN {vid}" if tag is None else "")
    if refused:
        return [skb.finish(Outcome.DROPPED, Reason.BRIDGE_FORWARD, place, f"to {port.name}: {refused}")]
    skb.vlan = tag or 0
    skb.step(place, "bridge", f"{bridge.name} to {port.name}")
    ways = on_bridge(ns, skb, Hook.OUTPUT, out_port=port.name)
    ways = onward(ways, lambda way: on_bridge(ns, way, Hook.POSTROUTING, out_port=port.name))
    return onward(ways, lambda way: [_to_port(ns, way, port)])
