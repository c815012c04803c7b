"""The places that packets visit, and the cables between them (NetNodeManager, NetNodeAction).

A NetNode is a network namespace (a pod's, a node's, a collected host's) or the world outside. `send` starts a packet there,
`receive` takes one in; both return passages: the packet's way through the place and, where it goes on, the Transmission to the
next. Which device a frame reaches is told by the collected cabling: veth peers, bridge ports, and one underlay to which all
devices are taken to be connected whose other end was not collected. What the infrastructure does with a frame is the
InfraShim's matter.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from tasks.skoop.inquiry import Inquiry, Seeker
from tasks.skoop.model.addr import Ip, Mac
from tasks.skoop.model.cluster import ClusterState
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.netnode import Hop, Link, LinkType, NetNodeType, Transmission
from tasks.skoop.model.packet import Frame, Packet
from tasks.skoop.model.state import Interface
from tasks.skoop.model.trace import Outcome, Place, Reason, Stage
from tasks.skoop.netstack import stack
from tasks.skoop.netstack.conntrack import Flow
from tasks.skoop.netstack.namespace import Answers, Namespace
from tasks.skoop.netstack.nftables.link_hooks import EGRESS, INGRESS, on_device
from tasks.skoop.netstack.skb import At, Exit, Response, Skb
from tasks.skoop.netstack.stack import ANYBODY, User
from tasks.skoop.stacked import IPVLANS, STACKED, Lost, Reached, Stacks

EXTERNAL = "external"
_UPLINK_KINDS = {"", "veth", "bond", "team", "vlan"}


class Passage(Struct, frozen=True, gc=False, kw_only=True):
    """One way through one NetNode; `transmission` is None where it ends there."""

    exit: Exit
    transmission: Transmission | None = None


class NetNodeAction(Protocol):
    """What a NetNode can do with a packet."""

    id: str
    type: NetNodeType

    def send(
        self,
        packet: Packet,
        flow: Flow,
        *,
        bound: bool = False,
        connected: bool = False,
        answer: bool = False,
        oif: str = "",
        user: User = ANYBODY,
    ) -> tuple[Passage, ...]:
        """Send a packet from a socket of this place; unless `bound`, its kernel chooses the source address.

        `oif` is the device that the socket is bound to.
        """

    def receive(
        self, arriving: Transmission, flow: Flow, *, answer: bool = False, path_mtu: int = 0, overhead: int = 0
    ) -> tuple[Passage, ...]:
        """Take in what a link brings."""

    def respond(self, response: Response, flow: Flow) -> tuple[Passage, ...]:
        """Send what the place's kernel itself answers."""


