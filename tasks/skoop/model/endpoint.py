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


class Endpoint(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One end of a connection: address, type, port (0 = any), the object's name and its network namespace if it has one."""

    ip: Ip
    type: EndpointType = EndpointType.EXTERNAL
    port: int = 0
    name: str = ""
    netns: NetnsId | None = None


class Question(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """May `src` open a connection to `dst`?

    `sport` 0 means an ephemeral port that no old conntrack entry knows. `payload_bytes` is what each side sends at least
    once after the connection stands (TCP) or in the one datagram (UDP, ICMP); `df` forbids fragmenting that datagram.
    `uid` is the user whose program asks: `-m owner`, `meta skuid` and `ip rule … uidrange` look at it.
    """

    src: Endpoint
    dst: Endpoint
    protocol: Protocol = Protocol.TCP
    sport: int = 0
    payload_bytes: int = 0
    df: bool = False
    uid: int = 0
