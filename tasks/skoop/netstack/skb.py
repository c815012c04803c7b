"""The packet on its way through one namespace, and what becomes of it there.

`Skb` is the walk's working copy (named for struct sk_buff): mutable inside one walk, cloned where ways part, never shared.
Everything that leaves a namespace (`Exit`) is immutable.
"""

from collections.abc import Callable, Iterable
from enum import Enum, auto

from msgspec import Struct
from msgspec.structs import replace

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.packet import Frame, Packet
from tasks.skoop.model.state import Socket
from tasks.skoop.model.trace import IcmpError, Outcome, Place, Reason, Step
from tasks.skoop.netstack.conntrack import Conn, Flow
from tasks.skoop.netstack.fib import Found, Leg
from tasks.skoop.netstack.xtables.api import ConnectionView, SentBy

Trail = tuple["Trail", Step] | None
"""Steps as a chain from the last to the first, so that ways that part share their beginning."""


def steps_of(trail: Trail) -> tuple[Step, ...]:
    """Return the steps in order."""
    steps: list[Step] = []
    while trail is not None:
        trail, step = trail
        steps.append(step)
    return tuple(reversed(steps))


class At(Enum):
    """Where in the stack the packet is next, by the kernel's function names."""

    NETIF_RECEIVE = auto()

    __hash__ = object.__hash__  # equal only to itself; Enum's own hash is computed in Python for every packet

    IP_RCV = auto()
    IP_RCV_FINISH = auto()
    IP_LOCAL_DELIVER = auto()
    IP_FORWARD = auto()
    IP_LOCAL_OUT = auto()
    IP_OUTPUT = auto()
    NEIGH_OUTPUT = auto()
    DEV_XMIT = auto()
    BR_HANDLE_FRAME = auto()
    BR_FRAME_FINISH = auto()
    BR_DEV_XMIT = auto()
    VXLAN_XMIT = auto()
    IP_TUNNEL_XMIT = auto()
    WIREGUARD_XMIT = auto()


class Response(Struct, frozen=True, gc=False, kw_only=True):
    """A packet that the stack itself sends in answer (RST, ICMP error, echo reply), and the connection it belongs to (-1: none)."""

    packet: Packet
    conn: int = -1
    rather: bool = False
    """Whether `oif` is only preferred, not demanded."""
    related: bool = True
    is_reply: bool = True
    """Its direction: the other one than that of the packet that it is about (nf_conntrack_attach)."""
    port: str = ""
    """Bridge port by which it is sent as it is, past all hooks, hence not un-NATed (nf_send_reset, for what a bridge brought)."""
    macs: tuple[str, str] | None = None
    """Its source and destination address there."""
    by_socket: bool = True
    """Whether a socket of the kernel's sends it; none does for what REJECT forges (nf_send_reset)."""
    oif: str = ""
    """The device that its route is bound to (the VRF that the packet came in by)."""


class End(Struct, frozen=True, gc=False, kw_only=True):
    """The packet's way ended in this namespace."""

    outcome: Outcome
    reason: Reason = Reason.NONE
    place: Place | None = None
    detail: str = ""
    socket: Socket | None = None
    error: IcmpError | None = None
    response: Response | None = None
    oif: str = ""
    """The device that the socket is bound to from now on: SO_BINDTODEVICE, or the VRF of a connection (inet_request_bound_dev_if)."""


class Emit(Struct, frozen=True, gc=False, kw_only=True):
    """The packet leaves by this device."""

    dev: str
    frame: Frame
    next_hop: Ip | None = None
    to: tuple[NetnsId, str] | None = None
    """The device of another namespace that takes it, where the stack itself hands it over (ipvlan l3s)."""
    entry: str = ""


class Exit(Struct, frozen=True, gc=False, kw_only=True):
    """One way through a namespace: it ends here (`end`) or goes on over a link (`emit`).

    `path_mtu` is the largest IP packet in bytes that would pass all devices so far without being split (0: no device yet);
    `overhead` what tunnels have added; `redraw`: had the packet been lost here, a retry would have drawn lots again.
    """

    probability: float
    packet: Packet
    trail: Trail
    flow: Flow
    emit: Emit | None = None
    end: End | None = None
    missing: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    path_mtu: int = 0
    overhead: int = 0
    redraw: bool = False


