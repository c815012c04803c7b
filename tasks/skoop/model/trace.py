"""What a walk leaves behind: steps, each with its place, and how it ended."""

from enum import StrEnum

from msgspec import Struct

from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.packet import Packet


class Outcome(StrEnum):
    """How a packet's walk ended (DESIGN.md, netstack: the contract)."""

    DELIVERED = "delivered"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    DROPPED = "dropped"
    LOOPED = "looped"
    UNKNOWN = "unknown"


class View(StrEnum):
    """What the client's program sees."""

    CONNECTED = "connected"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    UNKNOWN = "unknown"


class Stage(StrEnum):
    """Which part of the stack a step belongs to."""

    SOCKET = "socket"
    ROUTE = "route"
    NETFILTER = "netfilter"
    CONNTRACK = "conntrack"
    NEIGHBOUR = "neighbour"
    LINK = "link"
    BRIDGE = "bridge"
    TUNNEL = "tunnel"
    SYSCTL = "sysctl"
    MTU = "mtu"
    IPVS = "ipvs"
    INFRA = "infra"


class Place(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Where in the collected state something is decided, named as the user would see it in his own tools.

    For netfilter: `backend` (legacy, nft), `family`, `hook` (PREROUTING …), `table`, `chain`, `rule` (position from 1; 0 = the
    chain's policy or end). `key` names the object of other stages: a sysctl's path, a route's prefix, a neighbour's address,
    a MAC, a socket. `text` is the line of the user's dump.
    """

    netns: NetnsId
    stage: Stage
    dev: str = ""
    backend: str = ""
    family: int = 0
    hook: str = ""
    table: str = ""
    chain: str = ""
    rule: int = 0
    key: str = ""
    text: str = ""

    def __str__(self) -> str:
        if self.stage == Stage.NETFILTER:
            where = f"{self.table}/{self.chain}" + (f"#{self.rule}" if self.rule else " policy")
            return f"{self.netns} {where}"
        what = self.key or self.dev
        return f"{self.netns} {self.stage} {what}".rstrip()


class Reason(StrEnum):
    """Why a packet ended, where the kernel has a name for it we use that (enum skb_drop_reason, in lower case)."""

    NONE = ""
    NETFILTER_DROP = "netfilter_drop"
    NETFILTER_REJECT = "netfilter_reject"
    IP_RPFILTER = "ip_rpfilter"
    IP_INADDRERRORS = "ip_inaddrerrors"
    IP_INNOROUTES = "ip_innoroutes"
    IP_LOCALNET = "ip_localnet"
    IP_LOCAL_SOURCE = "ip_local_source"
    IP_INVALID_SOURCE = "ip_invalid_source"
    IP_INVALID_DEST = "ip_invalid_dest"
    ROUTE_BLACKHOLE = "route_blackhole"
    ROUTE_UNREACHABLE = "route_unreachable"
    ROUTE_PROHIBIT = "route_prohibit"
    NEIGH_FAILED = "neigh_failed"
    OTHERHOST = "otherhost"
    NO_SOCKET = "no_socket"
    NO_REAL_SERVER = "no_real_server"
    IPVS_DROP = "ipvs_drop"
    LISTEN_OVERFLOW = "listen_overflow"
    TTL_EXPIRED = "ip_inhdr"
    PKT_TOO_BIG = "pkt_too_big"
    PEER_MTU = "peer_mtu"
    LINK_DOWN = "link_down"
    NO_TX_TARGET = "no_tx_target"
    VXLAN_VNI_NOT_FOUND = "vxlan_vni_not_found"
    BRIDGE_STATE = "bridge_ingress_stp_state"
    BRIDGE_FORWARD = "bridge_forward"
    VLAN_FILTER = "vlan_filter"
    SWALLOWED = "swallowed"
    TUNNEL_TXINFO = "tunnel_txinfo"
    NO_TUNNEL = "no_tunnel"
    NO_PEER = "no_peer"
    MASQUERADE_NO_ADDRESS = "masquerade_no_address"
    NO_SOURCE_ADDRESS = "no_source_address"
    UNEXPECTED_REPLY = "unexpected_reply"
    ECHO_IGNORED = "echo_ignored"
    LOOP = "loop"
    BOUND = "bound"
    MISSING_STATE = "missing_state"
    UNSUPPORTED = "unsupported"


class Step(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One thing that happened to the packet.

    `action` is a stable word (recv, send, match, dnat, snat, masquerade, mark, notrack, route, neighbour, forward, bridge,
    encap, decap, deliver, drop, reject, assume …); `detail` says it in a few words, `packet` is the packet after it.
    """

    place: Place
    action: str
    detail: str = ""
    packet: Packet | None = None


class IcmpError(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """An error that came back to the sender: type, code, who sent it, the MTU it told (0: none), `local`: own kernel said so."""

    type: int
    code: int
    sender: str = ""
    mtu: int = 0
    local: bool = False
    errno: str = ""


class Walk(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One possible way of one packet, from where it started to where it ended.

    `probability` is of this way among all ways of this packet. `place` and `reason` say where and why it ended. `packet` is
    the packet as it was there. `missing` says what would have been needed where the outcome is unknown. `assumed` lists what
    was taken for granted on the way (for instance that an address answers ARP).
    """

    outcome: Outcome
    probability: float = 1.0
    steps: tuple[Step, ...] = ()
    place: Place | None = None
    reason: Reason = Reason.NONE
    detail: str = ""
    packet: Packet | None = None
    error: IcmpError | None = None
    missing: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