class Cabling:
    """Which device is connected with which (implements the netstack's Wire)."""

    def __init__(self, state: ClusterState) -> None:
        self.state = state
        self._namespaces: dict[NetnsId, Namespace] = {}
        self._answers: dict[tuple[str, str, str, str | None, int], Answers] = {}
        self._reaches: dict[tuple[str, str, str, int], bool] = {}
        self.stacks = Stacks(state.netns)
        self.one_way = any(
            (link.bridge is not None and link.bridge.vlan_filtering)
            or (link.kind == "macvlan" and link.mode == "passthru")
            or (link.port is not None and not link.port.learning)
            for netns in state.netns.values()
            for link in netns.interfaces
        )
        self.underlay: tuple[tuple[NetnsId, Interface], ...] = tuple(self._uplinks())
        self._uplink_names = frozenset((netns, link.name) for netns, link in self.underlay)
        self._uplink_by_ip = {address.ip: (netns, link) for netns, link in self.underlay for address in link.addresses}
        self._uplink_by_mac = {(link.mac, link.vlan_id or 0): (netns, link) for netns, link in self.underlay}

    def namespace(self, netns: NetnsId) -> Namespace | None:
        """Return the compiled namespace, or None if it was not collected."""
        if netns not in self._namespaces:
            state = self.state.netns.get(netns)
            if state is None:
                return None
            self._namespaces[netns] = Namespace(state, self)
        return self._namespaces[netns]

    def adopt(self, namespaces: Iterable[Namespace]) -> None:
        """Take over namespaces compiled for another state, those whose own state is the same object in this one.

        They ask this cabling from now on: what they were compiled for must not be walked any more.
        """
        for namespace in namespaces:
            if self.state.netns.get(namespace.id) is namespace.state:
                namespace.wire = self
                self._namespaces[namespace.id] = namespace

    def namespaces(self) -> Iterator[Namespace]:
        """Yield every collected namespace, compiled."""
        for netns in self.state.netns:
            namespace = self.namespace(netns)
            if namespace is not None:
                yield namespace

    def _uplinks(self) -> Iterator[tuple[NetnsId, Interface]]:
        for netns, state in self.state.netns.items():
            if netns.startswith("pod/"):
                continue
            for link in state.interfaces:
                carries = link.kind in _UPLINK_KINDS and link.name != "lo"
                if not carries or link.peer is not None or (link.kind == "veth" and link.master) or not link.addresses:
                    continue
                if link.kind not in STACKED or self._on_a_wire_of_unknown_end(netns, link):
                    yield netns, link

    def _on_a_wire_of_unknown_end(self, netns: NetnsId, link: Interface) -> bool:
        """Say whether a bond or VLAN device stands on a device whose other end was not collected."""
        state = self.state.netns[netns]
        if link.kind == "vlan":
            lower = state.interface(link.lower) if link.lower else None
            under = [lower] if lower is not None else []
        else:
            under = [one for one in state.interfaces if one.master == link.name]
        return any(
            self._on_a_wire_of_unknown_end(netns, one) if one.kind in STACKED else one.kind == "" and one.peer is None
            for one in under
        )

    def is_uplink(self, netns: NetnsId, dev: str) -> bool:
        """Say whether a device leads to the underlay."""
        return (netns, dev) in self._uplink_names

    def owner(self, ip: Ip) -> tuple[NetnsId, Interface] | None:
        """Return the collected device on the underlay that carries the address."""
        return self._uplink_by_ip.get(ip)

    def by_mac(self, mac: str, vlan: int = 0) -> tuple[NetnsId, Interface] | None:
        """Return the collected device on the underlay that has the link-layer address in a VLAN of it."""
        return self._uplink_by_mac.get((Mac(mac), vlan))

    # --- the Wire -------------------------------------------------------------------------------------------------

    def resolve(self, netns: NetnsId, dev: str, target: Ip, sender: Ip | None, vlan: int = 0) -> Answers:
        """Ask for the link-layer address of `target` on the link of `dev`, in a VLAN of it."""
        slot = (netns, dev, target, sender, vlan)
        found = self._answers.get(slot)
        if found is None:
            found = self._answers[slot] = Inquiry(self, target, sender).ask_from(netns, dev, vlan)
        return found

    def reaches(self, netns: NetnsId, dev: str, mac: Mac, vlan: int = 0) -> bool:
        """Say whether a frame sent out of `dev` can find a device with that address."""
        slot = (netns, dev, mac, vlan)
        found = self._reaches.get(slot)
        if found is None:
            found = self._reaches[slot] = Seeker(self, mac).leaves(netns, dev, vlan)
        return found

    def vteps(self, netns: NetnsId, dev: str, mac: Mac) -> tuple[Ip, ...]:
        """Return the far ends of a vxlan device behind which there is a device with that address."""
        return Seeker(self, mac).far_ends(netns, dev)

    def l3s_above(self, netns: NetnsId, dev: str, ip: Ip) -> tuple[NetnsId, str] | None:
        """Return the ipvlan device of mode l3s on `dev` that carries the address."""
        if not self.stacks.stacked:
            return None
        for at, link in self.stacks.above((netns, dev), IPVLANS):
            if link.mode == "l3s" and link.up and any(address.ip == ip for address in link.addresses):
                return at
        return None


