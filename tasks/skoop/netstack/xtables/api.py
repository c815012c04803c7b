"""What the packet filter is asked and what it answers: the seam between the walk and the rule engine.

One call evaluates one table at one hook for one packet, as the kernel's `ipt_do_table` does, and returns every way it can go.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol as Interface

from msgspec import Struct

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.packet import Packet
from tasks.skoop.model.state import Tuple
from tasks.skoop.model.trace import Step


class Hook(StrEnum):
    """The five hooks of the IP families."""

    PREROUTING = "PREROUTING"
    INPUT = "INPUT"
    FORWARD = "FORWARD"
    OUTPUT = "OUTPUT"
    POSTROUTING = "POSTROUTING"


class Verdict(StrEnum):
    """What a table says about a packet. UNKNOWN: it hangs on something that is not known."""

    ACCEPT = "ACCEPT"
    DROP = "DROP"
    REJECT = "REJECT"
    UNKNOWN = "UNKNOWN"


class NatKind(StrEnum):
    """What a nat rule does."""

    DNAT = "dnat"
    SNAT = "snat"
    MASQUERADE = "masquerade"
    REDIRECT = "redirect"
    NETMAP = "netmap"


class NatAction(Struct, frozen=True, gc=False, kw_only=True):
    """A translation that a rule asks for.

    `addresses` are (first, last) of each address range ((), for MASQUERADE and REDIRECT); `ports` (first, last) or None; `random`: the
    port (ICMP: the identifier) is drawn even where the old one is free.
    """

    kind: NatKind
    addresses: tuple[tuple[Ip, Ip], ...] = ()
    ports: tuple[int, int] | None = None
    random: bool = False


class ConnectionView(Struct, frozen=True, gc=False, kw_only=True):
    """What rules may ask of the packet's connection. `status` holds SNAT, DNAT, SEEN_REPLY, ASSURED, CONFIRMED, EXPECTED."""

    original: Tuple | None = None
    reply: Tuple | None = None
    is_reply: bool = False
    status: frozenset[str] = frozenset()
    mark: int = 0
    zone: int = 0


class Facts(Interface):
    """What matches need to know of the namespace beyond the packet (the walk implements it)."""

    def address_type(self, ip: Ip, dev: str | None) -> str:
        """Return the kernel's type of an address by its FIB: UNICAST, LOCAL, BROADCAST, ANYCAST, MULTICAST, BLACKHOLE,
        UNREACHABLE, PROHIBIT, THROW; UNSPEC for the unspecified address. `dev` limits LOCAL to that interface.
        """

    def reverse_path_ok(self, packet: Packet, dev: str, *, loose: bool, validmark: bool, accept_local: bool) -> bool:
        """Return what `-m rpfilter` would find for a packet that came in on `dev`."""

    def has_socket(self, packet: Packet, *, transparent: bool, wildcard: bool) -> bool | None:
        """Return whether a local socket would take the packet (`-m socket`); None if sockets were not collected."""


class Arp(Struct, frozen=True, gc=False, kw_only=True):
    """What a frame of ARP says: `operation` 1 asks, 2 answers; the addresses of who says it and of whom it is about."""

    operation: int
    sender: Ip | None
    target: Ip
    sender_mac: str = ""
    target_mac: str = ""


class SentBy(StrEnum):
    """Whose socket sent a packet (skb->sk): none of this host's where it only passes, or is a RST that REJECT made."""

    NOBODY = "nobody"
    KERNEL = "kernel"
    """A socket without a file: ICMP errors, RSTs, answers to pings."""
    PROCESS = "process"


class HookContext(Struct, frozen=True, gc=False, kw_only=True):
    """Everything a table sees at a hook. Devices are "" where the hook has none; `phys_in`/`phys_out` are bridge ports.

    Since Linux 5.7 POSTROUTING has the input device of a forwarded packet as well (ip_output, ip6_output).
    """

    netns: NetnsId
    hook: Hook
    packet: Packet
    facts: Facts
    in_dev: str = ""
    out_dev: str = ""
    phys_in: str = ""
    phys_out: str = ""
    connection: ConnectionView = ConnectionView()
    sent_by: SentBy = SentBy.PROCESS
    local_uid: int | None = None
    """Of the process that sent it; None: not known."""
    local_gid: int | None = None
    mac: str = ""
    """Source MAC of the frame, for `-m mac`; "" where it has none."""
    dst_mac: str = ""
    """Destination MAC of the frame where the hook is below the IP layer."""
    pkttype: int | None = None
    """The frame's type (PACKET_HOST …) where the hook is below the IP layer."""
    nfproto: int = 0
    """The family that `meta nfproto` sees there; 0: that of the packet."""
    arp: Arp | None = None
    """Set where the frame carries ARP: then `packet` only stands for it, and has no header that could be matched."""


class TableResult(Struct, frozen=True, gc=False, kw_only=True):
    """One way through the table.

    `packet` carries changed mark, TTL, DSCP. `steps` name every rule that matched and the policy that decided, in order.
    `reject` is the `--reject-with` word (without it: icmp-port-unreachable / icmp6-port-unreachable). `connmark` is the new
    connection mark or None. `notrack` for NOTRACK / CT --notrack; `zone` for CT --zone. `missing` says, for UNKNOWN or for a
    way that took a guess, what was not known. `branches` records which uncertain matches were taken, as (place text, taken).
    `assumed` lists what was taken for granted about matches that hang on the moment (a rate limit with tokens left).
    """

    verdict: Verdict
    packet: Packet
    probability: float = 1.0
    steps: tuple[Step, ...] = ()
    nat: NatAction | None = None
    reject: str = ""
    notrack: bool = False
    zone: int | None = None
    connmark: int | None = None
    tproxy: tuple[Ip, int] | None = None
    missing: tuple[str, ...] = ()
    branches: tuple[tuple[str, bool], ...] = ()
    assumed: tuple[str, ...] = ()


class CompiledTable(Interface):
    """One table, ready to evaluate."""

    name: str
    family: int
    backend: str

    def has_chain(self, hook: Hook) -> bool:
        """Say whether the table has a built-in chain at this hook with a rule in it or a policy other than ACCEPT."""

    def evaluate(self, context: HookContext) -> tuple[TableResult, ...]:
        """Return every way through the table at this hook; probabilities add up to 1."""


class CompiledTables(Interface):
    """All tables of a namespace, by family, in the order in which they run at a hook is the walk's matter."""

    tables: Mapping[tuple[int, str], tuple[CompiledTable, ...]]
    """(family, table name) → the compiled tables of that name, one per back end, in the order collected."""

    needs_conntrack: Mapping[int, bool]
    """Family → whether any rule of any table makes the kernel track connections (docs/kernel.md, Connection tracking)."""