class Skb:
    """One packet inside one namespace."""

    __slots__ = (
        "answer",
        "assumed",
        "at",
        "bridge",
        "budget",
        "conn",
        "dst_mac",
        "emit",
        "end",
        "flow",
        "found",
        "frame_dst",
        "gid",
        "hook_out",
        "in_dev",
        "ipvs",
        "is_reply",
        "kept",
        "leg",
        "local",
        "local_route",
        "missing",
        "next_hop",
        "originated",
        "out_dev",
        "overhead",
        "packet",
        "path_mtu",
        "phys_in",
        "phys_out",
        "pre_done",
        "probability",
        "redraw",
        "sent_by",
        "slave",
        "src_mac",
        "stolen",
        "tproxy",
        "trail",
        "uid",
        "untracked",
        "view",
        "vlan",
        "wrapped_by",
        "zone",
    )

    def __init__(self, packet: Packet, flow: Flow, *, at: At) -> None:
        self.packet = packet
        self.flow = flow
        self.at = at
        self.in_dev = ""
        self.out_dev = ""
        self.phys_in = ""
        self.phys_out = ""
        self.bridge = ""
        self.src_mac = ""
        self.dst_mac = ""
        self.conn = -1
        self.is_reply = False
        self.untracked = False
        self.zone = 0
        self.found: Found | None = None
        self.leg: Leg | None = None
        self.next_hop: Ip | None = None
        self.local = False  # made by a socket of this namespace
        self.hook_out = ""  # the device as the hook was entered (nf_hook_state): rerouting does not change what -o sees
        self.kept = False  # came back within this host (lo, a tunnel to itself): the route found is kept (skb_dst)
        self.originated = False  # made by this namespace's kernel on its own (tunnel, ICMP error)
        self.local_route = False  # its destination was found to be local before it was sent over lo
        self.pre_done = False  # br_netfilter has already called PREROUTING (ip_sabotage_in)
        self.frame_dst = ""  # destination address of the frame that a bridge took in
        self.ipvs = False  # IPVS has seen it in this namespace (ipvs_property)
        self.stolen = False  # a hook took it over (NF_STOLEN): what comes next is `at`
        self.answer = False  # not the first packet of its flow: its socket is the walk's own
        self.probability = 1.0
        self.trail: Trail = None
        self.missing: tuple[str, ...] = ()
        self.assumed: tuple[str, ...] = ()
        self.path_mtu = 0
        self.overhead = 0
        self.redraw = False
        self.vlan = 0  # the VLAN that the frame is in; 0: none
        self.tproxy: tuple[Ip, int] | None = None  # given to the socket that listens there (skb_sk_is_prefetched)
        self.sent_by = SentBy.NOBODY
        self.uid: int | None = None  # of the process that sent it, None: not known
        self.gid: int | None = None
        self.wrapped_by = ""  # the tunnel device that made this packet (skb->dev of what it sends)
        self.slave = ""  # the device below the VRF that in_dev is (IP6CB/IPCB iif)
        self.view: tuple[Conn, bool, ConnectionView] | None = None  # what rules were last shown of the connection
        self.budget = 640
        self.end: End | None = None
        self.emit: Emit | None = None

    def clone(self) -> "Skb":
        """Return an independent copy for a way that parts here."""
        twin = Skb.__new__(Skb)
        for name in Skb.__slots__:
            setattr(twin, name, getattr(self, name))
        return twin

    def step(self, place: Place, action: str, detail: str = "") -> None:
        """Record a step with the packet as it is now."""
        self.trail = (self.trail, Step(place=place, action=action, detail=detail, packet=self.packet))

    def record(self, steps: tuple[Step, ...]) -> None:
        """Record steps that were made elsewhere."""
        for step in steps:
            self.trail = (self.trail, step)

    def taken_over(self) -> bool:
        """Say, once, whether a hook took the packet over; it then goes on where that hook has put it (`at`)."""
        taken, self.stolen = self.stolen, False
        return taken

    def narrow(self, mtu_bytes: int) -> None:
        """Account for a device of that MTU on the way."""
        room = mtu_bytes - self.overhead
        if not self.path_mtu or room < self.path_mtu:
            self.path_mtu = room

    def connection(self, netns: str) -> Conn | None:
        """Return the connection that conntrack attached to the packet."""
        return self.flow[netns][self.conn] if self.conn >= 0 else None

    def finish(
        self,
        outcome: Outcome,
        reason: Reason,
        place: Place,
        detail: str = "",
        *,
        action: str = "drop",
        **more: object,
    ) -> "Skb":
        """End the way here; `more` goes into the End."""
        self.step(place, action, detail)
        response = more.get("response")
        if self.slave and isinstance(response, Response):  # icmp_send, tcp_v4_send_reset: the answer stays in the VRF
            more["response"] = replace(response, oif=self.in_dev)
        self.end = End(outcome=outcome, reason=reason, place=place, detail=detail, **more)  # type: ignore[arg-type]  # fields of End
        return self

    def unknown(self, missing: str, place: Place, detail: str = "") -> "Skb":
        """End the way here because state is missing that would have to be known."""
        self.missing = (*self.missing, missing)
        detail = detail or f"not collected: {missing}"
        return self.finish(Outcome.UNKNOWN, Reason.MISSING_STATE, place, detail, action="unknown")

    def exit(self) -> Exit:
        """Return what leaves the namespace."""
        return Exit(
            probability=self.probability,
            packet=self.packet,
            trail=self.trail,
            flow=self.flow,
            emit=self.emit,
            end=self.end,
            missing=self.missing,
            assumed=self.assumed,
            path_mtu=self.path_mtu,
            overhead=self.overhead,
            redraw=self.redraw,
        )


def onward(ways: Iterable[Skb], step: Callable[[Skb], list[Skb]]) -> list[Skb]:
    """Take each way a step further, but for those that have ended or that a hook has taken over."""
    return [one for way in ways for one in ([way] if way.end is not None or way.stolen else step(way))]