class StackNode:
    """A NetNode that is a network namespace: the simulator decides."""

    def __init__(self, namespace: Namespace, cabling: Cabling) -> None:
        self.id = str(namespace.id)
        self.type = NetNodeType.POD if self.id.startswith("pod/") else NetNodeType.NODE
        if self.id.startswith("host/"):
            self.type = NetNodeType.EXTERNAL
        self.namespace = namespace
        self._cabling = cabling

    def send(
        self,
        packet: Packet,
        flow: Flow,
        *,
        bound: bool = False,
        connected: bool = False,
        answer: bool = False,
        oif: str = "",
        user: User = ANYBODY,
    ) -> tuple[Passage, ...]:
        """Send a packet from a socket of this namespace."""
        exits = stack.send(
            self.namespace, packet, flow, bound=bound, connected=connected, answer=answer, oif=oif, user=user
        )
        return self._onward(exits)

    def respond(self, response: Response, flow: Flow) -> tuple[Passage, ...]:
        """Send what the kernel itself answers."""
        return self._onward(stack.respond(self.namespace, response, flow))

    def receive(
        self, arriving: Transmission, flow: Flow, *, answer: bool = False, path_mtu: int = 0, overhead: int = 0
    ) -> tuple[Passage, ...]:
        """Receive a frame on the device that the transmission names."""
        exits = stack.receive(
            self.namespace,
            arriving.device,
            arriving.frame,
            flow,
            answer=answer,
            path_mtu=path_mtu,
            overhead=overhead,
            entry=arriving.entry,
        )
        return self._onward(exits)

    def _onward(self, exits: tuple[Exit, ...]) -> tuple[Passage, ...]:
        return tuple(passage for way in exits for passage in self._pass(way))

    def _pass(self, way: Exit) -> Iterator[Passage]:
        if way.emit is None:
            yield Passage(exit=way)
            return
        here = (self.namespace.id, way.emit.dev)
        if way.emit.to is not None:
            there, entry = way.emit.to, way.emit.entry
            crossing = _crossing(self.id, here[1], LinkType.VETH, *there, way.emit.frame)
            yield Passage(exit=way, transmission=replace(crossing, entry=entry))
            return
        uplink = self.namespace.links[here[1]].kind in STACKED and self._cabling.is_uplink(*here)
        below = Reached(here, way.emit.frame) if uplink else self._cabling.stacks.down(here, way.emit.frame)
        if isinstance(below, Lost):
            yield Passage(exit=self._lost(way, below))
            return
        for after, frame in self._crossed(way, below, EGRESS):
            yield from [Passage(exit=after)] if after.end else self._leave(after, replace(below, frame=frame))

    def _leave(self, way: Exit, below: Reached) -> Iterator[Passage]:
        if below.arrived or below.entry:
            yield from self._arrive(way, LinkType.VETH, below)
            return
        link = self._cabling.stacks.link(below.at)
        if link.peer is not None:
            yield from self._arrive(way, LinkType.VETH, Reached(link.peer, below.frame))
            return
        yield self._to_underlay(way, below, link)

    def _crossed(self, way: Exit, reached: Reached, hook: str) -> Iterator[tuple[Exit, Frame]]:
        """Let what stands at the ingress or egress of devices below a stacked one see the frame."""
        todo = [(way, reached.frame)]
        for netns, dev in reached.passed:
            ns = self._cabling.namespace(netns)
            if ns is None or not ns.base_chains.on_link("netdev", hook):
                continue
            todo = [
                (skb.exit(), replace(frame, packet=skb.packet))
                for one, frame in todo
                for skb in ([_copy(one)] if one.end else on_device(ns, _copy(one, frame), dev, hook))
            ]
        yield from todo

    def _to_underlay(self, way: Exit, below: Reached, link: Interface) -> Passage:
        netns, dev = below.at
        frame = below.frame
        if not self._cabling.is_uplink(netns, dev):
            return Passage(exit=_nowhere(self.namespace, way, link))
        vlan = link.vlan_id or frame.vlan
        there = self._cabling.by_mac(frame.dst_mac, vlan) if frame.dst_mac else None
        if there is None:  # a router or host that was not collected: the fabric goes by the destination address
            there = self._cabling.owner(frame.packet.dst)
        if there is None:
            hop = Hop(NetNodeType.EXTERNAL, f"{EXTERNAL}/{frame.packet.dst}")
            crossing = Link(
                type=LinkType.EXTERNAL,
                source=self.id,
                destination=hop.id,
                packet=frame.packet,
                source_attributes={"device": dev},
            )
            return Passage(exit=way, transmission=Transmission(next_hop=hop, link=crossing, frame=frame))
        end = there[1]
        arriving = Frame(frame.packet, frame.src_mac, end.mac)
        return Passage(exit=way, transmission=_crossing(self.id, dev, LinkType.INFRA, there[0], end.name, arriving))

    def _arrive(self, way: Exit, kind: LinkType, at: Reached) -> Iterator[Passage]:
        """Take the frame up at the other end to the device whose host gets it."""
        assert way.emit is not None
        top = at if at.entry else self._cabling.stacks.up(at.at, at.frame)
        if isinstance(top, Lost):
            yield Passage(exit=self._lost(way, top))
            return
        for after, frame in self._crossed(way, top, INGRESS) if top is not at else [(way, top.frame)]:
            crossing = _crossing(self.id, way.emit.dev, kind, *top.at, frame)
            crossing = replace(crossing, entry=top.entry) if top.entry else crossing
            yield Passage(exit=after) if after.end else Passage(exit=after, transmission=crossing)

    def _lost(self, way: Exit, lost: Lost) -> Exit:
        ns = self._cabling.namespace(lost.at[0]) or self.namespace
        skb = _copy(replace(way, emit=None))
        outcome = Outcome.UNKNOWN if lost.missing else Outcome.DROPPED
        if lost.missing:
            skb.missing = (*way.missing, lost.missing)
        return skb.finish(outcome, lost.reason, ns.place(Stage.LINK, dev=lost.at[1]), lost.detail).exit()


