"""Who on this link has the address? An ARP request or neighbour solicitation, followed to everybody who hears it.

The question leaves by a device, is flooded by bridges and by vxlan's all-zero entries, and is answered by every namespace that has
the address there (`netstack.neighbour.answers_for`). Neighbour discovery is IPv6: the packet filters of the asker, of bridges with
br_netfilter and of the answerer see it (untracked: noct_valid_new, net/netfilter/nf_conntrack_proto_icmpv6.c). ARP is not shown to
iptables; arptables is left out. Answers are taken to find the way back that the question came.
"""

from collections.abc import Iterator
from ipaddress import IPv6Address
from typing import Protocol

from tasks.skoop.model.addr import Ip, Mac, ip_int
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.packet import CtState, Packet
from tasks.skoop.model.packet import Protocol as IpProtocol
from tasks.skoop.model.state import Interface, Section
from tasks.skoop.model.trace import Step
from tasks.skoop.netstack.namespace import Answers, Namespace
from tasks.skoop.netstack.neighbour import answers_for, cannot_tell
from tasks.skoop.netstack.netfilter import traverse
from tasks.skoop.netstack.skb import At, Skb, steps_of
from tasks.skoop.netstack.xtables.api import Hook

_ALL_ZERO = "00:00:00:00:00:00"
_SOLICITATION, _ADVERTISEMENT = 135, 136
_NOBODY = Answers()


class Cables(Protocol):
    """What an inquiry needs of the cabling."""

    underlay: tuple[tuple[NetnsId, Interface], ...]

    def namespace(self, netns: NetnsId) -> Namespace | None:
        """Return the compiled namespace, or None if it was not collected."""

    def namespaces(self) -> Iterator[Namespace]:
        """Yield every collected namespace, compiled."""

    def is_uplink(self, netns: NetnsId, dev: str) -> bool:
        """Say whether a device leads to the underlay."""

    def owner(self, ip: Ip) -> tuple[NetnsId, Interface] | None:
        """Return the collected device on the underlay that carries the address."""


def solicited_node(target: Ip) -> Ip:
    """Return the multicast address that a solicitation for the target goes to (RFC 4291, 2.7.1)."""
    return Ip(str(IPv6Address((0xFF02 << 112) | (0x1FF << 24) | (ip_int(target) & 0xFFFFFF))))


