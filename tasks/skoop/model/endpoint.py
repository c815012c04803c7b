"""The two ends of a question: who wants to reach whom, on what."""

from enum import StrEnum

from msgspec import Struct

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.packet import Protocol


class EndpointType(StrEnum):
    """What an address belongs to."""

    POD = "pod"
    NODE = "node"
    SERVICE = "service"
    LOADBALANCER = "loadbalancer"
    EXTERNAL = "external"


class Endpoint(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One end of a connection: address, type, port (0 = any), the object's name and its network namespace if it has one.

    `uid` and `gid` are those of the process that asks there; None: not known, so that rules on owners are open.
    """

    ip: Ip
    type: EndpointType = EndpointType.EXTERNAL
    port: int = 0
    name: str = ""
    netns: NetnsId | None = None
    uid: int | None = None
    gid: int | None = None


class Question(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """May `src` open a connection to `dst`?

    `sport` 0 means an ephemeral port that no old conntrack entry knows. `payload_bytes` is what each side sends at least
    once after the connection stands (TCP) or in the one datagram (UDP, ICMP); `df` forbids fragmenting that datagram. `tos` is the
    TOS octet (IPv6: traffic class) that the client asks for.
    """

    src: Endpoint
    dst: Endpoint
    protocol: Protocol = Protocol.TCP
    sport: int = 0
    payload_bytes: int = 0
    df: bool = False
    tos: int = 0
