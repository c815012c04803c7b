"""The packet as conditions look at it: header fields as numbers, and what rules before have changed.

One view belongs to one way through one table; a fork copies it. Numbers are taken out of the immutable packet once, because
a packet meets many conditions.
"""

from tasks.skoop.model.addr import ip_int
from tasks.skoop.model.packet import PROTOCOL_NUMBERS, CtState, Packet
from tasks.skoop.netstack.xtables.api import HookContext

TRACKED = frozenset((CtState.NEW, CtState.ESTABLISHED, CtState.RELATED))
"""States in which the packet carries a conntrack entry (`nf_ct_get` gives one)."""

OTHER_PROTOCOL = -1
"""Protocol number of a packet whose protocol has no name in the model."""


class PacketView:
    """Fields of the packet and of its hook; `mark`, `tos`, `ttl`, `connmark` and `packet` change as targets are met."""

    __slots__ = (
        "connmark",
        "context",
        "decided",
        "dport",
        "dst",
        "family",
        "in_dev",
        "mark",
        "out_dev",
        "packet",
        "protocol",
        "sport",
        "src",
    )

    def __init__(self, context: HookContext, family: int) -> None:
        packet = context.packet
        self.context = context
        self.family = family
        self.packet = packet
        self.src = ip_int(packet.src)
        self.dst = ip_int(packet.dst)
        self.protocol = PROTOCOL_NUMBERS.get(packet.protocol, OTHER_PROTOCOL)
        self.sport = packet.sport
        self.dport = packet.dport
        self.mark = packet.mark
        self.in_dev = context.in_dev
        self.out_dev = context.out_dev
        self.connmark = context.connection.mark
        self.decided: dict[str, bool] = {}

    def fork(self) -> "PacketView":
        """Return an independent copy."""
        twin = object.__new__(PacketView)
        for name in PacketView.__slots__:
            setattr(twin, name, getattr(self, name))
        twin.decided = dict(self.decided)
        return twin

    @property
    def tracked(self) -> bool:
        """Say whether the packet carries a conntrack entry here."""
        return self.packet.ct_state in TRACKED

    def change(self, **changes: object) -> Packet:
        """Change fields of the packet and return it."""
        self.packet = self.packet.with_(**changes)
        self.mark = self.packet.mark
        return self.packet
