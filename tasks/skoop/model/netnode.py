"""The network as a graph of places that packets visit (KubeSkoop's NetNode, Link, Hop, Transmission, Action)."""

from enum import StrEnum

from msgspec import Struct

from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.packet import Frame, Packet
from tasks.skoop.model.suspicion import Suspicion


class NetNodeType(StrEnum):
    """What kind of place a NetNode is."""

    POD = "pod"
    NODE = "node"
    EXTERNAL = "external"
    INFRA = "infra"


class LinkType(StrEnum):
    """What carries a packet from one NetNode to the next."""

    VETH = "veth"
    INFRA = "infra"
    EXTERNAL = "external"
    LOCAL = "local"


class ActionType(StrEnum):
    """What a NetNode did with the packet."""

    SEND = "send"
    FORWARD = "forward"
    SERVE = "serve"
    DROP = "drop"


class Hop(Struct, frozen=True, gc=False):
    """Which NetNode comes next."""

    type: NetNodeType
    id: str


class Link(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One crossing between two NetNodes: who, over what, with which packet. Attributes name the interfaces at both ends."""

    type: LinkType
    source: str
    destination: str
    packet: Packet
    source_attributes: dict[str, str] = {}
    destination_attributes: dict[str, str] = {}


class Transmission(Struct, frozen=True, gc=False, kw_only=True):
    """What `send` or `receive` of a NetNode gives: the next hop, and the link with the frame on it."""

    next_hop: Hop
    link: Link
    frame: Frame
    device: str = ""
    """Interface of the next hop on which the frame arrives ("" if not known)."""
    entry: str = ""
    """How it enters other than as a frame: `output` is sent by that namespace's stack, `socket` goes straight to a socket (ipvlan)."""


class Action(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """What a NetNode did with what came in over `input` (None: it began here)."""

    type: ActionType
    input: Link | None = None
    outputs: tuple[Link, ...] = ()


class NetNode(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A place in the path with what it did and what looks wrong there."""

    type: NetNodeType
    id: str
    netns: NetnsId | None = None
    actions: tuple[Action, ...] = ()
    suspicions: tuple[Suspicion, ...] = ()


class PacketPath(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """The graph of a diagnosis: nodes by id, links in the order in which they were first crossed."""

    nodes: tuple[NetNode, ...] = ()
    links: tuple[Link, ...] = ()
