"""Who on this link has the address? An ARP request or neighbour solicitation, followed to everybody who hears it.

The question leaves by a device, is flooded by bridges (within its VLAN) and by vxlan's all-zero entries, goes down and up through
stacked devices, and is answered by every namespace that has
the address there (`netstack.neighbour.answers_for`). Packet filters on the way see it, and the answer (`heard`). Answers are taken to find the way back that the question came, unless a
bridge filters by VLAN or a macvlan takes everything: then that is looked at.
"""

from collections.abc import Iterator
from typing import Protocol

from tasks.skoop.heard import IN, OUT, Filters, Said, answer, question
from tasks.skoop.model.addr import Ip, Mac, ip_version, is_multicast
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.packet import Frame, Packet
from tasks.skoop.model.packet import Protocol as IpProtocol
from tasks.skoop.model.state import FdbEntry, Interface, NeighbourState, Section
from tasks.skoop.netstack.bridge import known_port
from tasks.skoop.netstack.fib import FlowKey
from tasks.skoop.netstack.icmp import own_source
from tasks.skoop.netstack.namespace import Answers, Namespace
from tasks.skoop.netstack.neighbour import answers_for, cannot_tell
from tasks.skoop.netstack.nftables.link_hooks import EGRESS, INGRESS
from tasks.skoop.netstack.vlans import tag_of, vlan_of
from tasks.skoop.netstack.xtables.api import Hook
from tasks.skoop.stacked import BONDS, IPVLANS, MACVLANS, STACKED, Lost, Stacks

L2_TUNNELS = frozenset(("geneve", "gretap", "ip6gretap"))
_NOTHING = Packet(src=Ip("0.0.0.0"), dst=Ip("0.0.0.0"), length=0)
_ALL_ZERO = "00:00:00:00:00:00"
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

    one_way: bool
    """Whether a question may arrive whose answer does not: some bridge filters by VLAN, or a macvlan in passthru mode takes all."""

    @property
    def stacks(self) -> Stacks:
        """Which device stands on which."""

    def owner(self, ip: Ip) -> tuple[NetnsId, Interface] | None:
        """Return the collected device on the underlay that carries the address."""

    def by_mac(self, mac: str, vlan: int = 0) -> tuple[NetnsId, Interface] | None:
        """Return the collected device on the underlay that has the link-layer address in a VLAN of it."""