class Inquiry:
    """One question: who has `target`? asked in the name of `sender`."""

    def __init__(self, cables: Cables, target: Ip, sender: Ip | None) -> None:
        self.cables = cables
        self.target = target
        self.sender = sender
        self._seen: set[tuple[str, str]] = set()
        self._stopped: tuple[Step, ...] = ()
        self._missing: tuple[str, ...] = ()
        self._question = self._answer = None
        if ":" in target:
            asker = sender or Ip("fe80::1")
            self._question = _discovery(asker, solicited_node(target), _SOLICITATION)
            self._answer = _discovery(target, asker, _ADVERTISEMENT)

    def ask_from(self, netns: NetnsId, dev: str) -> Answers:
        """Ask out of a device of a namespace and return who answers."""
        ns = self.cables.namespace(netns)
        if ns is None:
            return _NOBODY
        if not self._passes(ns, self._question, (Hook.OUTPUT, Hook.POSTROUTING), out_dev=dev):
            return self._silence()
        found = self._ask(netns, dev)
        if found.macs and not self._passes(ns, self._answer, (Hook.PREROUTING, Hook.INPUT), in_dev=dev):
            return self._silence()
        if found.macs or found.outside:
            return found
        return self._silence()

    def _silence(self) -> Answers:
        return Answers(stopped=self._stopped, missing=tuple(dict.fromkeys(self._missing)))

    def _lacking(self, gap: str) -> Answers:
        """Nobody is known to answer here, but somebody may: what is missing is told if no other answer comes."""
        self._missing = (*self._missing, gap)
        return _NOBODY

    def _ask(self, netns: NetnsId, dev: str) -> Answers:
        ns = self.cables.namespace(netns)
        link = ns.links.get(dev) if ns else None
        if ns is None or link is None or not link.up or (netns, dev) in self._seen:
            return _NOBODY
        self._seen.add((netns, dev))
        if link.kind == "bridge":
            return _together(self._ask(netns, port.name) for port in _flooding(ns, dev, None))
        if link.vxlan is not None:
            return _together(self._ask_vteps(ns, link))
        if link.peer is not None:
            return self._hear(*link.peer)
        if not self.cables.is_uplink(netns, dev):
            return _NOBODY
        here = (netns, dev)
        found = _together(
            self._hear(other, there.name) for other, there in self.cables.underlay if (other, there.name) != here
        )
        if not found.macs and self.cables.owner(self.target) is None:
            return Answers(outside=True)
        return found

    def _ask_vteps(self, ns: Namespace, link: Interface) -> Iterator[Answers]:
        """Broadcasts go to the VTEPs that the all-zero entries name."""
        if (gap := ns.gap(Section.FDB)) is not None:
            yield self._lacking(gap)
        for entry in ns.own_fdb.get((link.name, _ALL_ZERO), ()):
            owners = [
                there for there in self.cables.namespaces() if entry.dst is not None and there.has_address(entry.dst)
            ]
            if not owners:
                gaps = [gap for there in self.cables.namespaces() if (gap := there.gap(Section.LINKS)) is not None]
                yield self._lacking(gaps[0] if gaps else f"the host {entry.dst}: not collected")
            for there in owners:
                for device in there.links.values():
                    if device.vxlan and link.vxlan and device.vxlan.vni == link.vxlan.vni:
                        yield self._hear(there.id, device.name)

    def _hear(self, netns: NetnsId, dev: str) -> Answers:
        """Let a device receive the question: its host answers, or its bridge passes it on, or both."""
        ns = self.cables.namespace(netns)
        if ns is None:
            return self._lacking(f"{netns}: not collected")
        if (gap := ns.gap(Section.LINKS)) is not None:
            return self._lacking(gap)
        link = ns.links.get(dev)
        if link is None or not link.up or (netns, dev) in self._seen:
            return _NOBODY
        self._seen.add((netns, dev))
        master = ns.links.get(link.master or "")
        if master is None or master.kind != "bridge":
            return self._answer_of(ns, dev, (Hook.PREROUTING, Hook.INPUT))
        if not master.up or (link.port and link.port.state != "forwarding"):
            return _NOBODY
        filtered = ns.bridge_calls_iptables(master.name, 6)
        if filtered and not self._passes(ns, self._question, (Hook.PREROUTING,), in_dev=master.name, phys_in=dev):
            return _NOBODY
        own = self._answer_of(ns, master.name, (Hook.INPUT,) if filtered else (Hook.PREROUTING, Hook.INPUT))
        return _together(
            iter(
                (
                    own,
                    *(
                        self._across(ns, master, link, port, filtered=filtered)
                        for port in _flooding(ns, master.name, link)
                    ),
                )
            )
        )

    def _across(
        self, ns: Namespace, bridge: Interface, ingress: Interface, port: Interface, *, filtered: bool
    ) -> Answers:
        """Pass the question from port to port, and the answer back."""
        if filtered and not self._bridged(ns, self._question, bridge, ingress, port):
            return _NOBODY
        found = self._ask(ns.id, port.name)
        if found.macs and filtered and not self._bridged(ns, self._answer, bridge, port, ingress):
            return _NOBODY
        return found

    def _bridged(
        self, ns: Namespace, packet: Packet | None, bridge: Interface, ingress: Interface, egress: Interface
    ) -> bool:
        return self._passes(
            ns,
            packet,
            (Hook.FORWARD, Hook.POSTROUTING),
            in_dev=bridge.name,
            out_dev=bridge.name,
            phys_in=ingress.name,
            phys_out=egress.name,
        )

    def _answer_of(self, ns: Namespace, dev: str, inwards: tuple[Hook, ...]) -> Answers:
        if (gap := cannot_tell(ns, dev, self.target)) is not None:
            return self._lacking(gap)
        mac = answers_for(ns, dev, self.target, self.sender)
        if mac is None or not self._passes(ns, self._question, inwards, in_dev=dev):
            return _NOBODY
        if not self._passes(ns, self._answer, (Hook.OUTPUT, Hook.POSTROUTING), out_dev=dev):
            return _NOBODY
        return Answers(macs=(mac,), by=((ns.id, dev),))

    def _passes(self, ns: Namespace, packet: Packet | None, hooks: tuple[Hook, ...], **devices: str) -> bool:
        """Say whether a discovery packet gets through these hooks (ARP always does)."""
        if packet is None:
            return True
        for hook in hooks:
            skb = Skb(packet, {}, at=At.IP_RCV)
            skb.untracked = True
            for name, dev in devices.items():
                setattr(skb, name, dev)
            ways = traverse(ns, skb, hook)
            if all(way.end is not None for way in ways):
                self._stopped = (*self._stopped, *steps_of(ways[0].trail))
                self._missing += tuple(gap for way in ways for gap in way.missing)
                return False
        return True


def _discovery(src: Ip, dst: Ip, kind: int) -> Packet:
    return Packet(
        src=src,
        dst=dst,
        protocol=IpProtocol.ICMPV6,
        icmp_type=kind,
        ttl=255,
        length=72,
        ct_state=CtState.UNTRACKED,
    )


def _together(answers: Iterator[Answers]) -> Answers:
    macs: dict[Mac, None] = {}
    by: tuple[tuple[NetnsId, str], ...] = ()
    outside = False
    for answer in answers:
        macs.update(dict.fromkeys(answer.macs))
        by += answer.by
        outside = outside or answer.outside
    return Answers(macs=tuple(macs), by=by, outside=outside)


def _flooding(ns: Namespace, bridge: str, ingress: Interface | None) -> Iterator[Interface]:
    """Yield the ports that a broadcast leaves by."""
    for port in ns.ports.get(bridge, ()):
        settings = port.port
        if (
            not port.up
            or port is ingress
            or (settings and (settings.state != "forwarding" or not settings.bcast_flood))
        ):
            continue
        if settings and settings.isolated and ingress is not None and ingress.port and ingress.port.isolated:
            continue
        yield port