def _crossing(source: str, dev: str, kind: LinkType, netns: NetnsId, end: str, frame: Frame) -> Transmission:
    node = NetNodeType.POD if netns.startswith("pod/") else NetNodeType.NODE
    link = Link(
        type=kind,
        source=source,
        destination=netns,
        packet=frame.packet,
        source_attributes={"device": dev},
        destination_attributes={"device": end},
    )
    return Transmission(next_hop=Hop(node, netns), link=link, frame=frame, device=end)


def _nowhere(ns: Namespace, way: Exit, link: Interface) -> Exit:
    """The device's other end is not known: say so instead of guessing."""
    skb = _copy(way)
    place = ns.place(Stage.LINK, dev=link.name, key="peer")
    skb.missing = (*way.missing, f"{ns.id}: the other end of {link.name}")
    detail = f"where {link.name} leads to was not collected"
    return skb.finish(Outcome.UNKNOWN, Reason.MISSING_STATE, place, detail).exit()


def _copy(way: Exit, frame: Frame | None = None) -> Skb:
    """Return a packet, in this frame, that goes on from where this way has come to."""
    skb = Skb(way.packet if frame is None else frame.packet, way.flow, at=At.DEV_XMIT)
    if frame is not None:
        skb.src_mac, skb.dst_mac, skb.vlan = frame.src_mac, frame.dst_mac, frame.vlan
    skb.end, skb.emit, skb.redraw = way.end, way.emit, way.redraw
    skb.trail, skb.probability, skb.assumed, skb.missing = way.trail, way.probability, way.assumed, way.missing
    skb.path_mtu, skb.overhead = way.path_mtu, way.overhead
    return skb


class ExternalNode:
    """The world outside of what was collected: hosts that are taken to send, and to receive what is for them."""

    type = NetNodeType.EXTERNAL

    def __init__(self, node_id: str, cabling: Cabling) -> None:
        self.id = node_id
        self._cabling = cabling

    def send(
        self,
        packet: Packet,
        flow: Flow,
        *,
        bound: bool = False,
        connected: bool = False,
        answer: bool = False,
        oif: str = "",
        user: User = ANYBODY,
    ) -> tuple[Passage, ...]:
        """Let an unknown host send: known only if the destination is a collected host's own address."""
        del bound, connected, answer, oif, user
        skb = Skb(packet, flow, at=At.IP_LOCAL_OUT)
        there = self._cabling.owner(packet.dst)
        place = _outside(self.id)
        skb.step(place, "send", "from outside")
        if there is None:
            skb.missing = (f"{self.id}: its routes",)
            detail = f"how {packet.src} reaches {packet.dst} is not known"
            return (Passage(exit=skb.finish(Outcome.UNKNOWN, Reason.MISSING_STATE, place, detail).exit()),)
        netns, link = there
        frame = Frame(packet, Mac(""), link.mac)
        skb.assumed = (f"{packet.src} reaches {packet.dst}",)
        return (
            Passage(
                exit=skb.exit(),
                transmission=_crossing(self.id, "", LinkType.INFRA, netns, link.name, frame),
            ),
        )

    def respond(self, response: Response, flow: Flow) -> tuple[Passage, ...]:
        """Answer like any host."""
        return self.send(response.packet, flow)

    def receive(
        self, arriving: Transmission, flow: Flow, *, answer: bool = False, path_mtu: int = 0, overhead: int = 0
    ) -> tuple[Passage, ...]:
        """Receive: an answer reaches the host that asked; what a first packet finds there is not known."""
        skb = Skb(arriving.frame.packet, flow, at=At.IP_RCV)
        skb.path_mtu, skb.overhead = path_mtu, overhead
        place = _outside(self.id)
        skb.step(place, "recv", "outside")
        if answer:
            done = skb.finish(Outcome.DELIVERED, Reason.NONE, place, "outside", action="deliver")
        else:
            skb.missing = (f"{self.id}: not collected",)
            detail = f"{arriving.frame.packet.dst} is outside of what was collected"
            done = skb.finish(Outcome.UNKNOWN, Reason.MISSING_STATE, place, detail)
        return (Passage(exit=done.exit()),)


def _outside(node_id: str) -> Place:
    return Place(netns=NetnsId(node_id), stage=Stage.INFRA, key=node_id)


class NetNodeManager:
    """Makes the NetNodes and keeps them."""

    def __init__(self, state: ClusterState) -> None:
        self.cabling = Cabling(state)
        self._nodes: dict[str, NetNodeAction] = {}

    def get(self, node_id: str) -> NetNodeAction:
        """Return the NetNode of an id: a namespace's, or the outside where none of that id was collected."""
        if node_id not in self._nodes:
            namespace = self.cabling.namespace(NetnsId(node_id))
            if namespace is not None:
                self._nodes[node_id] = StackNode(namespace, self.cabling)
            else:
                self._nodes[node_id] = ExternalNode(node_id, self.cabling)
        return self._nodes[node_id]
