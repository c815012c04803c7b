"""The collected state of one network namespace: what the kernel would look at when it decides about a packet.

Names of interfaces are the kernel's; addresses are canonical text (`addr`). A part that could not be read is not empty but
named in `NetNS.missing`, and the simulator answers `unknown` when it would have needed it.
"""

from enum import StrEnum

from msgspec import Struct

from tasks.skoop.model.addr import Ip, Mac, Net
from tasks.skoop.model.ids import NetnsId
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.xtables import XTable


class Section(StrEnum):
    """The parts of a NetNS that are collected, stored and missed one by one."""

    LINKS = "links"
    ROUTES = "routes"
    RULES = "rules"
    NEIGHBOURS = "neighbours"
    FDB = "fdb"
    SOCKETS = "sockets"
    CONNTRACK = "conntrack"
    SYSCTLS = "sysctls"
    IPTABLES = "iptables"
    NFT = "nft"
    IPSETS = "ipsets"
    IPVS = "ipvs"
    ROUTE_EXCEPTIONS = "route-exceptions"


class Missing(Struct, frozen=True, gc=False, kw_only=True):
    """A section that could not be collected, and why."""

    section: Section
    reason: str


class Address(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """An address of an interface. `scope` is global, site, link or host. `tentative`/`dadfailed` addresses do not answer.

    `optimistic` ones do while they are tentative; `temporary` (RFC 8981) matters to IPv6's choice of a source.
    """

    ip: Ip
    prefixlen: int
    scope: str = "global"
    peer: Ip | None = None
    broadcast: Ip | None = None
    secondary: bool = False
    deprecated: bool = False
    tentative: bool = False
    dadfailed: bool = False
    noprefixroute: bool = False
    temporary: bool = False
    optimistic: bool = False


class Vxlan(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Settings of a vxlan device. `df` is unset, set or inherit; `external` means collect-metadata mode."""

    vni: int
    local: Ip | None = None
    group: Ip | None = None
    link: str | None = None
    port: int = 8472
    learning: bool = True
    ttl: int = 0
    df: str = "unset"
    external: bool = False
    udp_csum: bool = True


class Bridge(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Settings of a bridge. `nf_call_*` are its own, ORed with the namespace's sysctls."""

    stp: bool = False
    vlan_filtering: bool = False
    nf_call_iptables: bool = False
    nf_call_ip6tables: bool = False
    nf_call_arptables: bool = False


class BridgePort(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Settings of a bridge port. `state`: disabled, blocking, listening, learning, forwarding."""

    state: str = "forwarding"
    hairpin: bool = False
    isolated: bool = False
    learning: bool = True
    flood: bool = True
    bcast_flood: bool = True
    mcast_flood: bool = True
    locked: bool = False


class PortVlan(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A VLAN that a port of a bridge, or the bridge itself, belongs to; `pvid`: what untagged frames that come in belong to."""

    vid: int
    pvid: bool = False
    untagged: bool = False


class Tunnel(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Settings of an IP tunnel (ipip, sit, gre, gretap, ip6tnl, ip6gre, geneve) beyond its two ends.

    `ttl` 0 is inherited from the inner packet. `proto` is what it carries where its kind leaves that open (`ipip6`, `any`);
    keys are None where the tunnel has none; `encap_limit` -1: no such option is added (IPv6 outside only). `vni` and `port` are
    geneve's. `encap` is `none`, or what is put round it once more (`fou`, `gue`).
    """

    ttl: int = 0
    pmtudisc: bool = True
    ignore_df: bool = False
    proto: str = ""
    link: str | None = None
    ikey: int | None = None
    okey: int | None = None
    icsum: bool = False
    ocsum: bool = False
    oseq: bool = False
    encap_limit: int = -1
    fwmark: int = 0
    external: bool = False
    encap: str = "none"
    vni: int = 0
    port: int = 0
    df: str = "unset"


class WireGuardPeer(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One peer of a wireguard device. `endpoint` None: not known yet. `allowed_ips` are what goes to it and may come from it."""

    public_key: str
    endpoint: Ip | None = None
    endpoint_port: int = 0
    allowed_ips: tuple[Net, ...] = ()
    keepalive_s: int = 0
    handshake: bool = False


class WireGuard(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Settings of a wireguard device. No private or preshared key is ever collected."""

    public_key: str
    port: int = 0
    fwmark: int = 0
    peers: tuple[WireGuardPeer, ...] = ()


class Interface(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One network device.

    `kind` is the rtnetlink kind (veth, bridge, vxlan, dummy, vlan, ipip, …; "" for a physical one, "loopback" for lo).
    `peer_index`/`peer_nsid` come with a veth: the ifindex at the other end and the netnsid that this namespace has for the
    other's (None: none assigned). `peer` is that end resolved by the collector: (namespace, interface name).
    `up` is the administrative state, `carrier` LOWER_UP; `noarp` IFF_NOARP. `lower` is the device a vlan/macvlan/ipvlan sits on;
    where that is in another namespace, `lower_index` and `lower_nsid` are as for a veth and `lower_at` is it, resolved.
    `mode` is that of a macvlan, ipvlan, bond or team. `vlans` are those of a bridge or its port (None: not collected).
    `active_slave` is the one that an active-backup bond or team sends by; `slave_active`: this slave is one that carries frames.
    """

    index: int
    name: str
    kind: str = ""
    up: bool = True
    carrier: bool = True
    mtu: int = 1500
    mac: Mac = Mac("")
    noarp: bool = False
    promisc: bool = False
    operstate: str = "UNKNOWN"
    master: str | None = None
    lower: str | None = None
    peer_index: int | None = None
    peer_nsid: int | None = None
    peer: tuple[NetnsId, str] | None = None
    addresses: tuple[Address, ...] = ()
    vxlan: Vxlan | None = None
    bridge: Bridge | None = None
    port: BridgePort | None = None
    vlan_id: int | None = None
    tunnel_local: Ip | None = None
    tunnel_remote: Ip | None = None
    vrf_table: int | None = None
    group: str = "default"
    mode: str = ""
    vlan_protocol: str = "802.1Q"
    vlans: tuple[PortVlan, ...] | None = None
    tunnel: Tunnel | None = None
    wireguard: WireGuard | None = None
    active_slave: str | None = None
    slave_active: bool = True
    lower_index: int | None = None
    lower_nsid: int | None = None
    lower_at: tuple[NetnsId, str] | None = None


class NextHop(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One leg of a route. `via` None means the destination is on the link. `via` may be IPv6 for an IPv4 route."""

    dev: str | None = None
    via: Ip | None = None
    weight: int = 1
    onlink: bool = False
    dead: bool = False
    linkdown: bool = False


class Route(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One route of one table. `type`: unicast, local, broadcast, anycast, multicast, unreachable, blackhole, prohibit, throw.

    `scope` is global (universe), site, link, host or nowhere; `mtu` 0 means none set.
    """

    dst: Net
    table: int = 254
    type: str = "unicast"
    nexthops: tuple[NextHop, ...] = ()
    prefsrc: Ip | None = None
    src: Net | None = None
    scope: str = "global"
    protocol: str = ""
    metric: int = 0
    tos: int = 0
    mtu: int = 0
    mtu_locked: bool = False
    preference: str = "medium"
    """IPv6's preference among routers (RFC 4191): low, medium or high."""
    nhid: int = 0
    """The nexthop object that it goes by; its legs are `nexthops` all the same where the kernel wrote them out."""


class NextHopObject(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One `ip nexthop`: a leg, a group of others by (id, weight), or `blackhole`; `fdb`: for vxlan's forwarding entries."""

    id: int
    nexthop: NextHop | None = None
    group: tuple[tuple[int, int], ...] = ()
    blackhole: bool = False
    fdb: bool = False


class PolicyRule(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One `ip rule`. Ranges are (first, last), inclusive. `action`: lookup, goto, nop, blackhole, unreachable, prohibit."""

    family: int
    priority: int
    table: int = 0
    action: str = "lookup"
    goto: int = 0
    invert: bool = False
    src: Net | None = None
    dst: Net | None = None
    iif: str | None = None
    oif: str | None = None
    fwmark: int = 0
    fwmask: int = 0
    tos: int = 0
    protocol: Protocol | None = None
    sports: tuple[int, int] | None = None
    dports: tuple[int, int] | None = None
    uids: tuple[int, int] | None = None
    l3mdev: bool = False
    suppress_prefixlength: int = -1
    suppress_ifgroup: int = -1


class NeighbourState(StrEnum):
    """States of a neighbour entry (NUD_*); `NONE` for one without."""

    NONE = "NONE"
    PERMANENT = "PERMANENT"
    NOARP = "NOARP"
    REACHABLE = "REACHABLE"
    STALE = "STALE"
    DELAY = "DELAY"
    PROBE = "PROBE"
    FAILED = "FAILED"
    INCOMPLETE = "INCOMPLETE"


class Neighbour(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One ARP or ND entry; `proxy` entries are `ip neigh add proxy`."""

    ip: Ip
    dev: str
    mac: Mac | None = None
    state: NeighbourState = NeighbourState.NONE
    proxy: bool = False
    router: bool = False


class FdbEntry(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One forwarding entry of a bridge (`master` set) or of a device (`self`): for vxlan `dst` is the remote VTEP.

    `permanent` entries of a bridge whose MAC is the port's own mean "to the bridge itself"; `static` ones never move.
    """

    mac: Mac
    dev: str
    master: str | None = None
    dst: Ip | None = None
    port: int | None = None
    vni: int | None = None
    vlan: int | None = None
    permanent: bool = False
    static: bool = False
    sticky: bool = False
    nhid: int = 0


class Socket(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A socket that can receive: a TCP listener, or a bound UDP/raw socket.

    `ip` is the bound address, 0.0.0.0 or :: for any; `v6only` matters for ::. `dev` is SO_BINDTODEVICE. `recv_queue` and
    `backlog` are a listener's accept queue: its length now and its limit. `peer`/`peer_port` are set for a connected socket.
    """

    protocol: Protocol
    ip: Ip
    port: int
    state: str = "LISTEN"
    dev: str | None = None
    v6only: bool = False
    recv_queue: int = 0
    backlog: int = 0
    peer: Ip | None = None
    peer_port: int = 0
    process: str = ""
    uid: int | None = None
    """User of its process; None: not told."""


class Tuple(Struct, frozen=True, gc=False, array_like=True):
    """One direction of a conntrack entry. For ICMP echo both ports are the identifier."""

    src: Ip
    dst: Ip
    sport: int
    dport: int


class ConntrackEntry(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One tracked connection, both directions. `state` is the TCP state or ""; timeouts are in seconds."""

    protocol: Protocol
    original: Tuple
    reply: Tuple
    state: str = ""
    replied: bool = True
    assured: bool = False
    mark: int = 0
    zone: int = 0
    timeout_s: int = 0


class IpSetEntry(Struct, frozen=True, gc=False, array_like=True):
    """One element as `ipset save` prints it (`10.0.0.0/8`, `10.0.0.1,tcp:80`, `10.0.0.0/8,eth wildcard`, …)."""

    text: str
    nomatch: bool = False


class IpSet(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One ipset: `type` is `hash:net`, `bitmap:port`, `list:set`, …; family 4 or 6 (0 where it has none).

    `netmask` (a prefix length, or a mask in the form of an address) and `markmask` (0: all bits) are laid on what a packet
    has before it is looked up.
    """

    name: str
    type: str
    family: int = 4
    entries: tuple[IpSetEntry, ...] = ()
    netmask: str = ""
    markmask: int = 0


class NftTable(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One native nftables table: `family` is ip, ip6, inet, arp, bridge or netdev. Tables that iptables-nft owns are not here.

    `objects` is the JSON text of each object that `nft -j list table` gives (chain, set, map, element, rule …), in order.
    `hooks` are its base chains: (chain, type, hook, priority, policy).
    """

    family: str
    name: str
    objects: tuple[str, ...] = ()
    hooks: tuple[tuple[str, str, str, int, str], ...] = ()


class IpvsDestination(Struct, frozen=True, gc=False, array_like=True):
    """One real server: address, port, forwarding method (masq, tunnel, route), weight.

    `encapsulation` is that of a tunnel: ipip (also for IPv6), gue or gre.
    """

    ip: Ip
    port: int
    method: str = "masq"
    weight: int = 1
    encapsulation: str = "ipip"
    upper_connections: int = 0
    """Threshold from which on it gets no new connections; 0: none, or not told."""


class IpvsService(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One virtual service of IPVS; `fwmark` is set instead of address and port where the service is by mark.

    `family` is 4 or 6, and is told here for services by mark (0: by `ip`). `netmask` groups the clients of a persistent service
    (a mask or a prefix length; "" for each by itself). `flags`: ops (one packet), and the scheduler's own (sh-fallback,
    sh-port, mh-fallback, mh-port, flag-1 …). `ordered`: the destinations stand in the kernel's own order, not in that of a tool.
    """

    protocol: Protocol = Protocol.TCP
    ip: Ip | None = None
    port: int = 0
    fwmark: int = 0
    family: int = 0
    scheduler: str = "rr"
    persistent_s: int = 0
    netmask: str = ""
    flags: tuple[str, ...] = ()
    ordered: bool = False
    destinations: tuple[IpvsDestination, ...] = ()


class IpvsConnection(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One entry of IPVS's own connection table; a persistence template has client port 0.

    A template's client is the masked address; its virtual port is 0 where the service has no port or is by mark (then the
    virtual address is 0.0.0.<mark>, as the kernel prints it).
    """

    protocol: Protocol
    client: Ip
    client_port: int
    virtual: Ip
    virtual_port: int
    ip: Ip
    port: int
    state: str = ""
    expires_s: int = 0


class RouteException(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A cached path MTU or redirect (`ip route show cache`)."""

    dst: Ip
    dev: str | None = None
    via: Ip | None = None
    mtu: int = 0
    expires_s: int = 0


class NetNS(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Everything collected from one network namespace.

    `sysctls` maps the path below /proc/sys, with slashes, to the value's text: `net/ipv4/conf/flannel.1/rp_filter`.
    `host_sysctls` of the same form are those that only the initial namespace has. `complete` sections are those not in `missing`.
    """

    id: NetnsId
    interfaces: tuple[Interface, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[PolicyRule, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    fdb: tuple[FdbEntry, ...] = ()
    sockets: tuple[Socket, ...] = ()
    conntrack: tuple[ConntrackEntry, ...] = ()
    sysctls: dict[str, str] = {}
    tables: tuple[XTable, ...] = ()
    nft: tuple[NftTable, ...] = ()
    ipsets: tuple[IpSet, ...] = ()
    ipvs: tuple[IpvsService, ...] = ()
    ipvs_connections: tuple[IpvsConnection, ...] = ()
    route_exceptions: tuple[RouteException, ...] = ()
    missing: tuple[Missing, ...] = ()
    nexthops: tuple[NextHopObject, ...] = ()

    def lacks(self, section: Section) -> str | None:
        """Return why a section is missing, or None if it was collected."""
        for gap in self.missing:
            if gap.section == section:
                return gap.reason
        return None

    def interface(self, name: str) -> Interface | None:
        """Return the interface of that name."""
        return next((link for link in self.interfaces if link.name == name), None)
