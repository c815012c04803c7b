"""What base chains of the families netdev and bridge do to a frame: at a device's ingress or egress, and on a bridge.

The same rules, evaluated before the packet is the IP layer's: conntrack has not seen it (nft_do_chain_netdev, nft_do_chain_bridge).
Left out: ARP, which the walk does not send as frames, and `reject` on a bridge, which is unknown. nft does not always list the
devices of a netdev chain: then one that would do something to the packet is unknown, as it may be bound to another device.
"""

from tasks.skoop.model.packet import CtState
from tasks.skoop.model.trace import Outcome, Place, Reason, Stage
from tasks.skoop.netstack.namespace import Namespace
from tasks.skoop.netstack.netfilter import dropped_at
from tasks.skoop.netstack.nftables.table import BaseChain
from tasks.skoop.netstack.skb import Skb
from tasks.skoop.netstack.xtables.api import Hook, HookContext, TableResult, Verdict


def on_device(ns: Namespace, skb: Skb, dev: str, hook: str = "INGRESS") -> list[Skb]:
    """Return every way of a frame through the base chains at a device; `hook` is INGRESS or EGRESS."""
    ways = [skb]
    for base in ns.base_chains.on_link("netdev", hook):
        if base.devices and dev not in base.devices:
            continue
        in_dev, out_dev = (dev, "") if hook == "INGRESS" else ("", dev)
        ways = [after for way in ways for after in _apply(ns, way, base, in_dev, out_dev, sure=bool(base.devices))]
    return ways


def on_bridge(ns: Namespace, skb: Skb, hook: Hook, *, in_port: str = "", out_port: str = "") -> list[Skb]:
    """Return every way of a frame through the bridge family's base chains at a hook; devices are the bridge's ports."""
    ways = [skb]
    for base in ns.base_chains.on_link("bridge", hook):
        ways = [after for way in ways for after in _apply(ns, way, base, in_port, out_port, sure=True)]
    return ways


def _apply(ns: Namespace, skb: Skb, base: BaseChain, in_dev: str, out_dev: str, *, sure: bool) -> list[Skb]:
    if skb.end is not None:
        return [skb]
    before = skb.packet.ct_state
    context = HookContext(
        netns=ns.id,
        hook=Hook.PREROUTING if in_dev else Hook.POSTROUTING,
        packet=skb.packet.with_(ct_state=CtState.NONE),
        facts=ns,
        in_dev=in_dev,
        out_dev=out_dev,
        mac=skb.src_mac,
    )
    results = base.evaluate(context)
    ways = []
    for result in results:
        way = skb if len(results) == 1 else skb.clone()
        way.probability *= result.probability
        way.missing = (*way.missing, *result.missing)
        if not sure and (result.verdict != Verdict.ACCEPT or result.packet != context.packet):
            ways.append(_unsure(ns, way, base))
            continue
        way.record(result.steps)
        way.packet = result.packet.with_(ct_state=before)
        ways.append(_ended(ns, way, base, result))
    return ways


def _ended(ns: Namespace, skb: Skb, base: BaseChain, result: TableResult) -> Skb:
    place = result.steps[-1].place if result.steps else _place(ns, base)
    if result.verdict == Verdict.ACCEPT:
        return skb
    if result.verdict == Verdict.DROP:
        why = "dropped by this rule" if place.rule else "dropped by the chain's policy"
        return dropped_at(skb, Hook.PREROUTING, place, why)
    if result.verdict == Verdict.REJECT:
        skb.missing = (*skb.missing, f"{place}: what a reject below the IP layer answers")
    return skb.finish(Outcome.UNKNOWN, Reason.UNSUPPORTED, place, "; ".join(skb.missing))


def _unsure(ns: Namespace, skb: Skb, base: BaseChain) -> Skb:
    skb.missing = (*skb.missing, f"{ns.id}: the devices of chain {base.chain} of table {base.name}")
    return skb.finish(Outcome.UNKNOWN, Reason.MISSING_STATE, _place(ns, base), "bound to devices that are not listed")


def _place(ns: Namespace, base: BaseChain) -> Place:
    return Place(netns=ns.id, stage=Stage.NETFILTER, backend="nft", hook=base.hook, table=base.name, chain=base.chain)