class Inquiry:
    """One question: who has `target`? asked in the name of `sender`."""

    def __init__(self, cables: Cables, target: Ip, sender: Ip | None) -> None:
        self.cables = cables
        self.target = target
        self.sender = sender
        self._seen: set[tuple[str, str, int]] = set()
        self._filters = Filters()
        self._asker: tuple[NetnsId, str] | None = None
        self._question = question(target, sender, "")

    def ask_from(self, netns: NetnsId, dev: str, vlan: int = 0) -> Answers:
        """Ask out of a device of a namespace, in a VLAN of it, and return who answers."""
        ns = self.cables.namespace(netns)
        if ns is None:
            return _NOBODY
        self._question = question(self.target, self.sender, ns.links[dev].mac if dev in ns.links else "")
        if not self._filters.sent(ns, self._question, dev):
            return self._silence()
        if self.cables.one_way and dev in ns.links:
            self._asker = (netns, dev)
        found = self._ask(netns, dev, vlan)
        if found.macs and self._is_own(ns, dev):
            return self._silence()
        bridge = dev in ns.links and ns.links[dev].kind == "bridge"  # then each port has let its answer in, or not
        if found.macs and not bridge and not self._filters.taken(ns, self._answer_by(found), dev):
            return self._silence()
        if found.macs or found.outside:
            return found
        return self._silence()

    def _is_own(self, ns: Namespace, dev: str) -> bool:
        """Say whether the asker has the address itself: an advertisement for it is not believed (ndisc_recv_na)."""
        link = ns.links.get(dev)
        return ":" in self.target and link is not None and any(one.ip == self.target for one in link.addresses)

    def _silence(self) -> Answers:
        return Answers(stopped=self._filters.stopped, missing=tuple(dict.fromkeys(self._filters.missing)))

    def _lacking(self, gap: str) -> Answers:
        """Nobody is known to answer here, but somebody may: what is missing is told if no other answer comes."""
        self._filters.missing = (*self._filters.missing, gap)
        return _NOBODY

    def _ask(self, netns: NetnsId, dev: str, vlan: int = 0) -> Answers:
        ns = self.cables.namespace(netns)
        link = ns.links.get(dev) if ns else None
        if ns is None or link is None or not link.up or (netns, dev, vlan) in self._seen:
            return _NOBODY
        self._seen.add((netns, dev, vlan))
        if not self._filters.at_device(ns, self._question, dev, EGRESS):
            return _NOBODY
        found = self._beyond(ns, link, vlan)
        if found.macs and not self._filters.at_device(ns, self._answer_by(found), dev, INGRESS):
            return _NOBODY
        return found

    def _answer_by(self, found: Answers) -> Said:
        return answer(self._question, self.target, self.sender, found.macs[0])

    def _beyond(self, ns: Namespace, link: Interface, vlan: int) -> Answers:
        """Follow the question past a device that sends it."""
        netns, dev = ns.id, link.name
        if link.kind == "bridge":
            vid = vlan_of(link, link, vlan)
            if vid is None:
                return _NOBODY
            return _together(
                self._out_of_bridge(ns, link, port, tag)
                for port in _flooding(ns, dev, None)
                if (tag := tag_of(link, port, vid)) is not None
            )
        if link.vxlan is not None or link.kind in L2_TUNNELS:
            self._lacking_far(ns, link)
            return _together(self._ask_far(ns, link, far) for far in far_devices(self.cables, ns, link, None))
        if link.kind in STACKED and not self.cables.is_uplink(netns, dev):
            return self._ask_below(netns, link, vlan) if link.carrier else _NOBODY
        if link.peer is not None:
            return self._hear(*link.peer, vlan)
        if not self.cables.is_uplink(netns, dev):
            return _NOBODY
        here = (netns, dev)
        found = _together(
            self._hear(other, there.name)
            for other, there in self.cables.underlay
            if (other, there.name) != here and there.vlan_id == link.vlan_id
        )
        if not found.macs and self.cables.owner(self.target) is None:
            return Answers(outside=True)
        return found

    def _out_of_bridge(self, ns: Namespace, bridge: Interface, port: Interface, vlan: int) -> Answers:
        """The bridge's own host asks by a port; what comes back there goes up."""
        if not self._filters.on_bridge(ns, self._question, *OUT, out_port=port.name):
            return _NOBODY
        found = self._ask(ns.id, port.name, vlan)
        if found.macs and not self._filters.on_bridge(ns, self._answer_by(found), *IN, in_port=port.name):
            return _NOBODY
        through = port.name if ns.bridge_calls_iptables(bridge.name, 6) and not vlan else ""
        if found.macs and not self._filters.taken(ns, self._answer_by(found), bridge.name, port=through):
            return _NOBODY
        return found

    def _lacking_far(self, ns: Namespace, link: Interface) -> None:
        """Note which far ends of a tunnel are not known: they may answer all the same."""
        if link.vxlan is not None and (gap := ns.gap(Section.FDB)) is not None:
            self._lacking(gap)
        for ip in _far_ips(ns, link, None):
            if is_multicast(ip) or any(there.has_address(ip) for there in self.cables.namespaces()):
                continue
            gaps = [gap for there in self.cables.namespaces() if (gap := there.gap(Section.LINKS)) is not None]
            if gaps or self._may_exist(ns, ip):
                self._lacking(gaps[0] if gaps else f"the host {ip}: not collected")

    def _may_exist(self, ns: Namespace, ip: Ip) -> bool:
        """Say whether a host of which nothing is known may be there: nobody is where no route leads or no hop answers."""
        found = ns.routers[ip_version(ip)].lookup(FlowKey(dst=ip), ignore_linkdown=ns.ignore_linkdown)
        for leg in found.legs if found is not None and not found.errno else ():
            known = ns.neighbour(leg.dev, leg.nexthop.via or ip)
            heard = Inquiry(self.cables, leg.nexthop.via or ip, None).ask_from(ns.id, leg.dev)
            if (known and known.mac) or heard.macs or heard.outside or heard.missing:
                return True
        return False

    def _ask_far(self, ns: Namespace, link: Interface, far: tuple[NetnsId, str]) -> Answers:
        """Ask at the far end of a tunnel: both hosts' packet filters see the outer packets, there and back."""
        there = self.cables.namespace(far[0])
        if there is None:
            return _NOBODY
        out, back = _outer(ns, link, there), _outer(there, there.links[far[1]], ns)
        if not self._outer_passes(ns, there, out):
            return _NOBODY
        found = self._hear(*far)
        if found.macs and not self._outer_passes(there, ns, back):
            return _NOBODY
        return found

    def _outer_passes(self, ns: Namespace, there: Namespace, outer: Packet | None) -> bool:
        return self._filters.shown(ns, outer, OUT, tracked=True) and self._filters.shown(there, outer, IN, tracked=True)

    def _ask_below(self, netns: NetnsId, link: Interface, vlan: int) -> Answers:
        """A stacked device asks: its siblings hear where its mode says so, then those beyond the lower device."""
        stacks, here = self.cables.stacks, (netns, link.name)
        if link.kind in BONDS:
            return _together(self._ask(*slave, vlan) for slave in stacks.slaves(here)[:1])
        below = stacks.below(here)
        if below is None:
            return self._lacking_below(netns, link)
        if link.kind == "vlan":
            return self._ask(*below, link.vlan_id or 0)
        for ns in self.cables.namespaces():  # any of these may have a device on the same lower one
            if (gap := ns.gap(Section.LINKS)) is not None:
                self._lacking(gap)
        heard: tuple[tuple[NetnsId, str], ...] = ()
        if link.kind in IPVLANS or link.mode == "bridge":
            siblings = stacks.above(below, IPVLANS | MACVLANS)
            heard = tuple(at for at, one in siblings if at != here and (link.kind in IPVLANS or one.mode == "bridge"))
        return _together(iter((*(self._hear(*at) for at in heard), self._ask(*below, vlan))))

    def _lacking_below(self, netns: NetnsId, link: Interface) -> Answers:
        """Say that it is not known what a device stands on, and why."""
        where = link.lower_at[0] if link.lower_at is not None else netns
        ns = self.cables.namespace(where)
        gap = ns.gap(Section.LINKS) if ns is not None else f"{where}: not collected"
        return self._lacking(gap or f"{netns}: what {link.name} stands on")

    def _hear(self, netns: NetnsId, dev: str, vlan: int = 0) -> Answers:
        """Let a device receive the question: its host answers, or its bridge passes it on, or those that stand on it, or all."""
        ns = self.cables.namespace(netns)
        if ns is None:
            return self._lacking(f"{netns}: not collected")
        if (gap := ns.gap(Section.LINKS)) is not None:
            return self._lacking(gap)
        link = ns.links.get(dev)
        if link is None or not link.up or (netns, dev, vlan) in self._seen:
            return _NOBODY
        self._seen.add((netns, dev, vlan))
        if not self._filters.at_device(ns, self._question, dev, INGRESS):
            return _NOBODY
        found = self._taken_up(ns, link, vlan)
        if found.macs and not self._filters.at_device(ns, self._answer_by(found), dev, EGRESS):
            return _NOBODY
        return found

    def _taken_up(self, ns: Namespace, link: Interface, vlan: int) -> Answers:
        netns, dev = ns.id, link.name
        master = ns.links.get(link.master or "")
        if master is not None and master.kind in BONDS:
            return self._hear(netns, master.name, vlan) if link.slave_active else _NOBODY
        stacks, here = self.cables.stacks, (netns, dev)
        if vlan:
            tagged = [at for at, one in stacks.above(here, frozenset(("vlan",))) if one.vlan_id == vlan]
            if tagged or master is None or master.kind != "bridge":
                return _together(self._hear(*at) for at in tagged)
        if master is None or master.kind != "bridge":
            above = [(at, one) for at, one in stacks.above(here, IPVLANS | MACVLANS) if one.mode not in ("l3", "l3s")]
            if any(one.mode == "passthru" for _, one in above):
                return _together(self._hear(*at) for at, _ in above)
            own = self._answer_of(ns, dev, IN)
            return _together(iter((own, *(self._hear(*at) for at, _ in above))))
        return self._hear_on_bridge(ns, master, link, vlan)

    def _hear_on_bridge(self, ns: Namespace, master: Interface, link: Interface, vlan: int) -> Answers:
        if not master.up or (link.port and link.port.state != "forwarding"):
            return _NOBODY
        vid = vlan_of(master, link, vlan)
        if vid is None:
            return _NOBODY
        filtered = self._question.arp is None and ns.bridge_calls_iptables(master.name, 6) and not vlan
        dev = link.name
        if not self._filters.on_bridge(ns, self._question, Hook.PREROUTING, in_port=dev):
            return _NOBODY
        if filtered and not self._filters.shown(
            ns, self._question.packet, (Hook.PREROUTING,), in_dev=master.name, phys_in=dev
        ):
            return _NOBODY
        own = _NOBODY
        tag = tag_of(master, master, vid)
        if tag is not None and self._filters.on_bridge(ns, self._question, Hook.INPUT, in_port=dev):
            own = self._heard_by_host(ns, master, tag, port=dev if filtered else "")
            if own.macs and not self._filters.on_bridge(ns, self._answer_by(own), *OUT, out_port=dev):
                own = _NOBODY
        across = (
            self._across(ns, master, link, port, tag, filtered=filtered)
            for port in _flooding(ns, master.name, link)
            if (tag := tag_of(master, port, vid)) is not None
        )
        return _together(iter((own, *across)))

    def _heard_by_host(self, ns: Namespace, bridge: Interface, tag: int, *, port: str) -> Answers:
        """br_pass_frame_up: the host hears it by the bridge, or by a VLAN device on it."""
        if tag:
            return self._hear(ns.id, bridge.name, tag)
        if not self._filters.at_device(ns, self._question, bridge.name, INGRESS):
            return _NOBODY
        own = self._answer_of(ns, bridge.name, (Hook.INPUT,) if port else IN, port=port)
        if own.macs and not self._filters.at_device(ns, self._answer_by(own), bridge.name, EGRESS):
            return _NOBODY
        return own

    def _across(
        self, ns: Namespace, bridge: Interface, ingress: Interface, port: Interface, vlan: int, *, filtered: bool
    ) -> Answers:
        """Pass the question from port to port, and the answer back."""
        if not self._bridged(ns, self._question, bridge, ingress, port, filtered=filtered):
            return _NOBODY
        found = self._ask(ns.id, port.name, vlan)
        if not found.macs:
            return found
        said, hooks = self._answer_by(found), (Hook.PREROUTING,)
        if filtered and not self._filters.shown(ns, said.packet, hooks, in_dev=bridge.name, phys_in=port.name):
            return _NOBODY
        return found if self._bridged(ns, said, bridge, port, ingress, filtered=filtered) else _NOBODY

    def _bridged(
        self, ns: Namespace, said: Said, bridge: Interface, ingress: Interface, egress: Interface, *, filtered: bool
    ) -> bool:
        hooks = (Hook.FORWARD, Hook.POSTROUTING)
        if not self._filters.on_bridge(ns, said, *hooks, in_port=ingress.name, out_port=egress.name):
            return False
        return not filtered or self._filters.shown(
            ns,
            said.packet,
            hooks,
            in_dev=bridge.name,
            out_dev=bridge.name,
            phys_in=ingress.name,
            phys_out=egress.name,
        )

    def _answer_of(self, ns: Namespace, dev: str, inwards: tuple[Hook, ...], *, port: str = "") -> Answers:
        if (gap := cannot_tell(ns, dev, self.target)) is not None:
            return self._lacking(gap)
        mac = answers_for(ns, dev, self.target, self.sender)
        if mac is not None and self._asker and not self._comes_back(ns, dev):
            return _NOBODY
        if mac is None or not self._filters.taken(ns, self._question, dev, inwards, port=port):
            return _NOBODY
        if self._goes_astray(ns, dev):
            return _NOBODY
        found = Answers(macs=(mac,), by=((ns.id, dev),))
        return found if self._filters.sent(ns, self._answer_by(found), dev) else _NOBODY

    def _goes_astray(self, ns: Namespace, dev: str) -> bool:
        """Say whether an advertisement goes to another: it is sent like any packet (ndisc_send_na).

        The solicitation has told the asker's link-layer address, but a permanent entry does not learn (neigh_update).
        """
        if self.sender is None or self._question.arp is not None:
            return False
        entry = ns.neighbours.get((dev, self.sender))
        return entry is not None and entry.state == NeighbourState.PERMANENT and entry.mac != self._question.src_mac

    def _comes_back(self, ns: Namespace, dev: str) -> bool:
        """Say whether the answer finds the asker."""
        home = self.cables.namespace(self._asker[0]) if self._asker else None
        if home is None or self._asker is None:
            return True
        return Seeker(self.cables, home.links[self._asker[1]].mac, self._asker).leaves(ns.id, dev, 0)


