"""What looks wrong: a claim with its place, its evidence and, where it can be mended, the remedy."""

from enum import StrEnum

from msgspec import Struct

from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.state import Address, FdbEntry, NeighbourState, Route, Socket
from tasks.skoop.model.trace import Place


class Level(StrEnum):
    """How bad: fatal stops this traffic, critical stops some, warning may, info is good to know."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"
    FATAL = "fatal"


class SetSysctl(Struct, frozen=True, gc=False, tag="sysctl", kw_only=True):
    """Write a sysctl; `key` is the path below /proc/sys."""

    netns: NetnsId
    key: str
    value: str


class DeleteRule(Struct, frozen=True, gc=False, tag="delete-rule", kw_only=True):
    """Remove one iptables rule, by position (from 1) and text (both must agree)."""

    netns: NetnsId
    backend: str
    family: int
    table: str
    chain: str
    rule: int
    raw: str


class InsertRule(Struct, frozen=True, gc=False, tag="insert-rule", kw_only=True):
    """Insert an iptables rule (text after `-A CHAIN `) before position `rule` (from 1; 0 appends)."""

    netns: NetnsId
    backend: str
    family: int
    table: str
    chain: str
    rule: int
    raw: str


class AddChain(Struct, frozen=True, gc=False, tag="add-chain", kw_only=True):
    """Make a user's chain, unless there is one of that name."""

    netns: NetnsId
    backend: str
    family: int
    table: str
    chain: str


class SetPolicy(Struct, frozen=True, gc=False, tag="set-policy", kw_only=True):
    """Set the policy of a built-in chain."""

    netns: NetnsId
    backend: str
    family: int
    table: str
    chain: str
    policy: str


class AddRoute(Struct, frozen=True, gc=False, tag="add-route", kw_only=True):
    """Add or replace a route."""

    netns: NetnsId
    route: Route


class DeleteRoute(Struct, frozen=True, gc=False, tag="delete-route", kw_only=True):
    """Remove a route."""

    netns: NetnsId
    route: Route


class DeletePolicyRule(Struct, frozen=True, gc=False, tag="delete-ip-rule", kw_only=True):
    """Remove the `ip rule` of that family, priority and table."""

    netns: NetnsId
    family: int
    priority: int
    table: int


class SetLink(Struct, frozen=True, gc=False, tag="set-link", kw_only=True, omit_defaults=True):
    """Change a link: what is None stays."""

    netns: NetnsId
    dev: str
    up: bool | None = None
    mtu: int | None = None
    master: str | None = None
    hairpin: bool | None = None
    isolated: bool | None = None
    port_state: str | None = None
    """State of a bridge port: forwarding, blocking …"""


class AddAddress(Struct, frozen=True, gc=False, tag="add-address", kw_only=True):
    """Give an interface an address."""

    netns: NetnsId
    dev: str
    address: Address


class SetNeighbour(Struct, frozen=True, gc=False, tag="set-neighbour", kw_only=True):
    """Add, replace or (`mac` None) remove a neighbour entry."""

    netns: NetnsId
    ip: str
    dev: str
    mac: str | None
    state: NeighbourState = NeighbourState.PERMANENT


class SetFdb(Struct, frozen=True, gc=False, tag="set-fdb", kw_only=True):
    """Add or replace a forwarding entry (same MAC and device), or remove it."""

    netns: NetnsId
    entry: FdbEntry
    remove: bool = False


class AddSocket(Struct, frozen=True, gc=False, tag="add-socket", kw_only=True):
    """Let somebody listen: the application's matter, stated so that the claim can be tested."""

    netns: NetnsId
    socket: Socket


class AcceptConnections(Struct, frozen=True, gc=False, tag="accept-connections", kw_only=True):
    """Let the listener on a port accept what waits in its queue: the application's matter, stated to test the claim."""

    netns: NetnsId
    port: int


class FlushConntrack(Struct, frozen=True, gc=False, tag="flush-conntrack", kw_only=True):
    """Forget the entries whose original destination is this."""

    netns: NetnsId
    dst: str
    dport: int


class ForgetPathMtu(Struct, frozen=True, gc=False, tag="forget-path-mtu", kw_only=True):
    """Forget the path MTUs that were learnt from ICMP errors (else they stay for ten minutes)."""

    netns: NetnsId


Change = (
    SetSysctl
    | DeleteRule
    | InsertRule
    | AddChain
    | SetPolicy
    | AddRoute
    | DeleteRoute
    | DeletePolicyRule
    | SetLink
    | AddAddress
    | SetNeighbour
    | SetFdb
    | AddSocket
    | AcceptConnections
    | FlushConntrack
    | ForgetPathMtu
)


class Remedy(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """What mends it: the change of state, for the proof; `commands` that a person would type, each with its host; `advice`."""

    changes: tuple[Change, ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
    advice: str = ""


class Evidence(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """What was seen, what was expected, and the line of the dump that shows it."""

    seen: str = ""
    expected: str = ""
    line: str = ""
    digest: str = ""


class Suspicion(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One thing that looks wrong. `code` is stable (`KP-ROUTE-003`); `subject` is the NetNode's id (its namespace)."""

    level: Level
    message: str
    code: str = ""
    subject: str = ""
    place: Place | None = None
    evidence: tuple[Evidence, ...] = ()
    remedy: Remedy | None = None
    confirmed: bool = False
