"""Does IPVS look at a packet at all, does it drop new connections under load, and which servers may be full?

Follows sysctl_backup_only, ip_vs_todrop, is_new_conn_expected (include/net/ip_vs.h, net/netfilter/ipvs/ip_vs_core.c), update_defense_level
(ip_vs_ctl.c) and the schedulers' IP_VS_DEST_F_OVERLOAD. drop_entry decides nothing here: it throws out idle entries of old connections
only (todrop_entry, ip_vs_conn.c), and no entry younger than 60 seconds.
"""

from tasks.skoop.model.packet import Packet, Protocol, TcpFlags
from tasks.skoop.model.state import IpvsConnection, IpvsDestination
from tasks.skoop.netstack.namespace import Namespace

_VS = "net/ipv4/vs"
_OVER = ("TIME_WAIT", "CLOSE")
_DROP_RATE = 10


def may_stand_aside(ns: Namespace) -> str:
    """Return what would have to be known where IPVS may let everything pass, or "".

    With backup_only=1 a host whose synchronisation daemon runs as backup does; whether one runs is in no dump.
    """
    return (
        "whether its IPVS synchronisation daemon is a backup (backup_only=1)" if ns.sysctl(f"{_VS}/backup_only") else ""
    )


def dropped_share(ns: Namespace) -> float | None:
    """Return which share of the packets that begin connections is dropped; None where that hangs on the host's memory."""
    match ns.sysctl(f"{_VS}/drop_packet"):
        case 3:
            rate = ns.sysctl(f"{_VS}/am_droprate", _DROP_RATE)
            return 1 / rate if rate > 0 else 0.0
        case 2:
            return None
        case _:  # automatic, and memory was not low when it was asked: else it would stand at 2
            return 0.0


def begins_anew(ns: Namespace, entry: IpvsConnection, method: str, packet: Packet, *, persistent: bool) -> bool:
    """Say whether a SYN for an old connection is scheduled anew (conn_reuse_mode)."""
    mode = ns.sysctl(f"{_VS}/conn_reuse_mode", 1)
    if not mode or persistent or packet.protocol != Protocol.TCP or packet.tcp_flags != TcpFlags.SYN:
        return False
    return entry.state in _OVER or bool(mode & 2 and entry.state == "FIN_WAIT" and method != "masq")


def may_be_full(servers: tuple[IpvsDestination, ...]) -> str:
    """Return which of the servers has a threshold of connections, or "": how many it has now is not known."""
    limited = next((server for server in servers if server.upper_connections), None)
    return f"whether {limited.ip}:{limited.port} has {limited.upper_connections} connections" if limited else ""