def _outer(ns: Namespace, link: Interface, there: Namespace) -> Packet | None:
    """Return the outer packet from a tunnel's end to that of another namespace, None if its addresses are not certain."""
    vxlan, tunnel = link.vxlan, link.tunnel
    src = vxlan.local if vxlan else link.tunnel_local
    dst = link.tunnel_remote
    if vxlan is not None:
        entries = ns.own_fdb.get((link.name, _ALL_ZERO), ())
        dst = next((entry.dst for entry in entries if entry.dst and there.has_address(entry.dst)), None)
    if src is None and dst is not None:
        src = own_source(ns, dst)
    if src is None or dst is None:
        return None
    port = vxlan.port if vxlan else tunnel.port if tunnel else 0
    udp = vxlan is not None or link.kind == "geneve"
    return Packet(
        src=src,
        dst=dst,
        protocol=IpProtocol.UDP if udp else IpProtocol.GRE,
        sport=49152 if udp else 0,
        dport=port,
        length=100,
    )


def _together(answers: Iterator[Answers]) -> Answers:
    macs: dict[Mac, None] = {}
    by: tuple[tuple[NetnsId, str], ...] = ()
    outside = False
    for one in answers:
        if one is _NOBODY:
            continue
        macs.update(dict.fromkeys(one.macs))
        by += one.by
        outside = outside or one.outside
    return Answers(macs=tuple(macs), by=by, outside=outside) if macs or outside else _NOBODY


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


