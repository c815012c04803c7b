"""The packet as expressions look at it: header fields as numbers, and what statements before have changed.

One view belongs to one way through one base chain; a fork copies it.
"""

from tasks.skoop.model.addr import Ip, ip_int
from tasks.skoop.model.packet import PROTOCOL_NUMBERS, CtState
from tasks.skoop.netstack.nftables.datatypes import name_number
from tasks.skoop.netstack.xtables.api import HookContext

TRACKED = frozenset((CtState.NEW, CtState.ESTABLISHED, CtState.RELATED))
"""States in which the packet carries a conntrack entry (`nf_ct_get` gives one)."""

OTHER_PROTOCOL = -1
"""Protocol number of a packet whose protocol has no name in the model."""

NO_IP, NO_TRANSPORT = 0, -2
"""Version and protocol number of a frame that carries no IP packet (ARP)."""


class PacketView:
    """Fields of the packet and of its hook; `change` and the statements' own fields are what ways differ in.

    `decided` are answers given to uncertain conditions, `drawn` lots drawn for the statement at hand, `hashed` those
    that stay; `listed` what statements have put into sets (True) or taken out (False): (set, element) → there.
    `template`: `ct zone set` has put a template in the place of a connection, of which there is nothing to ask but its
    state, which is `new`.
    """

    __slots__ = (
        "connmark",
        "context",
        "decided",
        "dport",
        "drawn",
        "dst",
        "hashed",
        "in_dev",
        "listed",
        "mark",
        "out_dev",
        "packet",
        "protocol",
        "sport",
        "src",
        "template",
        "version",
    )

    def __init__(self, context: HookContext) -> None:
        packet = context.packet
        self.context = context
        self.packet = packet
        self.version = packet.version if context.arp is None else NO_IP
        self.src = ip_int(packet.src)
        self.dst = ip_int(packet.dst)
        self.protocol = PROTOCOL_NUMBERS.get(packet.protocol, OTHER_PROTOCOL) if self.version else NO_TRANSPORT
        self.sport = packet.sport
        self.dport = packet.dport
        self.mark = packet.mark
        self.in_dev = name_number(context.in_dev)
        self.out_dev = name_number(context.out_dev)
        self.connmark = context.connection.mark
        self.decided: dict[str, bool] = {}
        self.drawn: dict[str, int] = {}
        self.hashed: dict[str, int] = {}
        self.listed: dict[tuple[str, object], bool] = {}
        self.template = False

    def fork(self) -> "PacketView":
        """Return an independent copy."""
        twin = object.__new__(PacketView)
        for name in PacketView.__slots__:
            setattr(twin, name, getattr(self, name))
        twin.decided, twin.drawn, twin.hashed = dict(self.decided), dict(self.drawn), dict(self.hashed)
        twin.listed = dict(self.listed)
        return twin

    @property
    def tracked(self) -> bool:
        """Say whether the packet carries a conntrack entry here."""
        return self.packet.ct_state in TRACKED

    def change(self, **changes: object) -> None:
        """Change fields of the packet."""
        packet = self.packet = self.packet.with_(**changes)
        self.mark = packet.mark
        self.src, self.dst = ip_int(Ip(packet.src)), ip_int(Ip(packet.dst))
        self.sport, self.dport = packet.sport, packet.dport
