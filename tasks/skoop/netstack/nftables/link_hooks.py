"""What base chains of the families netdev, bridge and arp do to a frame: at a device's ingress or egress, on a bridge, to ARP.

The same rules, evaluated on a frame before it is the IP layer's, or after (nft_do_chain_netdev, nft_do_chain_bridge, nft_do_chain_arp;
nf_hook_ingress in __netif_receive_skb_core, nf_hook_egress in __dev_queue_xmit). A frame may carry ARP: then it has no IP header to
match. Left out: `reject` below the IP layer, which is unknown. nft does not always list the devices of a netdev chain: then one that
would do something to the packet is unknown, as it may be bound to another device.
"""

from collections.abc import Iterable

from tasks.skoop.model.packet import CtState
from tasks.skoop.model.trace import Outcome, Place, Reason, Stage
from tasks.skoop.netstack.namespace import Namespace
from tasks.skoop.netstack.nftables.table import BaseChain
from tasks.skoop.netstack.skb import Skb
from tasks.skoop.netstack.xtables.api import Arp, Hook, HookContext, TableResult, Verdict

INGRESS, EGRESS = "INGRESS", "EGRESS"
NFPROTO = {"netdev": 5, "bridge": 7, "arp": 3}
PACKET_HOST, PACKET_BROADCAST, PACKET_MULTICAST, PACKET_OTHERHOST = range(4)
AFTER_BR_NETFILTER = 1
"""Lowest priority of a bridge chain that runs after br_netfilter's function, whose own is 0; at 0 the chain, added later, is first."""


def on_device(ns: Namespace, skb: Skb, dev: str, hook: str = INGRESS, *, arp: Arp | None = None) -> list[Skb]:
    """Return every way of a frame through the base chains at a device; `hook` is INGRESS or EGRESS."""
    in_dev, out_dev = (dev, "") if hook == INGRESS else ("", dev)
    bound = [base for base in ns.base_chains.on_link("netdev", hook) if not base.devices or dev in base.devices]
    return _through(ns, skb, bound, in_dev, out_dev, arp)


def on_bridge(
    ns: Namespace,
    skb: Skb,
    hook: Hook,
    *,
    in_port: str = "",
    out_port: str = "",
    arp: Arp | None = None,
    late: bool | None = None,
) -> list[Skb]:
    """Return every way of a frame through the bridge family's base chains at a hook; devices are the bridge's ports.

    `late`: only the chains behind br_netfilter's function at the hook, or (False) only those before it; None for all.
    """
    bases = ns.base_chains.on_link("bridge", hook)
    if late is not None:
        bases = [base for base in bases if (base.priority >= AFTER_BR_NETFILTER) == late]
    return _through(ns, skb, bases, in_port, out_port, arp)


def on_arp(ns: Namespace, skb: Skb, hook: Hook, arp: Arp, *, in_dev: str = "", out_dev: str = "") -> list[Skb]:
    """Return every way of an ARP packet through the family arp's base chains: INPUT for what comes in, OUTPUT for what is sent."""
    return _through(ns, skb, ns.base_chains.on_link("arp", hook), in_dev, out_dev, arp)


def _through(
    ns: Namespace, skb: Skb, bases: Iterable[BaseChain], in_dev: str, out_dev: str, arp: Arp | None
) -> list[Skb]:
    ways = [skb]
    for base in bases:
        ways = [after for way in ways for after in _apply(ns, way, base, in_dev, out_dev, arp)]
    return ways


def _apply(ns: Namespace, skb: Skb, base: BaseChain, in_dev: str, out_dev: str, arp: Arp | None) -> list[Skb]:
    if skb.end is not None or (
        arp is not None and base.table.id.family == "inet"
    ):  # nft_do_chain_inet_ingress: only IP
        return [skb]
    before = skb.packet.ct_state
    link = ns.links.get(out_dev)
    context = HookContext(
        netns=ns.id,
        hook=Hook.PREROUTING if in_dev else Hook.POSTROUTING,
        packet=skb.packet.with_(ct_state=CtState.NONE),
        facts=ns,
        in_dev=in_dev,
        out_dev=out_dev,
        sent_by=skb.sent_by,
        local_uid=skb.uid,
        local_gid=skb.gid,
        mac=skb.src_mac or (link.mac if link is not None else ""),
        dst_mac=skb.dst_mac,
        pkttype=_pkttype(ns, skb, skb.phys_in or in_dev),
        nfproto=NFPROTO.get(base.table.id.family, 0),
        arp=arp,
    )
    results = base.evaluate(context)
    sure = bool(base.devices) or base.table.id.family not in ("netdev", "inet")
    ways = []
    for result in results:
        way = skb if len(results) == 1 else skb.clone()
        way.probability *= result.probability
        way.missing = (*way.missing, *result.missing)
        way.assumed = (*way.assumed, *result.assumed)
        if not sure and (result.verdict != Verdict.ACCEPT or result.packet != context.packet):
            ways.append(_unsure(ns, way, base))
            continue
        way.record(result.steps)
        way.packet = result.packet.with_(ct_state=before)
        ways.append(_ended(ns, way, base, result))
    return ways


def _pkttype(ns: Namespace, skb: Skb, in_dev: str) -> int:
    """eth_type_trans relative to the device that the frame came in by, and br_handle_frame for the bridge's own address."""
    link = ns.links.get(in_dev)
    if link is None or not skb.dst_mac:
        return PACKET_HOST
    if skb.dst_mac == "ff:ff:ff:ff:ff:ff":
        return PACKET_BROADCAST
    if int(skb.dst_mac[:2], 16) & 1:
        return PACKET_MULTICAST
    bridge = ns.links.get(link.master or "")
    own = (link.mac, bridge.mac) if bridge is not None and bridge.kind == "bridge" else (link.mac,)
    return PACKET_HOST if skb.dst_mac in own else PACKET_OTHERHOST


def _ended(ns: Namespace, skb: Skb, base: BaseChain, result: TableResult) -> Skb:
    place = result.steps[-1].place if result.steps else _place(ns, base)
    if result.verdict == Verdict.ACCEPT:
        return skb
    if result.verdict == Verdict.DROP:
        why = "dropped by this rule" if place.rule else "dropped by the chain's policy"
        return skb.finish(Outcome.DROPPED, Reason.NETFILTER_DROP, place, why)
    if result.verdict == Verdict.REJECT:
        skb.missing = (*skb.missing, f"{place}: what a reject below the IP layer answers")
    return skb.finish(Outcome.UNKNOWN, Reason.UNSUPPORTED, place, "; ".join(skb.missing))


def _unsure(ns: Namespace, skb: Skb, base: BaseChain) -> Skb:
    skb.missing = (*skb.missing, f"{ns.id}: the devices of chain {base.chain} of table {base.name}")
    return skb.finish(Outcome.UNKNOWN, Reason.MISSING_STATE, _place(ns, base), "bound to devices that are not listed")


def _place(ns: Namespace, base: BaseChain) -> Place:
    return Place(netns=ns.id, stage=Stage.NETFILTER, backend="nft", hook=base.hook, table=base.name, chain=base.chain)