# --- where is a link-layer address, and what is at the far end of a tunnel that carries frames? ----------------------


def far_devices(
    cables: Cables, ns: Namespace, link: Interface, entries: tuple[FdbEntry, ...] | None
) -> Iterator[tuple[NetnsId, str]]:
    """Yield the devices to which a tunnel floods (or, with `entries`, to which those forwarding entries lead).

    Multicast groups reach every device that has joined the group; learning then knows the sender by its own address.
    """
    for ip in _far_ips(ns, link, entries):
        for there in cables.namespaces():
            for device in there.links.values():
                if device.up and (there.id != ns.id or device is not link) and _pairs(link, device):
                    own = device.vxlan.local if device.vxlan else device.tunnel_local
                    joined = device.vxlan is not None and device.vxlan.group == ip
                    if joined if is_multicast(ip) else there.has_address(ip) and own in (None, ip):
                        yield there.id, device.name


def _far_ips(ns: Namespace, link: Interface, entries: tuple[FdbEntry, ...] | None) -> Iterator[Ip]:
    if link.vxlan is None:
        if link.tunnel_remote is not None:
            yield link.tunnel_remote
        return
    for entry in ns.own_fdb.get((link.name, _ALL_ZERO), ()) if entries is None else entries:
        if entry.dst is not None:
            yield entry.dst


