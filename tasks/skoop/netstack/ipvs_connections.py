"""Which virtual service is a packet for, and which connections and persistence templates of IPVS were there when it was collected?

Follows ip_vs_service_find (net/netfilter/ipvs/ip_vs_ctl.c), ip_vs_conn_in_get, ip_vs_ct_in_get (ip_vs_conn.c).
"""

from tasks.skoop.model.packet import Packet, Protocol
from tasks.skoop.model.state import IpvsConnection, IpvsDestination, IpvsService, Tuple
from tasks.skoop.netstack import conntrack
from tasks.skoop.netstack.conntrack import Conn
from tasks.skoop.netstack.ipvs_load import begins_anew
from tasks.skoop.netstack.ipvs_scheduler import group_of
from tasks.skoop.netstack.namespace import Namespace

_VS = "net/ipv4/vs"


class IpvsConn(Conn, frozen=True, kw_only=True):
    """A connection of IPVS: `original` is client to virtual address, `reply` real server to client.

    `method` as IpvsDestination has it; `tracked`: made under net.ipv4.vs.conntrack=1, so that its packets stay with conntrack.
    """

    method: str = "masq"
    encapsulation: str = "ipip"
    tracked: bool = False
    vanished: bool = False
    """Its real server is no longer one of the service's."""

    @property
    def answer(self) -> Tuple:
        """What an answer looks like when it gets here: only a masqueraded one bears the real server's address."""
        return self.reply if self.method == "masq" else conntrack.inverted(self.original)


def find_service(services: tuple[IpvsService, ...], packet: Packet) -> IpvsService | None:
    """Return the virtual service of a packet, or None (ip_vs_service_find): by mark, by address and port, by address alone."""
    family = packet.version
    if packet.mark:
        for service in services:
            if service.fwmark == packet.mark and (service.family or 4) == family:
                return service
    for port in (packet.dport, 0):
        for service in services:
            if (service.protocol, service.ip, service.port) == (packet.protocol, packet.dst, port):
                return service
    return None


def template(ns: Namespace, service: IpvsService, packet: Packet) -> IpvsDestination | None:
    """Return the real server that a persistent service has already bound this client to, or None (ip_vs_sched_persist)."""
    if not service.persistent_s:
        return None
    client = group_of(packet.src, service.netmask)
    for entry in ns.state.ipvs_connections:
        fits = entry.client_port == 0 and entry.client == client
        if fits and _is_template_of(entry, service, packet):
            server = next((s for s in service.destinations if (s.ip, s.port) == (entry.ip, entry.port)), None)
            if server is None or (server.weight == 0 and ns.sysctl(f"{_VS}/expire_quiescent_template")):
                return None
            return server
    return None


def _is_template_of(entry: IpvsConnection, service: IpvsService, packet: Packet) -> bool:
    if service.fwmark:
        return entry.protocol == Protocol.OTHER and entry.virtual in (
            f"0.0.0.{service.fwmark}",
            f"::{service.fwmark:x}",
        )
    return (entry.protocol, entry.virtual, entry.virtual_port) == (packet.protocol, packet.dst, service.port)


def collected(ns: Namespace, packet: Packet) -> IpvsConn | None:
    """Return the connection of IPVS's own table that a packet belongs to, or None."""
    for entry in ns.state.ipvs_connections:
        original = Tuple(entry.client, entry.virtual, entry.client_port, entry.virtual_port)
        if entry.protocol == packet.protocol and original == conntrack.tuple_of(packet):
            service = find_service(ns.state.ipvs, packet)
            servers = service.destinations if service else ()
            server = next((one for one in servers if (one.ip, one.port) == (entry.ip, entry.port)), None)
            method, persistent = server.method if server else "masq", bool(service and service.persistent_s)
            if begins_anew(ns, entry, method, packet, persistent=persistent):
                return None
            return IpvsConn(
                protocol=entry.protocol,
                original=original,
                reply=Tuple(entry.ip, entry.client, entry.port, entry.client_port),
                method=method,
                tracked=bool(ns.sysctl(f"{_VS}/conntrack")),
                vanished=server is None,
            )
    return None
