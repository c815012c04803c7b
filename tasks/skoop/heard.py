"""Which packet filters see an ARP request, a neighbour solicitation, or the answer, and do they let it through?

Neighbour discovery is IPv6: OUTPUT and POSTROUTING of who says it, PREROUTING and INPUT of who hears it, and those of bridges with
br_netfilter (untracked: noct_valid_new, net/netfilter/nf_conntrack_proto_icmpv6.c). ARP is shown to nftables' family arp instead, not to
iptables. Both are frames, which chains of the families netdev and bridge see at every device and on every bridge. The legacy arptables
is left out.
"""

from collections.abc import Sequence
from ipaddress import IPv6Address
from typing import NamedTuple

from tasks.skoop.model.addr import Ip, ip_int
from tasks.skoop.model.packet import Packet, Protocol
from tasks.skoop.model.trace import Step
from tasks.skoop.netstack import tracking
from tasks.skoop.netstack.namespace import Namespace
from tasks.skoop.netstack.netfilter import traverse
from tasks.skoop.netstack.nftables.link_hooks import on_arp, on_bridge, on_device
from tasks.skoop.netstack.skb import At, Skb, steps_of
from tasks.skoop.netstack.xtables.api import Arp, Hook

OUT = (Hook.OUTPUT, Hook.POSTROUTING)
IN = (Hook.PREROUTING, Hook.INPUT)
_SOLICITATION, _ADVERTISEMENT = 135, 136
_REQUEST, _REPLY = 1, 2
_EVERYBODY = "ff:ff:ff:ff:ff:ff"


class Said(NamedTuple):
    """A question or an answer as a frame: `arp` None where it is neighbour discovery, which `packet` then is."""

    packet: Packet
    arp: Arp | None
    src_mac: str
    dst_mac: str


def solicited_node(target: Ip) -> Ip:
    """Return the multicast address that a solicitation for the target goes to (RFC 4291, 2.7.1)."""
    return Ip(str(IPv6Address((0xFF02 << 112) | (0x1FF << 24) | (ip_int(target) & 0xFFFFFF))))


def question(target: Ip, sender: Ip | None, mac: str) -> Said:
    """Return the question for an address, asked in the name of `sender` by a device with that address."""
    if ":" in target:
        group = solicited_node(target)
        packet = _discovery(sender or Ip("fe80::1"), group, _SOLICITATION)
        low = ip_int(group) & 0xFFFFFFFF
        return Said(
            packet, None, mac, ":".join(["33", "33", *(f"{low >> shift & 255:02x}" for shift in (24, 16, 8, 0))])
        )
    arp = Arp(operation=_REQUEST, sender=sender, target=target, sender_mac=mac, target_mac="00:00:00:00:00:00")
    return Said(_standing_for(sender, target), arp, mac, _EVERYBODY)


def answer(asked: Said, target: Ip, sender: Ip | None, mac: str) -> Said:
    """Return the answer of a device with that link-layer address to a question."""
    if asked.arp is None:
        return Said(_discovery(target, sender or Ip("fe80::1"), _ADVERTISEMENT), None, mac, asked.src_mac)
    arp = Arp(
        operation=_REPLY,
        sender=target,
        target=sender or Ip("0.0.0.0"),
        sender_mac=mac,
        target_mac=asked.src_mac,
    )
    return Said(_standing_for(target, sender), arp, mac, asked.src_mac)


def _discovery(src: Ip, dst: Ip, kind: int) -> Packet:
    return Packet(
        src=src,
        dst=dst,
        protocol=Protocol.ICMPV6,
        icmp_type=kind,
        ttl=255,
        length=72,
    )


def _standing_for(src: Ip | None, dst: Ip | None) -> Packet:
    return Packet(src=src or Ip("0.0.0.0"), dst=dst or Ip("0.0.0.0"), protocol=Protocol.OTHER, length=28)


class Filters:
    """The filters that one inquiry meets: what they stopped, and what would have to be known of them."""

    def __init__(self) -> None:
        self.stopped: tuple[Step, ...] = ()
        self.missing: tuple[str, ...] = ()

    def sent(self, ns: Namespace, said: Said, dev: str) -> bool:
        """Say whether a host lets out what it says itself."""
        if said.arp is None:
            return self.shown(ns, said.packet, OUT, out_dev=dev)
        return self._let_through(on_arp(ns, _frame(said), Hook.OUTPUT, said.arp, out_dev=dev))

    def taken(self, ns: Namespace, said: Said, dev: str, inwards: tuple[Hook, ...] = IN, *, port: str = "") -> bool:
        """Say whether a host lets in what it hears; `inwards` are the hooks of neighbour discovery there.

        `port` is the port of a bridge with br_netfilter that brought it.
        """
        if said.arp is None:
            return self.shown(ns, said.packet, inwards, in_dev=dev, phys_in=port)
        return self._let_through(on_arp(ns, _frame(said), Hook.INPUT, said.arp, in_dev=dev))

    def at_device(self, ns: Namespace, said: Said, dev: str, hook: str) -> bool:
        """Say whether what stands at a device's ingress or egress lets it through."""
        return self._let_through(on_device(ns, _frame(said), dev, hook, arp=said.arp))

    def on_bridge(self, ns: Namespace, said: Said, *hooks: Hook, in_port: str = "", out_port: str = "") -> bool:
        """Say whether a bridge's own chains let it through."""
        return all(
            self._let_through(on_bridge(ns, _frame(said), hook, in_port=before, out_port=out_port, arp=said.arp))
            for hook in hooks
            for before in ["" if hook == Hook.POSTROUTING else in_port]
        )

    def shown(
        self, ns: Namespace, packet: Packet | None, hooks: tuple[Hook, ...], *, tracked: bool = False, **devices: str
    ) -> bool:
        """Say whether a packet gets through these hooks of its family (one that is None always does)."""
        if packet is None:
            return True
        for hook in hooks:
            skb = Skb(packet, {}, at=At.IP_RCV)
            if not tracked and hook not in (Hook.PREROUTING, Hook.OUTPUT) and ns.tracks(packet.version):
                tracking.untrack(skb)  # the hook before has done so
            for name, dev in devices.items():
                setattr(skb, name, dev)
            ways = traverse(ns, skb, hook)
            # whoever hears a neighbour looks whether it came from the link itself (ndisc_rcv)
            if not tracked and all(way.end is None and way.packet.ttl != packet.ttl for way in ways):
                return False
            if not self._let_through(ways):
                return False
        return True

    def _let_through(self, ways: Sequence[Skb]) -> bool:
        if all(way.end is not None for way in ways):
            self.stopped = (*self.stopped, *steps_of(ways[0].trail))
            self.missing += tuple(gap for way in ways for gap in way.missing)
            return False
        return True


def _frame(said: Said) -> Skb:
    skb = Skb(said.packet, {}, at=At.NETIF_RECEIVE)
    skb.src_mac, skb.dst_mac = said.src_mac, said.dst_mac
    return skb