def _pairs(one: Interface, other: Interface) -> bool:
    if one.kind != other.kind:
        return False
    if one.vxlan is not None and other.vxlan is not None:
        return one.vxlan.vni == other.vxlan.vni and one.vxlan.port == other.vxlan.port
    if one.tunnel is not None and other.tunnel is not None:
        return (one.tunnel.vni, one.tunnel.port, one.tunnel.okey) == (
            other.tunnel.vni,
            other.tunnel.port,
            other.tunnel.ikey,
        )
    return False


class Seeker:
    """One question about frames: does one sent out of a device find a device with this address?"""

    def __init__(self, cables: Cables, mac: Mac, device: tuple[NetnsId, str] | None = None) -> None:
        """`device`: only that one counts, where several have the address."""
        self.cables = cables
        self.mac = mac
        self.device = device
        self._seen: set[tuple[str, str, int]] = set()

    def far_ends(self, netns: NetnsId, dev: str) -> tuple[Ip, ...]:
        """Return the addresses of the tunnel ends behind which the address is."""
        ns = self.cables.namespace(netns)
        link = ns.links.get(dev) if ns else None
        if ns is None or link is None:
            return ()
        found: dict[Ip, None] = {}
        for entry in ns.own_fdb.get((link.name, _ALL_ZERO), ()):
            for there, device in far_devices(self.cables, ns, link, (entry,)):
                if self.arrives(there, device, 0) and entry.dst is not None:
                    far = self.cables.namespace(there)
                    own = far.links[device].vxlan if far else None
                    found[(own.local if own and own.local else entry.dst) if is_multicast(entry.dst) else entry.dst] = (
                        None
                    )
        return tuple(found)

    def leaves(self, netns: NetnsId, dev: str, vlan: int) -> bool:
        """Say whether it is found beyond a device that sends."""
        ns = self.cables.namespace(netns)
        link = ns.links.get(dev) if ns else None
        if ns is None or link is None or (netns, dev, vlan) in self._seen:
            return False
        self._seen.add((netns, dev, vlan))
        if link.kind == "bridge":
            vid = vlan_of(link, link, vlan)
            return vid is not None and any(
                self.leaves(netns, port.name, tag)
                for port in self._ports(ns, link, vid)
                if port.up and (tag := tag_of(link, port, vid)) is not None
            )
        if link.vxlan is not None or link.kind in L2_TUNNELS:
            return any(self.arrives(*far, 0) for far in far_devices(self.cables, ns, link, None))
        if link.kind in STACKED and not self.cables.is_uplink(netns, dev):
            frame = Frame(_NOTHING, Mac(""), self.mac, vlan)
            bottom = self.cables.stacks.down((netns, dev), frame)
            if isinstance(bottom, Lost):
                return False
            return self.arrives(*bottom.at, 0) if bottom.arrived else self.leaves(*bottom.at, bottom.frame.vlan)
        if link.peer is None:
            return self.cables.is_uplink(netns, dev) and self.cables.by_mac(self.mac, link.vlan_id or vlan) is not None
        return self.arrives(*link.peer, vlan)

    def _ports(self, ns: Namespace, bridge: Interface, vid: int) -> tuple[Interface, ...]:
        """Return the ports by which a frame for the device leaves: of one that is sought anywhere, all."""
        known = None if self.device is None else known_port(ns, bridge, self.mac, vid)
        return tuple(ns.ports.get(bridge.name, ())) if known is None else (known,)

    def arrives(self, netns: NetnsId, dev: str, vlan: int) -> bool:
        """Say whether it is found at or behind a device that receives."""
        top = self.cables.stacks.up((netns, dev), Frame(_NOTHING, Mac(""), self.mac, vlan))
        ns = self.cables.namespace(netns)
        if isinstance(top, Lost) or ns is None:
            return False
        there = self.cables.namespace(top.at[0])
        end = there.links.get(top.at[1]) if there else None
        if there is None or end is None:
            return False
        master = there.links.get(end.master or "")
        if master is None or master.kind != "bridge":
            return end.mac == self.mac and self.device in (None, top.at)
        vid = vlan_of(master, end, top.frame.vlan)
        if vid is None:
            return False
        if master.mac == self.mac:
            return tag_of(master, master, vid) is not None
        return any(
            self.leaves(there.id, port.name, tag)
            for port in self._ports(there, master, vid)
            if port.name != end.name and (tag := tag_of(master, port, vid)) is not None
        )
